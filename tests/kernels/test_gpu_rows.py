"""The Triton row operations, run by Triton's interpreter, against float64."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from worldsim_kernels import explain, modulate, rms_norm, swiglu, token_shift
from worldsim_kernels.backends import interpreted, missing_triton

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(
    missing_triton() is not None or not interpreted(), reason="NOT RUN: no Triton interpreter"
)
BOUNDS = {torch.float32: 5e-6, torch.float16: 2e-3}

CASES = {
    "rms_norm": (lambda x, w, **o: rms_norm(x, w, **o).output, [(2, 70, 19), (19,)]),
    "rms_norm residual": (
        lambda x, r, w, scale, shift, **o: rms_norm(x, w, residual=r, scale=scale, shift=shift, **o),
        [(3, 50, 19), (3, 50, 19), (19,), (3, 19), (3, 19)],
    ),
    "modulate": (modulate, [(3, 7, 33), (3, 7, 33), (3, 7, 33)]),
    "swiglu": (swiglu, [(3, 5, 37), (3, 5, 37)]),
    "token_shift": (token_shift, [(2, 70, 19), (3, 19), (2, 19)]),
}


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_definition_in_float64(case, dtype):
    run, shapes = CASES[case]
    generator = torch.Generator().manual_seed(0)
    # Rows of a wider tensor: a stride between them that is not their length.
    low = [torch.randn(*n[:-1], n[-1] + 3, generator=generator).to(dtype)[..., : n[-1]] for n in shapes]
    low = [each.requires_grad_() for each in low]
    high = [each.detach().double().requires_grad_() for each in low]
    found, expected = run(*low, backend="triton"), run(*high, backend="reference")
    found, expected = ([y] if isinstance(y, torch.Tensor) else list(y) for y in (found, expected))
    grads = [torch.randn(y.shape, generator=generator).to(dtype) for y in found]
    assert max(map(error, found, expected)) <= BOUNDS[dtype]
    theirs = torch.autograd.grad(expected, high, [each.double() for each in grads])
    assert max(map(error, torch.autograd.grad(found, low, grads), theirs)) <= BOUNDS[dtype]


def test_no_rows_and_one_token():
    x, one = torch.zeros(2, 0, 8, requires_grad=True), torch.ones(2, 8)
    for y in (
        rms_norm(x, scale=one, backend="triton").output,
        swiglu(x, x, backend="triton"),
        token_shift(x, one[0], one, backend="triton").output,
    ):
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    y, last = token_shift(2 * one[:, None], one, one, backend="triton")
    assert torch.equal(y, torch.ones(2, 2, 1, 8))
    assert torch.equal(last, 2 * one)


def test_what_it_refuses():
    reasons = {
        "float64": explain("rms_norm", x=torch.zeros(2, 8, dtype=torch.float64)).reasons["triton"],
        "at most 16384": explain("modulate", x=torch.zeros(1, 20_000)).reasons["triton"],
    }
    for words, reason in reasons.items():
        assert words in reason
    assert explain("swiglu", a=torch.zeros(2, 8)).chosen != "triton"
