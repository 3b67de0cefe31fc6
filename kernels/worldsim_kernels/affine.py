"""Scan of affine maps, h_t = a_t h_{t-1} + b_t elementwise, and its log-depth forms.

The maps compose associatively, (a2, b2) after (a1, b1) = (a2 a1, a2 b1 + b2) (Blelloch 1990; Martin & Cundy
2018). With g the gradient of the output, the backward is the same scan in the other direction:
lambda_t = g_t + a_{t+1} lambda_{t+1}, da_t = lambda_t h_{t-1}, db_t = lambda_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from worldsim_kernels import native
from worldsim_kernels.arguments import expect, finite, some_tensor
from worldsim_kernels.backends import Backends, requested
from worldsim_kernels.operators import Operator


class AffineScan(NamedTuple):
    """``output`` [B, T, *lanes], every h_t; ``state`` [B, *lanes], the last one reached."""

    output: Tensor
    state: Tensor


class Maps(NamedTuple):
    """Composed maps h -> decay h + offset, each [B, T, *lanes]."""

    decay: Tensor
    offset: Tensor


def affine_scan(
    a: Tensor,
    b: Tensor,
    initial: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str | None = None,
    check: bool = False,
) -> AffineScan:
    """All states of h_t = a_t h_{t-1} + b_t.

    b        [B, T, *lanes], lanes being any axes, or none
    a        the shape of b, or one that broadcasts to it, as [D] for a decay that does not change
    initial  [B, *lanes], the state before the first step; zero when absent
    reverse  run from the last step to the first, h_t = a_t h_{t+1} + b_t
    check    look for numbers that are not finite

    The output has the dtype of b; it is computed in, and the state has, float32, or float64 if a or b has.
    Any strides will do; with more than one axis of lanes, an argument whose lanes cannot be viewed as one
    axis is copied. Raises ValueError or TypeError naming the argument that does not fit.
    """
    some_tensor("affine_scan", "a", a)
    some_tensor("affine_scan", "b", b)
    axes = [("B", None), ("T", None)] + [("D", None)] * (max(b.dim(), 2) - 2)
    expect("affine_scan", "b", b, axes)
    expect("affine_scan", "a", a, [(f"a{i}", None) for i in range(a.dim())], like=b)
    sizes = [*b.shape]
    fits = a.dim() <= len(sizes) and all(x in (1, n) for x, n in zip(reversed(a.shape), reversed(sizes)))
    if not fits:
        raise ValueError(f"affine_scan: a has shape {list(a.shape)}; expected {sizes} or one that broadcasts")
    if initial is not None:
        expect("affine_scan", "initial", initial, [("B", sizes[0]), *(("D", n) for n in sizes[2:])], like=b)
    if check:
        for name, tensor in (("a", a), ("b", b), ("initial", initial)):
            if tensor is not None:
                finite("affine_scan", name, tensor)
    name = requested(backend)
    if name == "reference":
        return affine_scan_reference(a, b, initial, reverse=reverse)
    flat = [sizes[0], sizes[1], math.prod(sizes[2:])]
    start = None if initial is None else initial.reshape(flat[0], flat[2])
    output, state = _operator(a.expand(sizes).reshape(flat), b.reshape(flat), start, reverse, name)
    return AffineScan(output.view(sizes), state.view([sizes[0], *sizes[2:]]))


def affine_scan_reference(
    a: Tensor, b: Tensor, initial: Tensor | None = None, *, reverse: bool = False
) -> AffineScan:
    """The recurrence, step by step; differentiable to any order."""
    work = _work(a, b)
    a, x = a.expand(b.shape).to(work), b.to(work)
    h = x.new_zeros(x[:, :0].sum(1).shape) if initial is None else initial.to(work)
    states: list[Tensor] = []
    for t in range(b.shape[1]):
        step = b.shape[1] - 1 - t if reverse else t
        h = a[:, step] * h + x[:, step]
        states.append(h)
    output = torch.stack(states[::-1] if reverse else states, 1) if states else x
    return AffineScan(output.to(b.dtype), h)


def associative_scan(a: Tensor, b: Tensor, method: Literal["odd_even", "hillis_steele"] = "odd_even") -> Maps:
    """The composition of steps 0..t for every t, in a logarithmic number of rounds; any length.

    a, b     [B, T, *lanes], of one shape
    method   "odd_even" (Blelloch 1990) does O(T) work in 2 log2 T rounds, "hillis_steele" (1986) O(T log T)
             in log2 T rounds

    From a state h before the first step the states are decay h + offset. Plain tensor operations,
    differentiable to any order; on a CPU ``affine_scan`` is faster. Raises ValueError or TypeError naming the
    argument that does not fit.
    """
    kernel = "associative_scan"
    some_tensor(kernel, "a", a)
    axes = [("B", None), ("T", None)] + [("D", None)] * (a.dim() - 2)
    expect(kernel, "a", a, axes)
    expect(kernel, "b", b, [(letter, n) for (letter, _), n in zip(axes, a.shape, strict=True)], like=a)
    if method not in _METHODS:
        raise ValueError(f"{kernel}: method is {method!r}; expected {' or '.join(_METHODS)}")
    return _METHODS[method](Maps(a, b))


def _after(later: Maps, earlier: Maps) -> Maps:
    return Maps(later.decay * earlier.decay, later.decay * earlier.offset + later.offset)


def _at(maps: Maps, steps: slice) -> Maps:
    return Maps(maps.decay[:, steps], maps.offset[:, steps])


def _joined(first: Maps, second: Maps) -> Maps:
    return Maps(torch.cat([first.decay, second.decay], 1), torch.cat([first.offset, second.offset], 1))


def _hillis_steele(maps: Maps) -> Maps:
    length, shift = maps.decay.shape[1], 1
    while shift < length:
        composed = _after(_at(maps, slice(shift, None)), _at(maps, slice(0, length - shift)))
        maps = _joined(_at(maps, slice(0, shift)), composed)
        shift *= 2
    return maps


def _odd_even(maps: Maps) -> Maps:
    """Compose neighbours, scan the half as many, and complete the even steps from the odd ones."""
    length = maps.decay.shape[1]
    if length < 2:
        return maps
    odd = _odd_even(_after(_at(maps, slice(1, None, 2)), _at(maps, slice(0, length - 1, 2))))
    later = _at(maps, slice(2, None, 2))
    even = _joined(_at(maps, slice(0, 1)), _after(later, _at(odd, slice(0, later.decay.shape[1]))))
    return Maps(_woven(even.decay, odd.decay), _woven(even.offset, odd.offset))


def _woven(even: Tensor, odd: Tensor) -> Tensor:
    pairs = torch.stack([even[:, : odd.shape[1]], odd], 2).flatten(1, 2)
    return torch.cat([pairs, even[:, odd.shape[1] :]], 1)


_METHODS = {"odd_even": _odd_even, "hillis_steele": _hillis_steele}


def _work(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


# The tensor form: as many chunks as a chunk has steps, all chunks scanned side by side, then their carries.


def scan_in_chunks(a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and state for [B, T, D] of one dtype, float32 or float64; about 3 sqrt(T) tensor operations."""
    batch, length, lanes = b.shape
    size = max(1, math.isqrt(length))
    whole = length // size * size
    shape = (batch, whole // size, size, lanes)
    decay, output = a[:, :whole].reshape(shape).clone(), b.new_empty(b.shape)
    within = output[:, :whole].view(shape) if batch == 1 else b.new_empty(shape)
    steps = b[:, :whole].reshape(shape)
    for i in range(size if whole else 0):
        if i == 0:
            within[:, :, 0] = steps[:, :, 0]
        else:
            torch.addcmul(steps[:, :, i], decay[:, :, i], within[:, :, i - 1], out=within[:, :, i])
            decay[:, :, i] *= decay[:, :, i - 1]
    h = b.new_zeros(batch, lanes) if initial is None else initial.to(b.dtype)
    for i in range(shape[1]):
        if i or initial is not None:
            within[:, i].addcmul_(decay[:, i], h[:, None])
        h = within[:, i, -1]
    if batch != 1:
        output[:, :whole] = within.view(batch, whole, lanes)
    for t in range(whole, length):
        h = torch.addcmul(b[:, t], a[:, t], h)
        output[:, t] = h
    return output, h.clone()


def _torch(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    if not reverse:
        return scan_in_chunks(a, b, initial)
    output, state = scan_in_chunks(a.flip(1), b.flip(1), initial)
    return output.flip(1), state


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def _torch_backward(
    a: Tensor,
    initial: Tensor | None,
    output: Tensor,
    grad: Tensor | None,
    grad_state: Tensor | None,
    needed: Sequence[bool],
    reverse: bool,
) -> Grads:
    if reverse:
        a, output = a.flip(1), output.flip(1)
        grad = None if grad is None else grad.flip(1)
    into = torch.zeros_like(output) if grad is None else grad.clone()
    if not output.shape[1]:
        return into, into, grad_state
    if grad_state is not None:
        into[:, -1] += grad_state
    # The next step's decay; nothing comes after the last.
    following = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
    multiplier, _ = _torch(following, into, None, True)
    first = torch.zeros_like(output[:, :1]) if initial is None else initial[:, None].to(output.dtype)
    da = multiplier * torch.cat([first, output[:, :-1]], 1)
    dinitial = a[:, 0] * multiplier[:, 0]
    return (da.flip(1), multiplier.flip(1), dinitial) if reverse else (da, multiplier, dinitial)


# The C form.


@cache
def _functions(dtype: torch.dtype) -> tuple[Any, Any]:
    library = native.library("affine_scan")
    suffix = "f64" if dtype == torch.float64 else "f32"
    forward = getattr(library, f"affine_scan_{suffix}")
    forward.argtypes, forward.restype = [c_void_p] * 9 + [c_int] * 2, None
    backward = getattr(library, f"affine_scan_backward_{suffix}")
    backward.argtypes, backward.restype = [c_void_p] * 13 + [c_int] * 2, None
    return forward, backward


def _native(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    forward, _ = _functions(b.dtype)
    output = torch.empty(b.shape, dtype=b.dtype)
    state = torch.empty((b.shape[0], b.shape[2]), dtype=b.dtype)
    forward(
        *map(native.pointer, (a, b, initial, output, state)),
        (c_int64 * 3)(*b.shape),
        native.strides(a, 3),
        native.strides(b, 3),
        native.strides(initial, 2),
        reverse,
        native.threads(2 * b.numel()),
    )
    return output, state


def _native_backward(
    a: Tensor,
    initial: Tensor | None,
    output: Tensor,
    grad: Tensor | None,
    grad_state: Tensor | None,
    needed: Sequence[bool],
    reverse: bool,
) -> Grads:
    _, backward = _functions(output.dtype)
    made = [torch.empty_like(output) if wanted else None for wanted in needed[:2]]
    made.append(output.new_empty(output.shape[0], output.shape[2]) if needed[2] else None)
    backward(
        *map(native.pointer, (a, initial, output, grad, grad_state, *made)),
        (c_int64 * 3)(*output.shape),
        native.strides(a, 3),
        native.strides(initial, 2),
        native.strides(grad, 3),
        native.strides(grad_state, 2),
        reverse,
        native.threads(4 * output.numel()),
    )
    return made[0], made[1], made[2]


# The operator, and the choice between the forms.


def _runs(**arguments: Tensor | None) -> None:
    return None


BACKENDS = {"affine_scan": Backends("affine_scan", "affine_scan", {"native": _runs, "triton": _runs})}


def _forward(
    a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    chosen = BACKENDS["affine_scan"].choose(backend, a=a, b=b, initial=initial)
    work = _work(a, b)
    start = None if initial is None else initial.to(work)
    if chosen == "triton":
        from worldsim_kernels.gpu.affine import forward

        output, state = forward(a, b, start, reverse, work)
    else:
        run = _native if chosen == "native" else _torch
        output, state = run(a.to(work), b.to(work), start, reverse)
    return output.to(b.dtype).contiguous(), state


def _fake(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), b.new_empty((b.shape[0], b.shape[2]), dtype=_work(a, b))


def _backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    a: Tensor,
    b: Tensor,
    initial: Tensor | None,
    reverse: bool,
    backend: str,
) -> Grads:
    chosen = BACKENDS["affine_scan"].choose(backend, a=a, b=b, initial=initial)
    work = _work(a, b)
    start = None if initial is None else initial.to(work)
    output = outputs[0].to(work).contiguous()
    grad, grad_state = (None if each is None else each.to(work) for each in grads)
    if chosen == "triton":
        from worldsim_kernels.gpu.affine import backward

        return backward(a, start, output, grad, grad_state, needed, reverse)
    run = _native_backward if chosen == "native" else _torch_backward
    return run(a.to(work), start, output, grad, grad_state, needed, reverse)


_operator = Operator(
    "affine_scan",
    "Tensor a, Tensor b, Tensor? initial, bool reverse, str backend",
    2,
    _forward,
    _fake,
    _backward,
    batched=("a", "b", "initial"),
    keep=True,
)
