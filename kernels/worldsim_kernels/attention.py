"""Softmax attention with its log-sum-exp, additive biases, masks and a temperature.

    s_ij = (scale q_i . k_j + bias_ij) / temperature,  P = softmax_j(s),  o_i = sum_j P_ij v_j,
    lse_i = log sum_j e^(s_ij)

Vaswani et al. 2017; by tiles, without the matrix, Dao et al. 2022 and 2023. Time O(T S), and in the torch and
triton forms memory O(T + S) beside the bias and the mask. With lse, partial results over parts of the keys
join (``merge``), and a Sinkhorn half-step is one call: lse is minus the potential over epsilon.

A bias or a mask acts on the scores, before the softmax, so that the weights of a row always sum to one. On a
GPU, where neither lse, a temperature, a window nor the gradient of a bias is needed, prefer torch's own
scaled_dot_product_attention: it calls the vendors' kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldsim_kernels import fused
from worldsim_kernels.arguments import expect, finite, number, same_dtype
from worldsim_kernels.backends import Backends, interpreted, requested
from worldsim_kernels.operators import Operator
from worldsim_kernels.precision import full
from worldsim_kernels.tiles import Scores, computed_in, heads_first, tiled_backward, tiled_forward


class Attention(NamedTuple):
    """``output`` [B, T, H, V] and ``lse`` [B, T, H], the natural logarithm of each row's sum of e^score.

    A query that sees no key has output 0, lse -inf and gradients 0.
    """

    output: Tensor
    lse: Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    temperature: Tensor | None = None,
    backend: str | None = None,
    check: bool = False,
) -> Attention:
    """Attention of queries [B, T, H, K] over keys [B, S, G, K] and values [B, S, G, V].

    G divides H: H / G neighbouring query heads share a key head. Any strides are taken; both results are
    differentiable in q, k, v, bias and temperature, lse with d lse_i / d s_ij = P_ij.

    bias         broadcastable to [B, H, T, S], added to the scores before the division by temperature
    mask         bool, broadcastable to [B, H, T, S]; True where query i may see key j
    causal       query i sees keys j <= i + S - T: the ends are aligned
    window       query i sees keys j > i + S - T - window; with ``causal``, itself and window - 1 before it
    scale        None is K^(-1/2)
    temperature  a positive scalar or [H]; as it grows the weights tend to equal ones
    check        also raise ValueError for numbers that are not finite (a bias may be -inf) and for a
                 temperature that is not positive

    lse is float64 for float64 inputs, else float32, in which float16 and bfloat16 are computed too. Raises
    TypeError for a wrong dtype and ValueError for a wrong shape, device, window or backend.
    """
    _expect(q, k, v, bias, mask, window, temperature)
    if check:
        _check(q, k, v, bias, temperature)
    scale = q.shape[-1] ** -0.5 if scale is None else number("attend", "scale", scale)
    bias, mask = (None if each is None else each[(None,) * (4 - each.dim())] for each in (bias, mask))
    tau = None if temperature is None else temperature.expand(q.shape[2])
    name = requested(backend)
    if name == "reference":
        return attend_reference(q, k, v, bias, mask, causal, window, scale, tau)
    return Attention(*_operator(q, k, v, bias, mask, tau, causal, window, scale, name))


@full
def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    temperature: Tensor | None,
) -> Attention:
    """The definition, with the matrix of scores; differentiable to any order. bias and mask have 4 axes."""
    wide = computed_in(q)
    shared = q.shape[2] // max(k.shape[2], 1)
    keys, values = (each.to(wide).repeat_interleave(shared, 2) for each in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q.to(wide), keys) * scale
    seen = _seen(q.shape[1], k.shape[1], causal, window, q.device)
    seen = seen if mask is None else seen & mask
    if bias is not None:
        # -inf as a number would make NaN of the temperature's gradient; as a mask it does not.
        hidden = bias == -math.inf
        scores, seen = scores + bias.to(wide).masked_fill(hidden, 0.0), seen & ~hidden
    if temperature is not None:
        scores = scores / temperature.to(wide).view(-1, 1, 1)
    scores = scores.masked_fill(~seen, -math.inf)
    top = scores.detach().amax(-1, keepdim=True) if k.shape[1] else scores.new_zeros(*scores.shape[:3], 1)
    top = top.masked_fill(top == -math.inf, 0.0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    blind = total == 0
    output = torch.einsum("bhts,bshv->bthv", weights / total.masked_fill(blind, 1.0), values)
    lse = (total.masked_fill(blind, 1.0).log() + top).masked_fill(blind, -math.inf)
    return Attention(output.to(q.dtype), lse.squeeze(-1).transpose(1, 2))


def merge(parts: Sequence[Attention]) -> Attention:
    """Attention over all keys from that over disjoint parts of them: o = sum_p e^(lse_p - lse) o_p.

    lse = log sum_p e^(lse_p). All parts are of the same queries, each [B, T, H, V] and [B, T, H].
    Differentiable to any order. Raises ValueError without parts, or for parts of unlike shapes.
    """
    if not parts:
        raise ValueError("merge: there are no parts")
    shapes = [tuple(map(list, (part.output.shape, part.lse.shape))) for part in parts]
    if shapes != shapes[:1] * len(parts):
        raise ValueError(f"merge: parts have outputs and lse of shapes {shapes}; expected the same for all")
    each = torch.stack([part.lse for part in parts])
    top = each.detach().amax(0)
    top = top.masked_fill(top == -math.inf, 0.0)
    weights = (each - top).exp()
    total = weights.sum(0)
    blind = total == 0
    shares = weights / total.masked_fill(blind, 1.0)
    first = parts[0].output
    mixed = sum(share.unsqueeze(-1) * part.output.to(each.dtype) for share, part in zip(shares, parts))
    lse = (total.masked_fill(blind, 1.0).log() + top).masked_fill(blind, -math.inf)
    assert isinstance(mixed, Tensor)
    return Attention(mixed.to(first.dtype), lse)


def _seen(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """[T, S]: which keys ``causal`` and ``window`` let a query see."""
    last = torch.arange(queries, device=device) + (keys - queries)
    lead = torch.arange(keys, device=device) - last[:, None]
    seen = lead <= 0 if causal else torch.ones_like(lead, dtype=torch.bool)
    return seen if window is None else seen & (lead > -window)


# The operator


@full
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    temperature: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = BACKENDS["attend"].choose(backend, q=q, k=k, v=v, bias=bias, mask=mask, temperature=temperature)
    if not (q.numel() and k.numel()):
        return _fake(q, k, v)[0].zero_(), _fake(q, k, v)[1].fill_(-math.inf)
    if chosen == "triton":
        from worldsim_kernels.gpu import attention as gpu

        return gpu.forward(q, k, v, bias, mask, temperature, causal, window, scale)
    made = None
    if fused.applies(q, k, v, bias, mask, temperature, causal, window):
        made = fused.forward(q, k, v, bias, mask, temperature, causal, scale)
    if made is None:
        scores = Scores.of(q, k, bias, mask, temperature, causal, window, scale)
        made = tiled_forward(scores, heads_first(v))
    output, lse = made
    return output.transpose(1, 2).to(q.dtype).contiguous(), lse.transpose(1, 2).contiguous()


def _fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = q.shape[:3]
    return q.new_empty(*shape, v.shape[-1]), q.new_empty(shape, dtype=computed_in(q))


@full
def _backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    temperature: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    backend: str,
) -> Sequence[Tensor | None]:
    chosen = BACKENDS["attend"].choose(backend, q=q, k=k, v=v, bias=bias, mask=mask, temperature=temperature)
    inputs, wanted = (q, k, v, bias, temperature), (*needed[:4], needed[5])
    if not (q.numel() and k.numel()):
        zeros = [torch.zeros_like(x) if x is not None and want else None for x, want in zip(inputs, wanted)]
        return *zeros[:4], None, zeros[4]
    (output, lse), d_lse = outputs, grads[1]
    d_output = torch.zeros_like(output) if grads[0] is None else grads[0]
    found: Sequence[Tensor | None]
    if chosen == "triton":
        from worldsim_kernels.gpu import attention as gpu

        found = gpu.backward(
            q, k, v, bias, mask, temperature, causal, window, scale, output, lse, d_output, d_lse, wanted
        )
        return *found[:4], None, found[4]
    if _fused_backward(q, bias, d_lse, wanted) and fused.applies(
        q, k, v, bias, mask, temperature, causal, window
    ):
        found = fused.backward(q, k, v, bias, mask, temperature, causal, scale, output, lse, d_output)
    else:
        scores = Scores.of(q, k, bias, mask, temperature, causal, window, scale)
        wide = (heads_first(v), heads_first(output), lse.transpose(1, 2), heads_first(d_output))
        d_rows = None if d_lse is None else d_lse.transpose(1, 2)
        found = tiled_backward(scores, *wide, d_rows, scale, wanted)
    d_q, d_k, d_v = (each if each is None else each.transpose(1, 2) for each in found[:3])
    return d_q, d_k, d_v, found[3], None, found[4]


def _fused_backward(q: Tensor, bias: Tensor | None, d_lse: Tensor | None, wanted: Sequence[bool]) -> bool:
    """It has no gradients of lse and bias; the temperature's it loses to rounding in low precision."""
    warm = wanted[4] and (bias is not None or q.dtype != computed_in(q))
    return d_lse is None and not wanted[3] and not warm


def _refuses_triton(q: Tensor | None = None, v: Tensor | None = None, **_: Any) -> str | None:
    if q is None or v is None:
        return None
    if q.dtype == torch.float64:
        return "it computes in float32, the tensors are float64"
    if q.dtype == torch.bfloat16 and interpreted():
        return "Triton's interpreter is wrong in bfloat16"
    widest = max(q.shape[-1], v.shape[-1])
    return f"its heads have at most 256 numbers, these have {widest}" if widest > 256 else None


BACKENDS: Mapping[str, Backends] = {"attend": Backends("attend", refuses={"triton": _refuses_triton})}

_operator = Operator(
    "attend",
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? temperature, bool causal, "
    "int? window, float scale, str backend",
    2,
    _forward,
    _fake,
    _backward,
    batched=("q", "k", "v"),
    keep=True,
)


# What is refused


def _expect(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    window: int | None,
    temperature: Tensor | None,
) -> None:
    expect("attend", "q", q, (("B", None), ("T", None), ("H", None), ("K", None)))
    batch, queries, heads, width = q.shape
    if width == 0:
        raise ValueError(f"attend: q has shape {list(q.shape)}; expected K of at least 1")
    expect("attend", "k", k, (("B", batch), ("S", None), ("G", None), ("K", width)), like=q)
    keys, shared = k.shape[1:3]
    expect("attend", "v", v, (("B", batch), ("S", keys), ("G", shared), ("V", None)), like=q)
    for name, each in (("k", k), ("v", v)):
        same_dtype("attend", name, each, q, "q")
    if shared == 0 or heads % shared:
        raise ValueError(f"attend: k has {shared} heads, which do not divide the {heads} of q")
    whole = (batch, heads, queries, keys)
    if bias is not None:
        expect("attend", "bias", bias, _trailing(bias, whole), like=q)
    if mask is not None:
        expect("attend", "mask", mask, _trailing(mask, whole), like=q, dtypes=(torch.bool,))
    if temperature is not None:
        axes = () if isinstance(temperature, Tensor) and temperature.dim() == 0 else (("H", heads),)
        expect("attend", "temperature", temperature, axes, like=q)
    if window is not None and not isinstance(window, (int, torch.SymInt)):
        raise TypeError(f"attend: window must be a whole number, not {type(window).__name__}")
    if window is not None and window < 1:
        raise ValueError(f"attend: window is {window}; a window holds at least one key")


def _trailing(x: Tensor, whole: Sequence[int]) -> Sequence[tuple[str, int | None]]:
    """The axes that ``x`` must have to be broadcastable to ``whole``: its own where they are one."""
    own = tuple(getattr(x, "shape", ()))[-4:]
    first = 4 - len(own)
    named = zip("BHTS"[first:], whole[first:], own)
    return [(letter, 1 if mine == 1 else size) for letter, size, mine in named]


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, temperature: Tensor | None) -> None:
    for name, each in (("q", q), ("k", k), ("v", v)):
        finite("attend", name, each)
    if bias is not None:
        finite("attend", "bias", bias.masked_fill(bias == -math.inf, 0.0))
    if temperature is not None:
        finite("attend", "temperature", temperature)
        if not (temperature > 0).all():
            raise ValueError(f"attend: temperature is {temperature.min().item()}; it must be positive")
