"""Neural Hamiltonian flows: a symplectic map as a normalising flow (Toth, Rezende, Jaegle, Racaniere, Botev
and Higgins 2020, section 4), with the fixed kinetic energy of Souveton, Guillin, Jasche, Lavaux and Michel
2023.

Beside what is generated, q, there is a momentum p of the same size. Noise (q_0, p_0) moves from generator
time s = 0 to data at s = 1 under

    H(q, p, s) = p^T M^-1 p / 2 + V_k(q, c)        for s between k / K and (k + 1) / K

in leapfrog steps, so the map has an exact inverse and determinant 1: no Jacobian is ever computed. With an
encoder e(p | q, c) of the momentum that was not seen,

    log p(q | c) >= E_{p ~ e} [log pi(Phi^-1(q, p) | c) - log e(p | q, c)]

and pi a normal law. The average over several p inside the logarithm (Burda, Grosse and Salakhutdinov 2016)
tends to the density itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim_plugins.generators.networks import perceptron
from worldsim_plugins.generators.windows import Windows, normal

Width = Annotated[int, Field(ge=1, description="units in each hidden layer of every network")]
Depth = Annotated[int, Field(ge=1, description="number of hidden layers of every network")]
Potentials = Annotated[int, Field(ge=1, description="potentials that act one after the other")]
Leapfrogs = Annotated[int, Field(ge=1, description="leapfrog steps under each potential")]
Pair: TypeAlias = tuple[Tensor, Tensor]

DURATION = 2.0
"""Time that passes in the Hamiltonian system while s goes from 0 to 1; the networks learn the rest of the
scale, and begin where they learn it fastest."""
NARROWEST = 7.0
"""Natural logarithm of how much narrower or wider than a standard normal law any one may become."""


class Potential(nn.Module):
    """V(q, c), a tanh perceptron: ``[sample]`` of ``[sample, dim]`` and ``[sample, feature]``."""

    def __init__(self, dim: int, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.given = nn.Linear(features, width)
        sizes = [dim, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=i > 0) for i, (a, b) in enumerate(pairwise(sizes)))
        self.last = nn.Linear(width, 1, bias=False)

    def forward(self, q: Tensor, context: Tensor) -> Tensor:
        return self.last(self._passed(q, context)[-1]).squeeze(-1)

    def gradient(self, q: Tensor, context: Tensor) -> Tensor:
        """dV/dq ``[sample, dim]``, written out: it needs no grad mode, and is itself differentiable."""
        gradient = self.last.weight[0].expand(len(q), -1)
        for layer, x in zip(reversed(self.hidden), reversed(self._passed(q, context))):
            gradient = (gradient * (1 - x * x)) @ layer.weight
        return gradient

    def _passed(self, q: Tensor, context: Tensor) -> list[Tensor]:
        passed = [torch.tanh(self.hidden[0](q) + self.given(context))]
        for layer in self.hidden[1:]:
            passed.append(torch.tanh(layer(passed[-1])))
        return passed


class NormalLaw(nn.Module):
    """A normal law with independent components whose mean and deviation depend on ``[sample, feature]``."""

    def __init__(self, features: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.network = perceptron(features, width, depth, 2 * dim)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def parameters_at(self, features: Tensor) -> Pair:
        """Mean and logarithm of the deviation, each ``[sample, dim]``."""
        mean, log_deviation = self.network(features).chunk(2, 1)
        return mean, NARROWEST * torch.tanh(log_deviation / NARROWEST)

    def sample(self, noise: Tensor, features: Tensor) -> Tensor:
        mean, log_deviation = self.parameters_at(features)
        return mean + log_deviation.exp() * noise

    def log_density(self, x: Tensor, features: Tensor) -> Tensor:
        """``[sample]``."""
        mean, log_deviation = self.parameters_at(features)
        return standard_normal((x - mean) * torch.exp(-log_deviation)) - log_deviation.sum(1)


def standard_normal(x: Tensor) -> Tensor:
    """Logarithm of the density, ``[sample]`` for ``[sample, dim]``."""
    return -x.square().sum(1) / 2 - x.shape[1] * math.log(2 * math.pi) / 2


class SymplecticFlow(nn.Module):
    """The density of q ``[sample, dim]`` given ``context`` ``[sample, feature]``, a column at least."""

    def __init__(
        self, dim: int, features: int, *, potentials: int, leapfrogs: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.dim, self.leapfrogs = dim, leapfrogs
        self.potentials = nn.ModuleList(Potential(dim, features, width, depth) for _ in range(potentials))
        self.log_inverse_mass = nn.Parameter(torch.zeros(dim))
        self.base = NormalLaw(features, dim, width, 1)
        self.encoder = NormalLaw(dim + features, dim, width, depth)

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds for ``x`` ``[sample, 2, dim]``, that is (q, p), at one generator time ``s`` in [0, 1]: the
        field that the leapfrog steps discretise."""
        q, p = x.unbind(1)
        k = min(int(float(s) * len(self.potentials)), len(self.potentials) - 1)
        force = -self.potentials[k].gradient(q, context)
        return DURATION * torch.stack([self.log_inverse_mass.exp() * p, force], 1)

    def forward(self, q: Tensor, p: Tensor, context: Tensor) -> Pair:
        """Noise at s = 0 to data at s = 1, each ``[sample, dim]``."""
        for potential in self.potentials:
            q, p = self._steps(potential, q, p, context, 1.0)
        return q, p

    def inverse(self, q: Tensor, p: Tensor, context: Tensor) -> Pair:
        """Data to noise: the same steps backwards."""
        for potential in reversed(self.potentials):
            q, p = self._steps(potential, q, p, context, -1.0)
        return q, p

    def _steps(self, potential: nn.Module, q: Tensor, p: Tensor, context: Tensor, sign: float) -> Pair:
        h = sign * DURATION / (len(self.potentials) * self.leapfrogs)
        inverse_mass = self.log_inverse_mass.exp()
        p = p - h / 2 * potential.gradient(q, context)
        for i in range(self.leapfrogs):
            q = q + h * inverse_mass * p
            kick = h / 2 if i == self.leapfrogs - 1 else h  # two half-kicks that meet are one
            p = p - kick * potential.gradient(q, context)
        return q, p

    def sample(self, noise: Tensor, context: Tensor) -> Tensor:
        """q ``[sample, dim]`` from standard normal ``noise`` ``[sample, 2, dim]``."""
        q, p = noise.unbind(1)
        return self.forward(self.base.sample(q, context), p, context)[0]

    def bound(self, q: Tensor, context: Tensor, noise: Tensor) -> Tensor:
        """log(pi(Phi^-1(q, p)) / e(p | q)) ``[sample]`` at the p that ``noise`` ``[sample, dim]`` gives; its
        mean over noise is the evidence lower bound."""
        known = torch.cat([q, context], 1)
        p = self.encoder.sample(noise, known)
        first, momentum = self.inverse(q, p, context)
        joint = self.base.log_density(first, context) + standard_normal(momentum)
        return joint - self.encoder.log_density(p, known)

    def log_density(self, q: Tensor, context: Tensor, noise: Tensor) -> Tensor:
        """log p(q | c) ``[sample]``, from below, by importance sampling with the momenta that ``noise``
        ``[momentum, sample, dim]`` gives; more of them make it tighter."""
        each = torch.stack([self.bound(q, context, draw) for draw in noise])
        return each.logsumexp(0) - math.log(len(noise))


class HamiltonianFlow(nn.Module):
    """The law of the frames that follow a frame, as a symplectic normalising flow.

    Built from ``truth``, whose number of frames is the window's (2 or more) and whose uniform time step is
    the only one it can roll out; frames 1.. of a window are generated at once given frame 0 and its actions,
    and longer rollouts are chained windows. The base law is normal around frame 0, with mean and deviation
    that depend on the context. States must be floating, standardised by component.
    """

    scaling = "component"
    whole_window = True

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 64,
        depth: Depth = 2,
        potentials: Potentials = 2,
        leapfrogs: Leapfrogs = 4,
    ) -> None:
        super().__init__()
        self.windows = Windows(truth)
        self.window, self.time_step = self.windows.frames, self.windows.time_step
        self.features = self.windows.features
        self.flow = SymplecticFlow(
            self.windows.size,
            self.features,
            potentials=potentials,
            leapfrogs=leapfrogs,
            width=width,
            depth=depth,
        )

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds of (q, p) ``[sample, 2, dim]``, q the flattened frames 1.. less frame 0, at one generator
        time ``s``; ``context`` ``[sample, feature]`` as ``condition`` makes it."""
        return self.flow.velocity(x, s, context)

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``."""
        return self.windows.condition(frame, actions)

    def loss(self, truth: Trajectory) -> Tensor:
        """Minus the evidence lower bound, in nats for each generated number, over windows ``truth``
        ``[trajectory, 1, window, *state]``."""
        first, rest, context = self.windows.split(truth)
        q = (rest - first[:, None]).flatten(1)
        noise = torch.randn(q.shape, dtype=q.dtype).to(q)
        return -self.flow.bound(q, context, noise).mean() / q.shape[1]

    @torch.no_grad()
    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` futures of the last frame of each context, window by window.

        ``times`` must have the step of the fit (ValueError otherwise); any number of frames. Where a window
        reaches past ``times`` its last action is held, and its surplus frames are dropped. The noise is
        drawn on the CPU in float64.
        """

        def window_after(known: Tensor, given: Tensor) -> Tensor:
            change = self.flow.sample(normal((len(given), 2, self.flow.dim), generator, given), given)
            frame = known[:, :, -1].flatten(0, 1)
            return frame[:, None] + change.view(len(frame), self.window - 1, *self.windows.state_shape)

        weight = self.flow.log_inverse_mass
        return self.windows.chained(window_after, context, times, actions, draws, weight)


@hookimpl
def worldsim_generators() -> Mapping[str, Callable[..., HamiltonianFlow]]:
    return {"hamiltonian_flow": HamiltonianFlow}
