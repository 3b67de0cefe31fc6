"""Robertson's chemical kinetics, the classical stiff system (Robertson 1966, *The solution of a set of
reaction rate equations*).

    A -> B at the rate k1 a,   B + B -> C + B at k2 b^2,   B + C -> A + C at k3 b c

    da/dt = -k1 a + k3 b c,   db/dt = k1 a - k3 b c - k2 b^2,   dc/dt = k2 b^2

With the classical rates B stays about 1e-5 of the rest and follows it within 1e-3 s, while A decays over
1 s to 1e11 s. Total mass a + b + c is conserved.
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
from worldsim_plugins.systems.stiff_flow import flow

ATOL = 1e-17


class Robertson:
    """States ``[trajectory, (a, b, c)]``, concentrations; starts with A and C uniform in their ranges and no
    B. Measured against scipy's Radau at rtol 1e-12 up to t = 1e4 s: relative error below 1e-9."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("a", "b", "c")}
    units: Mapping[str, str] = {**dict.fromkeys(("a", "b", "c", "mass"), "mol l-1"), "time": "s"}
    conserved: tuple[str, ...] = ("mass",)
    history_kinds: tuple[str, ...] = ("window_shift",)

    def __init__(
        self,
        *,
        rates: Annotated[
            tuple[float, float, float],
            Field(description="k1 in s-1, k2 and k3 in l mol-1 s-1, none negative"),
        ] = (0.04, 3e7, 1e4),
        a: Annotated[
            tuple[float, float], Field(description="lowest and highest concentration of A at the start")
        ] = (0.5, 1.5),
        c: Annotated[
            tuple[float, float], Field(description="lowest and highest concentration of C at the start")
        ] = (0.0, 0.5),
    ) -> None:
        if not all(0 <= rate < float("inf") for rate in rates):
            raise ValueError(f"rates must be finite and not negative, they are {tuple(rates)}")
        self.rates = rates
        self.a, self.c = integrated.ordered("a", a, 0.0), integrated.ordered("c", c, 0.0)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (a, b, c)]``."""
        a, c = (integrated.between(bounds, n, generator) for bounds in (self.a, self.c))
        return torch.stack([a, torch.zeros_like(a), c], -1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, (a, b, c)]``."""
        return integrated.checked(states, (3,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (a, b, c)]``, with observables mass and derivative."""
        if actions is not None:
            raise ValueError("Robertson is not driven: it takes no actions; leave them out")
        times = integrated.ascending(times)
        states = flow(lambda t, x: self.drift(t, x, None), start, times, (), ATOL)
        return integrated.recorded(self, states.unsqueeze(1), times, None)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., (a, b, c)]``."""
        a, b, c = x.unbind(-1)
        k1, k2, k3 = self.rates
        decay, catalysis, back = k1 * a, k2 * b * b, k3 * b * c
        return torch.stack([back - decay, decay - back - catalysis, catalysis], -1)

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"mass": states.sum(-1)}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        return integrated.window_shift(self.simulate(self.sample(n, generator), times, None, generator))


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"robertson": Robertson}
