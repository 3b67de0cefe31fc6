"""Port-Hamiltonian networks: learned energy, friction and ports (van der Schaft and Jeltsema 2014; mechanics:
Zhong, Dey and Chakraborty 2020, "Symplectic ODE-Net" and "Dissipative SymODEN").

    dx/dt = (J - R) grad H + G u,   J = -J^T,   R = K K^T,   y = G^T grad H

so that dH/dt = -grad H^T R grad H + u^T y <= u^T y, whatever the weights: the model stores no more than it is
given. ``canonical``: x = (q, p), J the symplectic matrix, friction and port act on p and depend on q alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Loss, Perceptron, Width
from worldsim_plugins.solvers import symplectic

STIFFEST = 1e-2
"""Added to the inverse mass matrix, in its unit: no direction is infinitely heavy (Zhong et al. 2020)."""


class Features(nn.Module):
    """Components ``[..., size]`` as a network sees them: angles as cosine and sine, others standardised."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, angles: list[int]) -> None:
        super().__init__()
        self.angles = angles
        self.others = [i for i in range(len(shift)) if i not in angles]
        self.count = len(angles) + len(shift)
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        angles = x[..., self.angles]
        others = ((x - self.shift) / self.scale)[..., self.others]
        return torch.cat([angles.cos(), angles.sin(), others], -1)


class PortHamiltonian(vector_field.LearnedField):
    """Learned H, R and G, and J where it is not canonical; states of one axis, driven or not.

    The model sees states in physical units (scaling "none"), because the cosine of a scaled angle is not that
    of the angle, and makes its own units from the states it is built from: one for positions and one for
    momenta when canonical, else one for each component; and the deviation of the actions.
    """

    scaling = "none"
    scale: Tensor
    push: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        structure: Annotated[
            Literal["canonical", "learned"],
            Field(description="canonical: the state is (q, p), half and half; learned: J and R are networks"),
        ] = "canonical",
        form: Annotated[
            Literal["general", "mechanical"],
            Field(description="H as one network, or p^T M(q)^-1 p / 2 + V(q), which needs 'canonical'"),
        ] = "general",
        dissipation: Annotated[
            bool, Field(description="learn R; without it, energy changes by u alone")
        ] = True,
        angles: Annotated[
            list[int] | None,
            Field(description="components in rad that mean the same after a full turn; null for none"),
        ] = None,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "tanh",
        loss: Loss = "rollout",
        solver: Annotated[
            Solver | None, Field(description="integrator; null for rk4, one step between saved times")
        ] = None,
    ) -> None:
        super().__init__()
        angles = list(angles or [])
        size = checked_size(truth, structure, form, angles)
        self.objective = loss
        self.solver = symplectic.rk4() if solver is None else solver
        self.canonical, self.mechanical = structure == "canonical", form == "mechanical"
        self._measure(truth, angles)
        seen = vector_field.frames(truth.states, truth).double()
        shift, scale = seen.mean(0).float(), spread(seen)
        self.felt = size // 2 if self.canonical else size
        self.whole = Features(shift, scale, angles)
        self.place = Features(shift[: self.felt], scale[: self.felt], angles)
        network = (width, depth, activation)
        self.stored = Perceptron(self.place.count if self.mechanical else self.whole.count, 1, *network)
        if self.mechanical:
            self.inverse_mass = Perceptron(self.place.count, self.felt**2, *network)
        if not self.canonical:
            self.exchange = Perceptron(self.place.count, size**2, *network)
        self.friction = Perceptron(self.place.count, self.felt**2, *network) if dissipation else None
        self.action_axes = 0 if truth.actions is None else truth.actions.dim() - 2
        if self.action_axes:
            self.port = Perceptron(self.place.count, self.felt * self.push.numel(), *network)

    @property
    def unit(self) -> Tensor:
        """What an error of 1 is, ``[size]``."""
        return self.scale

    def _measure(self, truth: Trajectory, angles: list[int]) -> None:
        seen = vector_field.frames(truth.states, truth).double()
        scale = spread(seen)
        if self.canonical:
            half = len(scale) // 2
            lengths = [i for i in range(half) if i not in angles]
            q = scale[lengths].square().mean().sqrt() if lengths else torch.ones(())
            scale = torch.cat([q.expand(half), scale[half:].square().mean().sqrt().expand(half)])
        self.register_buffer("scale", scale)
        self.register_buffer("rate", (vector_field.typical_rates(truth) / scale).square().mean().sqrt())
        actions = None if truth.actions is None else truth.actions.flatten(0, 1).flatten(1).double()
        self.register_buffer("push", torch.ones(0) if actions is None else spread(actions))

    def energy(self, states: Tensor) -> Tensor:
        """The learned H, ``[...]`` for ``[..., size]``, up to a constant; when canonical, in the units of q p
        over time, else up to a factor as well."""
        return self.quantum * self.scaled_energy(states)

    @property
    def quantum(self) -> Tensor:
        """The energy that the network calls 1."""
        return self.rate * self.scale[0] * self.scale[-1] if self.canonical else torch.ones_like(self.rate)

    def scaled_energy(self, x: Tensor) -> Tensor:
        if not self.mechanical:
            return self.stored(self.whole(x)).squeeze(-1)
        q, p = x.chunk(2, -1)
        place = self.place(q)
        root = self.inverse_mass(place).unflatten(-1, (self.felt, self.felt))
        p = p / self.scale[-1]
        kinetic = applied(root.mT, p).square().sum(-1) + STIFFEST * p.square().sum(-1)
        return kinetic / 2 + self.stored(place).squeeze(-1)

    def scaled_gradient(self, x: Tensor) -> Tensor:
        """dH/dx in the model's own units, as ``x``."""
        slope: Tensor = torch.func.grad(lambda x: self.scaled_energy(x).sum())(x)
        return slope * self.scale

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt, as ``x`` ``[..., size]``, under the action ``u`` ``[..., *action]``.

        The same at all times ``t``. Raises ValueError when actions are missing, or there but unknown.
        """
        slope, place = self.scaled_gradient(x), self.place(x[..., : self.felt])
        felt = self.force(place, slope[..., -self.felt :], u)
        if self.canonical:
            by_q, by_p = slope.chunk(2, -1)
            return self.rate * self.scale * torch.cat([by_p, felt - by_q], -1)
        b = self.exchange(place).unflatten(-1, (self.felt, self.felt))
        return self.rate * self.scale * (applied(b - b.mT, slope) + felt)

    def force(self, place: Tensor, slope: Tensor, u: Tensor | None) -> Tensor:
        """-R grad H + G u on the components that feel them, ``[..., felt]``, in the model's own units."""
        if (u is None) != (self.action_axes == 0):
            raise ValueError(f"this model was built {'with' if u is None else 'without'} actions")
        force = torch.zeros_like(slope)
        if self.friction is not None:
            root = self.friction(place).unflatten(-1, (self.felt, self.felt))
            force = force - applied(root, applied(root.mT, slope))
        if u is not None:
            force = force + applied(
                self.gain(place), u.flatten(-self.action_axes).to(slope.dtype) / self.push
            )
        return force

    def gain(self, place: Tensor) -> Tensor:
        """G ``[..., felt, action]``, in the model's own units."""
        return self.port(place).unflatten(-1, (self.felt, self.push.numel()))

    def output(self, x: Tensor) -> Tensor:
        """y = G^T grad H ``[..., action]``: u . y is the power that flows in through the port."""
        slope, gain = self.scaled_gradient(x), self.gain(self.place(x[..., : self.felt]))
        return self.quantum * self.rate * applied(gain.mT, slope[..., -self.felt :]) / self.push


def applied(matrix: Tensor, vector: Tensor) -> Tensor:
    """``[..., row]`` of ``[..., row, column]`` and ``[..., column]``."""
    return (matrix * vector.unsqueeze(-2)).sum(-1)


def spread(values: Tensor) -> Tensor:
    """Standard deviations ``[component]`` of ``[n, component]`` in float32; 1 for what does not vary."""
    deviation = values.std(0, correction=0)
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation)).float()


def checked_size(truth: Trajectory, structure: str, form: str, angles: list[int]) -> int:
    """Components of a state; raises ValueError for a state, a form or angles that do not fit together."""
    vector_field.check_real(truth)
    if len(truth.state_shape) != 1:
        raise ValueError(f"port_hamiltonian needs states of one axis, they are {list(truth.state_shape)}")
    size = truth.state_shape[0]
    if structure == "canonical" and size % 2:
        raise ValueError(f"'canonical' needs states (q, p), half and half, they have {size} components")
    if form == "mechanical" and structure != "canonical":
        raise ValueError("form 'mechanical' speaks of q and p: it needs structure 'canonical'")
    allowed = size // 2 if structure == "canonical" else size
    if len(set(angles)) < len(angles) or not all(0 <= i < allowed for i in angles):
        raise ValueError(f"angles must be different components from 0 to {allowed - 1}, not {angles}")
    return size


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"port_hamiltonian": PortHamiltonian}
