"""Adaptive explicit Runge-Kutta methods that are right for every row: each trajectory has its own steps.

A trajectory's numbers do not depend on its companions, and one that fails costs none of them: it is NaN from
where it failed, unless a gradient is asked for, which it would spoil.

Without actions one solve passes through all saved times and reads them off interpolants; these have an error
of the power of the step that the method's own has, or a higher one, so the order stays. With actions the
solve starts anew at each saved time, and no step sees two actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_kernels.solve import ODE, PID, Save, Solution, solve
from worldsim_kernels.solve.steppers import stepper_of
from worldsim_plugins.solvers.symplectic import deterministic

RelativeTolerance = Annotated[
    float, Field(gt=0, description="error of one step that is allowed, relative to the size of the state")
]
AbsoluteTolerance = Annotated[
    float, Field(gt=0, description="error of one step that is allowed beside, in the units of the state")
]
Longest = Annotated[
    float | None, Field(gt=0, description="longest step, in the units of time; null for no limit")
]
MostSteps = Annotated[
    int, Field(ge=1, description="steps, rejected ones too, after which a trajectory is given up")
]
Backend = Annotated[
    Literal["torch", "native", "compiled", "triton"],
    Field(
        description="what runs the steps: torch; native, the drift traced and printed as C, for many "
        "trajectories of a drift of few operations; compiled, one graph of torch.compile; triton, on a GPU"
    ),
]


class Adaptive:
    """One method and its tolerances."""

    symplectic = False

    def __init__(
        self,
        name: str,
        rtol: float,
        atol: float,
        step: float | None,
        max_steps: int,
        backend: str = "torch",
    ) -> None:
        self.name, self.backend = name, backend
        self.order = stepper_of(name).properties.order
        self.controller = PID(rtol, atol, largest=float("inf") if step is None else step)
        self.max_steps = max_steps

    def solve(
        self,
        dynamics: Dynamics,
        state: Tensor,
        times: Tensor,
        actions: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """``[trajectory, time, *state]`` from ``state`` ``[trajectory, *state]`` at ``times[0]``.

        The dynamics are asked for ``drift(t, x, u)`` with ``t`` ``[row]``, for any subset of the rows and
        the same rows of the action. ``actions[:, i]`` holds from ``times[i]`` to ``times[i + 1]``.
        Raises ValueError for noisy dynamics, times that are not monotone or a drift that the backend cannot
        run, and RuntimeError when a gradient
        is recorded and a trajectory fails: which, where, and what to do.
        """
        deterministic(dynamics, self.name)
        if len(times) == 1:
            return state.unsqueeze(1)
        if actions is None:
            return self._solve(ODE(lambda t, x: dynamics.drift(t, x, None)), state, times)
        frames = [state]
        for i in range(len(times) - 1):
            term = ODE(dynamics.drift, (actions[:, i],))
            frames.append(self._solve(term, frames[-1], times[i : i + 2])[:, 1])
        return torch.stack(frames, 1)

    def _solve(self, term: Any, state: Tensor, times: Tensor) -> Tensor:
        solution: Solution = solve(
            term,
            state,
            times[0],
            times[-1],
            stepper=self.name,
            controller=self.controller,
            save=Save(times),
            backend=self.backend,
            max_steps=self.max_steps,
        )
        saved = solution.saved
        assert saved is not None
        if saved.requires_grad:
            solution.check()
        return saved


def _builder(name: str, says: str) -> Callable[..., Solver]:
    def build(
        *,
        rtol: RelativeTolerance = 1e-6,
        atol: AbsoluteTolerance = 1e-6,
        step: Longest = None,
        max_steps: MostSteps = 100_000,
        backend: Backend = "torch",
    ) -> Solver:
        return Adaptive(name, rtol, atol, step, max_steps, backend)

    build.__name__, build.__doc__ = name, says
    return build


METHODS = {
    "tsit5": "Tsitouras 2011, order 5, adaptive, every trajectory with its own steps: the first to try.",
    "dopri5": "Dormand and Prince 1980, order 5, adaptive, every trajectory with its own steps.",
    "dopri8": "Prince and Dormand 1981, order 8, adaptive, every trajectory with its own steps: for "
    "tolerances below 1e-8.",
    "bosh3": "Bogacki and Shampine 1989, order 3, adaptive, every trajectory with its own steps: for rough "
    "fields and tolerances above 1e-3.",
    "heun": "Heun's method of order 2 with Euler's as its error, adaptive, every trajectory with its own "
    "steps.",
}


@hookimpl
def worldsim_solvers() -> dict[str, Callable[..., Solver]]:
    return {name: _builder(name, says) for name, says in METHODS.items()}
