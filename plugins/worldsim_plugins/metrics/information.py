"""Does a forecast carry as much information as the world does?

Over states: how much the first frame of a forecast tells about its last one (mutual information, nats), by
nearest neighbours (Kraskov, Stoegbauer and Grassberger 2004) and as a Gaussian copula sees it (Ince et al.
2017). Over tokens: entropies of blocks, the entropy rate and the excess entropy (Crutchfield and Feldman
2003), the statistical complexity (Crutchfield and Young 1989), and what a general coder needs (bits). Of a
model that offers its latent, what that keeps of the past and tells of the future (Tishby, Pereira and Bialek
1999).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, Metric, Model, System
from worldsim_plugins.metrics import known_values
from worldsim_plugins.metrics.comparison import compare, within
from worldsim_plugins.metrics.latent_information import latent_scores
from worldsim_plugins.metrics.state_information import Pair, refuse_determinism, state_scores
from worldsim_plugins.metrics.token_information import Entropies, entropies, token_scores
from worldsim_plugins.metrics.truth_samples import truth_samples


class Information:
    """Of a forecast beside the truth; ``*_error`` is the absolute difference, with a floor from pairs of
    truth samples, and ``*_truth`` what the truth has.

    Over states, in nats, between the frame after the context and the last one:

    information              by nearest neighbours; refused for more than four dimensions of both together
    copula_information       what a Gaussian copula sees: a lower bound for one component, in any dimension

    Over tokens, in bits:

    block_entropy            H(1) .. H(length), corrected for the number of windows (Miller and Madow)
    entropy_rate             H(length) - H(length - 1)
    excess_entropy           H(length) - length * entropy_rate
    statistical_complexity   entropy of histories of half the length grouped by what follows them
    coded_bits               bits per token by LZMA
    coding_overhead          that over the entropy rate

    With ``latent``, for a model that offers one, in nats, as lower bounds by a trained critic that cannot
    exceed latent_information_cap, the log of its batch (a value above 0.9 of it is not measurable):

    latent_information_past    I(history; latent)
    latent_information_future  I(latent; last state); its floor is what the true state tells

    Of several draws the first is taken. Raises NotMeasurable for states of a deterministic system taken whole
    (infinite), with fewer than ``minimum`` trajectories, and for too few tokens to count words.
    """

    met_by: Mapping[str, str] = {
        "*_error": "shuffled and memoriser, true trajectories of other starts",
    }

    def __init__(
        self,
        system: System,
        *,
        components: Annotated[
            list[int] | None,
            Field(min_length=1, description="components of the flattened state to look at; all if left out"),
        ] = None,
        length: Annotated[int, Field(ge=2, le=32, description="longest block of tokens")] = 4,
        points: Annotated[
            int, Field(ge=32, le=4000, description="most trajectories that are looked at")
        ] = 512,
        pairs: Annotated[int, Field(ge=20, description="pairs of truth samples that measure the floor")] = 20,
        minimum: Annotated[int, Field(ge=32, description="fewest trajectories over states")] = 100,
        latent: Annotated[bool, Field(description="ask the model for its latent too")] = False,
        history: Annotated[int, Field(ge=1, description="frames that a latent is made of")] = 8,
        samples: Annotated[
            int, Field(ge=512, le=100_000, description="histories that a latent is measured on")
        ] = 2048,
        steps: Annotated[int, Field(ge=10, description="training steps of the latent's critic")] = 400,
        seed: Annotated[int, Field(ge=0, description="draws the truth samples, and trains the critic")] = 0,
    ) -> None:
        self.system = system
        self.components = components
        self.length = length
        self.points, self.pairs, self.minimum = points, pairs, minimum
        self.latent, self.history, self.samples, self.steps = latent, history, samples, steps
        self.seed = seed

    ground_truths = staticmethod(known_values.of_information)

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        over = self._over_states if truth.states.is_floating_point() else self._over_tokens
        if not self.latent:
            return over(truth, prediction)
        found = latent_scores(self.system, model, truth, self.history, self.samples, self.steps, self.seed)
        try:
            return {**over(truth, prediction), **found}
        except NotMeasurable as reason:
            return {**found, "information": Score(float("nan"), better="", n=0, reason=str(reason))}

    def _over_states(self, truth: Trajectory, prediction: Trajectory) -> Mapping[str, Score]:
        if len(truth) < self.minimum:
            raise NotMeasurable(f"{len(truth)} trajectories tell no information; {self.minimum} are needed")
        if len(truth.times) < 3:
            raise NotMeasurable("information between frames needs two after the given one")
        if not within(truth).all():
            raise NotMeasurable("trajectories end at different times: they share no last frame")
        if self.components is None:
            refuse_determinism(self.system, truth)
        both = compare(truth, prediction)
        if both.failed:
            lost = Score(float("nan"), n=len(truth), failed=both.failed, reason=both.reason)
            return {"information_error": lost, "copula_information_error": lost}
        rows = slice(0, self.points)
        right, found = self._ends(both.truth[rows]), self._ends(both.draws[rows, 0])
        try:
            drawn = self._samples(truth, len(right[0]), torch.tensor([1, len(truth.times) - 1]))
        except (NotMeasurable, ValueError):
            drawn = []
        ends = [self._ends(states) for states in drawn]
        return state_scores(right, found, list(zip(ends[::2], ends[1::2])), self.seed)

    def _ends(self, states: Tensor) -> Pair:
        """The first and the last frame of ``states`` ``[trajectory, frame, component]``."""
        if self.components is not None:
            if not 0 <= min(self.components) <= max(self.components) < states.shape[2]:
                raise ValueError(f"components {self.components}: the state has {states.shape[2]}, from 0 on")
            states = states[..., self.components]
        return states[:, 0], states[:, -1]

    def _over_tokens(self, truth: Trajectory, prediction: Trajectory) -> Mapping[str, Score]:
        if truth.state_shape:
            raise NotMeasurable("states that are vectors of whole numbers are no tokens")
        if not within(truth).all():
            raise NotMeasurable("sequences of different lengths have no common count of words")
        right, found = (each.states[:, 0, 1:] for each in (truth, prediction))
        if isinstance(self.system, HasAutomaton):
            size = len(self.system.alphabet)
        else:
            size = 1 + int(torch.maximum(right.max(), found.max()))
        true, guess = self._entropies(right, size), self._entropies(found, size)
        try:
            drawn = self._samples(truth, len(truth), torch.arange(1, len(truth.times)))
            floors = [self._entropies(states[..., 0].long(), size) for states in drawn]
        except (NotMeasurable, ValueError):
            floors = []
        pairs = list(zip(floors[::2], floors[1::2]))
        return token_scores(true, guess, pairs, found, size)

    def _entropies(self, tokens: Tensor, size: int) -> Entropies:
        return entropies(tokens, size, self.length)

    def _samples(self, truth: Trajectory, n: int, frames: Tensor) -> list[Tensor]:
        drawn = truth_samples(self.system, 2 * self.pairs, n, truth.times, frames, self.seed)
        return [states for states, _ in drawn]


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"information": Information}
