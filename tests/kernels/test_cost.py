"""Counted operations against the same equations written as matrix products, which torch counts itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import worldsim_kernels.cost  # noqa: F401
from worldsim_kernels import affine_scan, attend, grouped_matmul, selective_scan, state_scan

torch.set_num_threads(1)
B, T, H, K, V = 2, 5, 3, 4, 6


def counted(run, backward=False):
    with FlopCounterMode(display=False) as counter:
        made = run()
        if backward:
            before = counter.get_total_flops()
            made.sum().backward()
            return counter.get_total_flops() - before
    return counter.get_total_flops()


def tokens(width, grad=False):
    return torch.randn(B, T, H, width, requires_grad=grad)


def recurrence(q, k, v):
    """Of every token: the write k v^T and the read S^T q as matrix products."""
    state, outputs = 0, []
    for t in range(T):
        state = state + k[:, t, :, :, None] @ v[:, t, :, None]
        outputs.append(q[:, t, :, None] @ state)
    return torch.cat(outputs)


def test_the_state_scan_counts_as_its_products():
    q, k, v = tokens(K), tokens(K), tokens(V)
    plain = counted(lambda: recurrence(q, k, v))
    assert counted(lambda: state_scan(q, k, v)) == plain == 4 * B * T * H * K * V
    assert counted(lambda: state_scan(q, k, v, -q.abs())) == plain * 5 // 4
    assert counted(lambda: state_scan(q, k, v, -q.abs(), k, q)) == plain * 9 // 4


def test_the_backward_of_the_state_scan_counts_as_its_products_and_the_state_again():
    inputs = [tokens(K, True), tokens(K, True), tokens(V, True)]
    entries = B * T * H * K * V
    products = counted(lambda: recurrence(*inputs), backward=True)
    assert products == 8 * entries
    assert counted(lambda: state_scan(*inputs).output, backward=True) == products + 2 * entries
    q, k, v = inputs
    assert counted(lambda: state_scan(q, k, v, -q.abs()).output, backward=True) == 14 * entries
    assert counted(lambda: state_scan(q, k, v, -q.abs(), k, q).output, backward=True) == 26 * entries


def test_scans_count_by_their_elements():
    x = torch.rand(B, T, K, requires_grad=True)
    assert counted(lambda: affine_scan(x, x)) == 2 * B * T * K
    assert counted(lambda: affine_scan(x, x)[0], backward=True) == 3 * B * T * K
    rates, written = -torch.ones(K, V), torch.rand(B, T, V)
    assert counted(lambda: selective_scan(x, x, rates, written, written)) == 7 * B * T * K * V
    run = counted(lambda: selective_scan(x, x, rates, written, written).output, backward=True)
    assert run == 20 * B * T * K * V


@pytest.mark.parametrize("grad", [False, True])
def test_attention_counts_alike_ours_fused_or_in_parts(grad):
    q, k, v = (torch.randn(B, H, T, K, requires_grad=grad) for _ in range(3))
    ours = [x.transpose(1, 2) for x in (q, k, v)]
    fused = torch.nn.functional.scaled_dot_product_attention
    parts = counted(lambda: (q @ k.mT).softmax(-1) @ v, backward=grad)
    again = 2 * B * H * T * T * K if grad else 0
    assert counted(lambda: attend(*ours).output, backward=grad) == parts + again
    assert counted(lambda: fused(q, k, v), backward=grad) == parts + again


def test_a_grouped_product_counts_as_one():
    x, weight = torch.randn(7, K, requires_grad=True), torch.randn(2, K, V, requires_grad=True)
    offsets = torch.tensor([0, 3, 7])
    assert counted(lambda: grouped_matmul(x, weight, offsets)) == 2 * 7 * K * V
    assert counted(lambda: grouped_matmul(x, weight, offsets), backward=True) == 4 * 7 * K * V
