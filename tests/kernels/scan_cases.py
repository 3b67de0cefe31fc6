"""Inputs for the state recurrence, its float64 reference and the error of an answer against it."""

import torch

from worldsim_kernels.scan import state_dtype, state_scan_reference

GATES = ("none", "head", "scalar", "vector")
NAMES = ("q", "k", "v", "g", "a", "b", "bonus", "initial_state")
BOUNDS = {torch.float64: (1e-13, 1e-12), torch.float32: (5e-6, 5e-6), torch.float16: (2e-3, 2e-3)}
BOUNDS[torch.bfloat16] = (6e-3, 1.2e-2)


def made(
    gate="none",
    low_rank=False,
    bonus=False,
    shape=(2, 37, 3, 16, 24),
    dtype=torch.float32,
    strength=None,
    start=True,
    lengths=None,
    seed=0,
):
    """Named arguments of ``state_scan``.

    shape     B, T, H, K, V
    strength  every gate has this value; None draws them between -1 and 0
    start     whether there is an initial state
    lengths   of packed sequences, which set B = 1 and T
    """
    batch, length, heads, keys, values = shape
    if lengths is not None:
        batch, length = 1, sum(lengths)
    draw = torch.Generator().manual_seed(seed)
    wide = state_dtype(torch.empty(0, dtype=dtype))

    def normal(*size):
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    tokens = (batch, length, heads)
    found = {
        "q": normal(*tokens, keys) / keys**0.5,
        "k": normal(*tokens, keys) / keys**0.5,
        "v": normal(*tokens, values),
    }
    if gate != "none":
        size = {"head": (heads,), "scalar": tokens, "vector": (*tokens, keys)}[gate]
        drawn = -torch.rand(*size, generator=draw, dtype=torch.float64)
        found["g"] = drawn if strength is None else torch.full_like(drawn, strength)
    if low_rank:
        unit = torch.nn.functional.normalize(normal(*tokens, keys), dim=-1)
        rate = torch.rand(*tokens, keys, generator=draw, dtype=torch.float64)
        found["a"], found["b"] = -unit, unit * rate
    if bonus:
        found["bonus"] = normal(heads, keys)
    found = {name: x.to(wide if name in ("g", "bonus") else dtype) for name, x in found.items()}
    if start:
        sequences = batch if lengths is None else len(lengths)
        found["initial_state"] = normal(sequences, heads, keys, values).to(wide)
    if lengths is not None:
        found["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0)
    return found


def gradients(function, case, scale=1.0, low=None):
    """Output, state and the gradient of every floating argument, for fixed random cotangents.

    low  the dtype to which the output's cotangent is rounded; None means that of q
    """
    given = {n: x.clone().requires_grad_() if x.is_floating_point() else x for n, x in case.items()}
    output, state = function(**given, scale=scale)
    draw = torch.Generator().manual_seed(1)
    target, final = (torch.randn(x.shape, generator=draw, dtype=torch.float64) for x in (output, state))
    target = target.to(low or output.dtype).to(output.dtype)
    loss = (output * target).sum() + (state * final.to(state.dtype)).sum()
    names = [name for name in NAMES if name in given]
    found = torch.autograd.grad(loss, [given[n] for n in names], allow_unused=True, materialize_grads=True)
    return {"output": output.detach(), "state": state.detach(), **dict(zip(names, found, strict=True))}


def reference(case, scale=1.0):
    """``gradients`` of the recurrence in float64, of the very inputs given."""
    wide = {name: x.double() if x.is_floating_point() else x for name, x in case.items()}

    def run(g=None, **arguments):
        if g is not None and g.dim() == 1:
            g = g.expand(*arguments["q"].shape[:3])
        return state_scan_reference(g=g, **arguments)

    return gradients(run, wide, scale, case["q"].dtype)


def error(found, expected):
    """RMS of the difference over the RMS of what is expected; plain RMS where that is zero."""
    difference = (found.double() - expected).square().mean().sqrt()
    size = expected.square().mean().sqrt()
    return float(difference / size if size > 0 else difference) if expected.numel() else 0.0


def failures(found, case, scale=1.0):
    """The entries of ``gradients`` beyond their bound, as {name: error}."""
    expected = reference(case, scale)
    forward, backward = BOUNDS[case["q"].dtype]
    bounds = {name: forward if name in ("output", "state") else backward for name in expected}
    errors = {name: error(found[name], expected[name]) for name in expected}
    return {name: value for name, value in errors.items() if not value <= bounds[name]}
