"""The paged cache: equal to dense attention, shared and counted, refused in words."""

import pytest
import torch

from worldsim_kernels import PagedCache
from worldsim_kernels.attention import attend_reference

torch.set_num_threads(1)
F64 = torch.float64


def tokens(n, rng, width=4):
    return torch.randn(n, 2, width, generator=rng, dtype=F64)


def dense(q, k, v):
    return attend_reference(q[None], k[None], v[None], None, None, True, None, q.shape[-1] ** -0.5, None)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("gathered", [32, 1024])
def test_paged_is_dense(rng, monkeypatch, gathered):
    """Shuffled blocks, ragged ends, T queries of H = 2 G heads, values of another width."""
    monkeypatch.setattr("worldsim_kernels.paged.GATHERED", gathered)
    cache = PagedCache(30, 2, 4, 3, dtype=F64)
    numbers = [cache.add() for _ in range(3)]
    stored = {each: (tokens(0, rng), tokens(0, rng, 3)) for each in numbers}
    for each, size in zip(numbers * 4, (3, 16, 1, 30, 15, 1, 7, 17, 2, 0, 33, 40)):
        pair = tokens(size, rng), tokens(size, rng, 3)
        cache.append(each, *pair)
        stored[each] = tuple(torch.cat(both) for both in zip(stored[each], pair))
    assert [cache.length(each) for each in numbers] == [40, 81, 44]
    assert cache.stored == 165
    q = torch.randn(3, 5, 4, 4, generator=rng, dtype=F64, requires_grad=True)
    output, lse = cache.attend(q, numbers)
    assert output.shape == (3, 5, 4, 3)
    for row, each in enumerate(numbers):
        wanted = dense(q[row], *stored[each])
        assert (output[row] - wanted.output[0]).abs().max() < 1e-12
        assert (lse[row] - wanted.lse[0]).abs().max() < 1e-12
    (ours,) = torch.autograd.grad(output.sin().sum() + lse.sum(), q)
    parts = [dense(q[row], *stored[each]) for row, each in enumerate(numbers)]
    (theirs,) = torch.autograd.grad(sum(each.output.sin().sum() + each.lse.sum() for each in parts), q)
    assert (ours - theirs).abs().max() < 1e-12


def test_forks_share_their_past_and_part_when_written(rng):
    cache = PagedCache(40, 2, 4, dtype=F64)
    past = cache.add()
    pasts = tokens(100, rng), tokens(100, rng)
    cache.append(past, *pasts)
    assert cache.free_blocks == 33
    forks = cache.fork(past, 3)
    assert cache.free_blocks == 33
    assert cache.stored == 100
    futures = {each: (tokens(20, rng), tokens(20, rng)) for each in forks}
    for each, pair in futures.items():
        cache.append(each, *pair)
    assert cache.free_blocks == 33 - 3 * 2
    q = torch.randn(4, 2, 2, 4, generator=rng, dtype=F64)
    made = cache.attend(q, [past, *forks]).output
    assert (made[0] - dense(q[0], *pasts).output[0]).abs().max() < 1e-12
    for row, each in enumerate(forks, 1):
        whole = (torch.cat(both) for both in zip(pasts, futures[each]))
        assert (made[row] - dense(q[row], *whole).output[0]).abs().max() < 1e-12


def test_the_last_owner_writes_without_a_copy(rng):
    cache = PagedCache(4, 2, 4, dtype=F64)
    first = cache.add()
    cache.append(first, tokens(5, rng), tokens(5, rng))
    (second,) = cache.fork(first)
    cache.append(first, tokens(1, rng), tokens(1, rng))
    assert cache.free_blocks == 2
    cache.append(second, tokens(1, rng), tokens(1, rng))
    assert cache.free_blocks == 2


def test_what_is_freed_is_used_again(rng):
    cache = PagedCache(4, 2, 4, dtype=F64)
    for _ in range(5):
        one = cache.add()
        cache.append(one, tokens(40, rng), tokens(40, rng))
        (two,) = cache.fork(one)
        cache.free(one)
        assert cache.free_blocks == 1
        cache.free(two)
        assert cache.free_blocks == 4
    assert cache.utilisation == 1
    assert cache.stored == 0


def test_utilisation_counts_slots(rng):
    cache = PagedCache(4, 2, 4, dtype=F64)
    cache.append(cache.add(), tokens(24, rng), tokens(24, rng))
    assert cache.utilisation == 24 / 32


def test_an_empty_sequence_sees_nothing(rng):
    cache = PagedCache(2, 2, 4)
    output, lse = cache.attend(torch.ones(1, 1, 2, 4), [cache.add()])
    assert (output == 0).all()
    assert (lse == -torch.inf).all()


def test_a_full_pool_says_so_and_stores_nothing(rng):
    cache = PagedCache(4, 2, 4, dtype=F64)
    one = cache.add()
    cache.append(one, tokens(20, rng), tokens(20, rng))
    cache.fork(one)
    with pytest.raises(MemoryError, match="3 blocks are needed for 40 tokens of sequence 0, 2 of 4 are free"):
        cache.append(one, tokens(40, rng), tokens(40, rng))
    assert cache.length(one) == 20
    assert cache.free_blocks == 2


def test_what_is_not_finite_stays_in_its_own_sequence(rng):
    cache = PagedCache(6, 2, 4, block=4, dtype=F64)
    broken, short, long = cache.add(), cache.add(), cache.add()
    bad = torch.full((4, 2, 4), torch.nan, dtype=F64)
    cache.append(broken, bad, bad)
    for one, count in ((short, 3), (long, 9)):
        cache.append(one, tokens(count, rng), tokens(count, rng))
    q = torch.ones(3, 1, 2, 4, dtype=F64)
    found = cache.attend(q, [broken, short, long]).output.isnan().flatten(1)
    assert found.all(1).tolist() == found.any(1).tolist() == [True, False, False]
    cache.free(broken)
    cache.append(cache.add(), tokens(3, rng), tokens(3, rng))
    assert cache.attend(q[:1], [3]).output.isfinite().all()


def test_wrong_arguments_are_named(rng):
    cache = PagedCache(4, 2, 4, dtype=F64)
    one = cache.add()
    with pytest.raises(KeyError, match="no sequence 7"):
        cache.append(7, tokens(1, rng), tokens(1, rng))
    cache.free(one)
    for call in (
        cache.free,
        cache.fork,
        cache.length,
        lambda each: cache.attend(tokens(1, rng)[None], [each]),
    ):
        with pytest.raises(KeyError, match="no sequence 0"):
            call(one)
    one = cache.add()
    with pytest.raises(ValueError, match="v has shape"):
        cache.append(one, tokens(2, rng), tokens(1, rng))
    with pytest.raises(TypeError, match="k has dtype"):
        cache.append(one, tokens(1, rng).float(), tokens(1, rng))
    with pytest.raises(ValueError, match=r"q has shape .*; expected \[N=1"):
        cache.attend(torch.ones(2, 1, 2, 4, dtype=F64), [one])
    with pytest.raises(ValueError, match="count is -1"):
        cache.fork(cache.add(), -1)
    with pytest.raises(ValueError, match="blocks is 0"):
        PagedCache(0, 1, 1)
