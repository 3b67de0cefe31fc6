"""Two containers of ideal gas that exchange heat and volume through a movable wall, in GENERIC form.

The wall, of unit mass, is at q with 0 < q < 2; each side holds as much gas, with N k_B = 1 and the zero of
entropy such that a gas of entropy 0 in a unit volume has the energy 1. From the Sackur-Tetrode equation

    E_1 = (exp(S_1) / q)^(2/3),   E_2 = (exp(S_2) / (2 - q))^(2/3),   1 / T_i = 3 / (2 E_i)
    E = p^2 / 2 + E_1 + E_2,   S = S_1 + S_2

    dq/dt = p,   dp/dt = (2/3) (E_1 / q - E_2 / (2 - q))
    dS_1/dt = (conductance / T_1) (1 / T_1 - 1 / T_2),   dS_2/dt = -(conductance / T_2) (1 / T_1 - 1 / T_2)

so that dE/dt = 0 and dS/dt = conductance (1 / T_1 - 1 / T_2)^2 >= 0.

Sources: Oettinger 2005, *Beyond Equilibrium Thermodynamics*; Shang and Oettinger 2020, *Structure-preserving
integrators for dissipative systems based on reversible-irreversible splitting*; Zhang, Shin and Karniadakis
2022, *GFINNs*.
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


class GasContainers:
    """States ``[trajectory, (q, p, s1, s2)]``: the wall's position and momentum, the entropies of both gases.
    Starts are uniform in a box."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("q", "p", "s1", "s2")}
    units: Mapping[str, str] = {
        **dict.fromkeys(("q", "p", "s1", "s2", "energy", "entropy", "time"), "1"),
    }
    conserved: tuple[str, ...] = ("energy",)
    history_kinds: tuple[str, ...] = ("window_shift", "mirror")

    def __init__(
        self,
        *,
        conductance: Annotated[
            float, Field(ge=0, description="how well the wall conducts heat; 0: not at all")
        ] = 0.1,
        position: Annotated[
            tuple[float, float],
            Field(description="lowest and highest starting position, in (0, 2)"),
        ] = (0.6, 1.4),
        momentum: Annotated[
            tuple[float, float], Field(description="lowest and highest starting momentum of the wall")
        ] = (-0.5, 0.5),
        entropy: Annotated[
            tuple[float, float], Field(description="lowest and highest starting entropy of each gas")
        ] = (-0.5, 0.5),
    ) -> None:
        self.conductance = conductance
        self.box = [
            integrated.ordered("position", position, 0.0, 2.0),
            integrated.ordered("momentum", momentum, float("-inf")),
            *[integrated.ordered("entropy", entropy, float("-inf"))] * 2,
        ]
        if position[0] == 0:
            raise ValueError("position must be above 0: a gas without volume has no finite energy")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (q, p, s1, s2)]``."""
        return torch.stack([integrated.between(bounds, n, generator) for bounds in self.box], dim=-1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 4]``; raises ValueError unless 0 < q < 2."""
        states = integrated.checked(states, (4,))
        if not bool(((states[:, 0] > 0) & (states[:, 0] < 2)).all()):
            raise ValueError("the wall must be between the ends of the containers: 0 < q < 2")
        return states

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 4]``, with observables energy, entropy and derivative."""
        return integrated.simulated(self, start, times, actions)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., 4]``."""
        q, p = x[..., 0], x[..., 1]
        first, second = self.energies(x)
        cold1, cold2 = 1.5 / first, 1.5 / second  # inverse temperatures
        heat = self.conductance * (cold1 - cold2)
        force = (first / q - second / (2 - q)) * (2 / 3)
        return torch.stack([p, force, heat * cold1, -heat * cold2], dim=-1)

    def energies(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Of the two gases, each ``[...]`` for ``[..., 4]``."""
        q, _, s1, s2 = states.unbind(-1)
        return torch.exp(s1 * (2 / 3)) * q.pow(-2 / 3), torch.exp(s2 * (2 / 3)) * (2 - q).pow(-2 / 3)

    def energy(self, states: Tensor) -> Tensor:
        """E, ``[...]`` for ``[..., 4]``; NaN where the wall is outside of the containers."""
        first, second = self.energies(states)
        return states[..., 1].square() / 2 + first + second

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states), "entropy": states[..., 2] + states[..., 3]}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``mirror``: the two containers exchanged."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        return integrated.image(self, history, exchanged, exchanged)


def exchanged(states: Tensor) -> Tensor:
    """``[..., 4]`` seen from the other side."""
    q, p, s1, s2 = states.unbind(-1)
    return torch.stack([2 - q, -p, s2, s1], dim=-1)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"gas_containers": GasContainers}
