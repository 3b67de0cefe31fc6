"""No frame of a forecast may depend on what is done after it.

    residual[t] = max over k >= t of |y_t(a) - y_t(a')| / scale,   a' = a before time k, others from k on

``actions[:, i]`` holds from ``times[i]`` on, so frame k itself is not yet changed. y(a) and y(a') are
forecasts with the same noise. No single trajectory shows a leak: any of them could have been made by a causal
model. What a model can do is be built so that it has none.

A forecast that ignores the actions has no leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Trajectory, hookimpl
from worldsim.protocols import HasActions, Model, System


class Causality:
    """Of a model, ``[trajectory, draw, time, *state]`` float64, exactly 0 where it cannot see what is done
    later with the same seed. The forecasts are asked for at ``cuts`` times spread over the horizon, with the
    actions from then on drawn anew. ``scale`` is the standard deviation of each number of the true state.

    Raises ValueError for a system without actions, NotMeasurable for fewer than three frames.
    """

    equality = True
    parameters: Mapping[str, Any] = {"causal": True}
    needs = ("HasActions",)
    met_by: Mapping[str, str] = {"*": "every baseline that ignores what is done"}

    def __init__(
        self,
        system: System,
        *,
        cuts: Annotated[int, Field(ge=1, description="times from which the actions are changed")] = 3,
        draws: Annotated[int, Field(ge=1, description="forecasts of each trajectory")] = 1,
    ) -> None:
        if not isinstance(system, HasActions):
            raise ValueError(
                f"causality needs a driven system; {type(system).__name__} takes no actions: nothing is done "
                "that a forecast could depend on too early"
            )
        self.system, self.cuts, self.draws = system, cuts, draws

    def residual(self, trajectory: Trajectory) -> Tensor:
        """Raises NotMeasurable: it is a model that leaks."""
        raise NotMeasurable("no trajectory by itself shows what was done after it: ask the model")

    def model_residual(self, truth: Trajectory, model: Model, generator: torch.Generator) -> Tensor:
        """The largest change, over the cuts, of each frame up to the cut, over ``scale``."""
        if len(truth.times) < 3 or truth.actions is None:
            raise NotMeasurable("causality needs actions on at least three frames")
        context, times, count = truth.span(0, 1), truth.times, len(truth.times)
        other = self.system.sample_actions(len(truth), times, generator).to(truth.actions)
        seed = int(torch.randint(2**62, (), generator=generator))

        def forecast(actions: Tensor) -> Tensor:
            noise = torch.Generator().manual_seed(seed)
            shown = context.replace(actions=actions[:, :1])
            return model.rollout(shown, times, actions, self.draws, noise).states.to(torch.float64)

        usual = forecast(truth.actions)
        leak = torch.zeros_like(usual)
        for k in sorted({round(count * (i + 1) / (self.cuts + 1)) for i in range(self.cuts)}):
            cut = min(max(k, 1), count - 1)
            changed = torch.cat([truth.actions[:, :cut], other[:, cut:]], 1)
            change = (forecast(changed) - usual)[:, :, : cut + 1].abs()
            leak[:, :, : cut + 1] = torch.maximum(leak[:, :, : cut + 1], change)
        flat = truth.states.to(torch.float64).flatten(0, 2)
        scale = flat.std(0, correction=0)
        return leak / torch.where(scale > 0, scale, torch.ones_like(scale))


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Causality]]:
    return {"causality": Causality}
