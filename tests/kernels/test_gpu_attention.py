"""Triton's attention in its interpreter, against the float64 definition."""

import math

import pytest
import torch
from attention_cases import CASES, F64, assert_near, error, made, outcome

pytest.importorskip("triton")

from worldsim_kernels import attend, explain
from worldsim_kernels.attention import BACKENDS, attend_reference

torch.set_num_threads(1)


# The interpreter is slow: one batch where a case does not say how many, and no case that others contain.
ONE_BATCH = {"B": 1}
CONTAINED = ("causal square", "bias", "bias of each head, warm", "one head", "one key", "warm")


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONTAINED])
def test_triton_is_near_float64(name):
    assert_near(ONE_BATCH | CASES[name], "triton", torch.float32)


@pytest.mark.parametrize("name", ["causal", "bias of each head, warm"])
def test_triton_is_near_float64_in_float16(name):
    assert_near(ONE_BATCH | CASES[name], "triton", torch.float16, with_lse=False)


def test_triton_over_many_tiles():
    case = {"B": 1, "T": 90, "S": 110, "H": 2, "G": 1, "window": 40, "causal": True, "bias": (1, 1, 1, 110)}
    assert_near(case, "triton", torch.float32)


def test_wide_heads():
    assert_near({"B": 1, "T": 40, "S": 20, "H": 1, "G": 1, "K": 130, "V": 72}, "triton", torch.float32)


def test_any_strides():
    (q, k, v, _, _), _, _ = made(B=1)
    odd = q.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0), torch.stack((k, k), -1)[..., 1]
    ours = attend(*odd, v[:, :, :1].expand(-1, -1, 2, -1), backend="triton")
    assert torch.equal(ours.output, attend(q, k, v[:, :, :1].repeat(1, 1, 2, 1), backend="triton").output)


def test_a_query_that_sees_nothing_gets_nothing():
    (q, k, v, _, _), _, _ = made(B=1)
    mask = torch.ones(37, 53, dtype=torch.bool)
    mask[5] = False
    output, lse, *gradients = outcome([q, k, v, None, None], mask, {}, "triton")
    assert (output[:, 5] == 0).all()
    assert (lse[:, 5] == -math.inf).all()
    assert all(each.isfinite().all() for each in gradients)
    assert (gradients[0][:, 5] == 0).all()


def test_huge_scores_stay_finite():
    (q, k, v, _, _), _, _ = made(B=1)
    output, lse = attend(1000 * q, k, v, backend="triton")
    assert output.isfinite().all()
    exact = attend_reference(1000 * q.double(), k.double(), v.double(), None, None, False, None, 0.25, None)
    assert error(lse, exact.lse) < 5e-6


def test_vmap_shares_a_bias():
    (q, k, v, bias, _), _, _ = made(6, 5, 7, 2, 1, 4, bias=(2, 1, 5, 7))
    q, k, v = (each.reshape(3, 2, *each.shape[1:]) for each in (q, k, v))
    outputs = torch.func.vmap(lambda *x: attend(*x, bias, backend="triton").output)(q, k, v)
    assert error(outputs[2], attend(q[2], k[2], v[2], bias).output) < 1e-6


def test_empty_axes():
    for shape in ({"T": 0}, {"S": 0}):
        inputs, _, _ = made(**shape)
        assert all(each.isfinite().all() for each in outcome(inputs, None, {}, "triton")[2:])


def test_what_it_refuses():
    refuses = BACKENDS["attend"].reason
    for given, message in (
        ({"dtype": F64}, "float64"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
        ({"K": 300, "V": 8}, "at most 256"),
    ):
        (q, k, v, _, _), _, _ = made(1, 2, 2, 1, 1, **given)
        assert message in refuses("triton", q=q, k=k, v=v)
    assert explain("attend").reasons["triton"] is None
