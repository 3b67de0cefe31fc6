"""Incompressible flow: a velocity field on a periodic square has no sources.

    residual[t] = (du/dx + dv/dy)(x_t) / scale

Derivatives are spectral; the highest wavenumber, which has no sign on a grid, is left out. The nearest field
without divergence is Leray's projection, in Fourier space and closed form: v_k - k (k . v_k) / |k|^2. A model
can obey by construction, generating a stream function psi with u = dpsi/dy, v = -dpsi/dx.

A field without sources can flow anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasGrid, System
from worldsim_plugins.constraints import anchored

GRID = (-3, -2)
"""The axes y and x of ``[..., y, x, component]``."""


class DivergenceFree:
    """Residual ``[trajectory, draw, time, y, x]`` float64 of fields ``[..., y, x, (u, v)]``, u along x.

    ``scale`` is the root mean square, over starts and points, of the velocity's gradient. A stream function
    has no mean flow, so a model can obey by construction where the fluid as a whole is at rest.

    Raises ValueError for a system that is not a field of two components on a square, or whose starts have
    sources.
    """

    local_in_time = True
    equality = True
    needs = ("HasGrid",)
    met_by: Mapping[str, str] = {
        "violation_*": "every baseline: true fields and their mean have no sources",
    }

    def __init__(
        self,
        system: System,
        *,
        scale: Annotated[
            float | None,
            Field(
                gt=0,
                description="divergence that counts as 1, 1 / time; left out: the root mean square gradient "
                "of the velocity at the starts",
            ),
        ] = None,
    ) -> None:
        name = type(system).__name__
        if not isinstance(system, HasGrid) or system.dims != 2:
            raise ValueError(f"divergence_free needs a field on a square; {name} is none")
        self.points, self.length = system.points, system.length
        starts = anchored.starts_of(system)
        if starts.shape[-1] != 2:
            raise ValueError(
                f"divergence_free needs a velocity (u, v); {name} has {starts.shape[-1]} components"
            )
        self.axes = tuple(getattr(system, "axes", ()))
        self.labels, self.units = dict(getattr(system, "labels", {})), dict(getattr(system, "units", {}))
        along_x, along_y = self.wavenumbers
        u, v = self._fourier(starts)
        gradient = [self._field(1j * k * part) for k in (along_x, along_y) for part in (u, v)]
        typical = float(torch.stack(gradient).square().sum(0).mean().sqrt())
        if not typical > 0:
            raise ValueError(f"the starts of {name} do not flow: give divergence_free.scale")
        if bool((self.divergence(starts).abs() > 1e-9 * typical).any()):
            raise ValueError(f"the starts of {name} have sources: it is not incompressible")
        self.scale = typical if scale is None else scale
        # On the instance: a class that has the method is taken for one that offers it.
        if not bool((starts.mean(GRID).abs() > 1e-9 * starts.abs().max()).any()):
            self.free, self.obeying = self._free, self._obeying

    @cached_property
    def wavenumbers(self) -> tuple[Tensor, Tensor]:
        """Along x ``[1, k]`` and along y ``[y, 1]``, 0 at the highest."""
        spacing = self.length / self.points
        highest = torch.pi / spacing * (1 - 1e-12)
        full = 2 * torch.pi * torch.fft.fftfreq(self.points, spacing, dtype=torch.float64)
        half = 2 * torch.pi * torch.fft.rfftfreq(self.points, spacing, dtype=torch.float64)
        along_x, along_y = (torch.where(k.abs() >= highest, 0.0, k) for k in (half, full))
        return along_x[None, :], along_y[:, None]

    def divergence(self, states: Tensor) -> Tensor:
        """``[..., y, x]`` of ``[..., y, x, (u, v)]``."""
        along_x, along_y = (k.to(states.device) for k in self.wavenumbers)
        u, v = self._fourier(states)
        return self._field(1j * (along_x * u + along_y * v))

    def residual(self, trajectory: Trajectory) -> Tensor:
        """The divergence of each frame, over ``scale``."""
        states = trajectory.states.to(torch.float64)
        states = torch.where(anchored.wide(anchored.reached(trajectory), states), states, 0.0)
        return self.divergence(states) / self.scale

    def retract(self, trajectory: Trajectory) -> Trajectory:
        """Leray's projection of every frame but the first."""
        states = trajectory.states.to(torch.float64)
        (along_x, along_y), (u, v) = (k.to(states.device) for k in self.wavenumbers), self._fourier(states)
        source = (along_x * u + along_y * v) * self._inverse_square(states)
        moved = torch.stack([self._field(u - along_x * source), self._field(v - along_y * source)], -1)
        return trajectory.replace(states=torch.cat([states[:, :, :1], moved[:, :, 1:]], 2))

    def _free(self, trajectory: Trajectory) -> Trajectory:
        """The stream function with its amplitudes times their wavenumbers, ``[..., y, x, (psi)]``, of mean 0:
        as rough as the flow is, so that what is wrong with it makes the flow no more wrong."""
        states = trajectory.states.to(torch.float64)
        (along_x, along_y), (u, v) = (k.to(states.device) for k in self.wavenumbers), self._fourier(states)
        psi = 1j * (along_x * v - along_y * u) * self._inverse_square(states).sqrt()
        labels = {**trajectory.labels, "component": ("psi",)}
        return trajectory.replace(states=self._field(psi)[..., None], observables={}, labels=labels)

    def _obeying(self, free: Trajectory, times: Tensor) -> Trajectory:
        """The flow ``[..., y, x, (u, v)]`` along the lines of the stream function."""
        states = free.states.to(torch.float64)
        along_x, along_y = (k.to(states.device) for k in self.wavenumbers)
        psi = self._fourier(states)[0] * self._inverse_square(states).sqrt()
        states = torch.stack([self._field(1j * along_y * psi), self._field(-1j * along_x * psi)], -1)
        return free.replace(
            states=states, observables={}, axes=self.axes, labels=self.labels, units=self.units
        )

    def _inverse_square(self, states: Tensor) -> Tensor:
        """1 / |k|^2, 0 at k = 0."""
        along_x, along_y = (k.to(states.device) for k in self.wavenumbers)
        square = along_x.square() + along_y.square()
        return torch.where(square > 0, 1 / torch.where(square > 0, square, 1.0), 0.0)

    def _fourier(self, states: Tensor) -> tuple[Tensor, ...]:
        """Each component ``[..., y, k]`` of ``[..., y, x, component]``."""
        return torch.fft.rfft2(states.movedim(-1, 0), dim=(-2, -1)).unbind(0)

    def _field(self, v: Tensor) -> Tensor:
        return torch.fft.irfft2(v, s=(self.points, self.points), dim=(-2, -1))


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., DivergenceFree]]:
    return {"divergence_free": DivergenceFree}
