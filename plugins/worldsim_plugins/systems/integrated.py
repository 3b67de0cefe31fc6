"""What systems that are ordinary differential equations share: an accurate flow, its record, its histories.

The flow is Gauss-Legendre collocation with eight stages (order 16; Butcher 1964; Hairer, Lubich and Wanner,
*Geometric Numerical Integration*, II.1.3), its stages found by Picard iteration. Each row takes steps as long
as the iteration and the decay of the slope's Legendre coefficients allow at the rounding level, and no row
sees another: a trajectory has the same bits in every batch. Measured on the pendulum against Jacobi's
elliptic functions: error below 1e-10 at t = 100 (l / g)^1/2 over energies on both sides of the separatrix,
energy 4e-13, whatever the step of the time grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim.protocols import HistoryPairs

Field = Callable[[Tensor, Tensor | None], Tensor]

STAGES = 8  # a power of two: see `weighted`
ITERATIONS = 16
SETTLED, TOLERATED = 1e-15, 1e-13
SHORTEST = 1e-9


class OrdinarySystem(Protocol):
    """An autonomous system: ``drift`` and ``observe`` over the last ``len(axes)`` axes, and their names."""

    axes: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor: ...

    def observe(self, states: Tensor) -> Mapping[str, Tensor]: ...


def collocation(stages: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre coefficients ``a[stage, stage]`` and ``b[stage]`` on [0, 1], and ``tail[2, stage]``,
    which gives the last two Legendre coefficients of a function from its values at the nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(stages)
    c, b = (nodes + 1) / 2, weights / 2

    def lagrange(j: int, t: np.ndarray) -> np.ndarray:
        others = np.delete(c, j)
        return np.prod((t[..., None] - others) / (c[j] - others), axis=-1)

    # The integral of a polynomial over [0, c_i] by the same rule is exact, and well conditioned.
    a = np.stack([c * (b * lagrange(j, np.outer(c, c))).sum(-1) for j in range(stages)], axis=1)
    degrees = np.arange(stages - 2, stages)
    tail = (2 * degrees[:, None] + 1) * b * np.polynomial.legendre.legvander(nodes, stages - 1).T[-2:]
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(tail)


A, B, TAIL = collocation(STAGES)


def flow(field: Field, state: Tensor, times: Tensor, actions: Tensor | None = None) -> Tensor:
    """``[trajectory, time, *state]`` of dx/dt = field(x, u) from ``state`` ``[trajectory, *state]``.

    ``times`` may descend; ``actions[:, i]`` ``[trajectory, *action]`` holds between times i and i + 1.
    Raises ValueError where the solution cannot be followed (a singularity, a state that is not finite).
    """
    frames = [state]
    for i, length in enumerate(times.diff().tolist()):
        action = None if actions is None else actions[:, i]
        frames.append(advance(field, frames[-1], length, action))
    return torch.stack(frames, dim=1)


def advance(field: Field, x: Tensor, length: float, u: Tensor | None) -> Tensor:
    """From ``x`` ``[trajectory, *state]`` over ``length``, each row in steps as long as it allows.

    Nothing is carried from one interval to the next, so a trajectory continued from a frame has the
    same bits.
    """
    x, left = x.clone(), torch.full((len(x),), length, dtype=torch.float64)
    stride = left.abs()
    while len(rows := left.nonzero()[:, 0]):
        steps = (left[rows].abs() / stride[rows]).ceil()
        h = left[rows] / steps
        end, excess = step(field, x[rows], h, None if u is None else u[rows])
        good = excess <= 1
        x[rows[good]] = end[good]
        left[rows[good]] = torch.where(steps == 1, 0.0, left[rows] - h)[good]
        stride[rows] = h.abs() * (0.9 * excess.pow(-1 / (2 * STAGES))).clamp(0.1, 2.0)
        if (stride[rows] < SHORTEST * abs(length)).any():
            raise ValueError(
                f"the true trajectory cannot be followed even at a step of {SHORTEST * abs(length):.0e}: the "
                "state is singular (a collision?) or not finite; soften, or choose other starts"
            )
    return x


def step(field: Field, x: Tensor, h: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
    """The collocation step over ``h`` ``[trajectory]``, and its error over what is tolerated
    ``[trajectory]``, which grows as the power 2 * STAGES of h; infinite where the field is not finite."""
    own = [0, *range(2, x.dim() + 1)]
    wide = h.reshape(-1, *[1] * (x.dim() - 1))
    slope = field(x, u).expand(STAGES, *x.shape)
    scale = x.abs().flatten(1).amax(1) + h.abs() * slope[0].abs().flatten(1).amax(1)
    moving = torch.ones(len(x), dtype=torch.bool)
    for _ in range(ITERATIONS // 2):
        before = field(x + wide * weighted(A, slope), u)
        better = field(x + wide * weighted(A, before), u)
        change = h.abs() * (better - before).abs().amax(own) / scale
        slope = torch.where(moving.reshape(wide.shape), better, slope)
        moving = moving & ~(change <= SETTLED)
        if not moving.any():
            break
    # The Legendre coefficients of the slope decay geometrically, and the step errs by that of degree
    # 2 * STAGES: measured from those of degree STAGES - 2 and STAGES - 1.
    tail, largest = weighted(TAIL, slope).abs().amax(own), slope.abs().amax(own)
    decayed = (tail / largest).pow(2 * STAGES / (STAGES - 2))
    unresolved = h.abs() * largest * decayed / (SETTLED * scale)
    unsettled = torch.where(moving, change / TOLERATED, 0.0)
    excess = torch.maximum(unresolved, unsettled).clamp_min(1e-30)
    return x + wide * weighted(B, slope), excess.masked_fill(largest == 0, 1e-30).nan_to_num(
        math.inf, math.inf
    )


def weighted(weights: Tensor, slope: Tensor) -> Tensor:
    """Sum over the last axis of ``weights`` and the first of ``slope``, in halves: the order in which a
    matmul or a sum adds, hence its last bit, depends on the number of rows."""
    terms = weights.reshape(*weights.shape, *[1] * (slope.dim() - 1)) * slope
    axis = weights.dim() - 1
    while terms.shape[axis] > 1:
        first, second = terms.chunk(2, dim=axis)
        terms = first + second
    return terms.squeeze(axis)


def simulated(system: OrdinarySystem, start: Tensor, times: Tensor, actions: Tensor | None) -> Trajectory:
    """The truth of an autonomous ``system`` from ``start`` ``[trajectory, *state]``."""
    if actions is not None and not hasattr(system, "sample_actions"):
        raise ValueError(f"{type(system).__name__} is not driven: it takes no actions; leave them out")
    times = ascending(times)
    driving = None if actions is None else actions.to(torch.float64)
    states = flow(lambda x, u: system.drift(times[0], x, u), start, times, driving)
    return recorded(system, states.unsqueeze(1), times, actions)


def recorded(system: OrdinarySystem, states: Tensor, times: Tensor, actions: Tensor | None) -> Trajectory:
    """States ``[trajectory, 1, time, *state]`` with what the system observes and its drift."""
    driving = None if actions is None else actions.to(torch.float64).unsqueeze(1)
    derivative = system.drift(times[0], states, driving)
    return Trajectory(
        states=states,
        times=times,
        actions=actions,
        observables={**system.observe(states), "derivative": derivative},
        axes=system.axes,
        labels=system.labels,
        units=system.units,
    )


def ascending(times: Tensor) -> Tensor:
    """``times`` as float64; raises ValueError unless they are finite and strictly increasing."""
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.dim() != 1 or len(times) == 0 or not times.isfinite().all() or (times.diff() <= 0).any():
        raise ValueError("times must be a vector of finite, strictly increasing numbers, at least one")
    return times


def checked(states: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``states`` as float64 ``[trajectory, *shape]``; raises ValueError when they are anything else."""
    states = states.to(torch.float64)
    if states.shape[1:] != shape or states.dim() != len(shape) + 1:
        raise ValueError(f"states must have the shape [trajectory, {shape}], not {tuple(states.shape)}")
    if not states.isfinite().all():
        raise ValueError("states must be finite to start from them")
    return states


def between(bounds: tuple[float, float], n: int, generator: torch.Generator) -> Tensor:
    """``[n]`` draws, float64, uniform in ``bounds``."""
    low, high = bounds
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)


def ordered(
    name: str, bounds: tuple[float, float], low: float, high: float = float("inf")
) -> tuple[float, float]:
    """``bounds`` when low <= first <= second < high; raises ValueError otherwise."""
    first, second = bounds
    if not low <= first <= second < high:
        raise ValueError(
            f"{name} must be (low, high) with {low} <= low <= high < {high}, not {tuple(bounds)}"
        )
    return first, second


def unknown_kind(kind: str, kinds: tuple[str, ...]) -> ValueError:
    return ValueError(f"unknown kind of equivalent histories {kind!r}; this system offers {', '.join(kinds)}")


def window_shift(history: Trajectory) -> HistoryPairs:
    """The same past seen for the whole of its length and for its last half (at least two frames)."""
    count = len(history.times)
    if count < 3:
        raise ValueError(f"a window shift needs at least 3 history times, not {count}")
    return HistoryPairs(history, history.span(min(count // 2, count - 2)), align=lambda states: states)


def ending_in(system: OrdinarySystem, end: Tensor, times: Tensor, actions: Tensor | None) -> Trajectory:
    """The trajectory under ``actions`` whose last state is ``end`` ``[trajectory, *state]``, integrated
    backwards from it."""
    times = ascending(times)
    backwards = None if actions is None else actions[:, :-1].flip(1)
    states = flow(lambda x, u: system.drift(times[0], x, u), end, times.flip(0), backwards)
    return recorded(system, states.flip(1).unsqueeze(1), times, actions)


def same_position(
    system: OrdinarySystem,
    n: int,
    times: Tensor,
    generator: torch.Generator,
    actions: Sequence[Tensor | None] = (None, None),
) -> HistoryPairs:
    """Pasts that end at one position, the first half of the state, with the velocities of two states."""
    one, other = (system.sample(n, generator) for _ in range(2))  # type: ignore[attr-defined]
    half = one.shape[-1] // 2
    ends = one, torch.cat([one[..., :half], other[..., half:]], -1)
    pasts = [ending_in(system, end, times, driving) for end, driving in zip(ends, actions)]
    return HistoryPairs(*pasts, align=lambda states: states)


def image(
    system: OrdinarySystem,
    history: Trajectory,
    transform: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Tensor],
) -> HistoryPairs:
    """A history and its image under a symmetry of ``system``; futures come back by ``inverse``."""
    second = recorded(system, transform(history.states), history.times, history.actions)
    return HistoryPairs(history, second, align=inverse)
