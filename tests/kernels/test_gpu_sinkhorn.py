"""The Triton half-step of entropic transport, run by Triton's interpreter, against float64."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from worldsim_kernels import explain, sinkhorn
from worldsim_kernels.backends import interpreted, missing_triton

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(
    missing_triton() is not None or not interpreted(), reason="NOT RUN: no Triton interpreter"
)


def clouds(n, m, d, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, d, generator=rng) for k in (n, m))
    return x, 1.5 * y + 1, torch.rand(n, generator=rng) + 0.1, torch.rand(m, generator=rng) + 0.1


@pytest.mark.parametrize(("n", "m", "d"), [(64, 64, 16), (70, 130, 3), (1, 65, 1), (65, 1, 33), (40, 50, 90)])
@pytest.mark.parametrize("rate", [0.1, 100.0])
def test_the_half_step_agrees_with_float64(n, m, d, rate):
    from worldsim_kernels.gpu.transport import softmin

    x, y, _, weights = clouds(n, m, d)
    x, y, score = x / d**0.5, y / d**0.5, weights.log()
    found = softmin(x, y, score, rate).double()
    cost = (x.double()[:, None] - y.double()).square().sum(-1)
    expected = (score.double() - rate * cost).logsumexp(1)
    # Its terms are of size rate |x|^2, and that is what float32 rounds.
    assert float((found - expected).abs().max()) <= 5e-7 * (1 + rate * float(cost.max()))


@pytest.mark.parametrize("debias", [False, True])
def test_the_whole_agrees_with_the_definition_and_so_do_its_gradients(debias):
    leaves = [each.double().requires_grad_() for each in clouds(40, 30, 3)]
    settings = {"epsilon": 2.0, "debias": debias, "tolerance": 1e-3}
    found = sinkhorn(*leaves, **settings, backend="triton")
    expected = sinkhorn(*leaves, **settings | {"tolerance": 1e-8}, backend="reference")
    assert bool(found.converged)
    assert abs(float((found.value - expected.value).detach())) <= float(found.gap)
    mine, theirs = (torch.autograd.grad(each.value, leaves[:2]) for each in (found, expected))
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs)) <= 2e-3


def test_it_runs_on_a_cpu_only_when_asked():
    x, y, _, _ = clouds(8, 8, 2)
    found = explain("sinkhorn", x=x, y=y)
    assert found.reasons["triton"] is None
    assert found.chosen in ("native", "triton")
