"""Windows: what generators that make several frames at once have in common.

Frame 0 of a window is given, with the actions; frames 1.. are generated. Longer rollouts are chained windows.
A generator sees no absolute time and nothing before frame 0: the law is taken to be autonomous and Markov.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim_plugins.generators.frame_generator import Asked

Generate: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(frames so far ``[trajectory, draw, time, *state]``, what is given ``[sample, feature]``) -> the next
frames ``[sample, frame, *state]``."""

Mend: TypeAlias = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""(estimate of the clean frames of a window ``[sample, frame, *state]``, covariance of its error as a linear
map of such tensors) -> a better estimate."""

Draw: TypeAlias = Callable[[Tensor, Tensor, Tensor, torch.Generator, Mend | None], Tensor]
"""(standard normal noise ``[sample, frame, *state]``, frame 0 ``[sample, *state]``, what is given
``[sample, feature]``, generator of further noise, what puts estimates right) -> the frames after frame 0."""


class Windows:
    """The windows of ``truth``: ``frames`` (2 or more) with a uniform ``time_step``, over ``state_shape``.

    ``size`` numbers are generated given ``features`` numbers. Raises ValueError when the states are not real
    numbers, when there is nothing to generate, or when the times are not uniform.
    """

    def __init__(self, truth: Trajectory) -> None:
        if not truth.states.is_floating_point():
            raise ValueError(
                f"this generator makes real numbers; the states are {truth.states.dtype}: use a token model"
            )
        if len(truth.times) < 2:
            raise ValueError(
                "a generator needs windows of at least 2 frames (one given, one generated): set fit.window"
            )
        self.frames, self.state_shape = len(truth.times), truth.state_shape
        self.time_step = float(truth.times[1] - truth.times[0])
        self.check_step(truth.times)
        state, generated = math.prod(truth.state_shape), self.frames - 1
        action = 0 if truth.actions is None else math.prod(truth.actions.shape[2:])
        self.size, self.features = generated * state, state + generated * action

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``,
        of which the window's last one changes nothing and is left out."""
        parts = [frame.flatten(1)]
        if actions is not None:
            parts.append(actions[:, : self.frames - 1].flatten(1).to(frame))
        given = torch.cat(parts, 1)
        if given.shape[1] != self.features:
            raise ValueError(
                f"this generator was built for {self.features} numbers of context (frame 0 and the actions "
                f"of {self.frames - 1} steps), it was given {given.shape[1]}: give actions as in the fit"
            )
        return given

    def split(self, truth: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """Frame 0 ``[trajectory, *state]``, frames 1.. and what is given, of a training batch."""
        if len(truth.times) != self.frames or truth.states.shape[1] != 1:
            raise ValueError(
                f"this generator is over windows of {self.frames} frames with one draw each, not "
                f"{list(truth.states.shape)}; fit.window must be the same when it is built and fitted"
            )
        if truth.length is not None and bool((truth.length < self.frames).any()):
            raise ValueError(
                "a window ends early (ragged data); a generator needs whole windows: choose fit.window"
            )
        states = truth.states[:, 0]
        return states[:, 0], states[:, 1:], self.condition(states[:, 0], truth.actions)

    def chained(
        self,
        generate: Generate,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        weight: Tensor,
    ) -> Trajectory:
        """``draws`` futures of the last frame of each context, window by window, in the type of ``weight``.

        ``times`` must have the step of the fit (ValueError otherwise); any number of frames. Where a window
        reaches past ``times`` its last action is held, and its surplus frames are dropped.
        """
        self.check_step(times)
        known = context.states[:, :1, -1:].repeat_interleave(draws, 1).to(weight)
        while (past := known.shape[2]) < len(times):
            held = None if actions is None else hold(actions, past - 1, self.frames - 1)
            held = None if held is None else held.repeat_interleave(draws, 0)
            window = generate(known, self.condition(known[:, :, -1].flatten(0, 1), held))
            known = torch.cat([known, window.unflatten(0, known.shape[:2])], 2)[:, :, : len(times)]
        return rolled(context, known, times, actions)

    def futures(self, asked: Asked, draw: Draw, weight: Tensor) -> Trajectory:
        """``chained`` windows that ``draw`` makes of noise."""

        def window_after(known: Tensor, given: Tensor) -> Tensor:
            noise = normal((len(given), self.frames - 1, *self.state_shape), asked.generator, given)
            return draw(noise, known[:, :, -1].flatten(0, 1), given, asked.generator, mending(asked, known))

        return self.chained(window_after, asked.context, asked.times, asked.actions, asked.draws, weight)

    def check_step(self, times: Tensor) -> None:
        step = times.new_tensor(self.time_step).double()
        if not torch.allclose(times.diff().double(), step, rtol=1e-6, atol=0):
            raise ValueError(
                f"this generator knows one time step, {self.time_step:g}; the times given have steps from "
                f"{float(times.diff().min()):g} to {float(times.diff().max()):g}: "
                "use a uniform grid with the step of the fit"
            )


def rolled(context: Trajectory, states: Tensor, times: Tensor, actions: Tensor | None) -> Trajectory:
    """The rollout from ``context`` as far as ``states`` ``[trajectory, draw, time, *state]`` go."""
    count = states.shape[2]
    actions = None if actions is None else actions[:, :count]
    return context.replace(states=states, times=times[:count], actions=actions, observables={}, length=None)


def mending(asked: Asked, known: Tensor) -> Mend | None:
    """The correction for the window that follows the frames ``known`` ``[trajectory, draw, time, *state]``.

    It sees the rollout up to the end of that window; what it does to settled frames is ignored, and so is
    what the window holds beyond ``times``. The covariance of a settled frame is 0.
    """
    correct, past = asked.correct, known.shape[2]
    if correct is None:
        return None

    def mend(clean: Tensor, covariance: Callable[[Tensor], Tensor]) -> Tensor:
        window = clean.unflatten(0, known.shape[:2])
        estimate = torch.cat([known, window], 2)[:, :, : len(asked.times)]
        count = estimate.shape[2] - past

        def of_rollout(w: Tensor) -> Tensor:
            padded = torch.zeros_like(window)
            padded[:, :, :count] = w[:, :, past:]
            spread = covariance(padded.flatten(0, 1)).unflatten(0, known.shape[:2])
            return torch.cat([torch.zeros_like(known), spread[:, :, :count]], 2)

        shown = rolled(asked.context, estimate, asked.times, asked.actions)
        better = correct(shown, of_rollout) if asked.wants_covariance else correct(shown)
        change = torch.zeros_like(window)
        change[:, :, :count] = (better.states.to(clean) - estimate)[:, :, past:]
        return clean + change.flatten(0, 1)

    return mend


def hold(actions: Tensor, first: int, count: int) -> Tensor:
    """``[trajectory, count, *action]`` from frame ``first`` on; the last action given is held."""
    frames = torch.arange(first, first + count, device=actions.device)
    return actions[:, frames.clamp(max=actions.shape[1] - 1)]


def normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal noise as ``like``, drawn on the CPU in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(like)
