"""What a model's latent keeps of a history, and what of that is of use: I(X; T) and I(T; Y).

X is the history, T the latent and Y the future (Tishby, Pereira and Bialek 1999). Both are contrastive lower
bounds, which cannot exceed the log of their batch; one that is near it is no measurement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory
from worldsim.protocols import HasActions, HasLatent, Model, System
from worldsim_kernels.information import Bound, info_nce
from worldsim_plugins.metrics.model_failure import ModelFailed, blaming_the_model
from worldsim_plugins.metrics.state_information import varying
from worldsim_plugins.metrics.truth_samples import whole_grid

BATCH = 64


def latent_scores(
    system: System, model: Model, truth: Trajectory, history: int, samples: int, steps: int, seed: int
) -> dict[str, Score]:
    """latent_information_past, latent_information_future and latent_information_cap, in nats.

    The floor of the future's is what the true state itself tells about it. ``truth`` gives the step and the
    horizon; histories are simulated anew.
    """
    if not isinstance(model, HasLatent):
        raise NotMeasurable(f"{type(model).__name__} offers no latent (latent_of)")
    generator = torch.Generator().manual_seed(seed)
    past, now, future = histories(system, truth, history, samples, generator)
    names = ("latent_information_past", "latent_information_future")
    try:
        with blaming_the_model():
            drawn = [latents(model, past, seed + draw) for draw in (1, 2)]
    except ModelFailed as error:
        return dict.fromkeys(names, Score(float("nan"), n=samples, failed=samples, reason=str(error)))
    cap = Score(math.log(BATCH), better="", n=BATCH)
    floor = bounded(now, future, steps, generator)
    useful = _score(bounded(drawn[0], future, steps, generator), "higher")
    if not floor.capped:
        useful = Score(**{**vars(useful), "floor": floor.value})
    if torch.equal(*drawn):
        reason = "the latent is a function of the history: it keeps infinitely much, or all there is"
        kept = Score(float("nan"), better="", n=samples, reason=reason)
    else:
        kept = _score(bounded(numbers(past), drawn[0], steps, generator), "")
    return dict(zip(names, (kept, useful))) | {"latent_information_cap": cap}


def histories(
    system: System, truth: Trajectory, history: int, samples: int, generator: torch.Generator
) -> tuple[Trajectory, Tensor, Tensor]:
    """New pasts of ``history`` frames, what is true at their end and as far after it as ``truth`` goes, both
    ``[sample, number]``."""
    if isinstance(system, HasActions):
        raise NotMeasurable("the future of a driven system is its actions' as well as its state's")
    step, count = truth.times[1] - truth.times[0], len(truth.times)
    times = whole_grid(truth.times)[0] + step * torch.arange(history + count - 1, dtype=torch.float64)
    drawn = system.simulate(system.sample(samples, generator), times, None, generator)
    seen = drawn.observables.get("automaton_state", drawn.states)
    now, future = (at.reshape(samples, -1) for at in (seen[:, 0, history - 1], seen[:, 0, -1]))
    if not seen.is_floating_point():
        now, future = (torch.nn.functional.one_hot(at[:, 0]) for at in (now, future))
    return drawn.span(0, history).replace(observables={}), now.double(), future.double()


def latents(model: HasLatent, past: Trajectory, seed: int) -> Tensor:
    found = model.latent_of(past, torch.Generator().manual_seed(seed)).detach().double()
    if found.dim() != 2 or len(found) != len(past) or not bool(found.isfinite().all()):
        raise ValueError(f"latent_of must give finite [trajectory, latent], it gave {list(found.shape)}")
    return found


def numbers(past: Trajectory) -> Tensor:
    """A history as one row of numbers; tokens one-hot."""
    states = past.states[:, 0]
    if not states.is_floating_point():
        states = torch.nn.functional.one_hot(states)
    return states.reshape(len(past), -1).double()


def bounded(x: Tensor, y: Tensor, steps: int, generator: torch.Generator) -> Bound:
    """The contrastive bound; exactly 0 where one of the two is constant."""
    x, y = varying(x), varying(y)
    if not x.shape[1] or not y.shape[1]:
        return Bound(0.0, 0.0, len(x), math.log(BATCH))
    return info_nce(x, y, batch=BATCH, steps=steps, generator=generator)


def _score(found: Bound, better: str) -> Score:
    if found.capped:
        reason = f"the bound {found.value:.2f} is at its cap, ln {BATCH} = {found.cap:.2f}: there is more"
        return Score(float("nan"), better=better, n=found.n, reason=reason)
    margin = 1.959964 * found.standard_error
    return Score(found.value, better=better, interval=(found.value - margin, found.value + margin), n=found.n)
