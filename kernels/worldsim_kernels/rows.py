"""Row operations: what every block of a sequence model does to its rows between the matrix products.

rms_norm     y = x (mean x^2 + eps)^(-1/2) w            (Zhang and Sennrich 2019), with a residual, modulated
modulate     y = LayerNorm(x) (1 + scale) + shift       (adaLN: Peebles and Xie 2023)
swiglu       y = a sigmoid(a) b                         (Shazeer 2020)
token_shift  y_t = x_t + (x_{t-1} - x_t) mu             (Peng et al. 2023, RWKV)
rotary       pairs of channels turned by t theta_m      (Su et al. 2021); xpos with RetNet's angles

The first four are bound by memory: native and Triton forms read and write each row once. They compute in
float32 (float64 for float64) and return the dtype of x. Rows may have any stride between them; a tensor whose
leading axes cannot be seen as one, or whose last axis is not dense, is copied first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldsim_kernels.arguments import FLOATS, expect, number, same_dtype
from worldsim_kernels.backends import Backends, requested
from worldsim_kernels.operators import Operator
from worldsim_kernels.precision import dtype_of
from worldsim_kernels.rows_torch import groups_of, normalised


class RMSNorm(NamedTuple):
    """``output`` and ``residual``, the sum that was normalised (x itself where no residual was given)."""

    output: Tensor
    residual: Tensor


class TokenShift(NamedTuple):
    """``output`` [B, T, D] or [M, B, T, D], and ``last`` [B, D]: ``previous`` of the tokens that follow."""

    output: Tensor
    last: Tensor


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
    backend: str | None = None,
) -> RMSNorm:
    """s = x + residual; y = s (mean s^2 + eps)^(-1/2) weight, then y (1 + scale) + shift.

    x, residual   [..., D]; the sum is formed in float32 and returned in the dtype of ``residual``
    weight        [D]
    scale, shift  x.shape[:i] + [D] for some i: [D] for all rows, [B, D] for one pair a sample
    The derivative at x = 0 is weight / sqrt(eps): finite, since eps stands inside the root.
    Raises TypeError and ValueError for arguments that do not fit.
    """
    _check_rows("rms_norm", x, scale, shift)
    eps = number("rms_norm", "eps", eps)
    if weight is not None:
        expect("rms_norm", "weight", weight, [("D", x.shape[-1])], like=x)
    if residual is not None:
        expect("rms_norm", "residual", residual, _axes(x), like=x)
    name = requested(backend)
    if name == "reference":
        return rms_norm_reference(x, weight, residual=residual, scale=scale, shift=shift, eps=eps)
    y, total = _NORM(_rows(x), _maybe(residual), weight, _maybe(scale), _maybe(shift), eps, False, name)
    return RMSNorm(y.view(x.shape), x if residual is None else total.view(x.shape))


def rms_norm_reference(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
) -> RMSNorm:
    """The definition of ``rms_norm``, differentiable to any order."""
    total = _wide(x) if residual is None else _wide(x) + _wide(residual, x)
    y = normalised(total, weight, _spread(scale, x), _spread(shift, x), eps, centred=False)
    return RMSNorm(y.to(x.dtype), x if residual is None else total.to(residual.dtype))


def modulate(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, backend: str | None = None
) -> Tensor:
    """(x - mean x) (var x + eps)^(-1/2) (1 + scale) + shift: adaptive LayerNorm, without parameters.

    x             [..., D]
    scale, shift  x.shape[:i] + [D] for some i: [D] for all rows, [B, D] for one pair a sample
    Raises TypeError and ValueError for arguments that do not fit.
    """
    _check_rows("modulate", x, scale, shift)
    eps = number("modulate", "eps", eps)
    for one, given in (("scale", scale), ("shift", shift)):
        if given is None:
            raise TypeError(f"modulate: {one} must be a tensor, not NoneType")
    name = requested(backend)
    if name == "reference":
        return modulate_reference(x, scale, shift, eps=eps)
    return _NORM(_rows(x), None, None, _rows(scale), _rows(shift), eps, True, name)[0].view(x.shape)


def modulate_reference(x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6) -> Tensor:
    """The definition of ``modulate``, differentiable to any order."""
    return normalised(_wide(x), None, _spread(scale, x), _spread(shift, x), eps, centred=True).to(x.dtype)


def swiglu(a: Tensor, b: Tensor, *, backend: str | None = None) -> Tensor:
    """a sigmoid(a) b for a, b [..., D]; halves of one projection (``chunk``) are read where they lie.

    Raises TypeError and ValueError unless a and b have one shape, dtype and device.
    """
    _check_rows("swiglu", a, name="a")
    expect("swiglu", "b", b, _axes(a), like=a)
    same_dtype("swiglu", "b", b, a, "a")
    name = requested(backend)
    if name == "reference":
        return swiglu_reference(a, b)
    return _SWIGLU(_rows(a), _rows(b), name)[0].view(a.shape)


def swiglu_reference(a: Tensor, b: Tensor) -> Tensor:
    """The definition of ``swiglu``, differentiable to any order."""
    return (F.silu(_wide(a)) * _wide(b)).to(a.dtype)


def token_shift(
    x: Tensor, mu: Tensor, previous: Tensor | None = None, *, backend: str | None = None
) -> TokenShift:
    """x_t + (x_{t-1} - x_t) mu, x_{-1} = previous: each channel's own mean of a token and the one before.

    x         [B, T, D]
    mu        [D], or [M, D] for M outputs in one pass: ``r, w, k, v, a, g = token_shift(x, mu).output``
    previous  [B, D], the ``last`` of the tokens before; None is zeros
    Raises TypeError and ValueError for arguments that do not fit.
    """
    expect("token_shift", "x", x, [("B", None), ("T", None), ("D", None)])
    if not isinstance(mu, Tensor) or mu.dim() != 2:
        expect("token_shift", "mu", mu, [("D", x.shape[2])], like=x)
    else:
        expect("token_shift", "mu", mu, [("M", len(mu) or 1), ("D", x.shape[2])], like=x)
    if previous is None:
        previous = x.new_zeros(x.shape[0], x.shape[2])
    expect("token_shift", "previous", previous, [("B", x.shape[0]), ("D", x.shape[2])], like=x)
    same_dtype("token_shift", "previous", previous, x, "x")
    name = requested(backend)
    if name == "reference":
        return token_shift_reference(x, mu, previous)
    y, last = _SHIFT(x, mu if mu.dim() == 2 else mu[None], previous, name)
    return TokenShift(y if mu.dim() == 2 else y[0], last)


def token_shift_reference(x: Tensor, mu: Tensor, previous: Tensor) -> TokenShift:
    """The definition of ``token_shift``, differentiable to any order."""
    both = torch.cat([previous[:, None], x], dim=1)
    now, before = _wide(x), _wide(both[:, :-1])
    each = _wide(mu, x)[:, None, None] if mu.dim() == 2 else _wide(mu, x)
    return TokenShift((now + (before - now) * each).to(x.dtype), both[:, -1])


def rotary(
    x: Tensor, positions: Tensor | None = None, *, base: float = 10000.0, interleaved: bool = True
) -> Tensor:
    """Turn the m-th pair of channels by (position) base^(-2m / K) (Su et al. 2021).

    x            [B, T, H, K], K even
    positions    [T] or [B, T], whole or real (times do); None is 0 ... T - 1
    interleaved  the pairs are (2m, 2m + 1); otherwise (m, m + K / 2)
    Angles are formed in float64, so that positions of millions stay exact. Plain tensor operations,
    differentiable to any order. Raises TypeError and ValueError for arguments that do not fit.
    """
    pairs = _pairs("rotary", x)
    return _rotated("rotary", x, positions, base ** -(pairs / max(len(pairs), 1)), interleaved)


def xpos(x: Tensor, positions: Tensor | None = None, *, base: float = 10000.0) -> Tensor:
    """RetNet's rotation (Sun et al. 2023): pairs (2m, 2m + 1) turned by (position) base^(-m / (K / 2 - 1)).

    Shapes and errors as in ``rotary``. The decay of xPos is the gate of ``retention``, not a part of this.
    """
    pairs = _pairs("xpos", x)
    return _rotated("xpos", x, positions, base ** -(pairs / max(len(pairs) - 1, 1)), True)


def _pairs(kernel: str, x: Tensor) -> Tensor:
    expect(kernel, "x", x, [("B", None), ("T", None), ("H", None), ("K", None)])
    if x.shape[3] % 2:
        raise ValueError(
            f"{kernel}: x has {x.shape[3]} channels; expected an even number, they turn in pairs"
        )
    return torch.arange(x.shape[3] // 2, dtype=torch.float64, device=x.device)


def _rotated(kernel: str, x: Tensor, positions: Tensor | None, speeds: Tensor, interleaved: bool) -> Tensor:
    batch, time, _, width = x.shape
    if positions is None:
        positions = torch.arange(time, device=x.device)
    axes = [("B", batch), ("T", time)][not isinstance(positions, Tensor) or positions.dim() < 2 :]
    expect(kernel, "positions", positions, axes, like=x, dtypes=(*FLOATS, torch.int64, torch.int32))
    angles = positions.double()[..., None, None] * speeds
    cos, sin = _wide(angles.cos(), x), _wide(angles.sin(), x)
    shape, axis = ((width // 2, 2), -1) if interleaved else ((2, width // 2), -2)
    first, second = _wide(x).reshape(*x.shape[:3], *shape).unbind(axis)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=axis)
    return turned.flatten(-2).to(x.dtype)


def _axes(x: Tensor) -> list[tuple[str, int | None]]:
    return [("D" if i == x.dim() - 1 else f"axis {i}", size) for i, size in enumerate(x.shape)]


def _check_rows(
    kernel: str, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, name: str = "x"
) -> None:
    if not isinstance(x, Tensor) or x.dim() == 0:
        expect(kernel, name, x, [("...", None), ("D", None)])
    expect(kernel, name, x, _axes(x))
    for name, one in (("scale", scale), ("shift", shift)):
        if one is not None:
            leading = min(one.dim(), x.dim()) - 1 if isinstance(one, Tensor) else 0
            expect(kernel, name, one, [*_axes(x)[:leading], ("D", x.shape[-1])], like=x)
    if scale is not None and shift is not None and scale.shape != shift.shape:
        raise ValueError(
            f"{kernel}: shift has shape {list(shift.shape)}; expected that of scale, {list(scale.shape)}"
        )


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _maybe(x: Tensor | None) -> Tensor | None:
    return None if x is None else _rows(x)


def _wide(x: Tensor, like: Tensor | None = None) -> Tensor:
    """In the dtype of the computation, which that of ``like`` (else of x itself) decides."""
    return x.to(dtype_of("statistics", (x if like is None else like).dtype))


def _spread(x: Tensor | None, rows: Tensor) -> Tensor | None:
    """[B, D] -> [B, 1, D] and the like, so that it broadcasts over ``rows`` from the left."""
    if x is None:
        return None
    return _wide(x, rows).reshape(*x.shape[:-1], *(1,) * (rows.dim() - x.dim()), x.shape[-1])


# The norms are one operator on rows [N, D]; each row of scale and shift [G, D] serves N / G rows.


def _norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    centred: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    chosen = BACKENDS["modulate" if centred else "rms_norm"].choose(backend, x=x)
    run = _form(chosen, "norm_forward")
    y, total = run(*_inputs(chosen, x, x, residual, weight, scale, shift), eps, centred)
    return y.to(x.dtype), x.new_empty(0) if residual is None else total.to(residual.dtype)


def _norm_fake(x: Tensor, residual: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), x.new_empty(0) if residual is None else residual.new_empty(x.shape)


def _norm_backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    centred: bool,
    backend: str,
) -> Sequence[Tensor | None]:
    dtotal = None if residual is None else grads[1]
    dy = x.new_zeros(()).expand(x.shape) if grads[0] is None else grads[0]
    chosen = BACKENDS["modulate" if centred else "rms_norm"].choose(backend, x=x)
    run = _form(chosen, "norm_backward")
    inputs = _inputs(chosen, x, x, residual, weight, scale, dy, dtotal)
    dx, along, across = run(*inputs, groups_of(scale, shift), eps, centred)
    dweight = along if scale is None else along * (1 + scale.to(along.dtype))
    dscale = along if weight is None else along * weight.to(along.dtype)
    return dx, dx, _form(chosen, "sum_rows")(dweight) if needed[2] else None, dscale, across


def _swiglu_forward(a: Tensor, b: Tensor, backend: str) -> tuple[Tensor, ...]:
    chosen = BACKENDS["swiglu"].choose(backend, a=a, b=b)
    y = _form(chosen, "swiglu_forward")(*_inputs(chosen, a, a, b))
    return y.to(a.dtype), a.new_empty(0)  # the empty one because an operator has two outputs at least


def _swiglu_fake(a: Tensor, b: Tensor, backend: str) -> tuple[Tensor, ...]:
    return a.new_empty(a.shape), a.new_empty(0)


def _swiglu_backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    a: Tensor,
    b: Tensor,
    backend: str,
) -> Sequence[Tensor | None]:
    if grads[0] is None:
        return torch.zeros_like(a), torch.zeros_like(b)
    chosen = BACKENDS["swiglu"].choose(backend, a=a, b=b)
    run = _form(chosen, "swiglu_backward")
    found: tuple[Tensor, Tensor] = run(*_inputs(chosen, a, a, b, grads[0]))
    return found


def _shift_forward(x: Tensor, mu: Tensor, previous: Tensor, backend: str) -> tuple[Tensor, ...]:
    chosen = BACKENDS["token_shift"].choose(backend, x=x, mu=mu, previous=previous)
    y = _form(chosen, "shift_forward")(*_inputs(chosen, x, x, mu, previous))
    return y.to(x.dtype), (x[:, -1] if x.shape[1] else previous).clone(memory_format=torch.contiguous_format)


def _shift_fake(x: Tensor, mu: Tensor, previous: Tensor, backend: str) -> tuple[Tensor, ...]:
    return x.new_empty(len(mu), *x.shape), x.new_empty(x.shape[0], x.shape[2])


def _shift_backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    x: Tensor,
    mu: Tensor,
    previous: Tensor,
    backend: str,
) -> Sequence[Tensor | None]:
    if not x.shape[1]:
        return torch.zeros_like(x), torch.zeros_like(mu), grads[1]
    dy = x.new_zeros(()).expand(len(mu), *x.shape) if grads[0] is None else grads[0]
    chosen = BACKENDS["token_shift"].choose(backend, x=x, mu=mu, previous=previous)
    run = _form(chosen, "shift_backward")
    found: tuple[Tensor, Tensor, Tensor] = run(*_inputs(chosen, x, x, mu, previous, dy, grads[1]))
    return found


def _form(chosen: str, name: str) -> Callable[..., Any]:
    """The function of this name in the backend's own module."""
    found: Callable[..., Any] = getattr(import_module(MODULES[chosen]), name)
    return found


def _inputs(chosen: str, like: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """As the backend takes them: Triton converts in its registers, the others beforehand."""
    return [one if one is None or chosen == "triton" else _wide(one, like) for one in tensors]


MODULES = {
    "torch": "worldsim_kernels.rows_torch",
    "native": "worldsim_kernels.rows_native",
    "triton": "worldsim_kernels.gpu.rows",
}

_ROWS = ("x", "residual", "scale", "shift")
_NORM = Operator(
    "row_norm",
    "Tensor x, Tensor? residual, Tensor? weight, Tensor? scale, Tensor? shift, float eps, bool centred, "
    "str backend",
    2,
    _norm_forward,
    _norm_fake,
    _norm_backward,
    batched=_ROWS,
)
_SWIGLU = Operator(
    "swiglu",
    "Tensor a, Tensor b, str backend",
    2,
    _swiglu_forward,
    _swiglu_fake,
    _swiglu_backward,
    batched=("a", "b"),
)
_SHIFT = Operator(
    "token_shift",
    "Tensor x, Tensor mu, Tensor previous, str backend",
    2,
    _shift_forward,
    _shift_fake,
    _shift_backward,
)


def _any_rows(**arguments: Any) -> str | None:
    return None


def _short_float_rows(**arguments: Any) -> str | None:
    """Triton holds a row in registers."""
    for name, one in arguments.items():
        if isinstance(one, Tensor) and one.dtype == torch.float64:
            return f"{name} has dtype float64; this form computes in float32"
        if isinstance(one, Tensor) and one.dim() and one.shape[-1] > 16384:
            return f"{name} has rows of {one.shape[-1]} values; this form takes at most 16384"
    return None


BACKENDS: Mapping[str, Backends] = {
    name: Backends(name, "rows", {"native": _any_rows, "triton": _short_float_rows})
    for name in ("rms_norm", "modulate", "swiglu", "token_shift")
}
