"""The Triton form of the state recurrence, in Triton's interpreter, against the float64 recurrence.

The interpreter computes one program after another in numpy: a few dozen tokens of small heads take a second.
"""

import pytest
import torch
from scan_cases import failures, gradients, made

from worldsim_kernels import backends, state_scan

pytest.importorskip("triton", reason="NOT RUN: triton is not installed")
if not backends.interpreted():
    pytest.skip("NOT RUN: Triton is not interpreted", allow_module_level=True)
torch.set_num_threads(1)


def run(**arguments):
    return state_scan(**arguments, backend="triton")


@pytest.mark.parametrize(
    ("gate", "low_rank", "bonus"),
    [
        ("none", False, False),
        ("none", True, True),
        ("head", False, True),
        ("scalar", False, False),
        ("scalar", True, False),
        ("vector", False, False),
        ("vector", False, True),
        ("vector", True, False),
        ("vector", True, True),
    ],
)
def test_output_and_gradients_are_those_of_the_recurrence(gate, low_rank, bonus):
    # 12 keys and 18 values are padded; the tokens are two chunks, the last one short.
    length = 18 if low_rank or gate == "vector" else 34
    case = made(gate, low_rank, bonus, shape=(1, length, 1, 12, 18))
    assert failures(gradients(run, case, 0.5), case, 0.5) == {}


@pytest.mark.parametrize("strength", [0.0, -0.6, -20.0, -torch.inf])
@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_gates_of_any_strength_keep_their_precision(gate, strength):
    case = made(gate, bonus=True, shape=(1, 18, 1, 16, 16), strength=strength)
    assert failures(gradients(run, case), case) == {}


def test_half_precision():
    case = made("vector", shape=(1, 18, 1, 16, 16), dtype=torch.float16)
    assert failures(gradients(run, case), case) == {}


def test_columns_are_split_and_segments_stored():
    # 80 values are two tiles; 262 tokens are nine chunks of 32, more than a segment.
    case = made(shape=(1, 262, 1, 16, 80))
    assert failures(gradients(run, case), case) == {}


def test_packed_sequences_and_strides():
    case = made("scalar", True, shape=(1, 0, 1, 16, 16), lengths=(3, 0, 17))
    case = {n: x.transpose(1, 3).contiguous().transpose(1, 3) if n in "qkvab" else x for n, x in case.items()}
    assert not case["q"].is_contiguous()
    case["initial_state"] = case["initial_state"].mT.contiguous().mT
    case["bonus"] = torch.arange(32.0).view(16, 2).T[:1] / 32
    assert failures(gradients(run, case), case) == {}


@pytest.mark.parametrize("length", [0, 1])
def test_lengths_at_the_edge(length):
    case = made("vector", shape=(2, length, 1, 16, 16))
    assert failures(gradients(run, case), case) == {}


def test_one_gradient_only():
    case = made(shape=(1, 5, 1, 16, 16), start=False)
    q = case["q"].requires_grad_()
    output, _ = run(**case)
    (alone,) = torch.autograd.grad(output.sum(), q)
    _, state = run(**case)
    (none,) = torch.autograd.grad(state.sum(), q)
    assert alone.abs().sum() > 0
    assert not none.any()


def test_what_it_refuses():
    double = made(shape=(1, 2, 1, 4, 4), dtype=torch.float64)
    with pytest.raises(ValueError, match="state is float32"):
        run(**double)
    with pytest.raises(ValueError, match="at most 256 keys"):
        run(**made(shape=(1, 2, 1, 300, 4)))
    strided = torch.empty_strided((1, 2, 1, 16), (1, 1 << 28, 1, 1), device="meta")
    gpu = pytest.importorskip("worldsim_kernels.gpu.scan")
    assert "2^31" in gpu.refuses(q=strided)
    assert gpu.refuses() is None


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_a_gate_that_is_nan_shows(gate):
    case = made(gate, shape=(1, 3, 2, 16, 16))
    case["g"][0, 1, 0] = torch.nan
    output, _ = run(**case)
    assert output[0, 1:, 0].isnan().all()
    assert output[0, :, 1].isfinite().all()
