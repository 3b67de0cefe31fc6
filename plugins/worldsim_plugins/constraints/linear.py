"""Linear functionals of the state that keep their value: total momentum, total mass.

    value(x) = A x,     x' = x - W A^T (A W A^T)^-1 (A x - c)

is the nearest state with the value c where distance is measured in W^-1, in one step and without iteration;
W is the variance of each component over the world's starts. As a map of any y, with c the value at the
anchor, it is a parametrisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim.protocols import HasUnseenStart, System
from worldsim_plugins.constraints import anchored


class LinearFunctional:
    """Residual ``[trajectory, draw, time]``, with ``[..., k]`` where the value has k numbers.

    starts   of the system, ``[n, *state]``
    value    states ``[..., *state]`` -> ``[..., k]``, linear
    weights  W, its diagonal, ``[*state]`` or what broadcasts to it: how easily each number is moved in the
             parametrisation; None for the variances
    scale    error of the value that counts as 1; None for the root mean square deviation of the value between
             starts, or, where all starts share one value, for what it would be if the numbers of a state had
             nothing to do with one another

    Raises ValueError for a value that is not linear, or that is 0 for every state.
    """

    equality = True

    def __init__(
        self,
        system: System,
        starts: Tensor,
        value: anchored.Value,
        name: str,
        scale: float | None,
        reference: Any,
        weights: Tensor | None = None,
    ) -> None:
        self.value = value
        self.anchor = anchored.anchor_of(system, reference, name)
        self.local_in_time = self.anchor == 0
        self.rows = coefficients(value, starts, name)
        parts = (self.rows.square() * starts.var(0, correction=0)).flatten(1).sum(1)
        apart, whole = float(parts.mean().sqrt()), anchored.spread(value(starts))
        shared = whole <= 1e-9 * apart  # it is rounding
        self.met_by: Mapping[str, str] = anchored.met_by(self.anchor, shared)
        if scale is None:
            scale = apart if shared else whole
        if scale == 0:
            raise ValueError(f"the starts of {type(system).__name__} are all alike: give {name}.scale")
        self.scale = scale
        # By the spread of each component: what is a trifle to one of them is all that there is of another.
        spread = starts.flatten(0, -2).var(0, correction=0)
        self.spread = (spread if bool(spread.any()) else torch.ones_like(spread)).expand_as(starts[0])
        self.weights = self.spread if weights is None else weights.expand_as(starts[0])

    def residual(self, trajectory: Trajectory) -> Tensor:
        """The value of each frame less that of the anchor, over ``scale``."""
        return anchored.compared(self.value, trajectory, self.anchor, self.scale)

    def retract(self, trajectory: Trajectory) -> Trajectory:
        """The nearest trajectory that keeps the value: with the first frame for reference, that frame's; with
        the second, the mean value of all frames from it on."""
        states = trajectory.states.to(torch.float64)
        values = self.value(states)
        if self.anchor == 0:
            wanted = values[:, :, :1]
        else:
            seen = anchored.reached(trajectory).clone()
            seen[:, :, 0] = False
            seen = seen[..., None]
            wanted = torch.where(seen, values, 0.0).sum(2, keepdim=True) / seen.sum(2, keepdim=True).clamp(1)
        return self._moved(trajectory, states, wanted - values, self.spread)

    def free(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory itself."""
        return trajectory.replace(states=trajectory.states.to(torch.float64))

    def obeying(self, free: Trajectory, times: Tensor) -> Trajectory:
        """Each frame moved, along the weights, to the value of the anchor."""
        states = free.states.to(torch.float64)
        values = self.value(states)
        lack = values[:, :, self.anchor : self.anchor + 1] - values
        return self._moved(free.replace(observables={}), states, lack, self.weights)

    def _moved(self, like: Trajectory, states: Tensor, lack: Tensor, weights: Tensor) -> Trajectory:
        """``lack`` ``[trajectory, draw, time, k]`` made up for, but in frame 0."""
        rows = self.rows.flatten(1)
        by = rows * weights.flatten()
        step = torch.linalg.solve(rows @ by.T, by)
        change = (lack @ step).reshape(states.shape)
        return like.replace(states=torch.cat([states[:, :, :1], (states + change)[:, :, 1:]], 2))


def coefficients(value: anchored.Value, states: Tensor, name: str) -> Tensor:
    """A ``[k, *state]``. Raises ValueError unless value(x) = A x at ``states`` ``[n, *state]``."""
    with torch.enable_grad():
        leaf = torch.zeros_like(states[:1]).requires_grad_()
        values = value(leaf)[0]
        rows = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0][0] for v in values])
    found = torch.einsum("ks,ns->nk", rows.flatten(1), states.flatten(1))
    if not rows.flatten(1).any(1).all() or not torch.allclose(found, value(states), rtol=1e-9, atol=1e-9):
        raise ValueError(f"{name} is not a linear function of the state here")
    return rows


def observed(system: System, name: str, axes: int) -> anchored.Value:
    """An observable as a value ``[..., k]`` of states with so many axes; of a number, k = 1."""
    world = system.inner if isinstance(system, HasUnseenStart) else system

    def value(states: Tensor) -> Tensor:
        found: Tensor = world.observe(states.to(torch.float64))[name]  # type: ignore[attr-defined]
        return found.unsqueeze(-1) if found.ndim == states.ndim - axes else found

    return value
