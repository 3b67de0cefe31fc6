"""Flow matching over whole windows, given the first frame.

    x_s = (1 - s) z + s x_1,  z ~ N(0, I);   minimise E |v(x_s, s, c) - (x_1 - z)|^2;   dx/ds = v, s = 0 .. 1

(Liu, Gong and Liu 2022, rectified flow; Lipman et al. 2022.) x_1 is frames 1.. of a window, all at once;
c is its frame 0 and its actions. Longer rollouts are chained windows. The field sees no absolute time and
nothing before frame 0: the law is taken to be autonomous and Markov.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Backbone, Correction
from worldsim_plugins.generators.window_network import Causal, Depth, Patch, Width, WindowNetwork
from worldsim_plugins.generators.windows import Mend, Windows, mending, normal

LATE = 0.5


class Flow(nn.Module):
    """A conditional rectified flow; its field is a perceptron over the flattened window, or a backbone over
    its frames or their patches.

    Built from ``truth``, whose number of frames is the window's (2 or more) and whose uniform time step is
    the only one it can roll out. States must be floating, standardised by component. Raises ValueError for
    anything else.

    Coarse sampling makes futures too alike: of an exactly known normal law with deviation 0.1, 50 Euler
    steps return 0.091 and 25 midpoint steps, at the same cost, 0.0999; with deviation 0.01, 0.004 and 0.006.
    """

    scaling = "component"
    whole_window = True

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 256,
        depth: Depth = 3,
        backbone: Annotated[
            Backbone | None,
            Field(description="what the field is made of; a perceptron over the window when left out"),
        ] = None,
        patch: Patch = (),
        causal: Causal = False,
        steps: Annotated[int, Field(ge=1, description="sampling steps from noise to data")] = 25,
        method: Annotated[
            Literal["euler", "midpoint"],
            Field(description="sampling rule; midpoint evaluates the field twice a step"),
        ] = "midpoint",
        guide_from: Annotated[
            float,
            Field(
                ge=0,
                lt=1,
                description="generator time (0 noise, 1 data) from which guidance corrects; earlier, the "
                "clean estimate is an average of trajectories, which obeys no nonlinear constraint",
            ),
        ] = 0.5,
        coupling: Annotated[
            Literal["independent", "minibatch_ot"],
            Field(description="how noise is paired with data in training; minibatch_ot by exact transport"),
        ] = "independent",
        context_weight: Annotated[
            float,
            Field(
                gt=0,
                description="minibatch_ot: cost of giving noise to another context, per squared distance of "
                "the two; large is the independent coupling, small biases the conditional law",
            ),
        ] = 100.0,
    ) -> None:
        super().__init__()
        self.windows = Windows(truth)
        self.window, self.time_step = self.windows.frames, self.windows.time_step
        self.steps, self.method, self.guide_from = steps, method, guide_from
        self.coupling, self.context_weight = coupling, context_weight
        self.field = WindowNetwork(
            self.windows, width=width, depth=depth, backbone=backbone, patch=patch, causal=causal
        )

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds for ``x`` ``[sample, frame, *state]`` (frames 1..), ``s`` ``[sample]`` or a number in [0, 1],
        and ``context`` ``[sample, feature]`` as ``condition`` makes it."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
        return self.field(x, s, context)

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``."""
        return self.windows.condition(frame, actions)

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean squared error of the velocity over ``truth`` ``[trajectory, 1, window, *state]``."""
        return self._match(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and x_s + (1 - s) v for the rows with s > 1/2 (at least the latest one).

        The estimate is a posterior mean: for a residual h with curvature, h(E[x_1 | x_s]) is not
        E[h(x_1) | x_s], the difference being half the trace of h'' times the posterior covariance, and a
        penalty on it biases the law (the Jensen gap). The covariance shrinks towards s = 1, hence the late
        rows only.
        """
        loss, x, s, velocity = self._match(truth)
        late = s >= s.max().clamp(max=LATE)
        clean = x + along(1 - s, x) * velocity
        states = torch.cat([truth.states[:, 0, :1].to(clean), clean], 1)[:, None]
        return loss, truth.rows(late).replace(states=states[late], observables={})

    def _match(self, truth: Trajectory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, x_s ``[trajectory, frame, *state]``, s ``[trajectory]`` and velocity of a training batch."""
        _, data, context = self.windows.split(truth)
        noise = torch.randn(data.shape, dtype=data.dtype).to(data)
        if self.coupling == "minibatch_ot":
            noise = noise[transport_plan(noise, data, context, self.context_weight)]
        s = torch.rand(len(data), dtype=data.dtype).to(data)
        x = noise + along(s, data) * (data - noise)
        velocity = self.velocity(x, s, context)
        return (velocity - (data - noise)).square().mean(), x, s, velocity

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
        return self._roll(context, times, actions, draws, generator, None)

    def guided_rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
        correct: Correction,
    ) -> Trajectory:
        """As ``rollout``, with the velocity of the corrected estimate from s = ``guide_from`` on:

            v' = v + (correct(x1) - x1) / (1 - s) = (correct(x1) - x) / (1 - s),    x1 = x + (1 - s) v

        ``correct`` sees the whole rollout up to the end of the current window; what it does to frames that
        are already settled is ignored. Re-mixing the corrected estimate with the noise instead would
        distort the law.
        """
        return self._roll(context, times, actions, draws, generator, correct)

    @torch.no_grad()
    def _roll(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
        correct: Correction | None,
    ) -> Trajectory:
        def window_after(known: Tensor, given: Tensor) -> Tensor:
            shape = (len(given), self.window - 1, *self.windows.state_shape)
            mend = None if correct is None else mending(correct, context, known, times, actions)
            return self.transport(normal(shape, generator, given), given, mend)

        weight = next(self.parameters())
        return self.windows.chained(window_after, context, times, actions, draws, weight)

    def transport(self, x: Tensor, context: Tensor, mend: Mend | None = None) -> Tensor:
        """Noise ``[sample, frame, *state]`` at s = 0 to data at s = 1, by ``steps`` of ``method``; ``mend``
        corrects the estimate of the data from s = ``guide_from`` on."""

        def field(x: Tensor, s: float) -> Tensor:
            velocity = self.velocity(x, s, context)
            if mend is None or s < self.guide_from:
                return velocity
            clean = x + (1 - s) * velocity
            return velocity + (mend(clean, self._covariance(x, s, context)) - clean) / (1 - s)

        for i in range(self.steps):
            velocity = field(x, i / self.steps)
            if self.method == "midpoint":
                velocity = field(x + velocity / (2 * self.steps), (i + 0.5) / self.steps)
            x = x + velocity / self.steps
        return x

    def _covariance(self, x: Tensor, s: float, context: Tensor) -> Callable[[Tensor], Tensor]:
        """w -> C w with C = (1 - s)^2 / s dE[x_1 | x_s] / dx_s, the covariance of x_1 given x_s (Tweedie's
        formula, of second order: Boys et al. 2023); both ``[sample, frame, *state]``."""

        def applied(w: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                clean = leaf + (1 - s) * self.velocity(leaf, s, context)
                (product,) = torch.autograd.grad(clean, leaf, w.to(leaf))
            return product * ((1 - s) ** 2 / max(s, 1e-3))

        return applied


def along(s: Tensor, x: Tensor) -> Tensor:
    """``s`` ``[sample]`` to broadcast over ``x`` ``[sample, ...]``."""
    return s.reshape(-1, *[1] * (x.ndim - 1))


def transport_plan(noise: Tensor, data: Tensor, context: Tensor, context_weight: float) -> Tensor:
    """Which noise ``[sample]`` each row of ``data`` is given, by optimal assignment within the batch.

    Cost |z_i - x_j|^2 + context_weight |c_i - c_j|^2 (Pooladian et al. 2023; Tong et al. 2023). Without the
    second term the noise that belongs to a context is no longer normal and the conditional law is wrong;
    with it the bias vanishes as the weight grows (Cheng and Schwing 2025, "The curse of conditions").
    """

    def squared(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x.detach().flatten(1).double(), y.detach().flatten(1).double()).square()

    cost = squared(data, noise) + context_weight * squared(context, context)
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=noise.device)


@torch.no_grad()
def straightness(flow: Flow, noise: Tensor, context: Tensor, steps: int = 100) -> float:
    """S = E int |(x_1 - x_0) - v(x_s, s)|^2 ds / E |x_1 - x_0|^2 along the flow's own paths: 0 when straight.

    (Liu, Gong and Liu 2022, divided by the squared length.) ``noise`` ``[sample, frame, *state]``.
    """
    x, path = noise, []
    for i in range(steps):
        path.append(flow.velocity(x, i / steps, context))
        x = x + path[-1] / steps
    velocity = torch.stack(path).double()
    chord = velocity.mean(0)
    return float((velocity - chord).square().sum() / steps / chord.square().sum())


@hookimpl
def worldsim_generators() -> Mapping[str, Callable[..., Flow]]:
    return {"flow": Flow}
