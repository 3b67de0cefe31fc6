"""Discrete gradient networks (Matsubara, Ishikawa and Yaguchi 2020, "Deep energy-based modeling of
discrete-time physics").

A discrete gradient D of H obeys D(x, x') . (x' - x) = H(x') - H(x) and D(x, x) = grad H(x). The step

    (x' - x) / h = Omega D(x, x')

keeps a learned H exactly, for every h, because Omega is skew; it is symmetric, hence of order 2. The same
equation is the loss: between two frames no derivative is needed, and no equation is solved to train.

D is had from the network layer by layer, by the chain rule of discrete gradients: a linear layer is its own
difference quotient, and tanh has

    (tanh b - tanh a) / (b - a) = tanh(b - a) / (b - a) * (1 - tanh a tanh b)

which loses no digit where a and b are close, unlike a difference quotient that is formed as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics
from worldsim_kernels.solve.grid import substeps
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.hamiltonian import check_canonical
from worldsim_plugins.dynamics.vector_field import Depth, Perceptron, Width

# tanh(z) / z = 1 + s (c_1 + s (c_2 + ...)), s = z^2: for |z| < 0.1 good to the last bit of float64.
SERIES = (-1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075)


def tanhc(z: Tensor) -> Tensor:
    """tanh(z) / z, 1 at 0; differentiable there."""
    s = z * z
    near = s < 0.01
    series = torch.zeros_like(s)
    for coefficient in reversed(SERIES):
        series = s * (coefficient + series)
    away = torch.where(near, torch.ones_like(z), z)
    return torch.where(near, 1 + series, torch.tanh(away) / away)


def discrete_gradient(network: Perceptron, a: Tensor, b: Tensor) -> Tensor:
    """D ``[..., inputs]`` of the first output between ``a`` and ``b`` ``[..., inputs]``:
    D . (b - a) is the difference of the output, and D(a, a) its gradient. The activation must be tanh."""
    secants = []
    for layer in network.hidden:
        a, b = layer(a), layer(b)
        quotient = tanhc(b - a)
        a, b = torch.tanh(a), torch.tanh(b)
        secants.append((layer, quotient * (1 - a * b)))
    gradient = network.last.weight[0]
    for layer, secant in reversed(secants):
        gradient = (gradient * secant) @ layer.weight
    return gradient


class DiscreteGradientNet(nn.Module):
    """A learned Hamiltonian that is fitted and rolled out through its discrete gradient; the last state axis
    is (q, p), half and half.

    Rollouts keep the learned energy to rounding whatever the step. The loss is the mean over pairs of
    successive frames of |(x' - x) / h - Omega D(x, x')|^2, over the mean square of typical rates.
    """

    scaling = "canonical"
    driven = False
    rate: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 64,
        depth: Depth = 2,
        step: Annotated[
            float | None,
            Field(gt=0, description="longest step of a rollout; null for one step between saved times"),
        ] = None,
        max_iterations: Annotated[
            int, Field(ge=1, description="Newton iterations after which a trajectory is given up: NaN")
        ] = 20,
    ) -> None:
        super().__init__()
        check_canonical(truth)
        self.step, self.max_iterations = step, max_iterations
        self.state_shape, self.axes = truth.state_shape, len(truth.state_shape)
        self.register_buffer("rate", vector_field.typical_rates(truth).square().mean().sqrt())
        self.network = Perceptron(math.prod(truth.state_shape), 1, width, depth, "tanh")

    def energy(self, states: Tensor) -> Tensor:
        """The learned H, ``[...]`` for ``[..., *state]``; differentiable, and defined up to a constant."""
        return self.rate * self.network(states.flatten(-self.axes)).squeeze(-1)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """(dH/dp, -dH/dq) ``[..., *state]`` at ``x`` ``[..., *state]``; ValueError for an action."""
        if u is not None:
            raise ValueError("a discrete gradient network is not driven: leave the actions out")
        return self.slope(x, x)

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        """Omega D(a, b), as ``a`` and ``b`` ``[..., *state]``."""
        between = discrete_gradient(self.network, a.flatten(-self.axes), b.flatten(-self.axes))
        by_q, by_p = (self.rate * between.view_as(a)).chunk(2, -1)
        return torch.cat([by_p, -by_q], -1)

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean squared residual of the discrete equation of motion over pairs of frames."""
        if len(truth.times) < 2:
            raise ValueError("a discrete gradient needs windows of at least two frames: set fit.window")
        truth = truth.to(dtype=self.rate.dtype)
        before, after = truth.states[:, :, :-1], truth.states[:, :, 1:]
        gaps = truth.times.diff().reshape(-1, *[1] * self.axes).to(before)
        residual = (after - before) / gaps - self.slope(before, after)
        return vector_field.frames(residual / self.rate, truth.span(1)).square().mean()

    def advance(self, x: Tensor, h: float) -> Tensor:
        """One step of length ``h`` from ``x`` ``[trajectory, *state]``, by Newton's method.

        The iteration begins at x, where the step is its own linearisation. Each row is frozen once it has
        settled, so none depends on its companions; one that does not settle within ``max_iterations`` is NaN,
        and a smaller ``step`` helps it.
        """
        flat = x.flatten(1)

        def residual(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            shape = (*x.shape[:-1], *self.state_shape)
            value = y - x - h * self.slope(x.view(shape), y.view(shape)).flatten(-self.axes)
            return value, value

        linearised = torch.func.vmap(torch.func.jacrev(residual, has_aux=True))
        tolerance = 8 * torch.finfo(x.dtype).eps * flat.abs().amax(1).clamp(min=1)
        y, moving = flat, torch.ones(len(flat), dtype=torch.bool, device=x.device)
        for _ in range(self.max_iterations):
            jacobian, value = linearised(y, flat)
            change = torch.linalg.solve_ex(jacobian, value)[0]
            y = torch.where(moving[:, None], y - change, y)
            moving = moving & ~(change.abs().amax(1) <= tolerance)  # not ">", which lets a NaN pass
            if not moving.any():
                break
        return torch.where(moving[:, None], math.nan, y).view_as(x)

    @torch.no_grad()
    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``[trajectory, draw, time, *state]``, all draws alike, from the last frame of ``context``."""
        if actions is not None:
            raise ValueError("a discrete gradient network is not driven: leave the actions out")
        context = context.to(dtype=self.rate.dtype)
        frames = [context.states[:, 0, -1]]
        for h, count in substeps(times, self.step):
            x = frames[-1]
            for _ in range(count):
                x = self.advance(x, h)
            frames.append(x)
        states = torch.stack(frames, 1).unsqueeze(1).expand(-1, draws, *[-1] * (1 + self.axes))
        return context.replace(states=states, times=times, actions=None, observables={}, length=None)


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"discrete_gradient_net": DiscreteGradientNet}
