"""The grouped product in Triton, run by Triton's interpreter, against float64."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from worldsim_kernels import grouped_matmul
from worldsim_kernels.backends import interpreted, missing_triton

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(
    missing_triton() is not None or not interpreted(), reason="NOT RUN: no Triton interpreter"
)
# Groups of none, one, a full tile of float32 and more than one.
OFFSETS = [0, 64, 64, 65, 65, 230]


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_agrees_with_the_definition_in_float64(dtype, bound, strided):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(230, 37, generator=generator), torch.randn(5, 37, 70, generator=generator)
    if strided:
        x, weight = x.T.contiguous().T, weight.transpose(1, 2).contiguous().transpose(1, 2)
    low = [each.to(dtype).requires_grad_() for each in (x, weight)]
    high = [each.detach().double().requires_grad_() for each in low]
    offsets, dy = torch.tensor(OFFSETS), torch.randn(230, 70, generator=generator).to(dtype)
    found = grouped_matmul(*low, offsets, backend="triton")
    expected = grouped_matmul(*high, offsets, backend="reference")
    assert error(found, expected) <= bound
    mine, theirs = torch.autograd.grad(found, low, dy), torch.autograd.grad(expected, high, dy.double())
    assert max(map(error, mine, theirs)) <= bound
    assert mine[1][[1, 3]].eq(0).all()


def test_no_rows_and_float64():
    x, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(2, 4, 3)
    y = grouped_matmul(x, weight, torch.zeros(3, dtype=torch.int64), backend="triton")
    assert torch.autograd.grad(y.sum(), x)[0].shape == (0, 4)
    with pytest.raises(ValueError, match="x has dtype float64"):
        grouped_matmul(x.double(), weight.double(), torch.zeros(3, dtype=torch.int64), backend="triton")
