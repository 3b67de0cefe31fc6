"""Eight-bit numbers: rounding, scales, and the rotation that spreads outliers."""

import pytest
import torch

from worldsim_kernels.quantise import E4M3, incoherent, quantise, random_signs

torch.set_num_threads(1)
F64 = torch.float64


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("rows", [None, 1, 4, 12])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_numbers_are_rounded_to_three_bits(rng, rows, dtype):
    x = torch.randn(2, 3, 12, 16, generator=rng, dtype=dtype)
    made = quantise(x, rows)
    assert made.values.dtype == E4M3
    assert made.values.shape == x.shape
    assert made.scale.shape == (2, 3, 12 // (rows or 12), 1, 1)
    back = made.restored()
    assert back.dtype == dtype
    largest = torch.unflatten(x.abs(), -2, (made.scale.shape[-3], -1)).amax((-2, -1), keepdim=True)
    torch.testing.assert_close(made.scale, largest / 448)
    # Half a unit of three bits, or of the smallest subnormal, 2^-9.
    bound = torch.maximum(
        x.abs() / 16, made.scale.expand(-1, -1, -1, 12 * (rows or 12) // 12, 1).flatten(2, 3) / 1024
    )
    assert ((back - x).abs() <= bound * (1 + 1e-6)).all()


def test_zeros_and_extremes_are_kept():
    x = torch.tensor([[0.0, 0.0], [1e-30, -1e-30], [3e38, 1e38], [1e-44, 0.0]])
    back = quantise(x, 1).restored()
    assert back.isfinite().all()
    assert (back[0] == 0).all()
    torch.testing.assert_close(back[:3], x[:3], rtol=0.07, atol=0.0)
    assert quantise(torch.ones(0, 4)).restored().shape == (0, 4)


def test_the_rotation_is_orthogonal(rng):
    signs = random_signs(64, rng, F64)
    assert set(signs.tolist()) == {-1.0, 1.0}
    matrix = incoherent(torch.eye(64, dtype=F64), signs)
    assert (matrix @ matrix.T - torch.eye(64, dtype=F64)).abs().max() < 1e-14
    assert (matrix.abs() - 1 / 8).abs().max() < 1e-15
    q, k = (torch.randn(2, 5, 64, generator=rng, dtype=F64) for _ in range(2))
    assert (incoherent(q, signs) @ incoherent(k, signs).mT - q @ k.mT).abs().max() < 1e-13


def test_an_outlier_is_spread_over_its_row(rng):
    x = torch.zeros(1, 128)
    x[0, 5] = 100.0
    assert incoherent(x, random_signs(128, rng)).abs().max() == pytest.approx(100 / 128**0.5, rel=1e-6)


def test_the_signs_follow_their_generator():
    first, again = (random_signs(32, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)


def test_wrong_arguments_are_named(rng):
    with pytest.raises(ValueError, match="rows is 5, which does not divide the 12 rows"):
        quantise(torch.ones(12, 4), 5)
    with pytest.raises(ValueError, match=r"x has shape \[3, 0\]; expected at least one number"):
        quantise(torch.ones(3, 0))
    with pytest.raises(TypeError, match="quantise: x must be a tensor"):
        quantise([1.0])
    with pytest.raises(ValueError, match=r"incoherent: x has shape \[\]"):
        incoherent(torch.tensor(1.0), torch.ones(1))
    with pytest.raises(ValueError, match="power of two"):
        incoherent(torch.ones(2, 12), torch.ones(12))
    with pytest.raises(ValueError, match=r"signs has shape \[8\]"):
        incoherent(torch.ones(2, 16), torch.ones(8))
    with pytest.raises(TypeError, match="x has dtype"):
        quantise(torch.ones(2, 4, dtype=torch.int64))
