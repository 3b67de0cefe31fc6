"""Does what a model keeps of a history make it easy to learn functions of the world's state, and no others?

The probe of Vafa, Chang, Rambachan and Mullainathan (2025) with another learner: there all of the model is
fine-tuned on each tiny data set, here a logistic regression is fitted to the model's latents, which stay as
they are. That asks what the latents offer, takes seconds and no gradients, and is no bound of the published
number in either direction: fine-tuning may bend latents to the state, or away from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from scipy import optimize, special, stats
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, HasLatent, Metric, Model, System
from worldsim_plugins.metrics.bias_probe import InductiveBias, inductive_bias, probe
from worldsim_plugins.metrics.comparison import CONFIDENCE
from worldsim_plugins.metrics.latent_information import latents
from worldsim_plugins.metrics.minimisation import minimise
from worldsim_plugins.metrics.model_failure import ModelFailed, blaming_the_model
from worldsim_plugins.metrics.state_information import varying


class LatentInductiveBias:
    """Of a model with a latent (``latent_of``), over data sets whose labels are a fair coin for each state:

    r_ib          1 - 2 P(labels differ | same state): 1 where inputs of one state get one label
    d_ib          2 P(labels differ | different states): 1 where states are free of each other
    d_ib_alike    the same among states with the same next tokens: what a latent of legality cannot give
    d_ib_unlike   ... and among states with different ones

    A latent that knows the state has 1 and 1. One that knows nothing of it has labels that differ as often
    within a state as between states, r_ib + d_ib = 1: 1 and 0 where all inputs get one label, 0 and 1 where
    they get coins, and in between where the commoner label of a few states is guessed. So read the two
    together. Inputs are true words, their states those of the minimal automaton. The floor is the same
    learner's on the true state itself: below 1 where an example of every state is not in every data set.
    Intervals are over data sets.

    Raises ValueError for a system that is no automaton, NotMeasurable for a model without a latent.
    """

    def __init__(
        self,
        system: System,
        *,
        inputs: Annotated[int, Field(ge=50, le=20_000, description="words that labels are given to")] = 1000,
        prefix_lengths: Annotated[
            tuple[int, int], Field(description="shortest and longest word, each length as likely")
        ] = (4, 12),
        sets: Annotated[int, Field(ge=10, le=10_000, description="data sets")] = 100,
        examples: Annotated[int, Field(ge=10, le=10_000, description="labelled words in a data set")] = 100,
        penalty: Annotated[
            float, Field(gt=0, description="of squared weights of standardised latents, beside the mean loss")
        ] = 0.01,
        seed: Annotated[int, Field(ge=0, description="draws words, coins and data sets")] = 0,
    ) -> None:
        if not isinstance(system, HasAutomaton):
            raise ValueError(f"inductive_bias needs an automaton, {type(system).__name__} is none")
        if not 1 <= prefix_lengths[0] <= prefix_lengths[1] <= 500:
            raise ValueError(f"prefix_lengths: {list(prefix_lengths)}: give 1 <= shortest <= longest <= 500")
        minimal = minimise(system.transitions(), system.initial)
        self.system, self.classes = system, minimal.classes
        self.follow = (minimal.transitions >= 0).unique(dim=0, return_inverse=True)[1]
        self.inputs, self.lengths, self.sets, self.examples = inputs, prefix_lengths, sets, examples
        self.penalty, self.seed = penalty, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above, of the latents of ``model``."""
        if not isinstance(model, HasLatent):
            raise NotMeasurable(f"{type(model).__name__} offers no latent (latent_of)")
        words, states = self.words()
        if len(states.unique()) < 2:
            raise NotMeasurable("all words of these lengths end in one state: change prefix_lengths")
        try:
            with blaming_the_model():
                kept = [latents(model, part, self.seed) for part in words]
        except ModelFailed as error:
            lost = Score(float("nan"), better="higher", n=0, failed=self.inputs, reason=str(error))
            return {"r_ib": lost, "d_ib": lost}
        widths = {part.shape[1] for part in kept}
        if len(widths) > 1:
            raise NotMeasurable(
                f"latents of words of different lengths have different widths {sorted(widths)}"
            )
        found = self.biased(torch.cat(kept), states)
        ceiling = self.biased(torch.nn.functional.one_hot(states).double(), states)
        return {
            name: self.scored(found, ceiling, part, place)
            for place, (name, part) in enumerate(
                {"r_ib": "same", "d_ib": "different", "d_ib_alike": "different_alike",
                 "d_ib_unlike": "different_unlike"}.items()
            )
        }  # fmt: skip

    def words(self) -> tuple[list[Trajectory], Tensor]:
        """True words of each length, and the state in which each ends, in that order."""
        generator, (shortest, longest) = torch.Generator().manual_seed(self.seed), self.lengths
        times = torch.arange(longest, dtype=torch.float64)
        system: Any = self.system
        drawn = system.simulate(system.sample(self.inputs, generator), times, None, generator)
        lengths = torch.randint(shortest, longest + 1, (self.inputs,), generator=generator).sort().values
        parts = [
            (drawn.rows((lengths == length).nonzero()[:, 0]).span(0, length), length)
            for length in lengths.unique().tolist()
        ]
        ends = [part.observables["automaton_state"][:, 0, -1] for part, _ in parts]
        return [part.replace(observables={}) for part, _ in parts], self.classes[torch.cat(ends)]

    def biased(self, latent: Tensor, states: Tensor) -> InductiveBias:
        """Of the regression on ``latent [input, feature]``."""
        features = varying(latent)
        if features.shape[1]:
            features = (features - features.mean(0)) / features.std(0, correction=0)
        learner = regression(features.numpy(), self.penalty)
        generator = torch.Generator().manual_seed(self.seed + 1)
        labels = probe(learner, states, sets=self.sets, examples=self.examples, generator=generator)
        return inductive_bias(labels, states, self.follow[states])

    def scored(self, found: InductiveBias, ceiling: InductiveBias, part: str, place: int) -> Score:
        value, error = getattr(found, part), found.standard_error[place]
        if isnan(value):
            reason = "there is no pair of words of that sort"
            return Score(value, better="higher", n=0, reason=reason)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.sets - 1)) * error
        return Score(
            value, better="higher", floor=getattr(ceiling, part), interval=(value - half, value + half),
            n=self.sets,
        )  # fmt: skip


def regression(features: np.ndarray, penalty: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A learner that labels every row of ``features [input, feature]`` by the logistic regression

    minimise mean log(1 + exp(-y f)) + penalty |w|^2 / 2,   f = w x + b,   y = -1 or 1
    """

    def learner(rows: Tensor, labels: Tensor) -> Tensor:
        if len(set(labels.tolist())) == 1:
            return labels[:1].expand(len(features))
        # The weights of a penalised fit lie in the span of its examples.
        _, size, span = np.linalg.svd(features[rows.numpy()], full_matrices=False)
        inputs = np.column_stack(
            [features @ span[size > 1e-10 * size.max(initial=0.0)].T, np.ones(len(features))]
        )
        weights = fitted(inputs[rows.numpy()], 2.0 * labels.numpy() - 1, penalty)
        return torch.from_numpy((inputs @ weights > 0).astype(np.int64))

    return learner


def fitted(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of the regression of ``y [example]`` on ``x [example, feature]``, whose last column is 1."""
    ridge = np.append(np.full(x.shape[1] - 1, penalty), 0.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = y * (x @ weights)
        slope = -y * special.expit(-margin) / len(y)
        value = np.logaddexp(0, -margin).mean() + ridge @ weights**2 / 2
        return float(value), slope @ x + ridge * weights

    def curvature(weights: np.ndarray) -> np.ndarray:
        chance = special.expit(x @ weights)
        return (x.T * (chance * (1 - chance) / len(y))) @ x + np.diag(ridge)

    begin = np.zeros(x.shape[1])
    found = optimize.minimize(loss, begin, jac=True, hess=curvature, method="trust-exact", tol=1e-8)
    return np.asarray(found.x)


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"inductive_bias": LatentInductiveBias}
