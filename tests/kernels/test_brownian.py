"""Brownian motion by counter: published vectors, one path whoever asks, and the law of the numbers."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import math

import pytest
import torch
from scipy import stats

from worldsim_kernels import use
from worldsim_kernels.backends import interpreted, missing_triton
from worldsim_kernels.native import why_not
from worldsim_kernels.solve import philox
from worldsim_kernels.solve.brownian import Brownian, combined

torch.set_num_threads(1)
SEED = 12345678901234567890
IDS = torch.tensor([0, 1, 5, 2**40 + 3, 2**44 - 1])

# Random123's known answers for philox4x32, ten rounds: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_has_its_published_answers(counter, key, words):
    found = philox.philox(tuple(torch.tensor([each]) for each in counter), key)
    assert tuple(int(each) for each in found) == words


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize(("first", "count", "components"), [(0, 6, 3), (3, 4, 1), (5, 1, 300)])
def test_every_backend_has_the_same_bits(backend, first, count, components):
    if backend == "native" and why_not("brownian"):
        pytest.skip(f"NOT RUN: {why_not('brownian')}")
    if backend == "triton" and (missing_triton() or not interpreted()):
        pytest.skip("NOT RUN: no Triton interpreter")
    scale = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32):
        arguments = (SEED, 2**31, IDS, components, first, count, scale, dtype)
        with use("torch"):
            expected = philox.on_grid(*arguments)
        with use(backend):
            assert torch.equal(philox.on_grid(*arguments), expected)


def test_counters_have_the_same_bits_in_c():
    counter = philox.counters(torch.arange(9)[:, None, None], IDS[:, None], torch.tensor(77), 5)
    with use("torch"):
        expected = philox.at_counters(counter, SEED)
    for one, other in zip(philox.at_counters(counter, SEED), expected):
        assert torch.equal(one, other)


def test_the_transform_is_that_of_box_and_muller():
    """Against the C library's logarithm, sine and cosine."""
    generator = torch.Generator().manual_seed(0)
    words = tuple(torch.randint(2**32, (2000,), generator=generator) for _ in range(4))
    found = torch.stack(philox.box_muller(words), 1)
    for (a, b, c, d), pair in zip(torch.stack(words, 1).tolist(), found.tolist()):
        u = ((((b << 32 | a) >> 12) & (2**52 - 1)) + 0.5) / 2**52
        turn = d << 32 | c
        angle = ((((turn << 2 >> 12) & (2**52 - 1)) + 0.5) / 2**52 - 0.5) * (math.pi / 2)
        r = math.sqrt(-2 * math.log(u)) * (-1 if turn >> 63 else 1)
        expected = (math.cos(angle), math.sin(angle))
        expected = expected[::-1] if turn >> 62 & 1 else expected
        assert pair == pytest.approx([r * each for each in expected], rel=2e-15, abs=0)


def test_the_numbers_are_normal_and_independent():
    noise = Brownian(3, torch.arange(20_000), 2)
    drawn = noise.normals(0, 4)
    n = drawn.numel()
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert float(drawn.pow(power).mean()) == pytest.approx(moment, abs=4.5 * math.sqrt(spread / n))
    columns = torch.stack([*drawn[:, :, 0], *drawn[:, :, 1], noise.normals(0, 1, area=True)[0, :, 0]])
    off = torch.corrcoef(columns) - torch.eye(9)
    assert float(off.abs().max()) < 4.5 / math.sqrt(20_000)
    neighbours = (drawn[:, 1:] * drawn[:, :-1]).mean()
    assert abs(float(neighbours)) < 4.5 / math.sqrt(n)


def test_a_number_does_not_depend_on_who_is_asked_with_it():
    noise = Brownian(7, IDS, 3)
    whole = noise.normals(0, 9)
    assert torch.equal(noise.normals(4, 3), whole[4:7])
    order = torch.tensor([3, 0, 4])
    assert torch.equal(noise.of_rows(order).normals(0, 9), whole[:, order])
    assert torch.equal(Brownian(7, IDS, 2).normals(0, 9), whole[..., :2])
    assert not torch.equal(Brownian(8, IDS, 3).normals(0, 9), whole)


@pytest.mark.parametrize("level", [1, 2, 5])
def test_coarse_increments_are_fine_ones_put_together(level):
    noise = Brownian(7, IDS, 2, cell=0.5, start=1.0)
    w, h = noise.increments(2, 3)
    fine = noise.increments(2 << level, 3 << level, level)
    parts = [each.reshape(3, 2**level, *w.shape[1:]) for each in fine]
    for found, expected in zip(combined(*parts), (w, h)):
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(noise.increments((2 << level) + 1, 2, level)[0], fine[0][1:3])
    two = noise.increments(1, 1, -1)
    for found, expected in zip(two, combined(*(each[:2, None].movedim(1, 0) for each in (w, h)))):
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_a_path_is_the_same_in_any_order_and_sums_its_increments():
    noise = Brownian(7, IDS, 2, cell=0.5, start=1.0)
    times = (1 + torch.arange(33, dtype=torch.float64) / 32).expand(5, -1)
    w, area = noise.path(times)
    fine = noise.increments(0, 32, 4)
    assert torch.allclose(w.diff(dim=1).transpose(0, 1), fine[0], rtol=0, atol=1e-14)
    assert torch.allclose(noise.between(times)[1].transpose(0, 1), fine[1], rtol=0, atol=1e-13)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.path(times[:, order])[0], w[:, order])
    assert torch.equal(noise.path(times[:, 7:8])[1], area[:, 7:8])
    own = times + torch.arange(5)[:, None] * 0.01
    assert torch.equal(noise.path(own)[0][3], noise.of_rows(torch.tensor([3])).path(own[3:4])[0][0])


def test_the_path_has_the_law_of_brownian_motion_at_any_times():
    n = 20_000
    noise = Brownian(11, torch.arange(n), cell=1.0)
    times = torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).sort(1).values
    (w, area), (rise, h) = noise.path(times), noise.between(times)
    gap = times.diff(dim=1)[:, 0]
    allowed = 4.5 * math.sqrt(2 / n)
    for variable, variance in (
        (w[:, 0, 0], times[:, 0]),
        (area[:, 1, 0], times[:, 1] ** 3 / 3),
        (rise[:, 0, 0], gap),
        (h[:, 0, 0], gap / 12),
    ):
        standard = variable / variance.sqrt()
        assert stats.kstest(standard.numpy(), "norm").pvalue > 1e-3
    for one, other in ((w[:, 0, 0], rise[:, 0, 0]), (rise[:, 0, 0], h[:, 0, 0])):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < allowed


def test_a_bridge_has_the_mean_and_variance_of_its_ends():
    n = 20_000
    noise = Brownian(5, torch.arange(n), cell=1.0)
    w, _ = noise.path(torch.tensor([0.25, 1.0], dtype=torch.float64).expand(n, 2))
    rest = w[:, 0, 0] - 0.25 * w[:, 1, 0]
    assert float(rest.square().mean()) == pytest.approx(0.1875, rel=4.5 * math.sqrt(2 / n))
    assert abs(float((rest * w[:, 1, 0]).mean())) < 4.5 * math.sqrt(0.1875 / n)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": -1}, "seed"),
        ({"rows": torch.arange(3.0)}, "int64"),
        ({"rows": torch.tensor([2**44])}, "2\\^44"),
        ({"components": 0}, "components"),
        ({"cell": 0.0}, "cell"),
        ({"start": math.nan}, "start"),
    ],
)
def test_bad_arguments_are_named(change, says):
    with pytest.raises((ValueError, TypeError), match=says):
        Brownian(**{"seed": 0, "rows": IDS, **change})


def test_what_has_no_cell_has_no_path():
    noise = Brownian(0, IDS)
    with pytest.raises(ValueError, match="cell"):
        noise.path(torch.ones(5, 1))
    with pytest.raises(ValueError, match="steps"):
        noise.normals(-1, 1)
    with pytest.raises(ValueError, match="before the start"):
        Brownian(0, IDS, cell=1.0).path(-torch.ones(5, 1))
