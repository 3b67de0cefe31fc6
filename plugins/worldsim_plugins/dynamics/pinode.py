"""Physics-informed neural ODE: a reduced model that also learns from the known equations (Sholokhov, Liu,
Mansour, Nabi 2023, "Physics-informed neural ODE (PINODE)").

With an encoder phi, a latent field f and a decoder psi, a forecast is psi(z(t)), where dz/dt = f(z) and
z(0) = phi(x(0)). The loss has three parts:

    data         |x(t) - psi(z(t))|^2 over the frames of a window
    autoencoder  |x - psi(phi(x))|^2 over the same frames
    collocation  |J_phi(y) F(y) - f(phi(y))|^2 + |y - psi(phi(y))|^2 at drawn states y, for dx/dt = F(x)

J_phi(y) F(y) is one Jacobian-vector product: no trajectory is needed at y, and no solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics, Solver, System
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Perceptron, Width
from worldsim_plugins.solvers import symplectic

Weight = Field(ge=0, description="weight of this part of the loss beside that of the data; 0 leaves it out")


class PINODE(vector_field.LearnedField):
    """Encoder, latent field and decoder, all perceptrons, for states of any shape that nothing drives.

    ``F`` is the drift of the true system of the training split, in its own units. The model therefore sees
    states in these units too (scaling "none") and standardises them itself, by the mean and the deviation of
    the training states it is built from; the map is part of the encoder, so the chain rule sees it. Losses
    are those of standardised states, and latent rates are divided by the typical rate, so weights have no
    units.

    Raises ValueError for a driven system, or collocation states where F is not finite. A system whose law
    changes with time has no F(x): it must offer ``restart``.
    """

    shift: Tensor
    scale: Tensor
    middle: Tensor
    reach: Tensor

    scaling = "none"
    driven = False
    needs = ("HasDrift", "Restartable")

    def __init__(
        self,
        system: System,
        truth: Trajectory,
        *,
        latent: Annotated[
            int | None,
            Field(ge=1, description="size of the code; null: the code is the standardised state itself"),
        ] = None,
        collocation: Annotated[float, Weight] = 1.0,
        autoencoder: Annotated[float, Weight] = 1.0,
        points: Annotated[
            int, Field(ge=1, description="collocation states, drawn afresh at every training step")
        ] = 256,
        law: Annotated[
            Literal["box", "normal", "starts"],
            Field(
                description="how they are drawn: uniform in the box, or from the normal law, that the "
                "first fit.window frames of the training states fill, or as the system draws its starts"
            ),
        ] = "box",
        extent: Annotated[
            float,
            Field(gt=0, description="half-sides of that box, or deviations of that law, over the data's"),
        ] = 1.0,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "tanh",
        solver: Annotated[
            Solver | None, Field(description="integrator; null for rk4, one step between saved times")
        ] = None,
    ) -> None:
        super().__init__()
        if truth.actions is not None:
            raise ValueError("pinode is not driven, and this system is: use neural_ode")
        vector_field.state_axes(truth, each_body=False)
        self.objective = "rollout"
        self.solver = symplectic.rk4() if solver is None else solver
        self.known: Any = system
        self.weights = {"autoencoder": autoencoder, "collocation": collocation}
        self.points, self.law, self.extent = points, law, extent
        self._measure(truth)
        size = self.shift.numel()
        network = (width, depth, activation)
        self.encoder: nn.Module = nn.Identity()
        self.decoder: nn.Module = nn.Identity()
        if latent is not None:
            self.encoder, self.decoder = (
                Perceptron(size, latent, *network),
                Perceptron(latent, size, *network),
            )
        self.field = Perceptron(latent or size, latent or size, *network)

    def _measure(self, truth: Trajectory) -> None:
        """Mean, deviation and half the range of the states, each ``[*state]``, and their typical rate, over
        deviations."""
        seen = vector_field.frames(truth.states, truth).double()
        deviation = seen.std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        low, high = seen.amin(0), seen.amax(0)
        self.register_buffer("shift", seen.mean(0).float())
        self.register_buffer("scale", scale.float())
        self.register_buffer("middle", ((low + high) / 2).float())
        self.register_buffer("reach", ((high - low) / 2).float())
        rates = vector_field.typical_rates(truth) / self.scale
        self.register_buffer("rate", rates.square().mean().sqrt())

    def encode(self, x: Tensor) -> Tensor:
        """phi: the code ``[..., latent]`` of ``[..., *state]``."""
        return self.encoder(((x - self.shift) / self.scale).flatten(-self.shift.dim()))

    def decode(self, z: Tensor) -> Tensor:
        """psi: the state ``[..., *state]`` of ``[..., latent]``."""
        return self.decoder(z).unflatten(-1, self.shift.shape) * self.scale + self.shift

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """J_psi(phi(x)) f(phi(x)), as ``x`` ``[..., *state]``; ValueError for an action."""
        if u is not None:
            raise ValueError("pinode is not driven: leave the actions out, or use neural_ode")
        z = self.encode(x)
        return torch.func.jvp(self.decode, (z,), (self.rate * self.field(z),))[1]

    def path(self, state: Tensor, times: Tensor, actions: Tensor | None) -> Tensor:
        """``[trajectory, time, *state]``; the first frame is ``state`` itself, not its reconstruction.
        ValueError for actions."""
        if actions is not None:
            raise ValueError("pinode is not driven: leave the actions out, or use neural_ode")
        codes = self.solver.solve(LatentField(self), self.encode(state), times, None, None)
        return torch.cat([state.unsqueeze(1), self.decode(codes[:, 1:])], 1)

    def loss(self, truth: Trajectory) -> Tensor:
        """The weighted sum of the three parts; collocation states come from torch's default generator."""
        return self.loss_and_estimate(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and the model's trajectories from the first frame of ``truth`` on."""
        truth = truth.to(dtype=self.rate.dtype)
        estimate = self.follow(truth)
        loss = vector_field.rollout_loss(estimate, truth, self.scale)
        if self.weights["autoencoder"] and isinstance(self.encoder, Perceptron):
            seen = vector_field.frames(truth.states, truth)
            loss = loss + self.weights["autoencoder"] * self.reconstruction(seen)
        if self.weights["collocation"]:
            loss = loss + self.weights["collocation"] * self.collocation(self.drawn())
        return loss, estimate

    def reconstruction(self, x: Tensor) -> Tensor:
        """Mean |x - psi(phi(x))|^2 over states ``[n, *state]``, in deviations."""
        return ((self.decode(self.encode(x)) - x) / self.scale).square().mean()

    def drawn(self) -> Tensor:
        """Collocation states ``[points, *state]``."""
        shape = (self.points, *self.shift.shape)
        if self.law == "starts":
            rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            start = self.known.sample(self.points, rng)
            begun = self.known.simulate(start, torch.zeros(1, dtype=torch.float64), None, rng)
            return begun.states[:, 0, 0].to(self.rate)
        if self.law == "box":
            unit = 2 * torch.rand(shape, dtype=self.rate.dtype, device=self.rate.device) - 1
            return self.middle + self.extent * self.reach * unit
        unit = torch.randn(shape, dtype=self.rate.dtype, device=self.rate.device)
        return self.shift + self.extent * self.scale * unit

    def collocation(self, y: Tensor) -> Tensor:
        """The collocation loss at states ``y`` ``[n, *state]``; raises ValueError where F is not finite."""
        with torch.no_grad():
            rates = self.known.drift(torch.zeros((), dtype=torch.float64), y.double(), None).to(y.dtype)
        if not bool(rates.isfinite().all()):
            raise ValueError(
                "the true rate is not finite at a collocation state: it lies outside of where the system is "
                "defined; make extent smaller"
            )
        z, pushed = torch.func.jvp(self.encode, (y,), (rates,))
        residual = (pushed / self.rate - self.field(z)).square().mean()
        return residual + self.reconstruction(y) if isinstance(self.encoder, Perceptron) else residual


class LatentField:
    """The latent field of a model, as a solver calls it."""

    def __init__(self, model: PINODE) -> None:
        self.model = model
        self.parameters = model.parameters

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dz/dt, as ``x`` ``[..., latent]``."""
        return self.model.rate * self.model.field(x)


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"pinode": PINODE}
