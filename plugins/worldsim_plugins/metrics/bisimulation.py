"""The bisimulation metric of a finite Markov decision process: how different two states are by what follows.

    d(s, t) = max over a of  (1 - c) |r(s, a) - r(t, a)| + c W1_d(P(s, a), P(t, a)),

the one fixed point of a contraction by c (Ferns, Panangaden and Precup 2004). It is 0 between states of one
class, |r - r'| between two that are never left, and bounds what can be gained: (1 - c) |V*(s) - V*(t)| <= d.
The classes of Myhill and Nerode are its zeros where the reward says whether a token is legal.
"""

from __future__ import annotations

import math

import numpy as np
import ot
import torch
from torch import Tensor

SUM = 1e-9
"""How far from 1 the probabilities of a law may add up."""


def bisimulation(rewards: Tensor, transitions: Tensor, discount: float, *, tolerance: float = 1e-9) -> Tensor:
    """``[state, state]`` float64, within ``tolerance`` of the fixed point.

    rewards      ``[state, action]``
    transitions  ``[state, action, state]``, the law of the next state
    discount     c, from 0 to below 1

    Iterates from 0, so that every iterate is a lower bound. Raises ValueError for shapes, for laws that are
    none and for a discount that does not contract.
    """
    reward, law = rewards.double().numpy(), transitions.double().numpy()
    _check(reward, law, discount)
    states, actions = reward.shape
    apart = (1 - discount) * np.abs(reward[:, None] - reward[None])
    distance, change = np.zeros((states, states)), math.inf
    while change > tolerance * (1 - discount):
        cost, found = np.ascontiguousarray(distance), np.zeros_like(distance)
        for s, t in zip(*np.triu_indices(states, 1)):
            found[s, t] = found[t, s] = max(
                apart[s, t, a] + discount * float(ot.emd2(law[s, a], law[t, a], cost)) for a in range(actions)
            )
        change, distance = float(np.abs(found - distance).max(initial=0.0)), found
    return torch.from_numpy(distance)


def _check(reward: np.ndarray, law: np.ndarray, discount: float) -> None:
    if reward.ndim != 2 or law.shape != (*reward.shape, len(reward)):
        raise ValueError(
            f"rewards {list(reward.shape)} and transitions {list(law.shape)}: expected [state, action] and "
            "[state, action, state]"
        )
    if not np.isfinite(reward).all() or (law < 0).any() or not (np.abs(law.sum(2) - 1) <= SUM).all():
        raise ValueError("rewards must be finite and every transitions[state, action] a law that sums to 1")
    if not 0 <= discount < 1:
        raise ValueError(f"discount is {discount}; expected from 0 to below 1")
