"""Metriplectic networks: learned dynamics that obey both laws of thermodynamics (Zhang, Shin and Karniadakis
2022, "GFINNs: GENERIC formalism informed neural networks"; Grmela and Oettinger 1997).

    dx/dt = L grad E + M grad S,   L = -L^T,   M = M^T >= 0,   L grad S = 0,   M grad E = 0

hence dE/dt = 0 and dS/dt >= 0. E and S are learned, and both degeneracies hold by construction:

    L = Q_S^T B Q_S, B skew, the rows of Q_S being A_j grad S;   M = Q_E^T C C^T Q_E, its rows A'_j grad E

with skew matrices A_j and A'_j: each row is orthogonal to its gradient, because g^T A g = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics, HasObservables, Solver, System
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Loss, Perceptron, Width
from worldsim_plugins.solvers import symplectic

Rank = Annotated[
    int | None,
    Field(ge=1, description="rows of each Q, the largest rank of L and M; null for the size of the state"),
]


class Potential(nn.Module):
    """A learned function of ``[..., size]``: a linear form of unit gradient, plus a perceptron.

    The linear form keeps the gradient from being small at the start, where both L and M have its square as a
    factor.
    """

    def __init__(self, size: int, width: int, depth: int, activation: str) -> None:
        super().__init__()
        self.linear = nn.Parameter(nn.functional.normalize(torch.randn(size), dim=0))
        self.network = Perceptron(size, 1, width, depth, activation)

    def forward(self, x: Tensor) -> Tensor:
        """``[...]``."""
        return (self.linear * x).sum(-1) + self.network(x).squeeze(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """As ``x``."""
        return self.linear + self.network.gradient(x)


class KnownPotential:
    """An observable of the true system as a function of scaled states ``[..., size]``, divided by the root
    mean square of its gradient over ``seen`` ``[n, size]``."""

    def __init__(self, system: System, name: str, shift: Tensor, scale: Tensor, seen: Tensor) -> None:
        if not isinstance(system, HasObservables):
            raise ValueError(f"{type(system).__name__} has no observables: known must be empty")
        self.observe, self.name, self.shift, self.scale, self.unit = system.observe, name, shift, scale, 1.0
        offered = system.observe(seen * scale + shift)
        if name not in offered:
            raise ValueError(
                f"{type(system).__name__} observes no {name!r}, but {', '.join(sorted(offered))}"
            )
        self.unit = float(self.gradient(seen).square().sum(-1).mean().sqrt())
        if not 0 < self.unit < math.inf:
            raise ValueError(
                f"the gradient of the known {name} is zero or not finite over the training states"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """``[...]``."""
        return self.observe(x * self.scale.to(x) + self.shift.to(x))[self.name] / self.unit

    def gradient(self, x: Tensor) -> Tensor:
        """As ``x``."""
        slope: Tensor = torch.func.grad(lambda x: self(x).sum())(x)
        return slope


class Orthogonal(nn.Module):
    """Rows ``[..., rank, size]`` that are orthogonal to a vector ``[..., size]``: A_j g, A_j skew."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(rank, size, size) / math.sqrt(2 * size))

    def forward(self, g: Tensor) -> Tensor:
        skew = self.raw - self.raw.mT
        return (skew * g[..., None, None, :]).sum(-1)


class Metriplectic(vector_field.LearnedField):
    """Learned B and C, functions of the state, and E and S, each learned or known; for states of one axis
    that nothing drives.

    dE/dt and the sign of dS/dt are exact for the field, up to rounding; a rollout adds the error of the
    solver; the default is ``rk4``, one step between saved times. Which conserved quantity a learned E is, and
    in which unit, data do not tell. The model sees states in physical units (scaling "none"), because a known
    E is a function of these, and standardises them itself by the states it is built from.
    """

    scaling = "none"
    driven = False
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        system: System,
        truth: Trajectory,
        *,
        known: Annotated[
            list[Literal["energy", "entropy"]] | None,
            Field(description="which of E and S are the system's own observables; null: both are learned"),
        ] = None,
        width: Width = 32,
        depth: Depth = 2,
        activation: Activation = "tanh",
        rank: Rank = None,
        loss: Loss = "rollout",
        solver: Annotated[
            Solver | None, Field(description="integrator; null for rk4, one step between saved times")
        ] = None,
    ) -> None:
        super().__init__()
        vector_field.check_real(truth)
        if truth.actions is not None:
            raise ValueError("metriplectic dynamics are closed, and this system is not: use port_hamiltonian")
        if len(truth.state_shape) != 1 or truth.state_shape[0] < 2:
            raise ValueError(
                f"metriplectic needs states of one axis and two components or more, they are "
                f"{list(truth.state_shape)}"
            )
        self.objective = loss
        self.solver = symplectic.rk4() if solver is None else solver
        size = truth.state_shape[0]
        seen = vector_field.frames(truth.states, truth).double()
        deviation = seen.std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        self.register_buffer("shift", seen.mean(0).float())
        self.register_buffer("scale", scale.float())
        self.register_buffer("rate", (vector_field.typical_rates(truth) / self.scale).square().mean().sqrt())
        self.rank = size if rank is None else rank
        network = (width, depth, activation)
        place = (self.shift.double(), self.scale.double(), self.scaled(seen))
        self.internal, self.disorder = (
            KnownPotential(system, name, *place) if name in (known or []) else Potential(size, *network)
            for name in ("energy", "entropy")
        )
        self.across_entropy, self.across_energy = Orthogonal(self.rank, size), Orthogonal(self.rank, size)
        self.exchange = Perceptron(size, self.rank**2, *network)
        self.friction = Perceptron(size, self.rank**2, *network)

    @property
    def unit(self) -> Tensor:
        """What an error of 1 is, ``[size]``."""
        return self.scale

    def scaled(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale

    def energy(self, states: Tensor) -> Tensor:
        """E of the model, ``[...]`` for ``[..., size]``; a learned one up to a constant, in any unit."""
        return self.internal(self.scaled(states))

    def entropy(self, states: Tensor) -> Tensor:
        """S of the model, ``[...]`` for ``[..., size]``; a learned one up to a constant, in any unit."""
        return self.disorder(self.scaled(states))

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt, as ``x`` ``[..., size]``; ValueError for an action."""
        if u is not None:
            raise ValueError("metriplectic dynamics know no actions: leave them out, or use port_hamiltonian")
        x = self.scaled(x)
        by_energy, by_entropy = self.internal.gradient(x), self.disorder.gradient(x)
        q_s, q_e = self.across_entropy(by_entropy), self.across_energy(by_energy)
        b = self.exchange(x).unflatten(-1, (self.rank, self.rank))
        c = self.friction(x).unflatten(-1, (self.rank, self.rank))
        reversible = applied(q_s.mT, applied(b - b.mT, applied(q_s, by_energy)))
        irreversible = applied(q_e.mT, applied(c, applied(c.mT, applied(q_e, by_entropy))))
        return self.rate * self.scale * (reversible + irreversible)


def applied(matrix: Tensor, vector: Tensor) -> Tensor:
    """``[..., row]`` of ``[..., row, column]`` and ``[..., column]``."""
    return (matrix * vector.unsqueeze(-2)).sum(-1)


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"metriplectic": Metriplectic}
