"""Frames of real numbers one after the other, with a state that does not grow.

    p(x_1 .. x_T | x_0, u) = prod_t p(x_t | h_t),    h_t, state_t = backbone(x_{t-1}, u_{t-1}, state_{t-1})

A frame is one token, or patches in raster order, each given those before it (as AiM, Li et al. 2024, has it
over discrete tokens). Trained by teacher forcing. The law of a token is that of its change from the same
place one frame before, each number divided by the root mean square of that change in the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Backbone, Streams
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.generators.frame_generator import Asked, FrameGenerator
from worldsim_plugins.generators.patches import Patch, Patches, Places
from worldsim_plugins.generators.token_laws import FlowLaw, MixtureLaw
from worldsim_plugins.generators.windows import Mend, Windows, mending, rolled


class Autoregressive(FrameGenerator):
    """A next-frame model of states ``[trajectory, 1, time, *state]`` that reads the whole context, and makes
    each further token at the same cost and memory, by the backbone's ``advance``.

    Guidance corrects each frame when it is made, before the next one is. The default backbone is Mamba's.
    Raises ValueError for states that are not real numbers (of tokens, ``sequence`` is the model), fewer than
    2 frames, a non-uniform time step, patches that do not tile a frame, and a backbone that cannot read piece
    by piece.
    """

    causal = True
    spread: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Annotated[int, Field(ge=4, le=4096, multiple_of=4, description="features per token")] = 64,
        backbone: Annotated[
            Backbone | None,
            Field(description="what carries the past forward; two Mamba blocks when left out"),
        ] = None,
        patch: Patch = (),
        law: Annotated[
            Literal["mixture", "flow"],
            Field(
                description="law of a token: a mixture of normal laws with independent numbers, whose "
                "likelihood is trained; or a small rectified flow of all its numbers together"
            ),
        ] = "mixture",
        components: Annotated[int, Field(ge=1, le=256, description="normal laws in a mixture")] = 8,
    ) -> None:
        super().__init__()
        if not truth.states.is_floating_point():
            raise ValueError(
                f"ssm makes real numbers; the states are {truth.states.dtype}: over tokens use "
                "{name: sequence, backbone: {name: ssm}}"
            )
        windows = Windows(truth)
        self.check_step, self.patches = windows.check_step, Patches(windows.state_shape, patch)
        self.actions = 0 if truth.actions is None else math.prod(truth.actions.shape[2:])
        change = self.patches.tokens(truth.states[:, 0]).diff(dim=1).square().mean((0, 1)).sqrt()
        self.register_buffer("spread", torch.where(change > 0, change, 1))
        numbers = self.patches.numbers
        self.into = nn.Linear(2 * numbers + self.actions, width)
        self.place = Places((self.patches.count,), width)
        self.body: Any = (backbone or SSM()).layers(width, causal=True)
        if not isinstance(self.body, Streams):
            raise ValueError(
                f"backbone: {type(backbone).__name__} cannot read a sequence piece by piece (it has no "
                "advance), and a frame would cost more the later it is; take one that can, such as ssm"
            )
        self.law: MixtureLaw | FlowLaw = (
            MixtureLaw(width, numbers, components) if law == "mixture" else FlowLaw(width, numbers)
        )

    def read(self, tokens: Tensor, actions: Tensor | None, first: int = 0) -> Tensor:
        """What the backbone reads of ``tokens`` ``[sample, token, number]``, of which those before ``first``
        are read already: each token, the one that stands a frame before the next one, and the action
        between the two, ``[sample, token - first, width]``. ``actions`` are ``[sample, frame, *action]``, one
        for each frame of the tokens."""
        count, place = tokens.shape[1], self.patches.count
        following = torch.arange(first + 1, count + 1, device=tokens.device)
        parts = [tokens[:, first:], self.before(tokens, following)]
        if self.actions:
            if actions is None or math.prod(actions.shape[2:]) != self.actions:
                shape = None if actions is None else list(actions.shape)
                raise ValueError(
                    f"this generator was built for actions of {self.actions} numbers, found {shape}: give "
                    "actions as in the fit"
                )
            acts = actions.flatten(2).to(tokens)
            frame = (following // place - 1).clamp(min=0)
            parts.append(acts[:, frame])
        at = self.place(self.into.weight.new_zeros(1, place, self.into.out_features))
        return self.into(torch.cat(parts, -1)) + at[:, following % place]

    def before(self, tokens: Tensor, index: Tensor) -> Tensor:
        """The tokens a frame before those at ``index`` ``[token]``; 0 where there is none."""
        earlier = index - self.patches.count
        return torch.where(earlier[:, None] >= 0, tokens[:, earlier.clamp(min=0)], 0)

    def teacher_forced(self, truth: Trajectory) -> tuple[Tensor, Tensor]:
        """Features h and true changes (scaled) of the tokens of frames 1.., ``[trajectory, token, ...]``."""
        if truth.states.shape[1] != 1 or len(truth.times) < 2:
            raise ValueError(f"ssm learns from one draw of 2 frames or more, not {list(truth.states.shape)}")
        self.check_step(truth.times)
        tokens, place = self.patches.tokens(truth.states[:, 0]).flatten(1, 2), self.patches.count
        h = self.body(self.read(tokens[:, :-1], truth.actions))[:, place - 1 :]
        change = (tokens[:, place:] - tokens[:, :-place]).unflatten(1, (-1, place)) / self.spread
        return h, change.flatten(1, 2)

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean of -log p per number (nats) for a mixture, squared error of the velocity for a flow; ragged
        ends are left out."""
        return self.averaged(self.law.loss(*self.teacher_forced(truth)), truth)

    def averaged(self, each: Tensor, truth: Trajectory) -> Tensor:
        """The mean of ``[trajectory, token]`` over the tokens that are there."""
        if truth.length is None:
            return each.mean()
        frame = 1 + torch.arange(each.shape[1], device=each.device) // self.patches.count
        there = (frame < truth.length[:, :1]).to(each)
        return (each * there).sum() / there.sum().clamp(min=1)

    def log_likelihood(self, truth: Trajectory) -> Tensor:
        """log p of each frame given those before it, ``[trajectory, frame - 1]``, nats in the units of
        ``truth``. Raises ValueError for the flow law, whose density is not computed."""
        if not isinstance(self.law, MixtureLaw):
            raise ValueError("law: a flow's density is not computed; take the mixture")
        each = self.law.log_prob(*self.teacher_forced(truth))
        return each.unflatten(1, (-1, self.patches.count)).sum(2) - self.spread.log().sum()

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and for each frame a draw from its law given the true frames before it: a sample, so that
        a residual of it is not that of a mean."""
        h, change = self.teacher_forced(truth)
        drawn = self.law.sample(h.flatten(0, 1), None).view_as(change)
        tokens, place = self.patches.tokens(truth.states[:, 0]), self.patches.count
        made = tokens[:, :-1] + self.spread * drawn.unflatten(1, (-1, place))
        states = self.patches.frames(torch.cat([tokens[:, :1].to(made), made], 1))[:, None]
        loss = self.averaged(self.law.loss(h, change), truth)
        return loss, truth.replace(states=states, observables={})

    @torch.no_grad()
    def latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        """The features after the context, before an action, ``[trajectory, width]``; nothing is drawn."""
        tokens = self.patches.tokens(context.states[:, 0].to(self.into.weight)).flatten(1, 2)
        actions = context.actions
        if self.actions and actions is not None:
            actions = torch.cat([actions[:, :-1], torch.zeros_like(actions[:, -1:])], 1)
        return self.body(self.read(tokens, actions))[:, -1]

    def roll(self, asked: Asked) -> Trajectory:
        """All of each context is read, and then frame after frame made."""
        context, times, actions, draws = asked.context, asked.times, asked.actions, asked.draws
        self.check_step(times)
        given, past = context.states[:, 0].to(self.into.weight), context.states.shape[2]
        acts = actions
        if actions is not None and past > 1:
            if context.actions is None:
                raise ValueError("the context has no actions, and the forecast has: give both or neither")
            acts = torch.cat([context.actions[:, : past - 1], actions], 1)
        tokens = self.patches.tokens(given).flatten(1, 2)
        after = self._after(tokens, acts, 0, None)
        h, state = tree_map(lambda x: x.repeat_interleave(draws, 0), after)
        tokens = tokens[:, -self.patches.count :].repeat_interleave(draws, 0)
        frames = [given[:, -1:].repeat_interleave(draws, 0)]
        for t in range(1, len(times)):
            u = None if actions is None else actions[:, t - 1 : t + 1].repeat_interleave(draws, 0)
            made, carried = self._frame(tokens, h, state, u, asked.generator)
            mend = None
            if asked.correct is not None:  # else the past is not gone through again for each frame
                mend = mending(asked, torch.cat(frames, 1).unflatten(0, (len(given), draws)))
            if mend is not None:
                made = self._mended(made, h, mend)
            frames.append(self.patches.frames(made[:, None]))
            if t + 1 < len(times):
                both, count = torch.cat([tokens, made], 1), self.patches.count
                fresh = (2 * count - 1, carried) if mend is None else (count, state)
                h, state = self._after(both, u, *fresh)
            tokens = made
        states = torch.cat(frames, 1).unflatten(0, (len(given), draws))
        return rolled(context, states, times, actions)

    def _after(self, tokens: Tensor, actions: Tensor | None, first: int, state: Any) -> tuple[Tensor, Any]:
        """Features ``[sample, width]`` and state after ``tokens``, of which those before ``first`` made
        ``state``."""
        h, state = self.body.advance(self.read(tokens, actions, first), state)
        return h[:, -1], state

    def _frame(
        self, before: Tensor, h: Tensor, state: Any, u: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Any]:
        """The tokens ``[sample, token, number]`` of the frame after ``before``, drawn one by one, and the
        state after all but the last of them. ``u`` begins with the action that leads to the frame."""
        both, count = before, self.patches.count
        for i in range(count):
            if i:
                h, state = self._after(both, u, count + i - 1, state)
            token = before[:, i] + self.spread[i] * self.law.sample(h, generator)
            both = torch.cat([both, token[:, None]], 1)
        return both[:, count:], state

    def _mended(self, made: Tensor, h: Tensor, mend: Mend) -> Tensor:
        """``made``, corrected; the covariance is that of a token's law where a frame is one token."""

        def covariance(w: Tensor) -> Tensor:
            if not isinstance(self.law, MixtureLaw) or self.patches.count > 1:
                raise ValueError(
                    "the covariance of a frame is known to the mixture law of whole frames only: take a "
                    "correction that asks for none"
                )
            return w * (self.spread.square() * self.law.variance(h)).view_as(w)

        return self.patches.tokens(mend(self.patches.frames(made[:, None]), covariance))[:, 0]


@hookimpl
def worldsim_generators() -> Mapping[str, Callable[..., Autoregressive]]:
    return {"ssm": Autoregressive}
