"""SympNets: networks that are symplectic maps (Jin, Zhang, Zhu, Tang and Karniadakis 2020).

The map from one frame to the next, (q, p) -> (q', p'), is a composition of shears, which add to one half of
the state the gradient of a function of the other half:

    linear       S x + b,                          S = A + A^T
    activation   a * sigma(x)
    gradient     K^T (a * sigma(K x + b))

LA-SympNets alternate linear modules (several shears in turn) with activations; G-SympNets are made of
gradient shears alone. Each shear, hence the whole, has a Jacobian J with J^T Omega J = Omega whatever its
weights, and an exact inverse. Both families are dense in the symplectic maps (theorems 4 and 5 there).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Model
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.hamiltonian import check_canonical

SMALL = 0.01


class LinearShear(nn.Module):
    """(A + A^T) x + b, for ``x`` ``[..., d]``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(SMALL * torch.randn(size, size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.matrix + self.matrix.mT) + self.bias


class ActivationShear(nn.Module):
    """a * sigma(x), for ``x`` ``[..., d]``."""

    def __init__(self, size: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.factor = nn.Parameter(SMALL * torch.randn(size))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.activation(x)


class GradientShear(nn.Module):
    """K^T (a * sigma(K x + b)), for ``x`` ``[..., d]``: the gradient of ``width`` ridge functions."""

    def __init__(self, size: int, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ridges = nn.Linear(size, width)
        self.factor = nn.Parameter(SMALL * torch.randn(width))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return (self.factor * self.activation(self.ridges(x))) @ self.ridges.weight


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


class SymplecticNet(nn.Module):
    """A learned symplectic map of one frame step; the last state axis is (q, p), half and half.

    It is a map and no vector field: it knows the time step of its training data alone, has no drift, and
    rolls out to whole multiples of that step. The states come scaled by one number for all q and one for all
    p, which keeps a symplectic map symplectic. The loss is the mean squared error of the frames that follow
    the first one of each window, over the mean squared change in one step: with windows of two frames, as in
    the paper, whoever predicts that nothing changes has loss 1.
    """

    scaling = "canonical"
    driven = False
    rate: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        modules: Annotated[
            Literal["linear_activation", "gradient"],
            Field(description="linear_activation: LA-SympNet; gradient: G-SympNet, better in few dimensions"),
        ] = "gradient",
        layers: Annotated[
            int, Field(ge=1, description="activation modules, or gradient shears (even: both halves alike)")
        ] = 8,
        width: Annotated[int, Field(ge=1, description="gradient: ridge functions in each shear")] = 32,
        shears: Annotated[
            int, Field(ge=1, description="linear_activation: shears in each linear module")
        ] = 4,
        activation: Annotated[
            Literal["tanh", "sigmoid"], Field(description="nonlinearity, a bounded one as in the paper")
        ] = "tanh",
    ) -> None:
        super().__init__()
        check_canonical(truth)
        self.time_step = step_of(truth.times)
        change = vector_field.frames(truth.states.diff(dim=2), truth.span(1)).double().square().mean()
        vector_field.check_moving(change)
        self.register_buffer("rate", change.sqrt().float())
        self.axes = len(truth.state_shape)
        size = math.prod(truth.state_shape) // 2
        sigma = ACTIVATIONS[activation]
        steps: list[tuple[nn.Module, bool]] = []
        if modules == "gradient":
            steps = [(GradientShear(size, width, sigma), i % 2 == 0) for i in range(layers)]
        else:
            for i in range(layers):
                steps += [(LinearShear(size), j % 2 == 0) for j in range(shears)]
                steps.append((ActivationShear(size, sigma), i % 2 == 0))
            steps += [(LinearShear(size), j % 2 == 0) for j in range(shears)]
        self.shears = nn.ModuleList(shear for shear, _ in steps)
        self.moves_p = tuple(moves_p for _, moves_p in steps)

    def forward(self, x: Tensor) -> Tensor:
        """The state one time step after ``x`` ``[..., *state]``."""
        q, p = x.chunk(2, -1)
        for shear, moves_p in zip(self.shears, self.moves_p):
            q, p = (q, p + self._added(shear, q)) if moves_p else (q + self._added(shear, p), p)
        return torch.cat([q, p], -1)

    def inverse(self, x: Tensor) -> Tensor:
        """The state one time step before ``x`` ``[..., *state]``."""
        q, p = x.chunk(2, -1)
        for shear, moves_p in zip(reversed(self.shears), reversed(self.moves_p)):
            q, p = (q, p - self._added(shear, q)) if moves_p else (q - self._added(shear, p), p)
        return torch.cat([q, p], -1)

    def _added(self, shear: nn.Module, x: Tensor) -> Tensor:
        return shear(x.flatten(-self.axes)).view_as(x)

    def follow(self, state: Tensor, times: Tensor) -> Tensor:
        """``[trajectory, time, *state]`` from ``state`` ``[trajectory, *state]`` at ``times[0]``.

        Raises ValueError unless ``times`` lie whole multiples of the time step apart; they may descend.
        """
        frames = [state]
        for count in multiples(times, self.time_step):
            x = frames[-1]
            for _ in range(abs(count)):
                x = self.forward(x) if count > 0 else self.inverse(x)
            frames.append(x)
        return torch.stack(frames, 1)

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean squared error of the later frames of each window over the mean squared change of one step."""
        return self.loss_and_estimate(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and the trajectories of the map from the first frame of ``truth`` on."""
        truth = truth.to(dtype=self.rate.dtype)
        states = self.follow(truth.states[:, :, 0].flatten(0, 1), truth.times)
        estimate = truth.replace(states=states.view_as(truth.states), observables={})
        return vector_field.rollout_loss(estimate, truth) / self.rate**2, estimate

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
            raise ValueError("a SympNet is not driven: leave the actions out, or use neural_ode")
        context = context.to(dtype=self.rate.dtype)
        states = self.follow(context.states[:, 0, -1], times)
        states = states.unsqueeze(1).expand(-1, draws, *states.shape[1:])
        return context.replace(states=states, times=times, actions=None, observables={}, length=None)


def step_of(times: Tensor) -> float:
    """The step of a uniform grid. Raises ValueError for another grid, or for a single time."""
    if len(times) < 2:
        raise ValueError("a SympNet needs windows of at least two frames: set fit.window")
    gaps = times.double().diff()
    if not torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-6, atol=0):
        raise ValueError("a SympNet learns the map of one time step: its data need a uniform time grid")
    return float(gaps[0])


def multiples(times: Tensor, step: float) -> list[int]:
    """How many steps lie between successive ``times``; ValueError when one is no whole number but 0."""
    ratios = times.double().diff() / step
    counts = ratios.round()
    if bool((counts == 0).any()) or not torch.allclose(ratios, counts, rtol=1e-6, atol=0):
        raise ValueError(
            f"a SympNet knows whole multiples of its time step {step:g}; the times given have steps from "
            f"{float(times.diff().min()):g} to {float(times.diff().max()):g}: use a grid of such multiples, "
            "or a model with a vector field (hamiltonian)"
        )
    return [int(count) for count in counts]


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Model]]:
    return {"symplectic_net": SymplecticNet}
