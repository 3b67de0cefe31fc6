"""The models every score is printed beside. None of them learns; each is one sentence.

Over tokens they give a law of the next token as well, so that automata are scored by the same code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worldsim.errors import NotMeasurable
from worldsim.protocols import HasAutomaton, HasForecast, HasNextToken, Restartable, System, Trajectory
from worldsim.truth import reached

EXACT = "donot_use_mm_for_euclid_dist"
"""Distances by differences: through a matrix product a state is not at distance 0 from itself."""


def _future(context: Trajectory, times: Tensor, states: Tensor) -> Trajectory:
    """A rollout whose first frame is the given one."""
    states = states.clone()
    states[:, :, 0] = context.states[:, :1, -1]
    return replace(context, states=states, times=times, actions=None, observables={}, length=None)


class Baseline:
    """A model that needs no fit; over tokens its ``next_token`` law is ``self.law``."""

    trainable = False
    scaling = "none"

    def __init__(self, system: System, truth: Trajectory) -> None:
        self.system = system
        self.past = truth
        if isinstance(system, HasAutomaton):
            self.next_token = self._next_token

    def loss(self, truth: Trajectory) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    def law(self, tokens: Tensor, size: int) -> Tensor:
        raise AttributeError("this baseline has no law over tokens")

    def _next_token(self, tokens: Tensor) -> Tensor:
        return self.law(tokens, len(self.system.alphabet))  # type: ignore[attr-defined]

    def _rolled_law(self, tokens: Tensor) -> Tensor:
        return self._next_token(tokens)

    def _sampled(self, context: Trajectory, times: Tensor, draws: int, rng: torch.Generator) -> Trajectory:
        tokens = context.states[:, 0].repeat_interleave(draws, 0)
        for _ in range(len(times) - 1):
            law = self._rolled_law(tokens)
            tokens = torch.cat([tokens, torch.multinomial(law, 1, generator=rng)], 1)
        states = tokens[:, -len(times) :].reshape(len(context), draws, len(times))
        return _future(context, times, states)


class Persistence(Baseline):
    """Nothing changes: the last given state for ever."""

    def rollout(
        self, context: Trajectory, times: Tensor, actions: Any, draws: int, generator: Any
    ) -> Trajectory:
        last = context.states[:, :1, -1:]
        return _future(context, times, last.expand(-1, draws, len(times), *last.shape[3:]))

    def law(self, tokens: Tensor, size: int) -> Tensor:
        if tokens.shape[1] == 0:
            return torch.full((len(tokens), size), 1 / size, dtype=torch.float64)
        return torch.nn.functional.one_hot(tokens[:, -1], size).double()


class Constant(Baseline):
    """One state for ever, whatever came before: the mean of the training states (token 0 over tokens)."""

    def rollout(
        self, context: Trajectory, times: Tensor, actions: Any, draws: int, generator: Any
    ) -> Trajectory:
        states = self.past.states
        mean = (
            states[reached(self.past)].double().mean(0)
            if states.is_floating_point()
            else torch.zeros((), dtype=states.dtype)
        )
        return _future(context, times, mean.expand(len(context), draws, len(times), *mean.shape))

    def law(self, tokens: Tensor, size: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.zeros(len(tokens), dtype=torch.int64), size).double()


class Climatology(Baseline):
    """Training states drawn at random, blind to the context (the tokens' frequencies over tokens)."""

    def rollout(
        self, context: Trajectory, times: Tensor, actions: Any, draws: int, generator: torch.Generator
    ) -> Trajectory:
        if isinstance(self.system, HasAutomaton):
            return self._sampled(context, times, draws, generator)
        pool = self.past.states[reached(self.past)]
        pick = torch.randint(len(pool), (len(context), draws, len(times)), generator=generator)
        return _future(context, times, pool[pick])

    def law(self, tokens: Tensor, size: int) -> Tensor:
        counts = torch.bincount(self.past.states[reached(self.past)], minlength=size).double()
        return (counts / counts.sum()).expand(len(tokens), size)


class Uniform(Baseline):
    """Every token equally likely: knows nothing."""

    def rollout(
        self, context: Trajectory, times: Tensor, actions: Any, draws: int, generator: torch.Generator
    ) -> Trajectory:
        return self._sampled(context, times, draws, generator)

    def law(self, tokens: Tensor, size: int) -> Tensor:
        return torch.full((len(tokens), size), 1 / size, dtype=torch.float64)


class Truth(Baseline):
    """The system itself, started from the last given state (the ceiling of every score).

    A system that cannot be restarted replays ``known``, the truth of the split that is being scored.
    """

    known: Trajectory | None = None

    def __init__(self, system: System, truth: Trajectory) -> None:
        super().__init__(system, truth)
        if isinstance(system, HasAutomaton):
            self.latent_of = self._latent_of

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        if isinstance(self.system, HasAutomaton):
            return self._sampled(context, times, draws, generator)
        if isinstance(self.system, HasForecast):
            futures = self.system.forecast(context, times, actions, draws, generator)
            return _future(context, times, futures.states)
        if not isinstance(self.system, Restartable):
            return self._replayed(context, times, draws)
        rows = context.states[:, 0, -1].repeat_interleave(draws, 0)
        acts = None if actions is None else actions.repeat_interleave(draws, 0)
        out = self.system.simulate(self.system.restart(rows), times - times[0], acts, generator)
        states = out.states[:, 0].reshape(len(context), draws, len(times), *context.state_shape)
        return _future(context, times, states)

    def _replayed(self, context: Trajectory, times: Tensor, draws: int) -> Trajectory:
        if self.known is None or len(self.known) != len(context):
            raise NotMeasurable("this system cannot be restarted from a given state")
        states = self.known.states[:, :, -len(times) :]
        return _future(context, times, states.expand(-1, draws, *states.shape[2:]))

    def law(self, tokens: Tensor, size: int) -> Tensor:
        """The system's own law where it gives one; else every legal token is as likely."""
        if isinstance(self.system, HasNextToken):
            return self.system.next_token(tokens)
        return self.law_at(self.state_after(tokens))

    def state_after(self, tokens: Tensor) -> Tensor:
        """The automaton's state ``[n]`` after the prefixes, -1 after an illegal one."""
        table = self.system.transitions()  # type: ignore[attr-defined]
        state = torch.full((len(tokens),), int(self.system.initial))  # type: ignore[attr-defined]
        for token in tokens.T:
            state = torch.where(state < 0, state, table[state.clamp(min=0), token])
        return state

    def _latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        """The automaton's state, one-hot: all that the truth has to keep of a context."""
        states = len(self.system.transitions())  # type: ignore[attr-defined]
        return torch.nn.functional.one_hot(self.state_after(context.states[:, 0]), states).double()

    def law_at(self, state: Tensor) -> Tensor:
        """Every legal token equally likely; nothing after an illegal prefix."""
        table = self.system.transitions()  # type: ignore[attr-defined]
        legal = (table[state.clamp(min=0)] >= 0) & (state >= 0)[:, None]
        law: Tensor = legal.double() / legal.sum(1, keepdim=True).clamp(min=1)
        return law


class Shuffled(Truth):
    """The truth of another trajectory: right in law, wrong in every case (row i gets row i + 1's future).

    Its law over tokens is the true one of the automaton's next state in number.
    """

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        if len(context) < 2:
            raise NotMeasurable("there is no other trajectory to take the future of")
        order = torch.arange(1, len(context) + 1) % len(context)
        right = super().rollout(context, times, actions, draws, generator)
        return _future(context, times, right.states[order])

    def _latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        return super()._latent_of(context, generator).roll(-1, 0)

    def law(self, tokens: Tensor, size: int) -> Tensor:
        state = self.state_after(tokens)
        count = len(self.system.transitions())  # type: ignore[attr-defined]
        return self.law_at(torch.where(state < 0, state, (state + 1) % count))

    def _rolled_law(self, tokens: Tensor) -> Tensor:
        return Truth.law(self, tokens, 0)


class Memoriser(Baseline):
    """The continuation of the nearest training state: fits the past, understands nothing."""

    def rollout(
        self, context: Trajectory, times: Tensor, actions: Any, draws: int, generator: Any
    ) -> Trajectory:
        past, here = self.past.states[:, 0], reached(self.past)[:, 0]
        frames = max(past.shape[1] - len(times) + 1, 1)
        starts = past[:, :frames].reshape(len(past) * frames, -1).double()
        spread = starts.std(0, correction=0)
        varies = spread > 1e-12 * starts.abs().amax(0)  # below, it is rounding
        spread = torch.where(varies, spread, torch.ones_like(spread))
        now = context.states[:, 0, -1].reshape(len(context), -1)
        distance = torch.cdist(now / spread, starts / spread, compute_mode=EXACT)
        nearest = distance.masked_fill(~here[:, :frames].flatten(), torch.inf).argmin(1)
        row, first = nearest // frames, nearest % frames
        frame = (first[:, None] + torch.arange(len(times))).clamp(max=past.shape[1] - 1)
        states = past[row[:, None], frame][:, None]
        return _future(context, times, states.expand(-1, draws, *states.shape[2:]))


BASELINES = {
    "truth": Truth,
    "persistence": Persistence,
    "climatology": Climatology,
    "constant": Constant,
    "shuffled": Shuffled,
    "uniform": Uniform,
    "memoriser": Memoriser,
}


def unavailable(name: str, system: System, trajectories: int) -> str:
    """Why a baseline cannot stand beside this system's models, or "".

    ``trajectories`` is the size of the smallest split that is scored.
    """
    tokens = isinstance(system, HasAutomaton)
    if name == "uniform" and not tokens:
        return "it is a law over tokens, and this system has none"
    if name == "memoriser" and tokens:
        return "it compares states, and this system has tokens"
    if name == "shuffled" and trajectories < 2:
        return "it needs two trajectories in every split that is scored"
    return ""
