"""What learned vector fields share: a network, the unit of their rates, two losses and the rollout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from worldsim.protocols import Dynamics, Solver, Trajectory

Width = Annotated[int, Field(ge=1, description="units in each hidden layer")]
Depth = Annotated[int, Field(ge=1, description="number of hidden layers")]
Activation = Annotated[
    Literal["tanh", "softplus", "silu", "gelu"],
    Field(description="nonlinearity of the hidden layers; all are smooth, as a vector field should be"),
]
EachBody = Annotated[
    bool,
    Field(
        description="apply one field to every body, i.e. to each slice of the first state axis, separately"
    ),
]
Loss = Annotated[
    Literal["derivative", "rollout"],
    Field(
        description="derivative: mean squared error of the field against the observable 'derivative'; "
        "rollout: mean squared error of all later frames, integrated from the first frame of each window"
    ),
]


def _gelu_slope(z: Tensor, out: Tensor) -> Tensor:
    return (1 + torch.erf(z / math.sqrt(2))) / 2 + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _silu_slope(z: Tensor, out: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


# Name -> the activation, and its derivative at z given both z and the activation there.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "tanh": (torch.tanh, lambda z, out: 1 - out * out),
    "softplus": (functional.softplus, lambda z, out: torch.sigmoid(z)),
    "silu": (functional.silu, _silu_slope),
    "gelu": (functional.gelu, _gelu_slope),
}


class Perceptron(nn.Module):
    """``[..., inputs]`` to ``[..., outputs]`` through ``depth`` hidden layers of ``width`` units."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, activation: str) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(size, width) for size in sizes[:-1])
        self.last = nn.Linear(width, outputs)
        self.activation, self.slope = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.last(x)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient ``[..., inputs]`` of the first output.

        Written out, because it costs less than half of ``torch.autograd.grad``, needs no grad mode and is
        itself differentiable in the usual way.
        """
        passed = []
        for layer in self.hidden:
            z = layer(x)
            x = self.activation(z)
            passed.append((layer, self.slope(z, x)))
        gradient = self.last.weight[0]
        for layer, slope in reversed(passed):
            gradient = (gradient * slope) @ layer.weight
        return gradient


def check_real(truth: Trajectory) -> None:
    """Raises ValueError for tokens."""
    if not truth.states.is_floating_point():
        raise ValueError(
            f"this model moves real numbers, and the states are tokens ({truth.states.dtype}): use a token "
            "model"
        )


def state_axes(truth: Trajectory, each_body: bool) -> int:
    """How many of the last axes of a state one field sees: all, or all but that of the bodies."""
    check_real(truth)
    axes = len(truth.state_shape)
    if not axes:
        raise ValueError("a vector field needs states with an axis: a single number as [..., 1]")
    if each_body and axes < 2:
        raise ValueError(
            f"each_body needs states [body, component], and they are {list(truth.state_shape)}: "
            "leave each_body out"
        )
    return axes - each_body


def typical_rates(truth: Trajectory) -> Tensor:
    """Root mean square of dx/dt per component, ``[*state]``, in float32.

    Taken from the observable "derivative" where there is one, else from differences of frames. Raises
    ValueError when there is neither, or nothing moves.
    """
    rates = truth.observables.get("derivative")
    at = truth
    if rates is None:
        if len(truth.times) < 2:
            raise ValueError("typical rates need windows of at least two frames: set fit.window")
        gaps = truth.times.diff().reshape(-1, *[1] * len(truth.state_shape))
        rates, at = truth.states.diff(dim=2) / gaps, truth.span(1)
    typical = frames(rates, at).double().square().mean(0).sqrt().float()
    check_moving(typical)
    return typical


def check_moving(sizes: Tensor) -> None:
    """Raises ValueError when all ``sizes`` of rates or changes are 0."""
    if not bool(sizes.any()):
        raise ValueError(
            "the training states never change, so there is no motion to learn: choose other starts or, as a "
            "model is built from the first fit.window frames of each trajectory, a longer window"
        )


def frames(value: Tensor, truth: Trajectory) -> Tensor:
    """The valid frames of ``value`` ``[trajectory, draw, time, ...]``, as ``[frame, ...]``."""
    if truth.length is None:
        return value.flatten(0, 2)
    index = torch.arange(len(truth.times), device=truth.length.device)
    return value[index < truth.length.unsqueeze(-1)]


def derivative_loss(model: Dynamics, truth: Trajectory, unit: Tensor | float = 1.0) -> Tensor:
    """Mean |(f(x) - dx/dt) / unit|^2 over the frames of ``truth``; ValueError when it has no "derivative"."""
    target = truth.observables.get("derivative")
    if target is None:
        raise ValueError(
            "the loss 'derivative' needs the observable 'derivative' [trajectory, draw, time, *state], which "
            f"this system does not give (it gives {sorted(truth.observables)}): use loss: rollout"
        )
    action = None
    if truth.actions is not None:
        spread = truth.actions.unsqueeze(1).expand(-1, truth.states.shape[1], *truth.actions.shape[1:])
        action = frames(spread, truth)
    drift = model.drift(truth.times[0], frames(truth.states, truth), action)
    return ((drift - frames(target, truth)) / unit).square().mean()


def rollout_loss(estimate: Trajectory, truth: Trajectory, unit: Tensor | float = 1.0) -> Tensor:
    """Mean |(x - x_truth) / unit|^2 over all frames but the given first one; ValueError without another."""
    if len(truth.times) < 2:
        raise ValueError("the loss 'rollout' needs windows of at least two frames: set fit.window")
    error = (estimate.states - truth.states) / unit
    return frames(error[:, :, 1:], truth.span(1)).square().mean()


class LearnedField(nn.Module):
    """What a vector field needs to be fitted and rolled out; a subclass has these four.

    One whose solver works on something else than the state (more axes, a code) has its own ``path``; one that
    sees states in physical units has a ``unit`` for their errors, a number or ``[*state]``.
    """

    unit: Tensor | float = 1.0

    objective: str
    solver: Solver
    rate: Tensor
    drift: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean squared error, of the field or of the rollout; raises ValueError when it cannot be had."""
        if self.objective == "derivative":
            return derivative_loss(self, truth.to(dtype=self.rate.dtype), self.unit)
        return self.loss_and_estimate(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and the model's trajectories from the first frame of ``truth`` on."""
        truth = truth.to(dtype=self.rate.dtype)
        estimate = self.follow(truth)
        if self.objective == "derivative":
            return derivative_loss(self, truth, self.unit), estimate
        return rollout_loss(estimate, truth, self.unit), estimate

    def path(self, state: Tensor, times: Tensor, actions: Tensor | None) -> Tensor:
        """``[trajectory, time, *state]`` from ``state`` ``[trajectory, *state]`` at ``times[0]``."""
        return self.solver.solve(self, state, times, actions, None)

    def follow(self, truth: Trajectory) -> Trajectory:
        """The model's own trajectories from the first frame of ``truth`` on, under its actions."""
        n, draws = truth.states.shape[:2]
        actions = None if truth.actions is None else truth.actions.repeat_interleave(draws, 0)
        states = self.path(truth.states[:, :, 0].flatten(0, 1), truth.times, actions)
        return truth.replace(states=states.unflatten(0, (n, draws)), observables={})

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``[trajectory, draw, time, *state]``, all draws alike, from the last frame of ``context``."""
        context = context.to(dtype=self.rate.dtype)
        states = self.path(context.states[:, 0, -1], times, actions)
        return context.replace(
            states=states.unsqueeze(1).expand(-1, draws, *states.shape[1:]),
            times=times,
            actions=actions,
            observables={},
            length=None,
        )
