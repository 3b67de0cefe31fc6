"""A noisy damped rotation of which one component is measured, with noise: what is seen is not the state.

    x(t + 1) = A x(t) + w,  w ~ N(0, process^2 I),    y(t) = x_1(t) + v,  v ~ N(0, measurement^2)

A is decay times a rotation by 2 pi / period. All that a past says about the future is the law of x at its
end, Gaussian with mean G y and a covariance that no measurement changes (Kalman 1960): pasts that differ by
an element of the null space of G are equivalent, though even their last measurements differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated
from worldsim_plugins.systems.doubling_map import whole_steps


class LinearGaussian:
    """States ``[trajectory, (y,)]``, the measurements; x, stationary, is the observable ``hidden``. Times are
    whole steps."""

    axes = ("component",)
    step = 1.0
    history_kinds: tuple[str, ...] = ("belief_equal",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("y",)}
    units: Mapping[str, str] = {"y": "1", "hidden": "1", "time": "1"}

    def __init__(
        self,
        *,
        period: Annotated[float, Field(gt=2, description="steps of a turn")] = 8.0,
        decay: Annotated[float, Field(gt=0, lt=1, description="what a step leaves of the state")] = 0.95,
        process: Annotated[float, Field(gt=0, description="standard deviation of the noise of a step")] = 0.2,
        measurement: Annotated[float, Field(gt=0, description="that of the noise of a measurement")] = 0.3,
    ) -> None:
        angle = 2 * math.pi / period
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        self.A = decay * torch.tensor(turn, dtype=torch.float64)
        self.process, self.measurement = process, measurement
        # A A^T is decay^2 I, so that the stationary covariance is a multiple of the unit matrix.
        self.variance = process**2 / (1 - decay**2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, 2]``, the hidden state."""
        return self.variance**0.5 * torch.randn(n, 2, dtype=torch.float64, generator=generator)

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (y,)]``: one draw of the process from each hidden start."""
        if actions is not None:
            raise ValueError("linear_gaussian is not driven: it takes no actions; leave them out")
        steps = whole_steps(times)
        noise = torch.randn(int(steps[-1]), *start.shape, dtype=torch.float64, generator=generator)
        hidden = [start]
        for each in noise:
            hidden.append(hidden[-1] @ self.A.T + self.process * each)
        states = torch.stack(hidden, 1)[:, steps]
        error = torch.randn(states[..., :1].shape, dtype=torch.float64, generator=generator)
        seen = states[..., :1] + self.measurement * error
        return self.recorded(seen, times, {"hidden": states.unsqueeze(1)})

    def recorded(self, seen: Tensor, times: Tensor, observables: Mapping[str, Tensor]) -> Trajectory:
        return Trajectory(
            seen.unsqueeze(1), times, observables=observables, axes=self.axes, labels=self.labels,
            units=self.units,
        )  # fmt: skip

    def belief(self, count: int) -> tuple[Tensor, Tensor]:
        """The law of the hidden state at the last of ``count`` measurements: G ``[2, count]``, whose product
        with them is its mean, and its covariance ``[2, 2]``."""
        powers = [torch.eye(2, dtype=torch.float64)]
        for _ in range(count - 1):
            powers.append(powers[-1] @ self.A)
        lag = (torch.arange(count)[:, None] - torch.arange(count)).abs()
        seen = self.variance * torch.stack(powers)[lag, 0, 0]
        seen = seen + self.measurement**2 * torch.eye(count, dtype=torch.float64)
        cross = self.variance * torch.stack(powers[::-1])[:, :, 0].T
        gain = torch.linalg.solve(seen, cross.T).T
        return gain, self.variance * torch.eye(2, dtype=torch.float64) - gain @ cross.T

    def forecast(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """Futures ``[trajectory, draw, time, (y,)]`` by the law of the hidden state given ``context``; the
        first frame is the last measurement."""
        seen = context.states[:, 0, :, 0].double()
        gain, covariance = self.belief(seen.shape[1])
        mean = (seen @ gain.T).repeat_interleave(draws, 0)
        noise = torch.randn(mean.shape, dtype=torch.float64, generator=generator)
        start = mean + noise @ torch.linalg.cholesky(covariance).T
        states = self.simulate(start, times, None, generator).states.reshape(len(seen), draws, len(times), 1)
        states[:, :, 0] = seen[:, None, -1:]
        return context.replace(states=states, times=times, observables={}, length=None)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``belief_equal``: a past, and the same plus that part of its difference from another one that
        changes nothing in what is known of the hidden state."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        if len(times) < 4 or (whole_steps(times).diff() != 1).any():
            raise ValueError(f"{kind} needs at least 4 consecutive history times, not {times.tolist()}")
        first, other = (
            self.simulate(self.sample(n, generator), times, None, generator).states[:, 0, :, 0]
            for _ in range(2)
        )
        basis = torch.linalg.qr(self.belief(len(times))[0].T)[0]
        silent = (other - first) - (other - first) @ basis @ basis.T
        pasts = [self.recorded(each[..., None], times, {}) for each in (first, first + silent)]
        return HistoryPairs(*pasts, align=lambda states: states)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"linear_gaussian": LinearGaussian}
