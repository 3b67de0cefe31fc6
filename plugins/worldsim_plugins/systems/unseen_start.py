"""A world whose first frame is blank: a forecast must draw the law of whole trajectories, start included.

    frame 0: zeros;   frames 1, 2, ..: a trajectory of another system, its start drawn anew

A model is given frame 0 and with it nothing: what it forecasts is its own law of trajectories, which can be
compared with the true one as samples are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, HasForecast, Restartable, Start, System

OF_STATES = ("energy", "observe", "drift")
"""What the other system says of a state; of the blank one it is 0."""
PASSED_ON = (
    "axes", "labels", "units",
    "velocity_of", "force_of",
    "dims", "points", "length",
    "intrinsics", "camera_motion", "views", "moves", "depth_seen",
    "sample_actions",
    "masses", "places_and_momenta", "of_places_and_momenta",
    "margin", "within",
)  # fmt: skip


class UnseenStart:
    """States as those of the other system, which has frame 0 of its own at ``times[1]``.

    It offers what the other offers of energy, drift, bodies, walls, grid, camera and actions; its observables
    are 0 in frame 0, and nothing is conserved from there on (a constraint compares with frame 1). Raises
    ValueError for a system of tokens, of which none is blank.
    """

    def __init__(
        self, *, system: Annotated[System, Field(description="the system that is seen from frame 1 on")]
    ) -> None:
        if isinstance(system, HasAutomaton):
            raise ValueError(f"{type(system).__name__} gives tokens, and none of them is blank")
        self.inner = system
        # On the instance, so that a capability is there exactly where the other system has it.
        for name in PASSED_ON:
            if hasattr(system, name):
                setattr(self, name, getattr(system, name))
        for name in OF_STATES:
            if hasattr(system, name):
                setattr(self, name, getattr(self, f"_{name}"))
        if hasattr(system, "conserved"):
            self.conserved: tuple[str, ...] = ()

    def sample(self, n: int, generator: torch.Generator) -> Start:
        """``n`` starts of the other system."""
        return self.inner.sample(n, generator)

    def simulate(
        self, start: Start, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, *state]``; the action in frame 0 does nothing."""
        later = times[1:] if len(times) > 1 else times
        driving = None if actions is None else actions[:, len(times) - len(later) :]
        seen = self.inner.simulate(start, later, driving, generator)
        return seen.replace(
            states=blanked(seen.states, len(times)),
            times=torch.as_tensor(times, dtype=torch.float64),
            actions=actions,
            observables={name: blanked(value, len(times)) for name, value in seen.observables.items()},
            length=None if seen.length is None else (seen.length + 1).clamp(max=len(times)),
        )

    def forecast(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` trajectories from starts drawn anew where the context ends in the blank frame; else what
        follows its last frame in the other system. Raises NotMeasurable where that cannot be had."""
        last = context.states[:, :1, -1:]
        if bool(last.any()):
            return self._continued(context, times, actions, draws, generator)
        driving = None if actions is None else actions.repeat_interleave(draws, 0)
        drawn = self.simulate(self.sample(len(context) * draws, generator), times, driving, generator)
        return self._forecast(drawn, context, actions, draws)

    def _continued(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """What follows the last frame, by the law of the other system."""
        if isinstance(self.inner, HasForecast):
            return self.inner.forecast(context, times, actions, draws, generator)
        if not isinstance(self.inner, Restartable):
            raise NotMeasurable(f"{type(self.inner).__name__} cannot be restarted from a given state")
        start = self.inner.restart(context.states[:, 0, -1].repeat_interleave(draws, 0))
        driving = None if actions is None else actions.repeat_interleave(draws, 0)
        return self._forecast(self.inner.simulate(start, times, driving, generator), context, actions, draws)

    def _forecast(
        self, drawn: Trajectory, context: Trajectory, actions: Tensor | None, draws: int
    ) -> Trajectory:
        states = drawn.states[:, 0].unflatten(0, (len(context), draws))
        first = context.states[:, :1, -1:].expand_as(states[:, :, :1])
        states = torch.cat([first, states[:, :, 1:]], 2)
        return context.replace(states=states, times=drawn.times, actions=actions, observables={}, length=None)

    def _energy(self, states: Tensor) -> Tensor:
        return self._of(states, self.inner.energy)  # type: ignore[attr-defined,no-any-return]

    def _observe(self, states: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._of(states, self.inner.observe)  # type: ignore[attr-defined]
        return found

    def _drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        return self._of(x, lambda x: self.inner.drift(t, x, u))  # type: ignore[attr-defined,no-any-return]

    def _of(self, states: Tensor, function: Callable[[Tensor], Any]) -> Any:
        """``function`` of ``states`` ``[..., *state]``, 0 of those that are blank."""
        seen = self._seen(states)
        typical = self._typical.to(states)
        found = function(torch.where(seen.reshape(*seen.shape, *[1] * typical.dim()), states, typical))

        def blank(value: Tensor) -> Tensor:
            return torch.where(seen.reshape(*seen.shape, *[1] * (value.dim() - seen.dim())), value, 0.0)

        return {k: blank(v) for k, v in found.items()} if isinstance(found, dict) else blank(found)

    def _seen(self, states: Tensor) -> Tensor:
        """Which of ``states`` ``[..., *state]`` are not blank."""
        return states.flatten(states.dim() - self._typical.dim()).any(-1)

    @cached_property
    def _typical(self) -> Tensor:
        """A state of the other system, which may say nothing finite of zeros."""
        rng = torch.Generator().manual_seed(0)
        only = torch.zeros(1, dtype=torch.float64)
        return self.inner.simulate(self.inner.sample(1, rng), only, None, rng).states[0, 0, 0]


def blanked(values: Tensor, count: int) -> Tensor:
    """The first ``count`` frames of zeros followed by ``values`` ``[trajectory, 1, time, ...]``."""
    return torch.cat([torch.zeros_like(values[:, :, :1]), values], 2)[:, :, :count]


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"unseen_start": UnseenStart}
