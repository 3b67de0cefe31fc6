"""Flow matching over whole windows, given the first frame.

    x_s = (1 - s) z + s x_1,  z ~ N(0, I);   minimise E |v(x_s, s, c) - (x_1 - z)|^2;   dx/ds = v, s = 0 .. 1

(Liu, Gong and Liu 2022, rectified flow; Lipman et al. 2022.) x_1 is frames 1.. of a window, all at once;
c is its frame 0 and its actions. Longer rollouts are chained windows. The field sees no absolute time and
nothing before frame 0: the law is taken to be autonomous and Markov.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Backbone
from worldsim_plugins.backbones.linear_dit import LinearDiT
from worldsim_plugins.generators.couplings import ContextWeight, Coupling, paired
from worldsim_plugins.generators.denoiser import Dropout
from worldsim_plugins.generators.flow_sampling import Method, transported
from worldsim_plugins.generators.frame_generator import Asked, FrameGenerator
from worldsim_plugins.generators.patches import Patch
from worldsim_plugins.generators.window_network import Causal, Depth, Width, WindowNetwork
from worldsim_plugins.generators.windows import Mend, Windows

LATE = 0.5


class Flow(FrameGenerator):
    """A conditional rectified flow; its field is a perceptron over the flattened window, or a backbone over
    its frames or their patches.

    Built from ``truth``, whose number of frames is the window's (2 or more) and whose uniform time step is
    the only one it can roll out; see ``Windows``.

    Guidance takes the velocity of the corrected estimate from s = ``guide_from`` on,

        v' = v + (correct(x1) - x1) / (1 - s) = (correct(x1) - x) / (1 - s),    x1 = x + (1 - s) v

    (re-mixing the corrected estimate with the noise instead would distort the law).

    Reflow (Liu, Gong and Liu 2022): each round after the first has the pairs (z, x_1) of the flow as it was
    when the round began, x_1 being where z is carried by ``steps`` of ``method``. Paths become straight, so
    that few steps do; what the earlier flow has wrong is learned too.

    Coarse sampling makes futures too alike: of an exactly known normal law with deviation 0.1, 50 Euler
    steps return 0.091 and 25 midpoint steps, at the same cost, 0.0999; with deviation 0.01, 0.004 and 0.006.
    """

    whole_window = True
    default_backbone: Callable[[], Backbone] | None = None

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
            Method,
            Field(description="sampling rule; midpoint and heun evaluate the field twice a step"),
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
        coupling: Coupling = "independent",
        context_weight: ContextWeight = 100.0,
        training_times: Annotated[
            Literal["uniform", "logit_normal"],
            Field(
                description="law of the generator's time in training; logit_normal has more of the middle "
                "(Esser et al. 2024)"
            ),
        ] = "uniform",
        reflow: Annotated[
            int,
            Field(
                ge=0,
                le=10,
                description="rounds that follow the first one and learn the flow's own paths, which makes "
                "them straight; the rounds share the steps of the fit equally",
            ),
        ] = 0,
        unroll: Annotated[
            int,
            Field(
                ge=1,
                le=100,
                description="steps from a noisy window to the estimate that training penalties see: 1 is a "
                "posterior mean, which biases the law; several come near a sample, at their cost",
            ),
        ] = 1,
        context_dropout: Dropout = 0.0,
        context_guidance: Annotated[
            float,
            Field(
                ge=0,
                description="w of v_u + w (v_c - v_u) with v_u the velocity without the context "
                "(classifier-free guidance); 1 samples the conditional law, more exaggerates the context",
            ),
        ] = 1.0,
    ) -> None:
        super().__init__()
        self.windows = Windows(truth)
        self.window, self.time_step = self.windows.frames, self.windows.time_step
        if context_guidance != 1 and not context_dropout:
            raise ValueError(
                f"context_guidance is {context_guidance:g} and context_dropout 0: a network that always saw "
                "the context has no velocity without it; set context_dropout, to 0.1 say"
            )
        self.dropout, self.guidance = context_dropout, context_guidance
        self.steps, self.method, self.guide_from = steps, method, guide_from
        self.coupling, self.context_weight = coupling, context_weight
        self.training_times, self.reflow, self.unroll = training_times, reflow, unroll
        if backbone is None and self.default_backbone is not None:
            backbone = self.default_backbone()
        self.field = WindowNetwork(
            self.windows,
            width=width,
            depth=depth,
            backbone=backbone,
            patch=patch,
            causal=causal,
            beside=int(context_dropout > 0),
        )
        if reflow:
            self.earlier = deepcopy(self.field).requires_grad_(False)
            self.register_buffer("round", torch.zeros((), dtype=torch.int64))

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds for ``x`` ``[sample, frame, *state]`` (frames 1..), ``s`` ``[sample]`` or a number in [0, 1],
        and ``context`` ``[sample, feature]`` as ``condition`` makes it."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
        return self._guided(self.field, x, s, context)

    def _guided(self, field: nn.Module, x: Tensor, s: Tensor, context: Tensor) -> Tensor:
        """v_u + w (v_c - v_u) of ``field`` (Ho and Salimans 2022), which is v_c where w = 1."""
        if not self.dropout:
            return field(x, s, context)
        told = self._told(field, x, s, context, x.new_zeros(len(x)))
        if self.guidance == 1:
            return told
        untold = self._told(field, x, s, context, x.new_ones(len(x)))
        return untold + self.guidance * (told - untold)

    def _told(self, field: nn.Module, x: Tensor, s: Tensor, context: Tensor, dropped: Tensor) -> Tensor:
        """The velocity where the context is hidden from the rows that ``dropped`` ``[sample]`` says are 1."""
        return field(x, s, context * (1 - dropped[:, None]), dropped[:, None])

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``."""
        return self.windows.condition(frame, actions)

    def pace(self, done: float) -> None:
        """Begin the next round of reflow when its share of the fit has come; ``done`` is the share of the
        fit's steps that are taken."""
        if self.reflow and int(done * (self.reflow + 1)) > int(self.round):
            self.earlier.load_state_dict(self.field.state_dict())
            self.round += 1

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean squared error of the velocity over ``truth`` ``[trajectory, 1, window, *state]``."""
        return self._match(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and where ``unroll`` steps of Euler lead from x_s, for the rows with s > 1/2 (at least
        the latest one).

        One step gives x_s + (1 - s) v, a posterior mean: for a residual h with curvature, h(E[x_1 | x_s]) is
        not E[h(x_1) | x_s], the difference being half the trace of h'' times the posterior covariance, and a
        penalty on it biases the law (the Jensen gap). The covariance shrinks towards s = 1, hence the late
        rows only. Many steps give a sample of the flow, which has no such gap (Baldan et al. 2025).
        """
        loss, x, s, context, velocity = self._match(truth)
        late = s >= s.max().clamp(max=LATE)
        h = along((1 - s) / self.unroll, x)[late]
        clean = x[late] + h * velocity[late]
        for i in range(1, self.unroll):
            at = s[late] + (1 - s[late]) * i / self.unroll
            clean = clean + h * self.velocity(clean, at, context[late])
        states = torch.cat([truth.states[late, 0, :1].to(clean), clean], 1)[:, None]
        return loss, truth.rows(late).replace(states=states, observables={})

    def _match(self, truth: Trajectory) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Loss, x_s ``[trajectory, frame, *state]``, s ``[trajectory]``, the context and the velocity of a
        training batch."""
        _, data, context = self.windows.split(truth)
        noise = torch.randn(data.shape, dtype=data.dtype).to(data)
        if self.reflow and self.round:
            data = self._carried(noise, context)
        else:
            noise = paired(noise, data, context, self.coupling, self.context_weight)
        s = self._training_times(data)
        x = noise + along(s, data) * (data - noise)
        if self.dropout:
            dropped = (torch.rand(len(data)) < self.dropout).to(data)
            velocity = self._told(self.field, x, s, context, dropped)
        else:
            velocity = self.velocity(x, s, context)
        return (velocity - (data - noise)).square().mean(), x, s, context, velocity

    def _training_times(self, data: Tensor) -> Tensor:
        """s ``[sample]``: uniform, or the logistic function of a normal number."""
        if self.training_times == "uniform":
            return torch.rand(len(data), dtype=data.dtype).to(data)
        return torch.randn(len(data), dtype=data.dtype).sigmoid().to(data)

    @torch.no_grad()
    def _carried(self, noise: Tensor, context: Tensor) -> Tensor:
        """Where the flow of the earlier round takes ``noise`` ``[sample, frame, *state]``."""

        def velocity(x: Tensor, s: float) -> Tensor:
            return self._guided(self.earlier, x, x.new_full((len(x),), s), context)

        return transported(velocity, noise, self.steps, self.method)

    def roll(self, asked: Asked) -> Trajectory:
        """Window after window from the last frame of each context."""
        return self.windows.futures(asked, self.drawn, next(self.parameters()))

    def drawn(
        self, noise: Tensor, first: Tensor, context: Tensor, generator: torch.Generator, mend: Mend | None
    ) -> Tensor:
        """``transport``; nothing further is drawn."""
        return self.transport(noise, context, mend)

    def transport(self, x: Tensor, context: Tensor, mend: Mend | None = None) -> Tensor:
        """Noise ``[sample, frame, *state]`` at s = 0 to data at s = 1, by ``steps`` of ``method``; ``mend``
        corrects the estimate of the data from s = ``guide_from`` on."""

        def field(x: Tensor, s: float) -> Tensor:
            velocity = self.velocity(x, s, context)
            if mend is None or s < self.guide_from:
                return velocity
            clean = x + (1 - s) * velocity
            return velocity + (mend(clean, self._covariance(x, s, context)) - clean) / (1 - s)

        return transported(field, x, self.steps, self.method)

    def _covariance(self, x: Tensor, s: float, context: Tensor) -> Callable[[Tensor], Tensor]:
        """w -> C w with C = (1 - s)^2 / s dE[x_1 | x_s] / dx_s, the covariance of x_1 given x_s (Tweedie's
        formula, of second order: Boys et al. 2023); both ``[sample, frame, *state]``."""

        late = max(s, 1e-3)  # at s = 0 it is 0 / 0

        def applied(w: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                clean = leaf + (1 - late) * self.velocity(leaf, late, context)
                (product,) = torch.autograd.grad(clean, leaf, w.to(leaf))
            return product * ((1 - late) ** 2 / late)

        return applied


class LinearDiTFlow(Flow):
    """``flow`` over the linear diffusion transformer of SANA (Xie et al. 2024): another name for
    ``{name: flow, backbone: {name: linear_dit}}``."""

    default_backbone = LinearDiT


def along(s: Tensor, x: Tensor) -> Tensor:
    """``s`` ``[sample]`` to broadcast over ``x`` ``[sample, ...]``."""
    return s.reshape(-1, *[1] * (x.ndim - 1))


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
    return {"flow": Flow, "linear_dit": LinearDiTFlow}
