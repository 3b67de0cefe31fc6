"""A paged cache of keys and values: exactness, memory, forks.

Exactness: sequences appended in turns, so that their blocks are shuffled, with ragged ends, against attention
over their dense keys in float64. Memory: 400 sequences of log-normal length (median 164, cut at 2,048) in
blocks of 16, against reserving 2,048 for each. Forks: 8 futures of 40 tokens from a past of 1,000.
"""

import torch

from worldsim_kernels.attention import attend_reference
from worldsim_kernels.paged import PagedCache

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "paged = dense < 1e-12; utilisation > 0.9, reserved < 0.15; a fork stores <= past + 8 (future + 16)"
F64 = torch.float64
LONGEST, BLOCK = 2048, 16
PAST, FUTURE, FUTURES = 1000, 40, 8


def tokens(n, rng, width=8):
    return torch.randn(n, 2, width, generator=rng, dtype=F64)


def gap(rng):
    """Largest difference from dense attention, of outputs and log-sum-exps."""
    cache = PagedCache(300, 2, 8, dtype=F64)
    numbers = [cache.add() for _ in range(3)]
    stored = {each: (tokens(0, rng), tokens(0, rng)) for each in numbers}
    for turn in range(60):
        each = numbers[int(torch.randint(3, (), generator=rng))]
        size = int(torch.randint(1, 40 + turn, (), generator=rng))
        k, v = tokens(size, rng), tokens(size, rng)
        cache.append(each, k, v)
        stored[each] = tuple(torch.cat(pair) for pair in zip(stored[each], (k, v)))
    q = torch.randn(3, 5, 4, 8, generator=rng, dtype=F64)
    made = cache.attend(q, numbers)
    worst = 0.0
    for row, each in enumerate(numbers):
        k, v = stored[each]
        dense = attend_reference(q[row, None], k[None], v[None], None, None, True, None, 8**-0.5, None)
        for ours, theirs in zip(made, dense):
            worst = max(worst, float((ours[row] - theirs[0]).abs().max()))
    return worst


def utilisation(rng):
    lengths = torch.exp(5.1 + 0.8 * torch.randn(400, generator=rng)).long().clamp(1, LONGEST).tolist()
    cache = PagedCache(400 * LONGEST // BLOCK, 1, 1, block=BLOCK)
    for length in lengths:
        one = torch.zeros(length, 1, 1)
        cache.append(cache.add(), one, one)
    return cache.utilisation, sum(lengths) / (400 * LONGEST)


def forked(rng):
    """Slots in use after eight futures have branched from one past."""
    cache = PagedCache(200, 2, 8, block=BLOCK, dtype=F64)
    past = cache.add()
    cache.append(past, tokens(PAST, rng), tokens(PAST, rng))
    for each in cache.fork(past, FUTURES):
        cache.append(each, tokens(FUTURE, rng), tokens(FUTURE, rng))
    return (200 - cache.free_blocks) * BLOCK


def run(seed=0):
    rng = torch.Generator().manual_seed(seed)
    paged, reserved = utilisation(rng)
    return {
        "gap": gap(rng),
        "utilisation": paged,
        "reserved": reserved,
        "slots": forked(rng),
        "slots unshared": FUTURES * (PAST + FUTURE),
    }


def check(figures):
    assert figures["gap"] < 1e-12
    assert figures["utilisation"] > 0.9
    assert figures["reserved"] < 0.15
    assert figures["slots"] <= PAST + FUTURES * (FUTURE + BLOCK)
