"""The state recurrence in chunks of matrix products, against the float64 recurrence."""

import pytest
import torch
from scan_cases import error, failures, gradients, made, reference

from worldsim_kernels import chunked, state_scan
from worldsim_kernels.chunk_decays import MildDecay, StrongDecay, vector_decay

torch.set_num_threads(1)
FORMS = [
    ("none", False),
    ("none", True),
    ("head", False),
    ("scalar", False),
    ("scalar", True),
    ("vector", False),
    ("vector", True),
]


def run(**arguments):
    return state_scan(**arguments, backend="torch")


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize(("gate", "low_rank"), FORMS)
def test_output_and_gradients_are_those_of_the_recurrence(gate, low_rank, bonus):
    # 70 tokens are two or three chunks, the last one short.
    case = made(gate, low_rank, bonus, shape=(2, 70, 2, 12, 20))
    assert failures(gradients(run, case, 0.5), case, 0.5) == {}


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("strength", [0.0, -0.6, -0.93, -2.5, -20.0, -torch.inf])
@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_gates_of_any_strength_keep_their_precision(gate, strength, low_rank):
    for bonus in (False, True):
        case = made(gate, low_rank, bonus, shape=(1, 70, 2, 16, 16), strength=strength)
        assert failures(gradients(run, case), case) == {}


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_forgetting_at_some_tokens_separates_what_came_before(gate, low_rank):
    case = made(gate, low_rank, shape=(1, 70, 1, 8, 8))
    case["g"][:, [0, 13, 14, 31, 64]] = -torch.inf
    if low_rank:
        for name in "ab":
            case[name][:, [0, 13, 14, 31, 64]] = 0.0
    assert failures(gradients(run, case), case) == {}
    changed = {**case, "v": case["v"].clone()}
    changed["v"][:, :64] += 1e3
    assert torch.equal(run(**changed).state, run(**case).state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("gate", "low_rank"), FORMS[2:])
def test_every_dtype(dtype, gate, low_rank):
    case = made(gate, low_rank, shape=(1, 40, 2, 16, 16), dtype=dtype)
    assert failures(gradients(run, case), case) == {}


@pytest.mark.parametrize("length", [0, 1, 32, 64, 65])
@pytest.mark.parametrize(("gate", "low_rank"), [("none", False), ("vector", True)])
def test_lengths(length, gate, low_rank):
    case = made(gate, low_rank, shape=(2, length, 1, 8, 8))
    assert failures(gradients(run, case), case) == {}


@pytest.mark.parametrize("block", [1, 256])
def test_several_blocks_of_chunks(block, monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", block)
    for gate, low_rank in FORMS:
        case = made(gate, low_rank, shape=(2, 140, 1, 4, 4))
        assert failures(gradients(run, case), case) == {}


def test_a_split_with_carried_state_is_the_whole():
    case = made("vector", True, shape=(1, 90, 2, 8, 12))
    start = case.pop("initial_state")
    whole = run(**case, initial_state=start)
    one = run(**{n: x[:, :37] for n, x in case.items()}, initial_state=start)
    two = run(**{n: x[:, 37:] for n, x in case.items()}, initial_state=one.state)
    assert error(torch.cat([one.output, two.output], 1), whole.output.double()) < 1e-6
    assert error(two.state, whole.state.double()) < 1e-6


@pytest.mark.parametrize(("gate", "low_rank"), FORMS)
def test_the_future_does_not_matter(gate, low_rank):
    case = made(gate, low_rank, shape=(1, 70, 1, 8, 8))
    before = run(**case).output
    for name in set(case) & {"q", "k", "v", "a", "b"}:
        case[name][:, 40:] *= -3.0
    assert torch.equal(run(**case).output[:, :40], before[:, :40])


def test_packed_sequences_are_separate_ones():
    case = made("vector", True, True, shape=(1, 0, 2, 8, 8), lengths=(3, 0, 40, 1))
    assert failures(gradients(run, case), case) == {}


def test_strides():
    case = made("vector", True, shape=(2, 40, 3, 8, 12))
    turned = {
        n: x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 4 else x for n, x in case.items()
    }
    assert failures(gradients(run, turned), case) == {}


def test_one_gradient_only():
    case = made("vector", True, shape=(1, 40, 1, 8, 8))
    v = case["v"].requires_grad_()
    (alone,) = torch.autograd.grad(run(**case).output.sum(), v)
    (expected,) = torch.autograd.grad(state_scan(**case, backend="reference").output.sum(), v)
    assert error(alone, expected.double()) < 5e-6


def test_equal_keys_fully_rewritten_do_not_lose_precision():
    """The inverse of I - P_ab then has entries of 1, while the powers of P_ab grow to binomial numbers."""
    case = made(low_rank=True, shape=(1, 64, 1, 8, 8))
    unit = torch.nn.functional.normalize(torch.ones(8), dim=0).expand(1, 64, 1, 8).contiguous()
    case.update(k=unit, a=-unit, b=unit)
    found, expected = gradients(run, case), reference(case)
    assert all(error(found[name], expected[name]) < 5e-6 for name in ("output", "state", "q", "v"))


def test_which_decay_is_mild():
    x = torch.zeros(1, 1, 32, 4)
    assert isinstance(vector_decay(x, x, True, torch.full((1, 32, 4), -0.9)), MildDecay)
    assert isinstance(vector_decay(x, x, True, torch.full((1, 32, 4), -1.0)), StrongDecay)


@pytest.mark.parametrize("shape", [(0, 70, 2, 4, 3), (2, 70, 0, 4, 3), (2, 64, 2, 0, 3), (2, 70, 2, 4, 0)])
def test_an_empty_axis(shape):
    *tokens, values = shape
    q = torch.randn(tokens, requires_grad=True)
    v, bonus = torch.randn(*tokens[:3], values), torch.randn(tokens[2:], requires_grad=True)
    found = run(q=q, k=q, v=v, g=-q.square(), bonus=bonus)
    assert found.output.shape == v.shape
    (found.output.sum() + found.state.sum()).backward()
    assert not q.grad.any()
    assert not bonus.grad.any()
