import math

import pytest
import torch

from worldsim_kernels.block_entropy import (
    block_entropies,
    causal_states,
    conditional_information,
    entropy,
    transfer_entropy,
    word_codes,
)
from worldsim_kernels.hidden_markov import (
    entropy_rate,
    exact_block_entropies,
    sampled,
    stationary_law,
    statistical_complexity,
    word_law,
)

torch.set_num_threads(1)


def machine(states, size, ways):
    """``ways``: (from, token, to, probability)."""
    matrices = torch.zeros(size, states, states, dtype=torch.float64)
    for here, token, there, chance in ways:
        matrices[token, here, there] += chance
    return matrices


GOLDEN_MEAN = machine(2, 2, [(0, 1, 0, 0.5), (0, 0, 1, 0.5), (1, 1, 0, 1.0)])
COIN = machine(1, 2, [(0, 0, 0, 0.5), (0, 1, 0, 0.5)])
EVEN = machine(2, 2, [(0, 0, 0, 0.5), (0, 1, 1, 0.5), (1, 1, 0, 1.0)])
RRXOR = machine(
    5,
    2,
    [
        *[(0, a, 1 + a, 0.5) for a in (0, 1)],  # the first random bit
        *[(1 + a, b, 3 + (a ^ b), 0.5) for a in (0, 1) for b in (0, 1)],  # the second
        *[(3 + c, c, 0, 1.0) for c in (0, 1)],  # their exclusive or
    ],
)


def mess3(a, x):
    """Three states, each shown with probability ``a`` (Marzen and Crutchfield 2017)."""
    b, y = (1 - a) / 2, 1 - 2 * x
    shown = torch.full((3, 3), b, dtype=torch.float64).fill_diagonal_(a)
    moved = torch.full((3, 3), x, dtype=torch.float64).fill_diagonal_(y)
    return moved[None] * shown.T[:, None, :]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("matrices", "law", "complexity"),
    [
        (GOLDEN_MEAN, [2 / 3, 1 / 3], 0.918296),
        (EVEN, [2 / 3, 1 / 3], 0.918296),
        (RRXOR, [1 / 3, *[1 / 6] * 4], 2.251629),
    ],
)
def test_epsilon_machines_have_their_closed_forms(matrices, law, complexity):
    torch.testing.assert_close(stationary_law(matrices), torch.tensor(law, dtype=torch.float64))
    assert statistical_complexity(matrices) == pytest.approx(complexity, abs=5e-7)
    assert entropy_rate(matrices) == pytest.approx(2 / 3, abs=1e-12)


def test_the_golden_mean_remembers_a_quarter_of_a_bit():
    blocks = exact_block_entropies(GOLDEN_MEAN, 6)
    for length in range(2, 7):
        rate = blocks[length - 1] - blocks[length - 2]
        assert float(rate) == pytest.approx(2 / 3, abs=1e-12)
        assert float(blocks[length - 1] - length * rate) == pytest.approx(0.251629, abs=5e-7)


def test_mess3_has_its_block_entropies_and_no_rate_in_closed_form():
    found = exact_block_entropies(mess3(0.85, 0.05), 4)
    expected = torch.tensor([1.584963, 2.822389, 3.995814, 5.147254], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=5e-7, rtol=0)
    with pytest.raises(ValueError, match="several states"):
        entropy_rate(mess3(0.85, 0.05))


def test_the_flip_channel_carries_one_way_only():
    p = 0.1
    # Y_t+1 = X_t xor Bernoulli(p), X fair and independent in time: [y_t+1, x_t, y_t].
    law = torch.full((2, 2, 2), p / 4, dtype=torch.float64)
    law[0, 0], law[1, 1] = (1 - p) / 4, (1 - p) / 4
    assert conditional_information(law) == pytest.approx(0.531004, abs=5e-7)
    # The other way: [x_t+1, y_t, x_t], and x_t+1 is fair whatever came before.
    back = law.sum(0)[None].transpose(1, 2).expand(2, 2, 2) / 2
    assert conditional_information(back) == pytest.approx(0, abs=1e-12)


def test_transfer_entropy_is_found_by_counting():
    x = torch.randint(2, (50, 401), generator=seeded(0))
    flips = torch.rand(50, 400, generator=seeded(1)) < 0.1
    y = torch.cat([x[:, :1] * 0, x[:, :-1] ^ flips.long()], 1)
    n = 50 * 400
    # The delta method: the spread of the log ratio whose mean it is.
    ratio = torch.tensor([math.log2(1.8), math.log2(0.2)]).double()
    error = math.sqrt(float((torch.tensor([0.9, 0.1]).double() * (ratio - 0.531004) ** 2).sum()) / n)
    assert abs(transfer_entropy(x, y, 2) - 0.531004) < 3 * error
    # Nothing flows back: 2 n ln 2 times the estimate is chi square with 2 degrees of freedom.
    assert 0 <= transfer_entropy(y, x, 2) < 13.8 / (2 * n * math.log(2))


def test_counted_entropies_are_within_three_standard_errors_of_the_exact_ones():
    tokens = sampled(GOLDEN_MEAN, 400, 60, seeded(0))
    found = block_entropies(tokens, 2, 4)
    error = found.rows.std(1) / 400**0.5
    assert bool(((found.value - exact_block_entropies(GOLDEN_MEAN, 4)).abs() < 3 * error).all())
    for value, exact, rows in (
        (found.rate(), 2 / 3, found.rate_rows()),
        (found.excess(), 0.251629, found.excess_rows()),
    ):
        assert abs(value - exact) < 3 * float(rows.std()) / 400**0.5
    torch.testing.assert_close(found.rows.mean(1) + found.correction, found.value)


def test_the_correction_takes_most_of_the_bias_of_small_samples():
    law = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    drawn = torch.multinomial(law, 2000 * 40, replacement=True, generator=seeded(0)).reshape(2000, 40, 1)
    corrected, counted = [], []
    for tokens in drawn:
        found = block_entropies(tokens.T, 4, 1)
        corrected.append(float(found.value[0]))
        counted.append(float(found.value[0] - found.correction[0]))
    corrected, counted = (torch.tensor(each).double() for each in (corrected, counted))
    assert float(entropy(law)) == 1.75
    assert float(counted.mean()) < 1.75 - 0.04
    assert abs(float(corrected.mean()) - 1.75) < 0.2 * (1.75 - float(counted.mean()))


def test_words_are_numbered_in_lexicographic_order():
    assert word_codes(torch.tensor([[1, 0, 2, 1]]), 3, 2).tolist() == [[3, 2, 7]]
    torch.testing.assert_close(
        word_law(GOLDEN_MEAN, 2), torch.tensor([0, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64)
    )
    for tokens, message in (
        (torch.tensor([[0, 3]]), "0 .. 2; found 0 .. 3"),
        (torch.zeros(1, 3), "integers"),
        (torch.zeros(1, 1, dtype=torch.int64), "time >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            word_codes(tokens, 3, 2)
    with pytest.raises(ValueError, match="too many to number"):
        word_codes(torch.zeros(1, 99, dtype=torch.int64), 3, 60)


@pytest.mark.parametrize(("matrices", "history", "states"), [(GOLDEN_MEAN, 2, 2), (COIN, 3, 1)])
def test_histories_fall_into_their_causal_states(matrices, history, states):
    found = causal_states(sampled(matrices, 200, 100, seeded(2)), 2, history, 2)
    assert len(found.share) == states
    if states == 2:
        # "00" does not occur; after a 1 anything may come, after "10" only a 1.
        assert found.state[0] == found.state[2] != found.state[1]
        error = 3 * (2 / 9 * 3 / 20_000) ** 0.5
        assert abs(float(found.share.max()) - 2 / 3) < error
        assert found.complexity == pytest.approx(0.918296, abs=0.02)


def test_what_is_no_process_is_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        stationary_law(GOLDEN_MEAN / 2)
    with pytest.raises(ValueError, match="several closed sets"):
        stationary_law(torch.eye(2, dtype=torch.float64)[None])
    with pytest.raises(ValueError, match="more than"):
        word_law(GOLDEN_MEAN, 30)
