"""Sparse mixtures of experts: which experts a token goes to, and what they compute.

route           top-k of the logits, with weights: a softmax over the chosen (Jiang et al. 2024, Mixtral), or
                SparseMixer-v2's sampled expert and its estimate of the gradient (Liu et al. 2024, GRIN)
grouped_matmul  y_i = x_i W_e for the rows i of group e, all groups in one call
mixture         y = sum_j w_j expert_j(x): rows sorted by expert, one call of the experts, sums in fixed order
                (dropless: Gale et al. 2022, MegaBlocks)

No token is dropped and there is no capacity. The same inputs give the same bits: rows are gathered and
permuted, never scattered with atomic additions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect, same_dtype
from worldsim_kernels.backends import Backends, requested
from worldsim_kernels.operators import Operator
from worldsim_kernels.precision import dtype_of
from worldsim_kernels.rows import swiglu


class Routing(NamedTuple):
    """Where each token goes.

    weights        [..., k], float32 (float64 for float64 logits)
    experts        [..., k], int64, no two alike
    probabilities  [..., E], the softmax of all logits, in the dtype of the weights
    """

    weights: Tensor
    experts: Tensor
    probabilities: Tensor


class Dispatch(NamedTuple):
    """The assignments of N tokens sorted by expert, those of one expert in the order of the tokens.

    order    [N k], the assignment (token k + choice) in each sorted place
    inverse  [N k], the sorted place of each assignment
    offsets  [E + 1], expert e has the sorted places offsets[e] ... offsets[e + 1] - 1
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor


class SwiGLUExperts(NamedTuple):
    """E feed-forward networks, (silu(x gate) * (x value)) out: gate, value [E, D, H], out [E, H, D]."""

    gate: Tensor
    value: Tensor
    out: Tensor

    def __call__(self, rows: Tensor, offsets: Tensor, *, backend: str | None = None) -> Tensor:
        """Rows [M, D] sorted by expert -> [M, D]."""
        gate = grouped_matmul(rows, self.gate, offsets, backend=backend)
        value = grouped_matmul(rows, self.value, offsets, backend=backend)
        return grouped_matmul(swiglu(gate, value, backend=backend), self.out, offsets, backend=backend)


def route(
    logits: Tensor,
    k: int,
    *,
    gradient: Literal["softmax", "sparsemixer"] = "softmax",
    bias: Tensor | None = None,
    jitter: float = 0.01,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> Routing:
    """The k experts of each token and their weights, from logits [..., E].

    softmax      the k largest logits, weighted by their softmax among each other, best first. ``bias`` [E] is
                 added for the choice alone and has no gradient (Wang et al. 2024: raise it for experts with
                 little load).
    sparsemixer  in turn for each choice: experts with (z_max - z) / max(|z|, z_max) > 2 ``jitter`` are left
                 out; D is the best or, in training, drawn from the softmax p of the others; the weight is
                 p_D, times 1/3 with probability 3/4 where D is not the best (Heun's third-order rule); its
                 gradient is that of p_D without this factor. D is left out of later choices. Weights of
                 different choices are not normalised together. Needs ``generator`` in training.

    Of equal logits the expert with the lower number is the better; NaN is above all numbers and makes the
    weights of its token NaN. Plain tensor operations, differentiable to any order.
    Raises TypeError and ValueError for arguments that do not fit.
    """
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        expect("route", "logits", logits, [("...", None), ("E", None)])
    expect("route", "logits", logits, [(f"axis {i}", n) for i, n in enumerate(logits.shape)])
    if not isinstance(k, int) or not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"route: k is {k!r}; expected 1 to {logits.shape[-1]}, the number of experts")
    z = logits.to(dtype_of("statistics", logits.dtype))
    if gradient == "softmax":
        if bias is not None:
            expect("route", "bias", bias, [("E", logits.shape[-1])], like=logits)
        experts = _best_first(z.detach() if bias is None else z.detach() + bias.detach())[..., :k]
        weights = z.gather(-1, experts).softmax(-1)
    elif gradient == "sparsemixer":
        if bias is not None:
            raise ValueError("route: bias is for gradient='softmax'; sparsemixer chooses by its own rule")
        if training and generator is None:
            raise ValueError(
                "route: generator is None; in training sparsemixer draws, give a torch.Generator"
            )
        weights, experts = _sparsemixer(z, k, jitter, generator if training else None)
    else:
        raise ValueError(f"route: gradient is {gradient!r}; expected 'softmax' or 'sparsemixer'")
    return Routing(weights, experts, z.softmax(-1))


def _best_first(z: Tensor) -> Tensor:
    return torch.sort(z, dim=-1, descending=True, stable=True).indices


def _sparsemixer(
    z: Tensor, k: int, jitter: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    weights, experts, left = [], [], z
    for _ in range(k):
        best = _best_first(left.detach())[..., :1]
        top = left.gather(-1, best)
        near = left.masked_fill((top - z) / z.abs().maximum(top) > 2 * jitter, -torch.inf)
        p = near.softmax(-1)
        drawn, share = best, torch.ones_like(top)
        if generator is not None:
            # Gumbel's maximum; an exponential of exactly 0 would turn a masked expert into NaN.
            waits = torch.empty_like(near).exponential_(generator=generator)
            gumbel = -waits.clamp_min(torch.finfo(z.dtype).tiny).log()
            drawn = (near.detach() + gumbel).argmax(-1, keepdim=True)
            lucky = torch.rand(top.shape, generator=generator, device=z.device) < 0.25
            share = share.masked_fill((drawn != best) & ~lucky, 1 / 3)
        chosen = p.gather(-1, drawn)
        # The value is chosen * share to the bit, the gradient that of chosen.
        weights.append(chosen.detach() * share + (chosen - chosen.detach()))
        experts.append(drawn)
        left = left.scatter(-1, drawn, -torch.inf)
    return torch.cat(weights, -1), torch.cat(experts, -1)


def load(routing: Routing) -> Tensor:
    """The share of all assignments that each expert has, [E]; zeros without tokens."""
    count = routing.probabilities.shape[-1]
    found = torch.nn.functional.one_hot(routing.experts.flatten(), count).sum(0)
    return found.to(routing.weights.dtype) / max(routing.experts.numel(), 1)


def balance_loss(routing: Routing) -> Tensor:
    """E sum_e f_e P_e with f the load and P the mean probability: 1 when balanced (Fedus et al. 2021).

    Its gradient goes through P alone.
    """
    probabilities = routing.probabilities.reshape(-1, routing.probabilities.shape[-1])
    mean = probabilities.sum(0) / max(len(probabilities), 1)
    return probabilities.shape[-1] * (load(routing) * mean).sum()


def z_loss(logits: Tensor) -> Tensor:
    """The mean of (log sum_e e^(z_e))^2, which keeps logits small (Zoph et al. 2022); in float32 at least."""
    z = logits.to(dtype_of("statistics", logits.dtype))
    squares = z.logsumexp(-1).square()
    return squares.sum() / max(squares.numel(), 1)


def dispatch(experts: Tensor, count: int) -> Dispatch:
    """Sort the assignments ``experts`` [..., k] of tokens to ``count`` experts."""
    axes = [("...", None)] * experts.dim() if isinstance(experts, Tensor) else []
    expect("dispatch", "experts", experts, axes, dtypes=(torch.int64,))
    ordered, order = experts.flatten().sort(stable=True)
    bounds = torch.arange(count + 1, device=experts.device)
    return Dispatch(order, order.argsort(), torch.searchsorted(ordered, bounds))


def mixture(x: Tensor, routing: Routing, experts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """sum_j weights_j expert_j(x) for x [..., D] -> [..., V], in the dtype of x; summed in float32.

    experts  (rows [M, D] sorted by expert, offsets [E + 1]) -> rows [M, V]; ``SwiGLUExperts`` is one
    An expert without tokens gets no rows. Raises TypeError and ValueError for arguments that do not fit.
    """
    k = routing.experts.shape[-1]
    lead: list[tuple[str, int | None]] = [(f"axis {i}", n) for i, n in enumerate(routing.experts.shape[:-1])]
    expect("mixture", "x", x, [*lead, ("D", None)], like=routing.experts)
    order, inverse, offsets = dispatch(routing.experts, routing.probabilities.shape[-1])
    tokens = len(order) // k
    rows = x.reshape(tokens, 1, x.shape[-1]).expand(-1, k, -1).reshape(tokens * k, x.shape[-1])
    found = experts(_permuted(rows, order, inverse), offsets)
    each = _permuted(found, inverse, order).reshape(tokens, k, found.shape[-1])
    total = (each * routing.weights.reshape(tokens, k, 1)).sum(1)
    return total.reshape(*x.shape[:-1], found.shape[-1]).to(x.dtype)


class _Permuted(torch.autograd.Function):
    """Rows in another order; its gradient is a gather too, where that of indexing adds up in any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return rows.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        order, inverse = ctx.saved_tensors
        return _permuted(grad, inverse, order), None, None


def _permuted(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    found: Tensor = _Permuted.apply(rows, order, inverse)  # type: ignore[no-untyped-call]
    return found


def grouped_matmul(
    x: Tensor, weight: Tensor, offsets: Tensor, *, backend: str | None = None, check: bool = False
) -> Tensor:
    """Multiply each group of rows by a matrix of its own.

    x        [M, K], rows sorted by group
    weight   [E, K, N] of the same dtype, with any strides
    offsets  [E + 1], int64: group e is the rows offsets[e] ... offsets[e + 1] - 1; the first is 0, the last M
    Returns [M, N] in the dtype of x; sums are formed in float32 (float64 for float64).
    On a CPU the offsets are always checked; on a GPU, where that waits for it, with ``check``.
    Raises TypeError and ValueError for arguments that do not fit.
    """
    expect("grouped_matmul", "x", x, [("M", None), ("K", None)])
    expect("grouped_matmul", "weight", weight, [("E", None), ("K", x.shape[1]), ("N", None)], like=x)
    same_dtype("grouped_matmul", "weight", weight, x, "x")
    expect("grouped_matmul", "offsets", offsets, [("E + 1", len(weight) + 1)], like=x, dtypes=(torch.int64,))
    if check:
        _bounds(offsets, len(x))
    name = requested(backend)
    if name == "reference":
        return grouped_matmul_reference(x, weight, offsets)
    return _GROUPED(x, weight, offsets, name)[0]


def grouped_matmul_reference(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """The definition of ``grouped_matmul``, differentiable to any order."""
    groups = [x[a:b] @ weight[e] for e, (a, b) in enumerate(_bounds(offsets, len(x)))]
    return torch.cat([x.new_empty(0, weight.shape[2]), *groups])


def _bounds(offsets: Tensor, rows: int) -> list[tuple[int, int]]:
    found = offsets.tolist()
    if found[0] != 0 or found[-1] != rows or found != sorted(found):
        raise ValueError(
            f"grouped_matmul: offsets are {found}; expected numbers that rise from 0 to M={rows}"
        )
    return list(pairwise(found))


def _grouped_forward(x: Tensor, weight: Tensor, offsets: Tensor, backend: str) -> tuple[Tensor, ...]:
    chosen = BACKENDS["grouped_matmul"].choose(backend, x=x, weight=weight, offsets=offsets)
    # The empty one because an operator has two outputs at least.
    return _product(chosen, x, weight, offsets), x.new_empty(0)


def _grouped_fake(x: Tensor, weight: Tensor, offsets: Tensor, backend: str) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape[0], weight.shape[2]), x.new_empty(0)


def _grouped_backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    backend: str,
) -> Sequence[Tensor | None]:
    dy = grads[0]
    if dy is None:
        return torch.zeros_like(x), torch.zeros_like(weight), None
    chosen = BACKENDS["grouped_matmul"].choose(backend, x=x, weight=weight, offsets=offsets)
    dx = _product(chosen, dy, weight.transpose(1, 2), offsets) if needed[0] else None
    return dx, _outer(chosen, x, dy, offsets) if needed[1] else None, None


def _product(chosen: str, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    if chosen == "triton":
        from worldsim_kernels.gpu import experts as gpu

        return gpu.product(x, weight, offsets)
    y = x.new_empty(len(x), weight.shape[2])
    for e, (a, b) in enumerate(_bounds(offsets, len(x))):
        torch.mm(x[a:b], weight[e], out=y[a:b])
    return y


def _outer(chosen: str, x: Tensor, dy: Tensor, offsets: Tensor) -> Tensor:
    """x^T dy of each group, [E, K, N]."""
    if chosen == "triton":
        from worldsim_kernels.gpu import experts as gpu

        return gpu.outer(x, dy, offsets)
    dw = x.new_zeros(len(offsets) - 1, x.shape[1], dy.shape[1])
    for e, (a, b) in enumerate(_bounds(offsets, len(x))):
        if a < b:
            torch.mm(x[a:b].T, dy[a:b], out=dw[e])
    return dw


_GROUPED = Operator(
    "grouped_matmul",
    "Tensor x, Tensor weight, Tensor offsets, str backend",
    2,
    _grouped_forward,
    _grouped_fake,
    _grouped_backward,
)


def _float32_sums(**arguments: Any) -> str | None:
    x = arguments.get("x")
    is_double = x is not None and x.dtype == torch.float64
    return "x has dtype float64; this form computes in float32" if is_double else None


BACKENDS: Mapping[str, Backends] = {
    "grouped_matmul": Backends("grouped_matmul", None, {"triton": _float32_sums})
}
