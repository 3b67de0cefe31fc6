"""The precision policy."""

import pytest
import torch

from worldsim_kernels import attend, pairwise
from worldsim_kernels.precision import collapsed, dtype_of, protected


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_does_not_reach_into_attention_and_distances(backend):
    x = torch.randn(2, 9, 4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for call in (
        lambda: attend(x, x, x, window=3, backend=backend).output,
        lambda: pairwise(x, 2 * x),
    ):
        plain = call()
        expected = torch.autograd.grad(plain.square().sum(), x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = call()
        # A backward that is autograd's own runs under the autocast it is called in.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backend == "torch"):
            grads = torch.autograd.grad(found.square().sum(), x)
        assert torch.equal(found, plain)
        assert torch.equal(grads[0], expected[0])


def test_each_role_has_its_least_precision():
    assert dtype_of("activation", torch.float16) == torch.float16
    assert dtype_of("state", torch.bfloat16) == torch.float32
    assert dtype_of("decay", torch.float64) == torch.float64
    assert dtype_of("truth", torch.float32) == torch.float64
    for call in (lambda: dtype_of("weight", torch.float32), lambda: protected("weight")):
        with pytest.raises(ValueError, match="there is no role 'weight'; there are activation"):
            call()


def test_what_is_protected_runs_outside_autocast():
    @protected("loss")
    def loss(x, *, y, scale):
        return scale * (x @ y)

    x = torch.full((1, 3), 1 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        found = loss(x.bfloat16(), y=x.T, scale=2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 2 * (x.bfloat16().float() @ x.T))


def test_which_decays_collapse():
    decays = torch.tensor([1.0, *(1 - 2.0**-i for i in range(5, 13))])
    assert collapsed(decays, torch.bfloat16).tolist() == [False] * 5 + [True] * 4
    assert collapsed(decays, torch.float16).tolist() == [False] * 8 + [True]
    assert not collapsed(decays, torch.float32).any()
