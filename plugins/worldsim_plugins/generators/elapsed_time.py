"""A known wrong model: the truth, but by the number of frames so far instead of by what is in them.

It has the right future of a context of ``frames`` frames, and is therefore without error wherever all
contexts are as long as that. Shown more, it takes the frame of that number for the present and goes on from
there: two histories of one state have the same future only where they are equally long.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Restartable, System


class ElapsedTime:
    """The true system restarted from the context's frame number ``frames``, or its last if it has fewer.

    Raises ValueError where the system cannot be restarted from a given state.
    """

    trainable = False
    scaling = "none"

    def __init__(
        self,
        system: System,
        *,
        frames: Annotated[int, Field(ge=1, description="frames that every context is taken to have")] = 1,
    ) -> None:
        if not isinstance(system, Restartable):
            raise ValueError(
                f"elapsed_time starts the truth from a given state, which {type(system).__name__} cannot"
            )
        self.system, self.frames = system, frames

    def loss(self, truth: Trajectory) -> Tensor:
        """Zero: there is nothing to fit."""
        return torch.zeros((), dtype=torch.float64)

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``[trajectory, draw, time, *state]``; frame 0 is the context's last, as of every rollout."""
        present = context.states[:, 0, : self.frames][:, -1].repeat_interleave(draws, 0)
        acts = None if actions is None else actions.repeat_interleave(draws, 0)
        start = self.system.restart(present)  # type: ignore[attr-defined]
        out = self.system.simulate(start, times - times[0], acts, generator)
        states = out.states[:, 0].reshape(len(context), draws, len(times), *context.state_shape).clone()
        states[:, :, 0] = context.states[:, :1, -1]
        return context.replace(states=states, times=times, actions=None, observables={}, length=None)


@hookimpl
def worldsim_generators():
    return {"elapsed_time": ElapsedTime}
