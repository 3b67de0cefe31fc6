"""The Triton forms of the affine and the selective scan, run by Triton's interpreter, against float64."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from worldsim_kernels import affine_scan, selective_scan
from worldsim_kernels.backends import interpreted, missing_triton

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(
    missing_triton() is not None or not interpreted(), reason="NOT RUN: no Triton interpreter"
)
BOUNDS = {torch.float32: 5e-6, torch.float16: 2e-3}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(kernel, arguments, **options):
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    made = kernel(**leaves, **options)
    grads = [draw(*x.shape, seed=i).to(x.dtype) for i, x in enumerate(made)]
    return [*made, *torch.autograd.grad(made, list(leaves.values()), grads, allow_unused=True)]


def compare(kernel, arguments, bound, **options):
    found = solve(kernel, arguments, backend="triton", **options)
    double = {name: x.double() for name, x in arguments.items()}
    exact = solve(kernel, double, backend="reference", **options)
    for name, x, y in zip(("output", "state", *arguments), found, exact):
        if y is not None:
            error = (x.detach().double() - y.detach()).norm()
            assert error <= bound * y.detach().norm(), name


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_affine_scan(dtype, reverse):
    a, b = draw(2, 300, 19).transpose(1, 2).sigmoid(), draw(2, 19, 600, seed=2)[..., ::2]
    arguments = {"a": a.to(dtype), "b": b.to(dtype), "initial": draw(2, 300, seed=3).float()}
    compare(affine_scan, arguments, BOUNDS[dtype], reverse=reverse)


@pytest.mark.parametrize("length", [0, 1])
def test_short_affine_scans(length):
    arguments = {"a": draw(3, length, 5), "b": draw(3, length, 5, seed=2), "initial": draw(3, 5, seed=3)}
    compare(affine_scan, {name: x.float() for name, x in arguments.items()}, 5e-6)


@pytest.mark.parametrize(("dtype", "groups"), [(torch.float32, 2), (torch.float16, 1)], ids=str)
def test_the_selective_scan(monkeypatch, dtype, groups):
    monkeypatch.setattr("worldsim_kernels.gpu.selective.CHUNK", 4)
    arguments = {
        "u": draw(2, 20, 10).transpose(1, 2).to(dtype),
        "delta": (draw(2, 10, 20, seed=2) - 1).to(dtype),
        "A": -draw(20, 5, seed=3).exp().float(),
        "B": draw(2, 10, groups, 5, seed=4).to(dtype),
        "C": draw(2, 10, groups, 5, seed=5).to(dtype),
        "D": draw(20, seed=6).float(),
        "z": draw(2, 10, 20, seed=7).to(dtype),
        "delta_bias": draw(20, seed=8).float(),
        "initial_state": draw(2, 20, 5, seed=9).float(),
    }
    compare(selective_scan, arguments, BOUNDS[dtype])


@pytest.mark.parametrize("length", [1, 6])
def test_a_bare_selective_scan(length):
    """No optional argument and no softplus; a rate of -infinity forgets."""
    rates = -draw(3, 2, seed=3).exp().float()
    rates[0, 0] = -torch.inf
    arguments = {
        "u": draw(1, length, 3).float(),
        "delta": draw(1, length, 3, seed=2).float().abs(),
        "A": rates,
        "B": draw(1, length, 2, seed=4).float(),
        "C": draw(1, length, 2, seed=5).float(),
    }
    compare(selective_scan, arguments, 5e-6, delta_softplus=False)
