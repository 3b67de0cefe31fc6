"""The selective scan of Mamba, fused with its softplus, skip and gate.

h_t[d, n] = exp(delta_t[d] A[d, n]) h_{t-1}[d, n] + delta_t[d] B_t[n] u_t[d],
y_t[d] = sum_n C_t[n] h_t[d, n] + D[d] u_t[d], output y silu(z)
(Gu & Dao 2023, with Euler's step for B as in their code). The state is never written down for all times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldsim_kernels import selective_native, selective_torch
from worldsim_kernels.arguments import expect, finite, some_tensor
from worldsim_kernels.backends import Backends, requested
from worldsim_kernels.operators import Operator
from worldsim_kernels.selective_torch import Arguments

FORGETS = -1e30
"""Stands for a rate A of -infinity, whose product with a decay of zero would be NaN in the backward."""


class SelectiveScan(NamedTuple):
    """``output`` [B, T, D] in the dtype of u; ``state`` [B, D, N] after the last token."""

    output: Tensor
    state: Tensor


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    backend: str | None = None,
    check: bool = False,
) -> SelectiveScan:
    """Mamba's selective scan over time.

    u, delta, z    [B, T, D]: input, raw step and gate; without z the output is y itself
    A              [D, N], the rates, negative; -infinity forgets at every token
    B, C           [B, T, N], or [B, T, G, N] with its own for each of G groups of D / G neighbours
    D, delta_bias  [D]: skip, and what is added to delta before the softplus
    initial_state  [B, D, N]; zero when absent
    check          look for numbers that are not finite (A may be -infinity)

    It is computed in, and the state has, float32, or float64 if any argument has. Arguments of any strides
    are read where they lie, but for A, D, delta_bias and initial_state, which are copied if not contiguous.
    The backward recomputes the states, keeping one of every 32 tokens for the channels at work.
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if check:
        named = {"u": u, "delta": delta, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
        for name, tensor in {**named, "A": A.clamp(min=FORGETS), "initial_state": initial_state}.items():
            if tensor is not None:
                finite("selective_scan", name, tensor)
    b, c = (x if x.dim() == 4 else x.unsqueeze(2) for x in (B, C))
    name = requested(backend)
    if name == "reference":
        arguments = (u, delta, A, b, c, D, z, delta_bias, initial_state)
        return SelectiveScan(*selective_scan_reference(*arguments, delta_softplus))
    made = _operator(u, delta, A, b, c, D, z, delta_bias, initial_state, delta_softplus, name)
    return SelectiveScan(*made)


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    kernel = "selective_scan"
    expect(kernel, "u", u, [("B", None), ("T", None), ("D", None)])
    batch, length, channels = u.shape
    whole = [("B", batch), ("T", length), ("D", channels)]
    expect(kernel, "delta", delta, whole, like=u)
    expect(kernel, "A", A, [("D", channels), ("N", None)], like=u)
    states = A.shape[1]
    if not states or not channels:
        raise ValueError(f"{kernel}: A has shape {list(A.shape)}; expected at least one channel and state")
    some_tensor(kernel, "B", B)
    groups = [("G", B.shape[2])] if B.dim() == 4 else []
    for name, tensor in (("B", B), ("C", C)):
        expect(kernel, name, tensor, [*whole[:2], *groups, ("N", states)], like=u)
    if groups and (not B.shape[2] or channels % B.shape[2]):
        raise ValueError(f"{kernel}: B has {B.shape[2]} groups, which do not divide {channels} channels")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            expect(kernel, name, vector, [("D", channels)], like=u)
    if z is not None:
        expect(kernel, "z", z, whole, like=u)
    if initial_state is not None:
        expect(kernel, "initial_state", initial_state, [whole[0], whole[2], ("N", states)], like=u)


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token, with B and C [B, T, G, N]; differentiable to any order."""
    work = _work(u, delta, A, B, C, D, z, delta_bias, initial_state)
    x, step, rates = u.to(work), _step(delta, delta_bias, delta_softplus, work), A.to(work).clamp(min=FORGETS)
    batch, length, channels = u.shape
    share = channels // B.shape[2] if B.shape[2] else 1
    wide_b, wide_c = (each.to(work).repeat_interleave(share, 2) for each in (B, C))
    state = (
        x.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(work).clone()
    )
    outputs: list[Tensor] = []
    for t in range(length):
        decay = (step[:, t, :, None] * rates).exp()
        state = decay * state + (step[:, t] * x[:, t])[..., None] * wide_b[:, t]
        outputs.append((wide_c[:, t] * state).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + D.to(work) * x
    if z is not None:
        y = y * F.silu(z.to(work))
    return y.to(u.dtype), state


def _work(*tensors: Tensor | None) -> torch.dtype:
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


def _step(delta: Tensor, bias: Tensor | None, softplus: bool, work: torch.dtype) -> Tensor:
    raw = delta.to(work) if bias is None else delta.to(work) + bias.to(work)
    return F.softplus(raw) if softplus else raw


# The operator, and the choice between the forms (selective_native, gpu.selective, selective_torch).


def _native_refuses(**arguments: Tensor | None) -> str | None:
    if _work(*arguments.values()) == torch.float64:
        return "it computes in float32, and an argument is float64"
    rates = arguments.get("A")
    if rates is not None and rates.shape[1] > selective_native.STATES:
        return f"it takes at most {selective_native.STATES} states for a channel, A has {rates.shape[1]}"
    return None


def _triton_refuses(**arguments: Tensor | None) -> str | None:
    if _work(*arguments.values()) == torch.float64:
        return "it computes in float32, and an argument is float64"
    return None


BACKENDS = {
    "selective_scan": Backends(
        "selective_scan", "selective_scan", {"native": _native_refuses, "triton": _triton_refuses}
    )
}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def _prepared(arguments: Sequence[Any]) -> tuple[str, Arguments]:
    """The backend that runs these arguments of the operator, and they in one dtype.

    Triton converts as it reads: there only what is small is converted here.
    """
    tensors, softplus, backend = arguments[:9], arguments[9], arguments[10]
    named = dict(zip(NAMES, tensors, strict=True))
    chosen = BACKENDS["selective_scan"].choose(backend, **named)
    work, small = _work(*tensors), ("A", "D", "delta_bias", "initial_state")
    for name, x in named.items():
        if x is not None and (chosen != "triton" or name in small):
            named[name] = x.to(work)
    named["A"] = named["A"].clamp(min=FORGETS)
    return chosen, Arguments(**named, softplus=softplus)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    chosen, call = _prepared(arguments)
    if chosen == "triton":
        from worldsim_kernels.gpu.selective import forward

        output, state = forward(call)
    else:
        output, state = (selective_native if chosen == "native" else selective_torch).forward(call)
    return output.to(arguments[0].dtype), state


def _fake(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    work = _work(u, delta, A, *others[:6])
    return u.new_empty(u.shape), u.new_empty((u.shape[0], u.shape[2], A.shape[1]), dtype=work)


def _backward(
    grads: Sequence[Tensor | None], outputs: Sequence[Tensor], needed: Sequence[bool], *arguments: Any
) -> list[Tensor]:
    chosen, call = _prepared(arguments)
    grad, grad_state = grads
    if chosen == "triton":
        from worldsim_kernels.gpu.selective import backward

        return backward(call, grad, grad_state)
    grad = None if grad is None else grad.to(call.u.dtype)
    run = selective_native.backward if chosen == "native" else selective_torch.backward
    return run(call, grad, grad_state)


_operator = Operator(
    "selective_scan",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, bool delta_softplus, str backend",
    2,
    _forward,
    _fake,
    _backward,
    batched=("u", "delta", "B", "C", "z", "initial_state"),
)
