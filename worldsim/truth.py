"""The truth of a case: what each split of its scenario looks like, from seeds alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from worldsim.errors import NotFinite
from worldsim.protocols import HasActions, Start, System, Trajectory
from worldsim.seeds import generator
from worldsim.untouched import untouched

if TYPE_CHECKING:
    from worldsim.scenario import Case, Scenario

SEEDED = ("train", "validation")
"""Splits that differ from seed to seed; every other split is the same for all models and all seeds."""


LARGEST = 64 * 2**20
"""Bytes of truths that a process keeps for the next case."""


class Truths:
    """Truths of one scenario that its cases share: all models have one at each seed. Each is simulated once
    in a process, as far as there is room for it."""

    def __init__(self) -> None:
        self.scenario: Scenario | None = None
        self.kept: dict[tuple[str, int], Trajectory] = {}
        self.bytes = 0

    def split(self, case: Case, split: str, system: System) -> Trajectory:
        """What ``simulate_split`` gives. It is the caller's own: nothing done to it is seen by the next."""
        if case.scenario is not self.scenario:
            self.scenario, self.kept, self.bytes = case.scenario, {}, 0
        key = split, seed_of(case, split)
        truth = self._pop(key) if key in self.kept else simulate_split(case, split, system)
        if bytes_of(truth) <= LARGEST:
            self.kept[key] = truth  # at the end: what was used last goes last
            self.bytes += bytes_of(truth)
            while self.bytes > LARGEST:
                self._pop(next(iter(self.kept)))
        return copy.deepcopy(truth)

    def _pop(self, key: tuple[str, int]) -> Trajectory:
        truth = self.kept.pop(key)
        self.bytes -= bytes_of(truth)
        return truth


def bytes_of(truth: Trajectory) -> int:
    """Of its tensors, and about what the objects take that hold them."""
    tensors = (truth.states, truth.times, truth.actions, truth.length, *truth.observables.values())
    return 4096 + sum(tensor.nbytes for tensor in tensors if tensor is not None)


def seed_of(case: Case, split: str) -> int:
    """The seed of a split of a case, or -1 for one that all cases share."""
    return case.seed if split in SEEDED else -1


def time_grid(step: float, horizon: float) -> torch.Tensor:
    """``[time]`` float64: 0, step, ... up to ``horizon``."""
    return torch.arange(round(horizon / step) + 1, dtype=torch.float64) * step


def simulate_split(case: Case, split: str, system: System) -> Trajectory:
    """The trajectories of one split, block by block: one generator for each block, none walked in order."""
    settings = case.scenario.data.splits[split]
    times = time_grid(case.scenario.data.step, settings.horizon)
    seed = seed_of(case, split)
    size = case.scenario.data.block
    starts, blocks = [], []
    for index, first in enumerate(range(0, settings.trajectories, size)):
        rng = generator(case.scenario.master_seed, case.scenario.world, split, seed + 1, index)
        count = min(size, settings.trajectories - first)
        start, block = _simulate_block(system, count, times, rng)
        check_truth(block, count, times, case.scenario.system.name, split)
        starts.append(start)
        blocks.append(block)
    if _repeats(starts, blocks):
        raise ValueError(
            f"system {case.scenario.system.name!r} has fixed starts, so that trajectories come again after "
            f"every {size}: set data.block to {settings.trajectories} or more"
        )
    truth = concatenate(blocks)
    rng = generator(case.scenario.master_seed, case.scenario.world, split, seed + 1, "noise")
    return with_noise(truth, settings.noise, rng)


def _simulate_block(
    system: System, n: int, times: torch.Tensor, rng: torch.Generator
) -> tuple[Start, Trajectory]:
    name = type(system).__name__
    start = system.sample(n, rng)
    with untouched(f"{name}.sample_actions", {"times": times}):
        actions = system.sample_actions(n, times, rng) if isinstance(system, HasActions) else None
    with untouched(f"{name}.simulate", {"times": times, "actions": actions}):
        truth = system.simulate(start, times, actions, rng)
    if actions is not None and isinstance(truth, Trajectory) and truth.actions is None:
        raise ValueError(f"{name}: simulate must keep the actions in its Trajectory")
    return start, truth


def _repeats(starts: Sequence[Start], blocks: Sequence[Trajectory]) -> bool:
    """Whether the second block is the first again, from the same starts."""
    if len(blocks) < 2 or not isinstance(starts[0], torch.Tensor):
        return False
    n = len(blocks[1].states)
    return torch.equal(starts[0][:n], starts[1]) and torch.equal(blocks[0].states[:n], blocks[1].states)


def concatenate(blocks: list[Trajectory]) -> Trajectory:
    """Blocks of trajectories on one time grid, as one."""
    first = blocks[0]
    if len(blocks) == 1:
        return first

    def join(pick: Any) -> Any:
        return None if pick(first) is None else torch.cat([pick(block) for block in blocks])

    return replace(
        first,
        states=join(lambda b: b.states),
        actions=join(lambda b: b.actions),
        observables={name: join(lambda b, n=name: b.observables[n]) for name in first.observables},
        length=join(lambda b: b.length),
    )


def reached(truth: Trajectory) -> torch.Tensor:
    """Which frames each trajectory has, ``[trajectory, draw, time]``: those before its ragged end."""
    shape = truth.states.shape[:3]
    if truth.length is None:
        return torch.ones(shape, dtype=torch.bool, device=truth.states.device)
    return torch.arange(shape[2], device=truth.length.device) < truth.length[..., None]


def held(truth: Trajectory) -> Trajectory:
    """The same with the last frame of each trajectory in the place of all that follow its ragged end.

    A model computes with whole batches, and one frame that is not finite spoils the gradient of all.
    """
    if truth.length is None:
        return truth
    frames = torch.arange(len(truth.times), device=truth.length.device)
    frame = torch.minimum(frames, (truth.length[..., None] - 1).clamp(min=0))
    row, draw = torch.meshgrid(*map(torch.arange, frame.shape[:2]), indexing="ij")

    def picked(value: torch.Tensor) -> torch.Tensor:
        return value[row[..., None], draw[..., None], frame]

    observables = {name: picked(value) for name, value in truth.observables.items()}
    return replace(truth, states=picked(truth.states), observables=observables)


def with_noise(truth: Trajectory, noise: Mapping[str, float], rng: torch.Generator) -> Trajectory:
    """Gaussian measurement noise of the given standard deviations on "states" or on named observables."""
    for name, deviation in sorted(noise.items()):
        if name == "states":
            if not truth.states.is_floating_point():
                raise ValueError("noise on 'states': tokens are no numbers that noise can be added to")
            truth = replace(truth, states=truth.states + deviation * _normal(truth.states, rng))
        elif name in truth.observables:
            value = truth.observables[name]
            observables = {**truth.observables, name: value + deviation * _normal(value, rng)}
            truth = replace(truth, observables=observables)
        else:
            raise ValueError(f"noise on {name!r}: allowed are 'states' and {sorted(truth.observables)}")
    return truth


def _normal(like: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=rng)


def check_truth(truth: Any, n: int, times: torch.Tensor, name: str, split: str = "") -> None:
    """Refuse a simulation that is not what the protocol says, naming the system.

    Raises TypeError or ValueError with expected and found, NotFinite for numbers that are none.
    """
    if not isinstance(truth, Trajectory):
        raise TypeError(
            f"system {name!r}: simulate must return a Trajectory, it returned {type(truth).__name__}"
        )
    expected = (n, 1, len(times))
    if tuple(truth.states.shape[:3]) != expected:
        raise ValueError(
            f"system {name!r}: states must be [trajectory, draw, time, *state] = {[*expected, '...']}, "
            f"found {list(truth.states.shape)}"
        )
    if truth.states.dtype not in (torch.float64, torch.int64):
        raise ValueError(
            f"system {name!r}: expected states in float64, or in int64 for tokens, found "
            f"{truth.states.dtype}; simulate in double precision"
        )
    if not torch.equal(truth.times, times):
        raise ValueError(f"system {name!r}: the trajectory's times are not the times it was asked for")
    if truth.length is not None and truth.length.shape != (n, 1):
        raise ValueError(
            f"system {name!r}: length must be [trajectory, draw] = {[n, 1]}, found {list(truth.length.shape)}"
        )
    for key, value in {"states": truth.states, **truth.observables}.items():
        if tuple(value.shape[:3]) != expected:
            raise ValueError(
                f"system {name!r}: {key} must begin with [trajectory, draw, time] = {list(expected)}, "
                f"found {list(value.shape)}"
            )
        if value.device.type != "cpu" or value.requires_grad:
            raise ValueError(
                f"system {name!r}: {key} must be on the CPU and require no gradient, found "
                f"{value.device}{' and a gradient' if value.requires_grad else ''}; give detach().cpu()"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value[reached(truth)]).all()):
            raise not_finite(name, key, split, ~torch.isfinite(value) & _wide(reached(truth), value))


def _wide(frames: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return frames.reshape(*frames.shape, *(1,) * (value.dim() - 3))


def not_finite(name: str, key: str, split: str, bad: torch.Tensor) -> NotFinite:
    """What to raise for a simulated block; ``bad[trajectory, draw, time, ...]`` says where."""
    frames = bad.reshape(*bad.shape[:3], -1).any(3).any(1)  # [trajectory, time]
    found = {
        "trajectories": int(frames.any(1).sum()),
        "of": len(bad),
        "first_frame": int(frames.any(0).int().argmax()),
    }
    return NotFinite(
        f"system {name!r}: {key} of the truth are not finite in {found['trajectories']} of {found['of']} "
        f"trajectories{' of ' + split if split else ''}, first at frame {found['first_frame']}; set length "
        "for ragged ends",
        {split: found},
    )
