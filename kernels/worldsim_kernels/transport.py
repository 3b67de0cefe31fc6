"""Entropic optimal transport between two clouds of points, cost |x - y|^2.

    OT(x, y) = min over plans P with marginals a and b of  <P, C> + epsilon KL(P | a b),
    C_ij = |x_i - y_j|^2 (never half of it),

whose optimum is P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon), with potentials that solve

    f_i = -epsilon ln sum_j b_j exp((g_j - C_ij) / epsilon),    g_j likewise (Sinkhorn 1964; Cuturi 2013).

The divergence S(x, y) = OT(x, y) - (OT(x, x) + OT(y, y)) / 2 is 0 between a cloud and itself, and |m|^2
between a cloud and itself moved by m (Genevay, Peyre and Cuturi 2018; Feydy et al. 2019). By the envelope
theorem, with T the mean of P's row, dOT(x, y)/dx_i = 2 a_i (x_i - T_y(x_i)), so that
dS/dx_i = 2 a_i (T_x(x_i) - T_y(x_i)); and dOT/da_i = f_i up to a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect, finite, number
from worldsim_kernels.backends import Backends, requested
from worldsim_kernels.operators import Operator
from worldsim_kernels.scaling import (
    Chunked,
    Clouds,
    Iteration,
    Solution,
    Stored,
    Streamed,
    softmin_chunked,
    solve,
    solve_own,
)

STORED_BYTES = 2**31
"""The most for the cost and the kernel, 8 n m bytes together; above it nothing of size n m is kept."""


class Sinkhorn(NamedTuple):
    """Float64, and with the leading axes of ``x``.

    value        OT, or S when debiased: the dual's, below OT's true value by at most ``gap``
    potential_x  f ``[..., n]``, with <f, a> = <g, b>; f - f_xx when debiased
    potential_y  g ``[..., m]``; g - g_yy when debiased
    cost         <P, C> of a plan between x and y with exact marginals: no less than W2^2
    gap          a bound on the error of ``value``: of OT, or the larger of those on either side of S
    iterations   in all
    converged    whether every gap is within the tolerance
    """

    value: Tensor
    potential_x: Tensor
    potential_y: Tensor
    cost: Tensor
    gap: Tensor
    iterations: Tensor
    converged: Tensor


def sinkhorn(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    epsilon: float,
    debias: bool = False,
    tolerance: float = 1e-3,
    max_iterations: int = 5000,
    backend: str | None = None,
) -> Sinkhorn:
    """Entropic transport between ``x`` ``[..., n, d]`` and ``y`` ``[..., m, d]``, cost |x - y|^2.

    a, b        weights ``[..., n]`` and ``[..., m]``, at least 0, divided by their sum; uniform when None
    epsilon     multiplies KL(P | a b), in units of the cost
    debias      the divergence S instead of OT
    tolerance   iterations stop when the gap between a plan's cost and the dual's value, both computed in
                float64, is at most this part of OT of the centred clouds
    Leading axes are independent problems, one after another.

    ``value`` is differentiable once by x, y, a and b; the other results are constants. With
    ``backend="reference"`` all are differentiable to any order, through the iterations.

    Raises ValueError for shapes, for points or weights that are not finite, negative weights or a sum of 0,
    and for an epsilon, tolerance or count out of range; in the backward pass RuntimeError where the
    iterations had not converged, since the gradient would be wrong.
    """
    _expect_clouds(x, y)
    _expect_positive("epsilon", epsilon)
    _expect_positive("tolerance", tolerance)
    if not isinstance(max_iterations, int):
        raise TypeError(
            f"sinkhorn: max_iterations must be a whole number, not {type(max_iterations).__name__}"
        )
    if max_iterations < 1:
        raise ValueError(f"sinkhorn: max_iterations is {max_iterations}; expected at least 1")
    lead, (n, d), m = x.shape[:-2], x.shape[-2:], y.shape[-2]
    a, b = _weights("a", a, x), _weights("b", b, y)
    k = math.prod(lead)
    flat = (x.reshape(k, n, d), y.reshape(k, m, d), a.reshape(k, n), b.reshape(k, m))
    name = requested(backend)
    if name == "reference":
        all_of = [sinkhorn_reference(*one, epsilon, debias, tolerance, max_iterations) for one in zip(*flat)]
        whole = (torch.stack(each) for each in zip(*all_of, strict=True))
        return Sinkhorn(*(each.reshape((*lead, *each.shape[1:])) for each in whole))
    made = OPERATOR(*flat, float(epsilon), debias, float(tolerance), max_iterations, name)
    value, f, g, own_x, own_y, *rest = (made[0], *(each.detach() for each in made[1:]))
    if debias:
        f, g = f - own_x, g - own_y
    return Sinkhorn(*(each.reshape((*lead, *each.shape[1:])) for each in (value, f, g, *rest)))


def _expect_clouds(x: Tensor, y: Tensor) -> None:
    for name, points in (("x", x), ("y", y)):
        axes = [("...", None)] * max(0, points.dim() - 2) if isinstance(points, Tensor) else []
        expect("sinkhorn", name, points, [*axes, ("points", None), ("d", None)], like=x)
        if points.shape[-2] == 0:
            raise ValueError(f"sinkhorn: {name} has shape {list(points.shape)}; expected at least one point")
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"sinkhorn: y has shape {list(y.shape)}; expected {[*x.shape[:-2], 'm', x.shape[-1]]}, as x"
        )


def _expect_positive(name: str, value: float) -> None:
    if not 0 < number("sinkhorn", name, value) < float("inf"):
        raise ValueError(f"sinkhorn: {name} is {value}; expected a positive number")


def _weights(name: str, weights: Tensor | None, points: Tensor) -> Tensor:
    """Their sum is 1; float64."""
    shape = points.shape[:-1]
    if weights is None:
        return points.new_full(shape, 1 / shape[-1], dtype=torch.float64)
    axes = [("...", size) for size in shape[:-1]]
    expect("sinkhorn", name, weights, [*axes, ("points", shape[-1])], like=points)
    whole = weights.double()
    # A sum that is not positive leaves weights that are refused.
    return whole / whole.sum(-1, keepdim=True).clamp(min=1e-300)


def sinkhorn_reference(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    debias: bool = False,
    tolerance: float = 1e-3,
    max_iterations: int = 5000,
) -> Sinkhorn:
    """The definition for one problem, ``x`` ``[n, d]``, ``y`` ``[m, d]``, weights that sum to 1.

    Half-steps in turn, in float64, until the gap is within ``tolerance``; autograd goes through all of them.
    """
    x, y = x.double(), y.double()
    settings = (epsilon, tolerance, max_iterations)
    whole = _half_steps(x, y, a, b, *settings)
    if not debias:
        return whole
    own_x, own_y = _half_steps(x, x, a, a, *settings, own=True), _half_steps(y, y, b, b, *settings, own=True)
    return whole._replace(
        value=whole.value - (own_x.value + own_y.value) / 2,
        potential_x=whole.potential_x - (own_x.potential_x + own_x.potential_y) / 2,
        potential_y=whole.potential_y - (own_y.potential_x + own_y.potential_y) / 2,
        gap=torch.maximum(whole.gap, (own_x.gap + own_y.gap) / 2),
        iterations=whole.iterations + own_x.iterations + own_y.iterations,
        converged=whole.converged & own_x.converged & own_y.converged,
    )


def _half_steps(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
    own: bool = False,
) -> Sinkhorn:
    cost = (x[:, None] - y).square().sum(-1)
    centred = cost.detach() - (x.detach().T @ a.detach() - y.detach().T @ b.detach()).square().sum()
    g, iterations = torch.zeros_like(b), 0
    while iterations < max_iterations:
        iterations += 1
        f = _soft_minimum(cost - g, b, epsilon)
        # Between a cloud and itself the mean of both half-steps is a contraction by half.
        g = (f + g) / 2 if own else _soft_minimum(cost.mT - f, a, epsilon)
        plan = a[:, None] * b * ((f[:, None] + g - cost) / epsilon).exp()
        value = f @ a + g @ b + epsilon * (1 - plan.sum())
        with torch.no_grad():
            feasible = _rounded(plan, a, b)
            paid = (feasible * cost).sum()
            entropy = (
                torch.xlogy(feasible, feasible).sum() - torch.xlogy(a, a).sum() - torch.xlogy(b, b).sum()
            )
            gap = (paid + epsilon * entropy - value).clamp(min=0)
            scale = (feasible * centred).sum() + epsilon * entropy
            converged = gap <= tolerance * scale + 1e-14 * (cost.mean() + epsilon)
        if converged:
            break
    shift = (g @ b - f @ a) / 2
    return Sinkhorn(value, f + shift, g - shift, paid, gap, torch.tensor(iterations), converged)


def _soft_minimum(costs: Tensor, weights: Tensor, epsilon: float) -> Tensor:
    """-epsilon ln sum_j w_j exp(-c_ij / epsilon). A weight stays out of logarithms, steep at 0."""
    least = costs.detach().masked_fill(weights == 0, float("inf")).amin(1, keepdim=True)
    return least[:, 0] - epsilon * (((least - costs) / epsilon).exp() @ weights).log()


def _rounded(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The plan with marginals a and b that is near ``plan`` (Altschuler, Weed and Rigollet 2017)."""
    plan = plan * (a / plan.sum(1)).nan_to_num(1.0).clamp(max=1)[:, None]
    plan = plan * (b / plan.sum(0)).nan_to_num(1.0).clamp(max=1)
    r, c = (a - plan.sum(1)).clamp(min=0), (b - plan.sum(0)).clamp(min=0)
    return plan + r[:, None] * c / r.sum().clamp(min=1e-300)


class _Centred(NamedTuple):
    """One problem in units in which its clouds have mean 0 and mean cost 1.

    Centring takes from the cost terms of x alone and of y alone, which only move the potentials.
    """

    clouds: Clouds
    apart: Tensor
    unit: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> _Centred:
        x, y = x.double(), y.double()
        middle_x, middle_y = a @ x, b @ y
        x, y = x - middle_x, y - middle_y
        unit = float(a @ x.square().sum(1) + b @ y.square().sum(1)) or 1.0
        return cls(Clouds(x / unit**0.5, y / unit**0.5, a, b), middle_x - middle_y, unit)

    def taken(self) -> tuple[Tensor, Tensor]:
        """What centring took from f and from g."""
        half, scale = self.apart @ self.apart / 2, 2 * self.unit**0.5
        return half + scale * self.clouds.x @ self.apart, half - scale * self.clouds.y @ self.apart

    def restored(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The potentials in the caller's units, with <f, a> = <g, b>."""
        shift = (g @ self.clouds.b - f @ self.clouds.a) / 2
        of_x, of_y = self.taken()
        return self.unit * (f + shift) + of_x, self.unit * (g - shift) + of_y

    def reduced(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        of_x, of_y = self.taken()
        return (f - of_x) / self.unit, (g - of_y) / self.unit


def _forward(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, debias: bool, *others: Any
) -> tuple[Tensor, ...]:
    tolerance, max_iterations, wanted = others
    for name, tensor in (("x", x), ("y", y), ("a", a), ("b", b)):
        finite("sinkhorn", name, tensor)
        if name in "ab" and (tensor < 0).any():
            raise ValueError(f"sinkhorn: {name} has a negative weight; expected all at least 0")
        if name in "ab" and (tensor.sum(-1) < 0.5).any():
            raise ValueError(f"sinkhorn: {name} has weights with a sum of 0; expected a positive sum")
    backend = BACKENDS["sinkhorn"].choose(wanted, x=x, y=y)
    if not len(x):
        return _fake(x, y, a, b, epsilon, debias)
    made = [_one(*each, epsilon, debias, tolerance, max_iterations, backend) for each in zip(x, y, a, b)]
    return tuple(torch.stack(each) for each in zip(*made, strict=True))


def _fake(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, debias: bool, *others: Any
) -> tuple[Tensor, ...]:
    own_x, own_y = (each.new_empty(each.shape if debias else (len(each), 0)) for each in (a, b))
    value, cost, gap = (a.new_empty(len(a)) for _ in range(3))
    iterations, converged = (a.new_empty(len(a), dtype=dtype) for dtype in (torch.int64, torch.bool))
    f, g = (each.new_empty(each.shape) for each in (a, b))
    return value, f, g, own_x, own_y, cost, gap, iterations, converged


def _one(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    debias: bool,
    tolerance: float,
    max_iterations: int,
    backend: str,
) -> tuple[Tensor, ...]:
    """All the operator's outputs for one problem."""
    problem = _Centred.of(x, y, a, b)
    unit, clouds = problem.unit, problem.clouds
    settings = (epsilon / unit, tolerance, max_iterations)

    def own(points: Tensor, weights: Tensor) -> Solution:
        pair = Clouds(points, points, weights, weights)
        return _supported(pair, backend, lambda small, steps, _: solve_own(small, steps, *settings))

    def cross(start: Tensor | None) -> Solution:
        return _supported(
            clouds, backend, lambda small, steps, g: solve(small, steps, *settings, start=g), start
        )

    if x.shape == y.shape and torch.equal(x, y) and torch.equal(a, b):
        whole = own(clouds.x, clouds.a)
        owns, distinct = (whole, whole), [whole]
    elif debias:
        # Between like clouds their own potentials are nearly the answer, and for a moved one they are.
        owns = own(clouds.x, clouds.a), own(clouds.y, clouds.b)
        whole = cross(owns[1].g)
        distinct = [whole, *owns]
    else:
        whole = cross(None)
        distinct = [whole]
    apart = float(problem.apart.square().sum())
    value, gap = whole.value, whole.gap
    kept = (x.new_empty(0, dtype=torch.float64),) * 2
    if debias:
        value = value - (owns[0].value + owns[1].value) / 2
        gap = max(gap, (owns[0].gap + owns[1].gap) / 2)
        kept = owns[0].f * unit, owns[1].f * unit
    f, g = problem.restored(whole.f, whole.g)
    numbers = (f.new_tensor(each) for each in (unit * value + apart, unit * whole.cost + apart, unit * gap))
    iterations = torch.tensor(sum(each.iterations for each in distinct), device=x.device)
    converged = torch.tensor(all(each.converged for each in distinct), device=x.device)
    found, *bounds = numbers
    return found, f, g, *kept, *bounds, iterations, converged


def _supported(
    clouds: Clouds,
    backend: str,
    run: Callable[[Clouds, Iteration, Tensor | None], Solution],
    start: Tensor | None = None,
) -> Solution:
    """``run`` on the points of positive weight; the others' potentials follow from those."""
    x, y, a, b = clouds
    in_x, in_y = a > 0, b > 0
    if in_x.all() and in_y.all():
        return run(clouds, _iteration(clouds, backend), start)
    small = Clouds(x[in_x], y[in_y], a[in_x], b[in_y])
    found = run(small, _iteration(small, backend), None if start is None else start[in_y])
    f = Chunked(Clouds(x, small.y, a, small.b)).half(found.g, found.epsilon)[0]
    g = Chunked(Clouds(y, small.x, b, small.a)).half(found.f, found.epsilon)[0]
    f[in_x], g[in_y] = found.f, found.g
    return found._replace(f=f, g=g)


def _iteration(clouds: Clouds, backend: str) -> Iteration:
    if backend == "native":
        from worldsim_kernels.scaling_native import Native

        return Native(clouds)
    if backend == "triton":
        from worldsim_kernels.gpu.transport import softmin

        return Streamed(clouds, softmin)
    return Stored(clouds) if _too_large(*clouds[:2]) is None else Streamed(clouds, softmin_chunked)


def _too_large(x: Tensor | None = None, y: Tensor | None = None) -> str | None:
    """Why the kernel cannot be kept."""
    needed = 0 if x is None or y is None else 8 * x.shape[-2] * y.shape[-2]
    if needed <= STORED_BYTES:
        return None
    return f"it keeps 8 n m bytes, {needed / 2**30:.1f} GiB here, and at most {STORED_BYTES / 2**30:g} GiB"


def _backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    debias: bool,
    *others: Any,
) -> tuple[Tensor | None, ...]:
    """The envelope's: that of the dual at potentials that are held."""
    scale = grads[0]
    if scale is None:
        return None, None, None, None
    _, f, g, own_x, own_y, _, gap, _, converged = outputs
    if not converged.all():
        raise RuntimeError(
            f"sinkhorn: no gradient, since the iterations stopped at a gap of {float(gap.max()):.2g}; give "
            "more iterations, a larger epsilon or a larger tolerance"
        )
    pulls_x, pulls_y = [], []
    for k in range(len(x)):
        problem = _Centred.of(x[k], y[k], a[k], b[k])
        small = epsilon / problem.unit
        reduced = problem.reduced(f[k], g[k])
        own = (own_x[k] / problem.unit, own_y[k] / problem.unit) if debias else (None, None)
        clouds, swapped = problem.clouds, Clouds(*(problem.clouds[i] for i in (1, 0, 3, 2)))
        if needed[0]:
            pull = _pull(clouds, reduced, own[0], small)
            pulls_x.append(problem.unit**0.5 * pull + 2 * a[k, :, None] * problem.apart)
        if needed[1]:
            pull = _pull(swapped, reduced[::-1], own[1], small)
            pulls_y.append(problem.unit**0.5 * pull - 2 * b[k, :, None] * problem.apart)
    by_a, by_b = (f - own_x, g - own_y) if debias else (f, g)
    return (
        torch.stack(pulls_x) * scale[:, None, None] if pulls_x else None,
        torch.stack(pulls_y) * scale[:, None, None] if pulls_y else None,
        by_a * scale[:, None],
        by_b * scale[:, None],
    )


def _pull(clouds: Clouds, potentials: tuple[Tensor, Tensor], own: Tensor | None, epsilon: float) -> Tensor:
    """2 sum_j F_ij (x_i - y_j) ``[n, d]``, less that between x and itself when its own potential is given."""
    found = 2 * _moment(clouds, *potentials, epsilon)
    if own is not None:
        itself = Clouds(clouds.x, clouds.x, clouds.a, clouds.a)
        found -= 2 * _moment(itself, own, own, epsilon)
    return found


def _moment(clouds: Clouds, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    chunked = Chunked(clouds)
    score, found = g / epsilon + clouds.b.log(), []
    for rows in chunked.chunks():
        plan = (score + f[rows, None] / epsilon - chunked.costs(rows) / epsilon).exp_()
        plan *= clouds.a[rows, None]
        found.append(plan.sum(1, keepdim=True) * clouds.x[rows] - plan @ clouds.y)
    return torch.cat(found)


BACKENDS: Mapping[str, Backends] = {
    "sinkhorn": Backends(
        "sinkhorn",
        source="sinkhorn",
        refuses={"native": _too_large, "triton": lambda x=None, y=None: None},
    )
}

OPERATOR = Operator(
    "sinkhorn",
    "Tensor x, Tensor y, Tensor a, Tensor b, float epsilon, bool debias, float tolerance, "
    "int max_iterations, str backend",
    outputs=9,
    forward=_forward,
    fake=_fake,
    backward=_backward,
    batched=("x", "y", "a", "b"),
    keep=True,
)
