"""What holds a model to a constraint while it learns, while it samples, and when it is done.

One residual serves all three: its square is the penalty, a Gauss-Newton step on it the guidance, and such
steps until it is 0 the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from worldsim.mechanisms import Use
from worldsim.protocols import Anchored, HasRetraction, Trajectory
from worldsim_kernels.gram import Anchor
from worldsim_kernels.project import Status, gauss_newton_step, project

if TYPE_CHECKING:
    from worldsim.wrapped import Wrapped

TOLERANCE = 1e-10
"""Largest residual, in its own scale, of a rollout that counts as projected."""


class Corrected:
    """What guidance does to an estimate of the model: a Gauss-Newton step of each constraint, in turn, or the
    nearest point where that is known in closed form."""

    def __init__(self, model: Wrapped, guides: Sequence[Use], context: Trajectory, times: Tensor) -> None:
        self.model, self.guides, self.times = model, guides, times
        self.wants_covariance = any(use.held.covariance == "posterior" for use in guides)
        if self.wants_covariance and model.structure is not None:
            raise ValueError("covariance 'posterior' is of what the model generates; leave out the structure")

    def __call__(
        self, estimate: Trajectory, covariance: Callable[[Tensor], Tensor] | None = None
    ) -> Trajectory:
        model, seen = self.model, len(estimate.times)
        physical = model.formed(model.outward(estimate), self.times[:seen])
        for use in self.guides:
            if isinstance(use.constraint, HasRetraction) and use.held.is_nearest:
                physical = replace(physical, states=use.constraint.retract(physical).states)
                continue
            coupled = use.held.covariance == "posterior"
            metric = self._metric(physical, covariance) if coupled else model.spread.square()
            step = partial(gauss_newton_step, damping=use.held.noise**2, frozen=0, metric=metric)
            states = framed(step, physical, use, apart=not coupled)
            physical = replace(physical, states=states)
        return model.inward(model.freed(physical))

    def _metric(
        self, physical: Trajectory, covariance: Callable[[Tensor], Tensor] | None
    ) -> Callable[[Tensor], Tensor]:
        """C of physical states, over rows of ``[trajectory * draw, time, *state]``."""
        if covariance is None:
            raise ValueError(
                f"{type(self.model.inner).__name__} does not know the covariance of its estimate"
            )
        shape, scale = physical.states.shape, self.model.scale

        def applied(rows: Tensor) -> Tensor:
            each = [covariance((scale * w).reshape(shape)).reshape(w.shape) for w in rows]
            return scale * torch.stack(each).to(rows)

        return applied


def framed(step: Callable[..., Any], trajectory: Trajectory, use: Use, apart: bool = True) -> Any:
    """Apply a kernel over ``[trajectory * draw, time, *state]`` with the use's residual and, unless frames
    move together (not ``apart``), what is known of its structure; states back."""
    shape, constraint = trajectory.states.shape, use.constraint
    flat = trajectory.states.reshape(-1, *shape[2:])
    bare = replace(trajectory, actions=None, observables={}, length=None)

    def residual(states: Tensor) -> Tensor:
        value = constraint.residual(replace(bare, states=states[:, None]))
        return value[:, 0]

    known: dict[str, Any] = {"local": apart and getattr(constraint, "local_in_time", False)}
    if apart and not known["local"] and isinstance(constraint, Anchored) and shape[2] > constraint.anchor:
        known["anchor"] = Anchor(constraint.value, constraint.anchor, constraint.scale)
    out = step(residual, flat, **known)
    return out.reshape(shape) if isinstance(out, Tensor) else out


def projected(trajectory: Trajectory, use: Use, spread: Tensor) -> Trajectory:
    """The nearest trajectory that obeys the constraint, frame 0 held; float64. Distance is counted in
    ``spread``, which broadcasts to the states, unless the constraint knows its nearest point in closed form.

    Adds the observables ``projected_<constraint>``, 1 where the projection arrived and 0 where it did not,
    and ``projection_status_<constraint>``, a ``worldsim_kernels.project.Status``, each ``[trajectory, draw,
    time]``; a row that did not arrive keeps its best iterate and is never dropped.
    """
    shape = trajectory.states.shape
    if isinstance(use.constraint, HasRetraction):
        states = use.constraint.retract(trajectory).states
        off = use.constraint.residual(replace(trajectory, states=states)).abs().nan_to_num(nan=torch.inf)
        worst = off.reshape(*shape[:2], -1).amax(2)
        status = torch.where(worst <= TOLERANCE, Status.CONVERGED, Status.UNREACHABLE)
        status = torch.where(worst.isfinite(), status, Status.NOT_FINITE)
    else:
        double = replace(trajectory, states=trajectory.states.double())
        result = framed(partial(project, tolerance=TOLERANCE, frozen=0, metric=spread.square()), double, use)
        states, status = result.x.reshape(shape), result.status.reshape(shape[:2])
    status = status[..., None].expand(shape[:3]).double()
    flags = {
        f"projected_{use.name}": (status == Status.CONVERGED).double(),
        f"projection_status_{use.name}": status,
    }
    return replace(trajectory, states=states, observables={**trajectory.observables, **flags})


def conflict_free(loss: Tensor, penalty: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """A scalar with the value of ``loss + penalty`` whose gradient lowers both (ConFIG, Liu, Chu and Thuerey
    2024), for two losses in closed form:

        u = U(U(g1 - (g1.g2 / |g2|^2) g2) + U(g2 - (g1.g2 / |g1|^2) g1)),    g = (g1.u + g2.u) u

    with U a unit vector. It has a positive product with both gradients, unless they are opposite or one is 0:
    then their sum is taken.
    """
    ours, theirs = (
        torch.cat([
            torch.zeros_like(w).flatten() if g is None else g.flatten()
            for w, g in zip(weights, torch.autograd.grad(each, weights, retain_graph=True, allow_unused=True))
        ])
        for each in (loss, penalty)
    )  # fmt: skip
    product = ours @ theirs

    def unit(x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=0, eps=0.0)

    along = unit(ours - product / theirs.square().sum() * theirs) + unit(
        theirs - product / ours.square().sum() * ours
    )
    direction = unit(along)
    gradient = (ours @ direction + theirs @ direction) * direction
    if not bool(gradient.isfinite().all()):
        return loss + penalty
    parts = torch.split(gradient, [w.numel() for w in weights])
    linear = torch.stack([w.flatten() @ part for w, part in zip(weights, parts)]).sum()
    joined: Tensor = (loss + penalty).detach() + linear - linear.detach()
    return joined
