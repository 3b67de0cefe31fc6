"""The inductive-bias probe: does a learner that starts from a model extrapolate by the world's state?

After Vafa, Chang, Rambachan and Mullainathan (2025). A learner is fitted to many tiny data sets whose labels
are a fair coin tossed for each state of the world. With a state behind it, it should give inputs of one state
one label, and be free between states:

    R-IB = 1 - 2 P(labels differ | same state),   D-IB = 2 P(labels differ | different states)

(their released scaling, on which 1 is perfect and 0 says nothing). A learner that knows the state has 1 and
1, the second in expectation over the coins; a constant one 1 and 0; one that tosses its own coin 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Learner = Callable[[Tensor, Tensor], Tensor]
"""From the rows to learn from ``[example]`` int64 and their labels ``[example]`` to labels of all inputs
``[input]``, 0 or 1."""


@dataclass(frozen=True)
class InductiveBias:
    """``same`` is R-IB, ``different`` D-IB; of the pairs of different states, D-IB of those whose next tokens
    are the same and of those whose are not. A learner that tracks legality alone has the first far below the
    second. NaN where there is no such pair; ``standard_error`` is that of the four over the data sets."""

    same: float
    different: float
    different_alike: float
    different_unlike: float
    standard_error: tuple[float, float, float, float]


def inductive_bias(labels: Tensor, states: Tensor, alike: Tensor | None = None) -> InductiveBias:
    """From predicted ``labels [data set, input]``, 0 or 1, and the state of each input, ``[input]``;
    ``alike [input]`` numbers the set of tokens that may follow, of a state one and the same."""
    ones, everything = labels.double(), torch.zeros_like(states)
    (apart, pairs), (whole, all_pairs) = unequal_pairs(ones, states), unequal_pairs(ones, everything)
    near, near_pairs = unequal_pairs(ones, states if alike is None else alike)
    nan = torch.full_like(apart, torch.nan)
    rates = [
        1 - 2 * apart / pairs,
        2 * (whole - apart) / (all_pairs - pairs),
        nan if alike is None else 2 * (near - apart) / (near_pairs - pairs),
        nan if alike is None else 2 * (whole - near) / (all_pairs - near_pairs),
    ]
    values = [float(rate.mean()) for rate in rates]
    errors = tuple(float(rate.std()) / len(labels) ** 0.5 for rate in rates)
    return InductiveBias(values[0], values[1], values[2], values[3], errors)  # type: ignore[arg-type]


def unequal_pairs(ones: Tensor, group: Tensor) -> tuple[Tensor, float]:
    """How many pairs of inputs of one ``group [input]`` have unequal labels ``ones [data set, input]``,
    ``[data set]``, and how many pairs there are."""
    member = torch.nn.functional.one_hot(group).double()
    count, size = ones @ member, member.sum(0)
    return (count * (size - count)).sum(1), float((size * (size - 1) / 2).sum())


def probe(
    learner: Learner, states: Tensor, *, sets: int = 100, examples: int = 100, generator: torch.Generator
) -> Tensor:
    """Labels ``[data set, input]`` by ``learner`` after each of ``sets`` data sets of ``examples`` inputs
    drawn with replacement; the states of the inputs are ``states [input]``.

    Raises ValueError where the learner gives anything but a 0 or 1 for every input.
    """
    found = []
    for _ in range(sets):
        coin = torch.randint(2, (int(states.max()) + 1,), generator=generator)
        rows = torch.randint(len(states), (examples,), generator=generator)
        labels = learner(rows, coin[states[rows]])
        if labels.shape != states.shape or not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(f"a learner gives 0 or 1 for each of {len(states)} inputs, not {labels!r:.80}")
        found.append(labels)
    return torch.stack(found)
