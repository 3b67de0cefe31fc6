"""Does a model still find its way when it is led off it?

A model walks on greedily; with some probability per token, its choice is replaced by a legal one that it did
not make, drawn at random or the least likely to it (Vafa, Chen, Rambachan, Kleinberg and Mullainathan 2024).
Who knows the state goes on validly from wherever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy import stats
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, HasNextToken, Metric, Model, System
from worldsim_plugins.metrics.comparison import CONFIDENCE
from worldsim_plugins.metrics.intervals import widened
from worldsim_plugins.metrics.model_failure import ModelFailed, blaming_the_model
from worldsim_plugins.metrics.myhill_nerode import NextToken, law_after


class Detour(NamedTuple):
    """How a model is led off: with ``probability`` per token, to a random legal one or the least likely."""

    probability: float
    adversarial: bool

    @property
    def name(self) -> str:
        if not self.probability:
            return "undisturbed"
        percent = f"{100 * self.probability:g}".replace(".", "_")
        return f"{'adversarial' if self.adversarial else 'random'}_{percent}"


class Detours:
    """Share of walks on which every token that the model chose is legal, and, where the automaton has the
    token ``end``, which it reaches within ``length`` tokens:

    valid_undisturbed      of the model's greedy tokens alone
    valid_random_10        each token replaced with 10 % probability by a random legal one; and so for every
                           probability
    valid_adversarial_10   ... by the legal one that is least likely to the model
    legal_*                the same without having to end, where there is an ``end``
    valid_random           and valid_adversarial, ``[probability]``, with ``*_low`` and ``*_high``

    Where there is no ``end``, who always makes one step that is legal everywhere has 1, whatever it knows.

    Among tokens that are as likely one is drawn, so that a uniform law walks at random. ``end`` is never the
    detour, unless nothing else is legal. The floor is what the true law does under the same rule: 1 where
    there is no ``end``; a law that wanders may not end in time. Intervals are exact, over walks (Clopper and
    Pearson 1934), and one-sided at 0 and at 1.

    Raises ValueError for a system that is no automaton, NotMeasurable for a model without a law of the next
    token.
    """

    def __init__(
        self,
        system: System,
        *,
        probabilities: Annotated[
            list[Annotated[float, Field(ge=0, lt=1)]],
            Field(min_length=1, max_length=20, description="of a detour, per token"),
        ] = [0.0, 0.01, 0.1, 0.5, 0.75],  # noqa: B006 -- it is read only
        walks: Annotated[int, Field(ge=10, le=100_000, description="walks of each sort")] = 100,
        given: Annotated[
            int, Field(ge=0, le=1000, description="true tokens before the model's: the two ends of a route")
        ] = 2,
        length: Annotated[int, Field(ge=1, le=10_000, description="most tokens after those given")] = 100,
        end: Annotated[str, Field(description="token that ends a walk, where the automaton has it")] = "end",
        seed: Annotated[int, Field(ge=0, description="draws the starts and the detours")] = 0,
    ) -> None:
        if not isinstance(system, HasAutomaton):
            raise ValueError(f"detours needs an automaton, {type(system).__name__} is none")
        self.system, self.table = system, system.transitions()
        self.end = system.alphabet.index(end) if end in system.alphabet else None
        self.probabilities = sorted(set(probabilities))
        self.walks, self.given, self.length, self.seed = walks, given, length, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above, of ``model`` alone, on walks of its own."""
        if not isinstance(model, HasNextToken):
            raise NotMeasurable(f"{type(model).__name__} gives no law of the next token (next_token)")
        detours = [
            Detour(probability, adversarial)
            for probability in self.probabilities
            for adversarial in ([False, True] if probability else [False])
        ]
        starts = self.starts()
        try:
            legal, ended = self.walked(model.next_token, starts, detours)
        except ModelFailed as error:
            lost = Score(float("nan"), better="higher", n=0, failed=len(starts), reason=str(error))
            return {f"valid_{detour.name}": lost for detour in detours}
        floors = torch.ones(len(detours)).double()
        if self.end is not None:
            law = self.system.next_token if isinstance(self.system, HasNextToken) else self.uniform
            floors = torch.stack(self.walked(law, starts, detours)).all(0).double().mean(1)
        valid = legal & ended
        scores = {
            f"valid_{detour.name}": share(row, float(floor))
            for detour, row, floor in zip(detours, valid, floors)
        }
        if self.end is not None:
            scores |= {f"legal_{detour.name}": share(row, 1.0) for detour, row in zip(detours, legal)}
        return scores | self.curves(scores)

    def starts(self) -> Tensor:
        """True words ``[walk, given]`` that have not ended yet."""
        generator, times = torch.Generator().manual_seed(self.seed), torch.arange(self.given).double()
        if not self.given:
            return torch.zeros(self.walks, 0, dtype=torch.int64)
        start = self.system.sample(self.walks, generator)  # type: ignore[attr-defined]
        words: Tensor = self.system.simulate(start, times, None, generator).states[:, 0]  # type: ignore[attr-defined]
        words = words[(words != self.end).all(1)] if self.end is not None else words
        if len(words) < self.walks / 2:
            raise NotMeasurable(f"most walks end within {self.given} tokens: lower given")
        return words

    def walked(self, law: NextToken, starts: Tensor, detours: list[Detour]) -> tuple[Tensor, Tensor]:
        """Whether every token of the model is legal, and whether the walk ends in time (true where there is
        no end), both ``[detour, walk]``."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        n, size = len(starts), self.table.shape[1]
        words, state = starts.repeat(len(detours), 1), self.after(starts).repeat(len(detours))
        chance, hostile = (
            torch.tensor([detour[part] for detour in detours]).repeat_interleave(n) for part in (0, 1)
        )
        legal, ended = torch.ones(len(words), dtype=torch.bool), torch.zeros(len(words), dtype=torch.bool)
        left = torch.arange(len(words))
        for _ in range(self.length):
            with blaming_the_model():
                told = law_after(law, words[left], size)
            ties = torch.rand(told.shape, generator=generator, dtype=torch.float64)
            allowed = self.table[state[left]] >= 0
            own = torch.where(told == told.amax(1, keepdim=True), ties, -1.0).argmax(1)
            astray = self.led_off(told, allowed, hostile[left], ties)
            off = torch.rand(len(left), generator=generator, dtype=torch.float64) < chance[left]
            token = torch.where(off, astray, own)
            good = off | (allowed.gather(1, own[:, None])[:, 0] & (told.sum(1) > 0))
            legal[left[~good]] = False
            state[left] = self.table[state[left], token]
            words = torch.cat([words, words.new_zeros(len(words), 1)], 1)
            words[left, -1] = token
            if self.end is not None:
                ended[left[good & (token == self.end)]] = True
            left = left[good & ~ended[left]]
            if not len(left):
                break
        ended = ended if self.end is not None else torch.ones_like(ended)
        return legal.reshape(len(detours), n), ended.reshape(len(detours), n)

    def led_off(self, told: Tensor, allowed: Tensor, hostile: Tensor, ties: Tensor) -> Tensor:
        """Legal tokens ``[walk]`` that are drawn, or least likely in ``told``."""
        if self.end is not None:
            allowed = allowed.clone()
            allowed[:, self.end] &= allowed.sum(1) == 1
        drawn = torch.where(allowed, ties, -1.0).argmax(1)
        return torch.where(hostile, torch.where(allowed, told, torch.inf).argmin(1), drawn)

    def after(self, words: Tensor) -> Tensor:
        """The true state after legal ``words`` ``[walk, length]``."""
        state = torch.full((len(words),), self.system.initial)  # type: ignore[attr-defined]
        for token in words.T:
            state = self.table[state, token]
        return state

    def uniform(self, tokens: Tensor) -> Tensor:
        legal = (self.table[self.after(tokens)] >= 0).double()
        return legal / legal.sum(1, keepdim=True)

    def curves(self, scores: Mapping[str, Score]) -> dict[str, Score]:
        """The shares and their intervals over the probability of a detour."""
        coords, found = {"probability": self.probabilities}, {}
        for adversarial, kind in ((False, "random"), (True, "adversarial")):
            at = [scores[f"valid_{Detour(p, adversarial).name}"] for p in self.probabilities]
            ends = np.array([one.interval for one in at])
            for suffix, value in (
                ("", [one.value for one in at]),
                ("_low", ends[:, 0]),
                ("_high", ends[:, 1]),
            ):
                found[f"valid_{kind}{suffix}"] = Score(
                    np.array(value), dims=("probability",), better="" if suffix else "higher",
                    n=at[0].n, coords=coords,
                )  # fmt: skip
        return found


def share(rows: Tensor, floor: float) -> Score:
    """Of ``rows`` ``[walk]`` bool that are true."""
    count, n = int(rows.sum()), len(rows)
    low, high = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="exact")
    interval = (float(low), float(high)) if 0 < count < n else widened(count / n, (count / n, count / n), n)
    return Score(count / n, better="higher", floor=floor, interval=interval, n=n)


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"detours": Detours}
