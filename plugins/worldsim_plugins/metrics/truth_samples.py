"""Samples that the true system gives afresh: what the floor of a distance between two samples is made of.

A distance between finite samples of one and the same law is not 0. How large it is depends on the law, on
the distance and on the size of the samples, and is measured: over pairs of independent samples of the truth,
each of the size of the scored one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score
from worldsim.protocols import HasActions, HasUnseenStart, System
from worldsim_plugins.metrics.comparison import within

BLOCK = 1024


def truth_samples(
    system: System, count: int, n: int, times: Tensor, frames: Tensor, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """``count`` independent samples: states ``[n, frame, component]`` at ``times[frames]``, float64, and
    which of them are reached ``[n, frame]``. ``frames`` are above 0: frame 0 is the given context.

    Raises NotMeasurable where the starts of the system are fixed.
    """
    generator = torch.Generator().manual_seed(seed)
    # One call for many starts: the cost of a simulation is mostly per call.
    sizes = [min(BLOCK, count * n - first) for first in range(0, count * n, BLOCK)]
    blocks = [afresh(system, size, times, frames, generator) for size in sizes]
    states, valid = (torch.cat(parts).split(n) for parts in zip(*blocks))
    if torch.equal(states[0], states[1]):
        raise NotMeasurable(f"the starts of {type(system).__name__} are fixed: no two samples differ")
    return list(zip(states, valid))


def afresh(
    system: System, n: int, times: Tensor, frames: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """New true states ``[n, frame, component]`` at ``times[frames]``, and which of them are reached."""
    actions, grid = None, torch.cat([torch.zeros_like(times[:1]), times[frames]])
    start = system.sample(n, generator)
    whole = isinstance(system, HasActions | HasUnseenStart)
    if whole:
        # Actions are held from frame to frame, and an unseen start is at frame 1, whichever are asked for.
        grid = whole_grid(times)
    if isinstance(system, HasActions):
        actions = system.sample_actions(n, grid, generator)
    truth = system.simulate(start, grid, actions, generator)
    at = len(grid) - len(times) + frames if whole else torch.arange(1, len(grid))
    states = truth.states[:, 0, at].double()
    return states.reshape(n, len(at), -1), within(truth)[:, at]


def whole_grid(times: Tensor) -> Tensor:
    """``times`` of a forecast with those of the context before it: from 0 on, in the same steps."""
    step = times[1] - times[0]
    return torch.cat([torch.arange(int((times[0] / step).round())).to(times) * step, times])


def floored(name: str, value: float, floors: list[float], n: int, why: str = "") -> dict[str, Score]:
    """A score with its floor, the mean of ``floors``, and their 95 % quantile beside it.

    Without floors, ``why`` is the reason that there are none, and the value has no floor.
    """
    if not floors:
        reason = "" if not why else f"no floor: {why}"
        nothing = Score(float("nan"), better="", n=n, reason=reason)
        return {name: Score(value, n=n)} | ({f"{name}_floor_q95": nothing} if reason else {})
    sample = torch.tensor(floors, dtype=torch.float64)
    highest = Score(float(sample.quantile(0.95)), better="", n=len(sample))
    return {name: Score(value, floor=float(sample.mean()), n=n), f"{name}_floor_q95": highest}
