"""The state recurrence that linear attention, retention, gated and delta-rule models share.

    S_t = (diag(e^{g_t}) + b_t a_t^T) S_{t-1} + k_t v_t^T        S in R^{K x V}, for every head
    o_t = scale * S_t^T q_t

Absent ``g`` and ``a, b`` give linear attention (Katharopoulos et al., 2020); ``g`` of one number per head
gives retention (Sun et al., 2023) and Mamba-2 (Dao and Gu, 2024); ``g`` of one number per key gives GLA (Yang
et al., 2024); ``a, b`` give DeltaNet (Schlag et al., 2021), its gated forms and RWKV-7 (Peng et al., 2025).
With ``bonus`` u the state is read before it is written, as in RWKV-6 (Peng et al., 2024):

    o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t
"""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.arguments import decays, expect, finite, number, same_dtype
from worldsim_kernels.backends import Backends, requested
from worldsim_kernels.operators import Operator

KERNEL = "state_scan"


class StateScan(NamedTuple):
    """``output`` [B, T, H, V] in the dtype of q; ``state`` [N, H, K, V] after each sequence's last token."""

    output: Tensor
    state: Tensor


def state_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    bonus: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
    check: bool = False,
) -> StateScan:
    """Run the recurrence of this module over every sequence and head.

    q, k           [B, T, H, K], float32, float64, float16 or bfloat16; any strides
    v              [B, T, H, V] in the same dtype
    g              natural logarithm of the decay, at most 0 (-inf forgets all): [H], [B, T, H] or
                   [B, T, H, K]; None for no decay
    a, b           [B, T, H, K] in the dtype of q, both or neither: a reads the old state, b writes back
    bonus          u, [H, K]: read before writing
    scale          factor of the output; None means 1
    initial_state  [N, H, K, V]; None means zeros
    cu_seqlens     [N + 1] int32 or int64: sequence n of a packed batch (B = 1) is tokens cu_seqlens[n] to
                   cu_seqlens[n + 1]. The first is 0, the last is T. None: N = B sequences of T tokens
    backend        see ``backends``; None lets the call choose
    check          also look at values: finite inputs, gates at most 0, rising cu_seqlens

    The state is float32 (float64 for float64 input), as is all arithmetic; g, bonus and initial_state are
    converted to that. Raises TypeError or ValueError naming the argument.
    """
    _validate(q, k, v, g, a, b, bonus, initial_state, cu_seqlens)
    dtype = state_dtype(q)
    if check:
        _check_values(q, k, v, g, a, b, bonus, initial_state, cu_seqlens)
    factor = 1.0 if scale is None else number(KERNEL, "scale", scale)
    if g is not None:
        g = (g.expand(*q.shape[:3]) if g.dim() == 1 else g).to(dtype)
    bonus = None if bonus is None else bonus.to(dtype)
    initial_state = None if initial_state is None else initial_state.to(dtype)
    name = requested(backend)
    if name == "reference":
        return state_scan_reference(q, k, v, g, a, b, bonus, factor, initial_state, cu_seqlens)
    return StateScan(*_OPERATOR(q, k, v, g, a, b, bonus, initial_state, cu_seqlens, factor, name))


def state_scan_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    bonus: Tensor | None = None,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> StateScan:
    """The recurrence itself, token by token; g is None, [B, T, H] or [B, T, H, K]."""
    if cu_seqlens is not None:
        offsets = offsets_of(cu_seqlens, q.shape[1])
        runs = []
        for n, (start, end) in enumerate(pairwise(offsets)):
            one: Any = [None if x is None else x[:, start:end] for x in (q, k, v, g, a, b)]
            state = None if initial_state is None else initial_state[n : n + 1]
            one += [bonus, scale, state]
            runs.append(state_scan_reference(*one))
        return StateScan(torch.cat([run.output for run in runs], 1), torch.cat([run.state for run in runs]))
    low, dtype = q.dtype, state_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    decay = None if g is None else (g[..., None, None] if g.dim() == 3 else g[..., None]).to(dtype).exp()
    state = _zero_state(q, v) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[1]):
        written = k[:, t, :, :, None] * v[:, t, :, None, :]
        before = state
        state = written + (before if decay is None else decay[:, t] * before)
        if a is not None and b is not None:
            read = torch.einsum("bhk,bhkv->bhv", a[:, t].to(dtype), before)
            state = state + b[:, t, :, :, None].to(dtype) * read[:, :, None, :]
        seen = state if bonus is None else before + bonus[:, :, None] * written
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], seen))
    output = (torch.stack(outputs, 1) if outputs else v) * scale
    return StateScan(output.to(low), state)


def state_dtype(q: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _zero_state(q: Tensor, v: Tensor) -> Tensor:
    return q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=state_dtype(q))


def _validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    expect(KERNEL, "q", q, (("B", None), ("T", None), ("H", None), ("K", None)))
    size = dict(zip("BTHK", q.shape))
    tokens, keys = tuple((x, size[x]) for x in "BTH"), ("K", size["K"])
    expect(KERNEL, "k", k, (*tokens, keys), like=q)
    expect(KERNEL, "v", v, (*tokens, ("V", None)), like=q)
    for name, tensor in (("k", k), ("v", v), ("a", a), ("b", b)):
        if tensor is not None:
            if name in "ab":
                expect(KERNEL, name, tensor, (*tokens, keys), like=q)
            same_dtype(KERNEL, name, tensor, q, "q")
    if (a is None) != (b is None):
        raise ValueError(
            f"{KERNEL}: {'a' if a is None else 'b'} is missing; a and b are given both or neither"
        )
    if g is not None:
        axes = {1: tokens[2:], 4: (*tokens, keys)}.get(g.dim() if isinstance(g, Tensor) else 0, tokens)
        expect(KERNEL, "g", g, axes, like=q)
    if bonus is not None:
        expect(KERNEL, "bonus", bonus, (tokens[2], keys), like=q)
    sequences = size["B"]
    if cu_seqlens is not None:
        expect(KERNEL, "cu_seqlens", cu_seqlens, (("N+1", None),), like=q, dtypes=(torch.int32, torch.int64))
        sequences = cu_seqlens.shape[0] - 1
        if sequences < 1:
            raise ValueError(f"{KERNEL}: cu_seqlens is empty; expected [N+1] with N at least 1")
        if size["B"] != 1:
            raise ValueError(f"{KERNEL}: cu_seqlens needs a packed batch of B=1; q has B={size['B']}")
    if initial_state is not None:
        axes = (("N", sequences), tokens[2], keys, ("V", v.shape[3]))
        expect(KERNEL, "initial_state", initial_state, axes, like=q)


def _check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    given = {"q": q, "k": k, "v": v, "a": a, "b": b, "bonus": bonus, "initial_state": initial_state}
    for name, tensor in given.items():
        if tensor is not None:
            finite(KERNEL, name, tensor)
    if g is not None:
        decays(KERNEL, "g", g)
    if cu_seqlens is not None:
        offsets_of(cu_seqlens, q.shape[1])


def offsets_of(cu_seqlens: Tensor, length: int) -> list[int]:
    """The offsets as numbers. Raises ValueError unless they rise from 0 to ``length``."""
    offsets: list[int] = cu_seqlens.tolist()
    falls = any(end < start for start, end in pairwise(offsets))
    if offsets[0] != 0 or offsets[-1] != length or falls:
        raise ValueError(f"{KERNEL}: cu_seqlens is {offsets}; expected rising numbers from 0 to T={length}")
    return offsets


def _refuses_triton(**arguments: Any) -> str | None:
    reason: str | None = import_module("worldsim_kernels.gpu.scan").refuses(**arguments)
    return reason


def _accepts(**arguments: Any) -> str | None:
    return None


BACKENDS = {
    KERNEL: Backends(KERNEL, source=KERNEL, refuses={"native": _accepts, "triton": _refuses_triton}),
}
_MODULES = {
    "native": "worldsim_kernels.scan_native",
    "torch": "worldsim_kernels.chunked",
    "triton": "worldsim_kernels.gpu.scan",
}
_NAMES = ("q", "k", "v", "g", "a", "b", "bonus", "scale", "initial_state", "cu_seqlens")


def _chosen(arguments: tuple[Any, ...], backend: str) -> Any:
    """The module whose ``forward`` and ``backward`` run this call, both on the arguments ``_NAMES``:

    forward(*arguments) -> output, state
    backward(grad_output or None, grad_state or None, needed, *arguments)
        -> gradients of q, k, v, g, a, b, bonus, initial_state, None where absent or not needed
    """
    name = BACKENDS[KERNEL].choose(backend, **dict(zip(_NAMES, arguments, strict=True)))
    return import_module(_MODULES[name])


def _joined(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """``vmap`` makes a packed batch of several rows: they are packed into one."""
    q, cu_seqlens = arguments[0], arguments[9]
    if cu_seqlens is None or q.shape[0] == 1:
        return arguments
    rows, length = q.shape[:2]
    starts = torch.arange(rows, device=q.device, dtype=cu_seqlens.dtype)[:, None] * length + cu_seqlens[:-1]
    offsets = torch.cat([starts.flatten(), cu_seqlens[-1:] * rows])
    tokens = (None if x is None else x.reshape(1, rows * length, *x.shape[2:]) for x in arguments[:6])
    return (*tokens, *arguments[6:9], offsets)


def _forward(*received: Any) -> tuple[Tensor, Tensor]:
    *most, initial_state, cu_seqlens, scale, backend = received
    arguments = _joined((*most, scale, initial_state, cu_seqlens))
    output, state = _chosen(arguments, backend).forward(*arguments)
    return output.reshape(received[2].shape), state


def _fake(*received: Any) -> tuple[Tensor, Tensor]:
    q, v, cu_seqlens = received[0], received[2], received[8]
    sequences = q.shape[0] * (1 if cu_seqlens is None else cu_seqlens.shape[0] - 1)
    shape = (sequences, q.shape[2], q.shape[3], v.shape[3])
    return q.new_empty(v.shape), q.new_empty(shape, dtype=state_dtype(q))


def _backward(grads: Any, outputs: Any, needed: list[bool], *received: Any) -> tuple[Tensor | None, ...]:
    *most, initial_state, cu_seqlens, scale, backend = received
    arguments = _joined((*most, scale, initial_state, cu_seqlens))
    grad_output, grad_state = grads
    if grad_output is not None:
        grad_output = grad_output.reshape(arguments[2].shape)
    found = _chosen(arguments, backend).backward(grad_output, grad_state, needed[:8], *arguments)
    shaped = [None if x is None else x.reshape(given.shape) for x, given in zip(found, received)]
    return (*shaped, None)


_OPERATOR = Operator(
    KERNEL,
    "Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? a, Tensor? b, Tensor? bonus, Tensor? initial_state, "
    "Tensor? cu_seqlens, float scale, str backend",
    2,
    _forward,
    _fake,
    _backward,
    batched=("q", "k", "v", "g", "a", "b", "initial_state"),
)
