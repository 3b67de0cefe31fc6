"""A unit mass on a line that is pushed: the smallest driven system, exact, and rich in equal histories.

    dx/dt = v,   dv/dt = u,   x(t + h) = x + v h + u h^2 / 2,   v(t + h) = v + u h

The end state depends on the pushes by their sum and their first moment alone. Pushes (a, -a, -a, a) have
neither, so that they can be added to any history, or undo themselves from rest: an action and its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated

LOOP = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
"""Sum 0, first moment 0."""


class DoubleIntegrator:
    """States ``[trajectory, (x, v)]``; pushes ``[trajectory, time, 1]`` uniform in [-force, force]."""

    axes = ("component",)
    conserved: tuple[str, ...] = ()
    history_kinds: tuple[str, ...] = ("window_shift", "moment_swap", "loop", "no_op")
    alike_kinds: tuple[str, ...] = ("same_position",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("x", "v")}
    units: Mapping[str, str] = {"x": "m", "v": "m s-1", "push": "m s-2", "time": "s", "speed": "m s-1"}

    def __init__(
        self,
        *,
        spread: Annotated[float, Field(ge=0, description="standard deviation of starting x and v")] = 1.0,
        force: Annotated[float, Field(gt=0, description="largest push, m s-2")] = 1.0,
    ) -> None:
        self.spread, self.force = spread, force

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (x, v)]``, normal."""
        return self.spread * torch.randn(n, 2, dtype=torch.float64, generator=generator)

    def sample_actions(self, n: int, times: Tensor, generator: torch.Generator) -> Tensor:
        """Pushes ``[n, time, 1]``."""
        return self.force * (2 * torch.rand(n, len(times), 1, dtype=torch.float64, generator=generator) - 1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, (x, v)]``."""
        return integrated.checked(states, (2,))

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., (x, v)]`` under the push ``u`` ``[..., 1]``."""
        v = x[..., 1]
        return torch.stack([v, torch.zeros_like(v) if u is None else u[..., 0].expand_as(v)], -1)

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"speed": states[..., 1].abs()}

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (x, v)]``."""
        times, (x, v) = integrated.ascending(times), start.unbind(-1)
        frames = [start]
        for i, h in enumerate(times.diff()):
            u = torch.zeros_like(v) if actions is None else actions[:, i, 0].double()
            x, v = x + v * h + u * h.square() / 2, v + u * h
            frames.append(torch.stack([x, v], -1))
        return integrated.recorded(self, torch.stack(frames, 1).unsqueeze(1), times, actions)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``; ``moment_swap``: pushes of no sum and no first moment added somewhere; ``loop``:
        from rest, pushes that undo themselves, and none; ``no_op``: a pause inserted at rest, and none, so
        that the second history is shorter. All but the first need equal steps and at least 6 times."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        start, actions = self.sample(n, generator), self.sample_actions(n, times, generator)
        if kind == "window_shift":
            return integrated.window_shift(self.simulate(start, times, actions, generator))
        _equal_steps(kind, times)
        size = self.force * (0.5 + torch.rand(n, 1, dtype=torch.float64, generator=generator))
        loop = (size * LOOP)[..., None]
        if kind == "moment_swap":
            at = int(torch.randint(len(times) - 4, (1,), generator=generator))
            pads = (0, 0, at, len(times) - at - 4)
            swapped = actions + torch.nn.functional.pad(loop, pads)
            return self.both(start, times, times, actions, swapped, generator)
        start = torch.stack([start[:, 0], torch.zeros_like(start[:, 0])], -1)
        if kind == "loop":
            undone = torch.cat([loop, actions[:, 4:]], 1)
            still = torch.cat([torch.zeros_like(loop), actions[:, 4:]], 1)
            return self.both(start, times, times, undone, still, generator)
        idle = (len(times) - 4) // 2
        pause, tail = torch.zeros_like(actions[:, :idle]), actions[:, 4 + idle :]
        paused, straight = torch.cat([loop, pause, tail], 1), torch.cat([loop, tail], 1)
        return self.both(start, times, times[idle:], paused, straight, generator)

    def both(
        self, start: Tensor, times: Tensor, later: Tensor, first: Tensor, second: Tensor,
        generator: torch.Generator,
    ) -> HistoryPairs:  # fmt: skip
        one = self.simulate(start, times, first, generator)
        two = self.simulate(start, later, second, generator)
        return HistoryPairs(one, two, align=lambda states: states)

    def alike_histories(self, kind: str, n: int, times: Tensor, generator: torch.Generator) -> HistoryPairs:
        """``same_position``: two pasts that end at one x with different v."""
        if kind not in self.alike_kinds:
            raise integrated.unknown_kind(kind, self.alike_kinds)
        actions = [self.sample_actions(n, times, generator) for _ in range(2)]
        return integrated.same_position(self, n, times, generator, actions)


def _equal_steps(kind: str, times: Tensor) -> None:
    steps = times.diff()
    if len(times) < 6 or not torch.allclose(steps, steps[:1].expand_as(steps)):
        raise ValueError(f"{kind} needs at least 6 history times, equally far apart; there are {len(times)}")


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"double_integrator": DoubleIntegrator}
