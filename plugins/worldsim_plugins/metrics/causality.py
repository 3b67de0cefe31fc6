"""Does a model's future follow from its past and from what is done, and from nothing else?

In driven worlds:

    temporal_leak         max over t and t' >= t of |d y_t / d a_t'|, exact, by gradient through the rollout
    action_leak           max change of the forecast before a time when the actions from it on are others
    action_sensitivity    E|y^(a') - y^(a)| / E|y(a') - y(a)|: 0 when actions are ignored, 1 for the truth
    counterfactual_error  E|y^_do(a') - y_do(a')|
    effect_error          E|tau^ - tau| / E|tau|, tau = y(a') - y(a) of one start with one noise
    ate_error             |E tau^ - E tau| / |E tau|, E over starts, averaged over plans and times

In fields: light_cone_leak, the share of the response to a disturbance of one point that lies outside
|x| <= speed t + stencil. |.| is the root mean square over components, in spreads of the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import (
    HasActions,
    HasDifferentiableRollout,
    HasGrid,
    Metric,
    Model,
    Restartable,
    System,
)
from worldsim_kernels.causality import cells_from, cone_leak, temporal_leak
from worldsim_kernels.lyapunov import NotDifferentiable
from worldsim_plugins.metrics import known_dynamics
from worldsim_plugins.metrics.comparison import component_scale, mean_interval, within
from worldsim_plugins.metrics.interventions import Effects, Experiments, size
from worldsim_plugins.metrics.model_failure import ModelFailed, blaming_the_model
from worldsim_plugins.metrics.truth_samples import whole_grid

FEW = 4
"""Starts whose whole Jacobian is taken."""
PAIRS = 20
"""Pairs of true runs, alike but for their noise, that measure the floor of a stochastic world."""
DISTURBED = 0.1
"""Size of the disturbance of one point of a field, in spreads."""
EFFECTS = ("counterfactual_error", "effect_error", "ate_error")


class Causality:
    """The scores above; those of actions in a driven world, light_cone_leak where ``speed`` is given.

    The experiments are the metric's own: ``plans`` pairs of action plans, each on ``starts`` starts of the
    system, with the scored trajectories' times. The floor is what the truth scores: exactly 0 (1 for
    action_sensitivity) when it is deterministic, else the mean over 20 pairs of runs that differ in their
    noise alone. A model that fails or is not finite is counted in ``failed``.

    Raises ValueError for a system without actions when ``speed`` is left out, and for a ``speed`` on what is
    no field that can be restarted. The effects need a system that can be restarted, temporal_leak a model
    whose rollout is differentiable; each is not measurable otherwise, with the reason.
    """

    met_by: Mapping[str, str] = {
        "*_leak": "every baseline that ignores what is done, and persistence, which spreads nothing",
    }
    ground_truths = staticmethod(known_dynamics.of_causality)

    def __init__(
        self,
        system: System,
        *,
        speed: Annotated[
            float | None,
            Field(ge=0, description="of signals in a field, length / time; left out: no light cone is asked"),
        ] = None,
        stencil: Annotated[
            int, Field(ge=0, description="grid cells beyond speed x time that are still inside the cone")
        ] = 1,
        plans: Annotated[int, Field(ge=1, le=1000, description="pairs of action plans")] = 4,
        starts: Annotated[int, Field(ge=2, description="starts of each plan; disturbed fields")] = 16,
        seed: Annotated[int, Field(ge=0, description="draws starts, plans, noise and places")] = 0,
    ) -> None:
        self.driven = isinstance(system, HasActions)
        if speed is None and not self.driven:
            raise ValueError(
                f"{type(system).__name__} takes no actions: there is nothing to do. For a field, give "
                "`speed` to ask for its light cone"
            )
        if speed is not None and not (isinstance(system, HasGrid) and isinstance(system, Restartable)):
            raise ValueError(f"speed: {type(system).__name__} is no field on a grid that can be restarted")
        self.system, self.speed, self.stencil = system, speed, stencil
        self.plans, self.starts, self.seed = plans, starts, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """``truth`` gives the times and the spread; ``prediction`` is not looked at."""
        if not truth.states.is_floating_point():
            raise NotMeasurable("tokens have no size of an effect: causality needs states that are numbers")
        if len(truth.times) < 3:
            raise NotMeasurable("causality needs at least two frames after the context")
        flat = truth.states[:, 0].double().reshape(*truth.states[:, 0].shape[:2], -1)
        scale, scores = component_scale(flat, within(truth)), dict[str, Score]()
        if self.driven:
            tried = Experiments.designed(self.system, truth, scale, self.plans, self.starts, self.seed)
            scores |= self._leaks(tried, model) | self._effects(tried, model)
        if self.speed is not None:
            scores["light_cone_leak"] = self._cone(truth, scale, model)
        return scores

    def _leaks(self, tried: Experiments, model: Model) -> dict[str, Score]:
        """What later actions do to the forecast until then."""
        middle = (tried.last + len(tried.grid)) // 2
        later = torch.cat([tried.first[:, :middle], tried.second[:, middle:]], 1)
        n, until = len(later) * tried.n, middle - tried.last + 1
        nothing = Score(float("nan"), n=n)
        try:
            past = tried.happen(tried.first)
            true = tried.future(past) - tried.future(tried.happen(later))
            found = tried.predict(model, past, tried.first) - tried.predict(model, past, later)
        except NotMeasurable as reason:
            lost = Score(float("nan"), n=0, reason=str(reason))
            return {"action_leak": lost, "temporal_leak": lost}
        except ModelFailed as error:
            lost = Score(nothing.value, n=n, failed=n, reason=str(error))
            return {"action_leak": lost, "temporal_leak": lost}
        value, floor = (float(size(change[:, :, :until]).max()) for change in (found, true))
        return {
            "action_leak": Score(value, floor=floor, n=n),
            "temporal_leak": self._jacobian(tried, past, model),
        }

    def _jacobian(self, tried: Experiments, past: Trajectory, model: Model) -> Score:
        if not isinstance(model, HasDifferentiableRollout):
            return Score(
                float("nan"), n=0, reason="the model's rollout is not differentiable; see action_leak"
            )
        few = past.rows(slice(0, min(FEW, tried.n))).span(0, tried.last + 1)
        plan = tried.first[:1, tried.last :].double()
        unit = plan.std() if plan.numel() > 1 and float(plan.std()) > 0 else torch.ones(())

        def forecast(actions: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(tried.seed)
            times = tried.grid[tried.last :]
            out = model.differentiable_rollout(few, times, actions * unit, 1, generator)
            return out.states[:, 0].flatten(2) / tried.scale

        try:
            found = temporal_leak(forecast, (plan / unit).expand(len(few), *plan.shape[1:]), delay=0)
        except (NotDifferentiable, RuntimeError) as error:
            reason = f"there is no gradient through the rollout ({error}); see action_leak"
            return Score(float("nan"), n=0, reason=reason[:300])
        return Score(float(found.max()), floor=0.0, n=len(found))

    def _effects(self, tried: Experiments, model: Model) -> dict[str, Score]:
        n = len(tried.first) * tried.n
        if not isinstance(self.system, Restartable):
            reason = f"{type(self.system).__name__} cannot be restarted: no start comes twice for a model"
            return _unmeasured(reason, 0)
        try:
            past, other = tried.happen(tried.first), tried.happen(tried.second)
            true = [tried.future(run)[:, :, 1:] for run in (past, other)]
            guess = [tried.predict(model, past, plan)[:, :, 1:] for plan in (tried.first, tried.second)]
        except (NotMeasurable, ModelFailed) as error:
            failed = n if isinstance(error, ModelFailed) else 0
            return _unmeasured(str(error), n, failed)
        found = Effects(*true, *guess)
        if not float(size(found.true).mean()) > 1e-9:
            reason = "the second plan changes nothing in the true world: there is no effect to predict"
            return _unmeasured(reason, n)
        floors = self._floors(tried, true)
        counterfactual, effect = found.counterfactual(), found.effect()
        return {
            "counterfactual_error": Score(
                float(counterfactual.mean()), floor=floors[0], interval=mean_interval(counterfactual), n=n
            ),
            "effect_error": Score(float(effect.mean()), floor=floors[1], interval=mean_interval(effect), n=n),
            "ate_error": Score(found.average_effect(), floor=floors[2], n=n),
            "action_sensitivity": Score(found.sensitivity(), better="", floor=1.0, n=n),
        }

    def _floors(self, tried: Experiments, true: list[Tensor]) -> tuple[float, float, float]:
        """Of counterfactual_error, effect_error and ate_error, with the truth in the place of the model."""
        found = []
        for noise in range(1, PAIRS + 1):
            again = [
                tried.future(tried.happen(plan, noise))[:, :, 1:] for plan in (tried.first, tried.second)
            ]
            if all(torch.equal(a, b) for a, b in zip(again, true)):
                return 0.0, 0.0, 0.0
            one = Effects(*true, *again)
            found.append(
                (float(one.counterfactual().mean()), float(one.effect().mean()), one.average_effect())
            )
        first, second, third = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        return first, second, third

    def _cone(self, truth: Trajectory, scale: Tensor, model: Model) -> Score:
        system, grid = self.system, whole_grid(truth.times)
        assert isinstance(system, HasGrid)
        assert isinstance(system, Restartable)
        last, generator = len(grid) - len(truth.times), torch.Generator().manual_seed(self.seed)
        past = system.simulate(system.sample(self.starts, generator), grid[: last + 2], None, generator)
        past = past.span(0, last + 1).replace(observables={})
        shape = (system.points,) * system.dims
        place = tuple(torch.randint(system.points, (system.dims,), generator=generator).tolist())
        bump = torch.zeros(truth.state_shape, dtype=torch.float64)
        bump[place] = DISTURBED * float(scale.mean())
        states = past.states.clone()
        states[:, :, -1] += bump
        times, distance = truth.times, cells_from(shape, place)
        reach = (times[1:] - times[0]) * float(
            self.speed or 0.0
        ) * system.points / system.length + self.stencil

        def happen(begin: Tensor) -> Tensor:
            start = system.restart(begin[:, 0, -1])
            return system.simulate(start, times - times[0], None, torch.Generator().manual_seed(0)).states

        def predict(begin: Tensor) -> Tensor:
            with blaming_the_model():
                history, rng = past.replace(states=begin), torch.Generator().manual_seed(self.seed)
                return model.rollout(history, times, None, 1, rng).states.detach().cpu()

        def leak(run: Callable[[Tensor], Tensor]) -> Tensor:
            return cone_leak((run(states) - run(past.states))[:, 0, 1:], distance, reach)

        try:
            found, own = leak(predict), leak(happen)
        except ModelFailed as error:
            return Score(float("nan"), n=self.starts, failed=self.starts, reason=str(error))
        floor, failed = float(own.nanmean()), int((~found.isfinite()).sum())
        if failed:
            reason = (
                f"{failed} of {len(found)} forecasts do not respond to the disturbance, or are not finite"
            )
            return Score(float("nan"), floor=floor, n=len(found), failed=failed, reason=reason)
        return Score(float(found.mean()), floor=floor, interval=mean_interval(found), n=len(found))


def _unmeasured(reason: str, n: int, failed: int = 0) -> dict[str, Score]:
    """No effect is known; ``action_sensitivity`` ranks nothing."""
    lost = Score(float("nan"), n=n, failed=failed, reason=reason)
    return dict.fromkeys(EFFECTS, lost) | {"action_sensitivity": replace(lost, better="")}


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"causality": Causality}
