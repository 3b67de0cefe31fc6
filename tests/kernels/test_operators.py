"""An operator made from a forward and a backward: eager, compiled, under torch.func, and what it refuses."""

import pytest
import torch
from torch.autograd import forward_ad

from worldsim_kernels.operators import Operator

torch.set_num_threads(1)
F64 = torch.float64


def forward(x, g, w, s, backend):
    return x * s * (1 if g is None else g) * w, x.sum(-1)


def fake(x, g, w, s, backend):
    return torch.empty_like(x), x.new_empty(x.shape[:-1])


def backward(grads, outputs, needed, x, g, w, s, backend):
    dy, dsum = grads
    dy = torch.zeros_like(x) if dy is None else dy
    gate = 1 if g is None else g
    dx = dy * s * gate * w
    if dsum is not None:
        dx = dx + dsum.unsqueeze(-1)
    return dx, None if g is None else dy * s * x * w, (dy * s * x * gate).sum((0, 1))


SCALED = Operator(
    "scaled_for_tests",
    "Tensor x, Tensor? g, Tensor w, float s, str backend",
    2,
    forward,
    fake,
    backward,
    batched=("x", "g"),
)


def plain(x, g, w):
    return forward(x, g, w, 2.0, "")[0]


def ours(x, g, w):
    return SCALED(x, g, w, 2.0, "")[0]


@pytest.fixture
def tensors():
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5), (3, 4, 5), (5,))
    return [torch.randn(*each, dtype=F64, generator=rng).requires_grad_() for each in shapes]


def test_its_gradients_are_its_backward(tensors):
    assert torch.autograd.gradcheck(lambda x, g, w: SCALED(x, g, w, 2.0, ""), tensors)
    x, _, w = tensors
    assert torch.autograd.gradcheck(lambda x, w: SCALED(x, None, w, 2.0, ""), (x, w))


def test_it_is_well_registered(tensors):
    x, g, w = tensors
    torch.library.opcheck(torch.ops.worldsim.scaled_for_tests, (x, g, w, 2.0, ""))
    torch.library.opcheck(torch.ops.worldsim.scaled_for_tests, (x, None, w, 2.0, ""))


def test_it_compiles_whole_with_its_backward(tensors):
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(plain(*tensors).sin().sum(), tensors)
    found = torch.autograd.grad(compiled(*tensors).sin().sum(), tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def loss(layer):
    return lambda x, g, w: layer(x, g, w).sin().sum()


@pytest.mark.parametrize(
    "batch", [(0, None, None), (0, 0, None), (None, None, 0), (0, 0, 0), (None, 1, None)]
)
def test_vmap_over_any_arguments(tensors, batch):
    stacked = [
        each.detach() if at is None else torch.stack([each.detach() * n for n in (1, 2, -1)], at)
        for each, at in zip(tensors, batch, strict=True)
    ]
    for make in (lambda f: f, lambda f: torch.func.grad(f, argnums=(0, 1, 2))):
        inside = (ours, plain) if make(1) == 1 else (make(loss(ours)), make(loss(plain)))
        found, expected = (torch.func.vmap(f, in_dims=batch)(*stacked) for f in inside)
        torch.testing.assert_close(found, expected)


def test_grad_outside_vmap(tensors):
    x, g, w = (each.detach() for each in tensors)
    xs = torch.stack([x, 2 * x])

    def total(layer):
        return lambda xs: torch.func.vmap(lambda x: loss(layer)(x, g, w))(xs).sum()

    torch.testing.assert_close(torch.func.grad(total(ours))(xs), torch.func.grad(total(plain))(xs))


def test_what_it_cannot_do_names_the_backend_that_can(tensors):
    x, g, w = tensors
    first = torch.autograd.grad(ours(x, g, w).square().sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=r"differentiated twice.*backend='reference'"):
        first.sum().backward()
    with pytest.raises(NotImplementedError, match="differentiated twice"):
        torch.func.jacrev(torch.func.grad(lambda x: loss(ours)(x, g, w)))(x.detach())
    with pytest.raises(NotImplementedError, match=r"forward-mode.*backend='reference'"):
        torch.func.jvp(lambda x: ours(x, g, w), (x.detach(),), (x.detach(),))


def test_an_unused_output_and_an_unneeded_gradient_cost_nothing(tensors):
    x, g, w = tensors
    total = SCALED(x, g, w.detach(), 2.0, "")[1].sum()
    dx, dg = torch.autograd.grad(total, (x, g))
    torch.testing.assert_close(dx, torch.ones_like(x))
    assert not dg.any()


def test_tangents_are_not_dropped(tensors):
    x, g, w = (each.detach() for each in tensors)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            ours(dual, g, w)
        assert ours(x, g, w).shape == x.shape
