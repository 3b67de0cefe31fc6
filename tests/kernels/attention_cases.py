"""Inputs of ``attend``, what it gives with every gradient, and the error of that against float64."""

import math

import torch

from worldsim_kernels.attention import attend

F64 = torch.float64
FORWARD = {F64: 1e-14, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 6e-3}
BACKWARD = {F64: 1e-13, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
CASES = {
    "plain": {},
    "causal": {"causal": True},
    "causal square": {"causal": True, "S": 37},
    "more queries than keys": {"causal": True, "T": 53, "S": 37},
    "local": {"causal": True, "window": 5},
    "window over the future": {"window": 30},
    "bias": {"bias": (37, 53)},
    "bias of each head, warm": {"bias": (1, 4, 37, 53), "warm": True},
    "bias of the keys": {"bias": (1, 1, 1, 53), "warm": True, "causal": True},
    "bias of the queries": {"B": 2, "bias": (2, 1, 37, 1)},
    "bias of each head alone": {"bias": (4, 1, 1)},
    "mask": {"mask": (37, 53)},
    "mask and bias, warm": {"B": 2, "mask": (4, 37, 53), "bias": (2, 1, 37, 53), "warm": True},
    "warm": {"warm": True},
    "other width of values": {"V": 24, "K": 10},
    "one head": {"H": 1, "G": 1},
    "one token": {"T": 1, "S": 1},
    "one key": {"S": 1},
}
# Shifting all scores of a row changes its lse alone: the output's gradient is zero but for rounding.
SHIFTED = ("bias of the queries", "bias of each head alone", "one token", "one key")


def made(
    B=2,
    T=37,
    S=53,
    H=4,
    G=2,
    K=16,
    V=None,
    bias=None,
    mask=None,
    warm=False,
    dtype=torch.float32,
    seed=0,
    **kw,
):
    """(q, k, v, bias, temperature), mask, options: in a bias or mask some rows see nothing, some keys are
    seen by none."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=draw, dtype=F64)

    wide = F64 if dtype == F64 else torch.float32
    found = [normal(B, T, H, K), normal(B, S, G, K), normal(B, S, G, K if V is None else V)]
    found = [each.to(dtype) for each in found]
    added = None if bias is None else normal(*bias).to(wide)
    if bias is not None and bias[-2:] == (37, 53):
        added[..., 3, :], added[..., :9] = -math.inf, -math.inf
    tau = torch.rand(H, generator=draw, dtype=F64).add(0.5).to(wide) if warm else None
    seen = None if mask is None else torch.rand(*mask, generator=draw) > 0.3
    if seen is not None:
        seen[..., -1, :] = False
    return [*found, added, tau], seen, kw


def outcome(inputs, mask, options, backend, with_lse=True, dtype=None):
    """Output, lse, and the gradients of a random function of both, whose own are of the output's dtype."""
    leaves = [None if each is None else each.detach().clone().requires_grad_() for each in inputs]
    q, k, v, bias, tau = leaves
    output, lse = attend(q, k, v, bias, mask, temperature=tau, backend=backend, **options)
    draw = torch.Generator().manual_seed(9)
    weights = torch.randn(output.shape, generator=draw, dtype=F64).to(dtype or output.dtype).double()
    levels = torch.randn(lse.shape, generator=draw, dtype=F64).float().double()
    loss = (output.double() * weights).sum()
    if with_lse:
        loss = loss + (lse.masked_fill(lse == -math.inf, 0.0).double() * levels).sum()
    return output, lse, *torch.autograd.grad(loss, [each for each in leaves if each is not None])


def assert_near(case, backend, dtype, with_lse=True):
    inputs, mask, options = made(**case, dtype=dtype)
    ours = outcome(inputs, mask, options, backend, with_lse)
    wide = [None if each is None else each.double() for each in inputs]
    exact = outcome(wide, mask, options, "reference", with_lse, dtype)
    for place, (a, b) in enumerate(zip(ours, exact)):
        bound = (FORWARD if place < 2 else BACKWARD)[dtype]
        assert error(a, b) <= bound, f"{place}: {error(a, b)}"


def error(made, exact):
    """RMS of the difference over that of ``exact``; where one is infinite, the other must be."""
    a, b = made.detach().double(), exact.detach().double()
    whole = b.isfinite()
    assert a.shape == b.shape
    assert torch.equal(a[~whole], b[~whole])
    return float((a[whole] - b[whole]).norm() / b[whole].norm().clamp(min=1e-30))
