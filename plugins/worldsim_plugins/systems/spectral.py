"""What fields on a periodic grid share: Fourier space, exponential steps, smooth random starts.

A field obeys du/dt = L u + N(u) with L diagonal in Fourier space. An equation is a symbol of L and a
nonlinearity N, both over ``[..., component, *k]``; the step is ETDRK4 (Kassam and Trefethen 2005). States are
``[trajectory, draw, time, *grid, component]`` on points that start at 0 and stop short of ``length``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim.protocols import HistoryPairs
from worldsim_kernels.solve.etdrk4 import ETDRK4
from worldsim_plugins.systems import integrated

AXES = {1: ("x",), 2: ("y", "x")}


class PeriodicField:
    """One or more fields on a periodic line or square; a subclass gives ``linear``, ``nonlinear`` (None when
    the equation is linear, and then solved exactly), ``observe``, ``conserved`` and its names.

    points  grid points along each axis, even
    step    longest internal step; frames are met exactly
    """

    components: tuple[str, ...] = ("u",)
    conserved: tuple[str, ...] = ("mass",)
    history_kinds: tuple[str, ...] = ("window_shift", "translation")
    is_linear = False
    modes, amplitude = 3, 1.0

    def __init__(self, dims: int, points: int, length: float, step: float) -> None:
        if points % 2:
            raise ValueError(f"points must be even, not {points}")
        self.dims, self.points, self.length, self.longest = dims, points, length, step
        self.axes = (*AXES[dims], "component")
        self.labels: Mapping[str, tuple[str, ...]] = {"component": self.components}
        self.units: Mapping[str, str] = dict.fromkeys((*self.components, *self.observables, "time"), "1")
        self._plans: dict[float, ETDRK4] = {}

    # What an equation says.

    observables: tuple[str, ...] = ("mass",)

    def linear(self) -> Tensor:
        """The symbol of L, ``[component, *k]`` or what broadcasts to it; real or complex."""
        raise NotImplementedError

    def nonlinear(self, v: Tensor) -> Tensor:
        """N of the fields ``v`` ``[..., component, *k]`` in Fourier space."""
        raise NotImplementedError

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """mass: the mean of each component over the grid, ``[..., component]`` summed to ``[...]``."""
        return {"mass": states.mean(self._grid_axes).sum(-1)}

    # Fourier space.

    @property
    def _grid_axes(self) -> tuple[int, ...]:
        return tuple(range(-1 - self.dims, -1))

    @cached_property
    def wavenumbers(self) -> tuple[Tensor, ...]:
        """One tensor for each axis, shaped to broadcast over ``[*k]``; the last axis is the halved one."""
        spacing = self.length / self.points
        full = 2 * math.pi * torch.fft.fftfreq(self.points, spacing, dtype=torch.float64)
        half = 2 * math.pi * torch.fft.rfftfreq(self.points, spacing, dtype=torch.float64)
        return (half,) if self.dims == 1 else (full[:, None], half[None, :])

    @cached_property
    def gradient(self) -> tuple[Tensor, ...]:
        """i k for each axis; 0 at the highest wavenumber, which has no sign on a grid."""
        highest = math.pi * self.points / self.length
        return tuple(1j * torch.where(k.abs() >= highest * (1 - 1e-12), 0.0, k) for k in self.wavenumbers)

    @cached_property
    def laplacian(self) -> Tensor:
        """-|k|^2, ``[*k]``."""
        total = -self.wavenumbers[0].square()
        for k in self.wavenumbers[1:]:
            total = total - k.square()
        return total

    @cached_property
    def resolved(self) -> Tensor:
        """1 for wavenumbers that products do not alias onto (the two-thirds rule), else 0, ``[*k]``."""
        limit = 2 / 3 * math.pi * self.points / self.length
        kept = self.wavenumbers[0].abs() < limit
        for k in self.wavenumbers[1:]:
            kept = kept & (k.abs() < limit)
        return kept.double()

    def to_fourier(self, states: Tensor) -> Tensor:
        """``[..., component, *k]`` from ``[..., *grid, component]``."""
        return torch.fft.rfftn(states.movedim(-1, -1 - self.dims), dim=self._last)

    def to_grid(self, v: Tensor) -> Tensor:
        """The inverse of ``to_fourier``."""
        return self.values(v).movedim(-1 - self.dims, -1)

    def values(self, v: Tensor) -> Tensor:
        """``[..., component, *grid]``, for products; ``coefficients`` goes back."""
        return torch.fft.irfftn(v, s=(self.points,) * self.dims, dim=self._last)

    def coefficients(self, values: Tensor) -> Tensor:
        """Of a product, without what is aliased."""
        return self.resolved * torch.fft.rfftn(values, dim=self._last)

    @property
    def _last(self) -> tuple[int, ...]:
        return tuple(range(-self.dims, 0))

    # A system.

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, *grid, component]``: random Fourier series of the ``modes`` lowest wavenumbers."""
        return self.smooth(n, generator)

    def smooth(self, n: int, generator: torch.Generator) -> Tensor:
        """Real Fourier series without a mean whose root mean square is ``amplitude`` on average."""
        shape = (n, len(self.components), *[self.points] * self.dims)
        noise = torch.fft.rfftn(torch.randn(shape, dtype=torch.float64, generator=generator), dim=self._last)
        base = 2 * math.pi / self.length
        low = (-self.laplacian <= (self.modes * base) ** 2 * (1 + 1e-9)) & (self.laplacian < 0)
        series = self.values(noise * low)
        count = int(self._multiplicity[low].sum())
        return series.movedim(1, -1) * (self.amplitude * self.points ** (self.dims / 2) / math.sqrt(count))

    @cached_property
    def _multiplicity(self) -> Tensor:
        """2 for a wavenumber of the halved axis whose negative is left out."""
        k = self.wavenumbers[-1]
        inner = (k > 0) & (k < math.pi * self.points / self.length * (1 - 1e-12))
        return torch.where(inner, 2.0, 1.0).expand_as(self.laplacian)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, *grid, component]``."""
        return integrated.checked(states, (*[self.points] * self.dims, len(self.components)))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, *grid, component]``. Raises ValueError when the field is not finite."""
        if actions is not None:
            raise ValueError(f"{type(self).__name__} is not driven: it takes no actions; leave them out")
        times = integrated.ascending(times)
        frames, v = [start], self.to_fourier(start)
        for gap in times.diff().tolist():
            v = self.advance(v, gap)
            frames.append(self.to_grid(v))
        states = torch.stack(frames, 1)
        if not states.isfinite().all():
            raise ValueError(
                f"{type(self).__name__} is not finite at a step of {self.longest:g}: take a shorter step "
                "or more points"
            )
        return integrated.recorded(self, states.unsqueeze(1), times, None)

    def advance(self, v: Tensor, gap: float) -> Tensor:
        """The fields ``[trajectory, component, *k]`` a time ``gap`` later."""
        if self.is_linear:
            return torch.exp(gap * self.linear()) * v
        count = max(1, math.ceil(gap / self.longest * (1 - 1e-9)))
        h = gap / count
        if h not in self._plans:
            self._plans[h] = ETDRK4.of(self.linear(), h)
        plan = self._plans[h]
        for _ in range(count):
            v = plan.step(v, self.nonlinear)
        return v

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """du/dt at ``x`` ``[..., *grid, component]``."""
        v = self.to_fourier(x)
        rate = self.linear() * v
        return self.to_grid(rate if self.is_linear else rate + self.nonlinear(v))

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``translation``: the same field, a quarter of the
        box further along every axis."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        shift, axes = self.points // 4, self._grid_axes
        return integrated.image(
            self,
            history,
            lambda x: x.roll((shift,) * self.dims, axes),
            lambda x: x.roll((-shift,) * self.dims, axes),
        )
