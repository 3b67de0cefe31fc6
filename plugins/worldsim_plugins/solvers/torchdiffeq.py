"""The explicit Runge-Kutta solvers of torchdiffeq (Chen, Rubanova, Bettencourt, Duvenaud 2018).

The adaptive methods share one step size among all rows of a batch, so a row's last digits depend on its
companions; the fixed-step ones do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from worldsim import hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_kernels.solve.grid import substeps
from worldsim_plugins.solvers.symplectic import deterministic

ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "adaptive_heun": 2}
FIXED = {"rk4": 4, "heun3": 3, "midpoint": 2, "euler": 1}


class TorchDiffEq:
    """Adaptive or fixed-step explicit Runge-Kutta methods, with gradients through the steps or by the
    adjoint equation."""

    symplectic = False

    def __init__(
        self,
        *,
        method: Annotated[
            Literal["dopri5", "dopri8", "bosh3", "adaptive_heun", "rk4", "heun3", "midpoint", "euler"],
            Field(description="torchdiffeq's name of the method; the last four take fixed steps"),
        ] = "dopri5",
        rtol: Annotated[
            float, Field(gt=0, description="relative tolerance per step of an adaptive method")
        ] = 1e-5,
        atol: Annotated[
            float, Field(gt=0, description="absolute tolerance per step of an adaptive method")
        ] = 1e-6,
        step: Annotated[
            float | None,
            Field(
                gt=0,
                description="longest step, in the units of time; null for no limit (adaptive), "
                "or one step between saved times (fixed)",
            ),
        ] = None,
        adjoint: Annotated[
            bool,
            Field(
                description="gradients by solving the adjoint equation backwards: memory that does not grow "
                "with the number of steps, for gradients only as exact as the tolerances"
            ),
        ] = False,
    ) -> None:
        self.method = method
        self.order = (ADAPTIVE | FIXED)[method]
        self.rtol, self.atol = rtol, atol
        self.step = step
        self.adjoint = adjoint

    def solve(
        self,
        dynamics: Dynamics,
        state: Tensor,
        times: Tensor,
        actions: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """``[trajectory, time, *state]`` from ``state`` ``[trajectory, *state]`` at ``times[0]``.

        ``actions[:, i]`` holds from ``times[i]`` to ``times[i + 1]``: no step crosses a change of action.
        Raises ValueError for noisy dynamics or times that do not move on, RuntimeError when torchdiffeq
        gives up (a step below rounding, a state that is not finite).
        """
        deterministic(dynamics, "torchdiffeq")
        substeps(times)
        if len(times) == 1:
            return state.unsqueeze(1)
        if actions is None:
            return self._solve(dynamics, state, times, None).movedim(0, 1)
        frames = [state]
        for i in range(len(times) - 1):
            frames.append(self._solve(dynamics, frames[-1], times[i : i + 2], actions[:, i])[1])
        return torch.stack(frames, 1)

    def _solve(self, dynamics: Any, state: Tensor, times: Tensor, action: Tensor | None) -> Tensor:
        """``[time, trajectory, *state]`` under one action."""
        origin = times[0]  # torchdiffeq rounds the times to the dtype of the state: count them from zero

        def drift(t: Tensor, x: Tensor) -> Tensor:
            return dynamics.drift(origin + t, x, action)

        extra: dict[str, Any] = {}
        if self.adjoint:
            extra["adjoint_params"] = tuple(getattr(dynamics, "parameters", tuple)())
        try:
            return (odeint_adjoint if self.adjoint else odeint)(
                drift,
                state,
                (times - origin).to(state.device),
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                options=self._options(times - origin),
                **extra,
            )
        except AssertionError as error:
            raise RuntimeError(
                f"torchdiffeq {self.method} gave up: {error}; loosen rtol and atol, or use a fixed-step "
                "method, and check that the field is finite there"
            ) from error

    def _options(self, times: Tensor) -> dict[str, Any]:
        if self.method in FIXED:
            return {"grid_constructor": lambda func, y0, t: self._grid(t)}
        # A step ends on each saved time: between steps torchdiffeq has a quartic, whatever the order.
        longest = {} if self.step is None else {"max_step": self.step}
        return {"step_t": times, **longest}

    def _grid(self, times: Tensor) -> Tensor:
        """``times`` with the steps between them: torchdiffeq's own grid misses the saved times."""
        pieces = [
            times[i] + h * torch.arange(count, dtype=times.dtype, device=times.device)
            for i, (h, count) in enumerate(substeps(times, self.step))
        ]
        return torch.cat([*pieces, times[-1:]])


@hookimpl
def worldsim_solvers() -> dict[str, Callable[..., Solver]]:
    return {"torchdiffeq": TorchDiffEq}
