"""What constraints that compare a value of each frame with that of one frame have in common.

    residual[t] = (value(x_t) - value(x_anchor)) / scale

Each trajectory is compared with its own frame, never with the others: a batch that conserves many different
values has residual 0. Spreads and maxima over time are left to scores: they have no derivative where the
constraint holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory
from worldsim.protocols import HasObservables, HasUnseenStart, System

STARTS = 256
MOMENT = 1e-3
"""From the blank frame of a world whose start is unseen to that start, where only the start is wanted."""

Value: TypeAlias = Callable[[Tensor], Tensor]
"""states ``[..., *state]`` -> ``[..., k]``, float64, differentiable."""

Reference = Annotated[
    Literal["first", "second"] | None,
    Field(
        description="frame that the others are compared with: first, which is given, or second, which is "
        "generated with the rest; left out: second where frame 0 is blank, else first"
    ),
]


def anchor_of(system: System, reference: Literal["first", "second"] | None, name: str) -> int:
    """The index of the frame. Raises ValueError for the first of a world whose first frame is blank."""
    blank = isinstance(system, HasUnseenStart)
    if blank and reference == "first":
        raise ValueError(
            f"frame 0 of {type(system).__name__} is blank: there is nothing to compare with; "
            f"set {name}.reference to second"
        )
    return int(blank) if reference is None else ("first", "second").index(reference)


def met_by(anchor: int, shared: bool = False) -> dict[str, str]:
    """Who keeps a value without understanding; ``shared`` where all states of the world have one."""
    if shared:
        who = "every baseline: all states of this world have one value of it, and so has their mean"
    elif anchor:
        who = (
            "persistence, constant, shuffled and memoriser: they rest, or follow a true trajectory from a "
            "start of its own"
        )
    else:
        who = "persistence, which keeps all that it was given because it never changes"
    return {"violation_*": who}


def check_conserved(system: System, quantity: str, constraint: str) -> None:
    """Raises ValueError for a system that does not conserve the observable ``quantity``."""
    world = system.inner if isinstance(system, HasUnseenStart) else system
    conserved = getattr(world, "conserved", ())
    if not isinstance(world, HasObservables) or quantity not in conserved:
        raise ValueError(
            f"{constraint} needs a system that conserves {quantity!r}; {type(world).__name__} as configured "
            f"conserves {', '.join(conserved) or 'nothing'}"
        )


def starts_of(system: System, later: bool = False) -> Tensor:
    """A fixed sample of starts, ``[STARTS, *state]`` float64, or what is there a moment later."""
    generator = torch.Generator().manual_seed(0)
    start = system.sample(STARTS, generator)
    frames = 1 + isinstance(system, HasUnseenStart) + later
    truth = system.simulate(start, MOMENT * torch.arange(frames, dtype=torch.float64), None, generator)
    return truth.states[:, 0, -1].to(torch.float64)


def spread(values: Tensor) -> float:
    """Root mean square over k of the standard deviation of ``values`` ``[start, k]``; 0 where they are one
    number to rounding."""
    deviation = float(values.std(0, correction=0).square().mean().sqrt())
    return deviation if deviation > 1e-9 * float(values.abs().max()) else 0.0


def compared(value: Value, trajectory: Trajectory, anchor: int, scale: float) -> Tensor:
    """The residual ``[trajectory, draw, time]`` where a value is one number, else ``[..., time, k]``.

    The given frame is a constant; another anchor is not. 0 before the anchor and after a ragged end, whose
    frames hold anything, even NaN, and do not reach the gradient.
    """
    states = trajectory.states.to(torch.float64)
    reference = states[:, :, anchor : anchor + 1]
    if anchor == 0:
        reference = reference.detach()
    if reference.shape[2] == 0:  # a context of one frame has nothing to compare
        return torch.zeros_like(states[:, :, :, *[0] * (states.ndim - 3)])
    time = torch.arange(states.shape[2], device=states.device)
    valid = reached(trajectory) & (time >= anchor)
    begun = valid[:, :, anchor : anchor + 1]
    reference = torch.where(wide(begun, states), reference, states[:, :, :1].detach())
    states = torch.where(wide(valid, states), states, reference)
    change = torch.where(valid[..., None], (value(states) - value(reference)) / scale, 0.0)
    return change.squeeze(-1) if change.shape[-1] == 1 else change


def reached(trajectory: Trajectory) -> Tensor:
    """Which frames each trajectory has, ``[trajectory, draw, time]``: those before its ragged end."""
    count, device = trajectory.states.shape[2], trajectory.states.device
    if trajectory.length is None:
        return torch.ones(trajectory.states.shape[:3], dtype=torch.bool, device=device)
    return torch.arange(count, device=device) < trajectory.length[..., None]


def wide(frames: Tensor, states: Tensor) -> Tensor:
    """``[trajectory, draw, time]`` to broadcast over ``states``."""
    return frames.reshape(*frames.shape, *[1] * (states.ndim - 3))
