"""Routing by its published rules, and grouped products and mixtures against loops in float64."""

import pytest
import torch

from worldsim_kernels import explain, grouped_matmul, route
from worldsim_kernels.experts import (
    _GROUPED,
    Routing,
    SwiGLUExperts,
    balance_loss,
    dispatch,
    load,
    mixture,
    z_loss,
)

torch.set_num_threads(1)
BOUNDS = {torch.float32: (5e-6, 5e-6), torch.float16: (2e-3, 2e-3), torch.bfloat16: (6e-3, 1.2e-2)}
OFFSETS = [0, 40, 40, 41, 150]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def normal(generator):
    return lambda *shape: torch.randn(*shape, generator=generator)


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_grouped_matmul_agrees_with_the_definition_in_float64(dtype, normal):
    x, weight = normal(150, 37).to(dtype), normal(4, 37, 70).to(dtype)
    offsets, dy = torch.tensor(OFFSETS), normal(150, 70).to(dtype)
    low = [each.requires_grad_() for each in (x, weight)]
    high = [each.detach().double().requires_grad_() for each in low]
    found = grouped_matmul(*low, offsets, backend="torch")
    expected = grouped_matmul(*high, offsets, backend="reference")
    assert error(found, expected) <= BOUNDS[dtype][0]
    mine = torch.autograd.grad(found, low, dy)
    for a, b in zip(mine, torch.autograd.grad(expected, high, dy.double())):
        assert a.dtype == dtype
        assert error(a, b) <= BOUNDS[dtype][1]


def test_the_reference_product_has_right_derivatives(normal):
    x, weight = normal(5, 3).double().requires_grad_(), normal(3, 3, 2).double().requires_grad_()
    offsets = torch.tensor([0, 2, 2, 5])

    def product(x, weight):
        return grouped_matmul(x, weight, offsets, backend="reference")

    assert torch.autograd.gradcheck(product, (x, weight))
    assert torch.autograd.gradgradcheck(product, (x, weight))


def test_grouped_matmul_takes_any_strides_and_no_rows(normal):
    x, weight, offsets = normal(37, 150).T, normal(4, 70, 37).transpose(1, 2), torch.tensor(OFFSETS)
    expected = grouped_matmul(x.contiguous(), weight.contiguous(), offsets)
    torch.testing.assert_close(grouped_matmul(x, weight, offsets), expected)
    none = grouped_matmul(x[:0], weight, torch.zeros(5, dtype=torch.int64))
    assert none.shape == (0, 70)


def test_the_product_is_a_well_made_operator(normal):
    x, weight = normal(6, 5).requires_grad_(), normal(2, 5, 3).requires_grad_()
    torch.library.opcheck(_GROUPED._forward.default, (x, weight, torch.tensor([0, 2, 6]), ""))


@pytest.mark.parametrize(
    ("offsets", "kind", "words"),
    [
        (torch.tensor([0, 3, 2, 6]), ValueError, "offsets are .* rise from 0 to M=6"),
        (torch.tensor([0, 3, 4, 5]), ValueError, "offsets are"),
        (torch.tensor([0, 6]), ValueError, r"offsets has shape \[2\]; expected \[E \+ 1=4\]"),
        (torch.tensor([0.0, 1, 2, 6]), TypeError, "offsets has dtype"),
    ],
)
def test_errors_of_offsets(offsets, kind, words, normal):
    for settings in ({}, {"check": True}, {"backend": "reference"}):
        with pytest.raises(kind, match=words):
            grouped_matmul(normal(6, 5), normal(3, 5, 2), offsets, **settings)


def test_one_token_needs_no_axis(normal):
    x = normal(5)
    one, many = route(x, 2), route(x[None], 2)
    assert torch.equal(balance_loss(one), balance_loss(many))
    assert torch.equal(
        mixture(x, one, lambda rows, offsets: rows)[None], mixture(x[None], many, lambda r, o: r)
    )


def test_errors_name_the_argument(normal, generator):
    x, offsets = normal(6, 5), torch.tensor([0, 6])
    for call, words in (
        (lambda: grouped_matmul(x, normal(1, 4, 2), offsets), "weight has shape"),
        (lambda: route(x, 6), "k is 6; expected 1 to 5"),
        (lambda: route(x, 2.0), "k is 2.0; expected 1 to 5"),
        (lambda: route(x, 2, gradient="hard"), "gradient is 'hard'"),
        (lambda: route(x, 2, gradient="sparsemixer", training=True), "generator is None"),
        (lambda: route(x, 2, gradient="sparsemixer", bias=x[0]), "bias is for"),
        (lambda: route(x, 2, bias=x), "bias has shape"),
        (lambda: mixture(x[:3], route(x, 2), lambda rows, offsets: rows), "x has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="dispatch: experts must be a tensor"):
        dispatch([0, 1], 2)
    with pytest.raises(TypeError, match="weight has dtype"):
        grouped_matmul(x, normal(1, 5, 2).half(), offsets)


def test_top_k_with_a_softmax_over_the_chosen(normal):
    logits = normal(4, 3, 8)
    weights, experts, probabilities = route(logits, 2)
    values, places = logits.topk(2)
    assert torch.equal(experts, places)
    torch.testing.assert_close(weights, values.softmax(-1))
    torch.testing.assert_close(probabilities, logits.softmax(-1))
    assert route(logits.bfloat16(), 2).weights.dtype == torch.float32


def test_ties_and_nan():
    assert route(torch.tensor([1.0, 2, 2, 2]), 2).experts.tolist() == [1, 2]
    spoilt = route(torch.tensor([[1.0, torch.nan, 3], [1, 2, 3]]), 2)
    assert spoilt.experts.tolist() == [[1, 2], [2, 1]]
    assert spoilt.weights.isnan().all(-1).tolist() == [True, False]
    closed = route(torch.tensor([1.0, -torch.inf, -torch.inf]), 2)
    assert closed.weights.tolist() == [1, 0]


def test_a_bias_chooses_but_does_not_weigh(normal):
    logits, bias = normal(5, 4).requires_grad_(), torch.tensor([0.0, 0, 0, 100]).requires_grad_()
    weights, experts, _ = route(logits, 2, bias=bias)
    assert experts[:, 0].eq(3).all()
    torch.testing.assert_close(weights, logits.gather(1, experts).softmax(-1))
    assert torch.autograd.grad(weights.square().sum(), bias, allow_unused=True)[0] is None


def sparsemixer_by_hand(z, jitter, share, drawn):
    """Weights, and the gradient that is published, for the experts ``drawn`` in turn."""
    left, weights, grads = z.clone(), [], []
    for d, m in zip(drawn, share):
        top = left.max()
        near = torch.where((top - z) / z.abs().clamp(min=top) > 2 * jitter, -torch.inf, left)
        p = torch.exp(near - top) / torch.exp(near - top).sum()
        weights.append(p[d] * m)
        grads.append(p[d] * (torch.eye(len(z), dtype=z.dtype)[d] - p))
        left[d] = -torch.inf
    return torch.stack(weights), torch.stack(grads)


def test_sparsemixer_is_the_published_rule(generator):
    z = torch.randn(300, 6, generator=generator, dtype=torch.float64).requires_grad_()
    routing = route(z, 2, gradient="sparsemixer", jitter=0.3, training=True, generator=generator)
    assert routing.experts[:, 0].ne(routing.experts[:, 1]).all()
    dw = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    (dz,) = torch.autograd.grad(routing.weights, z, dw)
    shares = []
    for n in range(300):
        full, grads = sparsemixer_by_hand(z[n].detach(), 0.3, (1, 1), routing.experts[n])
        share = routing.weights[n].detach() / full
        torch.testing.assert_close(
            share, torch.ones_like(share).masked_fill(share < 0.5, 1 / 3), rtol=1e-12, atol=0
        )
        torch.testing.assert_close(dz[n], dw[n] @ grads, rtol=1e-12, atol=1e-15)
        shares.append(share)
    best = routing.experts[:, 0] == z.argmax(1)
    first = torch.stack(shares)[:, 0]
    assert first[best].gt(0.5).all()
    assert 0.1 < first[~best].gt(0.5).double().mean() < 0.4  # a quarter of some 100


def test_sparsemixer_without_training_takes_the_best(normal):
    z = normal(50, 6)
    routing = route(z, 2, gradient="sparsemixer", jitter=0.01)
    assert torch.equal(routing.experts, z.topk(2).indices)
    wide = route(z, 1, gradient="sparsemixer", jitter=1e9)
    torch.testing.assert_close(wide.weights[:, 0], z.softmax(-1).amax(-1))


def test_sparsemixer_never_draws_what_is_left_out(generator):
    z = torch.tensor([1.0, 0.99, -torch.inf, 0.2]).expand(2000, 4)
    routing = route(z, 2, gradient="sparsemixer", jitter=0.05, training=True, generator=generator)
    assert routing.experts[:, 0].unique().tolist() == [0, 1]
    assert routing.weights.isfinite().all()
    again = torch.Generator().manual_seed(3)
    first, second = (
        route(z, 2, gradient="sparsemixer", training=True, generator=again.manual_seed(3)) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


def test_losses(normal):
    logits = normal(3, 40, 4).requires_grad_()
    routing = route(logits, 2)
    fractions = torch.bincount(routing.experts.flatten(), minlength=4) / 240
    torch.testing.assert_close(load(routing), fractions)
    expected = 4 * (fractions * logits.softmax(-1).mean((0, 1))).sum()
    torch.testing.assert_close(balance_loss(routing), expected)
    torch.testing.assert_close(z_loss(logits), logits.exp().sum(-1).log().square().mean())
    even = route(torch.eye(4)[:, [0, 1, 2, 3]] * 1e-6, 1)
    assert float(balance_loss(even)) == pytest.approx(1)
    assert torch.autograd.grad(balance_loss(routing) + z_loss(logits), logits)[0].isfinite().all()


def by_loop(x, routing, experts):
    """Every expert on every token, weighted."""
    total = 0
    for e in range(len(experts.gate)):
        found = (torch.nn.functional.silu(x @ experts.gate[e]) * (x @ experts.value[e])) @ experts.out[e]
        total = total + found * ((routing.experts == e) * routing.weights).sum(-1, keepdim=True)
    return total


@pytest.fixture
def experts(normal):
    shapes = ((5, 8, 12), (5, 8, 12), (5, 12, 8))
    return SwiGLUExperts(*((normal(*shape) / 3).double().requires_grad_() for shape in shapes))


def test_no_token_is_dropped(normal, experts):
    x, logits = normal(4, 30, 8).double().requires_grad_(), normal(4, 30, 5).double()
    logits[..., 2] = -10  # an expert without tokens
    logits.requires_grad_()
    routing = route(logits, 2)
    assert load(routing)[2] == 0
    found, expected = mixture(x, routing, experts), by_loop(x, routing, experts)
    assert error(found, expected) < 1e-12
    dy, leaves = normal(4, 30, 8).double(), (x, logits, *experts)
    for mine, theirs in zip(
        *(torch.autograd.grad(y, leaves, dy, retain_graph=True) for y in (found, expected))
    ):
        assert error(mine, theirs) < 1e-12


def test_a_mixture_in_low_precision_and_of_nothing(normal, experts):
    low = SwiGLUExperts(*(each.detach().bfloat16() for each in experts))
    high = SwiGLUExperts(*(each.double() for each in low))
    x, routing = normal(60, 8).bfloat16(), route(normal(60, 5), 2)
    found = mixture(x, routing, low)
    assert found.dtype == torch.bfloat16
    assert error(found, by_loop(x.double(), routing, high)) < 6e-3
    none = Routing(*(each[:0] for each in routing))
    assert mixture(x[:0], none, low).shape == (0, 8)
    assert float(balance_loss(none)) == 0


def test_dispatch_sorts_by_expert_and_keeps_the_order_of_tokens():
    order, inverse, offsets = dispatch(torch.tensor([[2, 0], [0, 2], [3, 0]]), 4)
    assert order.tolist() == [1, 2, 5, 0, 3, 4]
    assert offsets.tolist() == [0, 3, 3, 5, 6]
    assert order[inverse].tolist() == list(range(6))


def test_a_mixture_compiles_whole_and_maps(normal):
    shapes = ((3, 8, 4), (3, 8, 4), (3, 4, 8))
    experts = [normal(*shape).requires_grad_() for shape in shapes]
    x, router = normal(2, 6, 8).requires_grad_(), normal(8, 3).requires_grad_()

    def loss(x, router, *experts):
        routing = route(x @ router, 2)
        return mixture(x, routing, SwiGLUExperts(*experts)).square().sum() + balance_loss(routing)

    leaves = (x, router, *experts)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(torch.autograd.grad(compiled(*leaves), leaves), expected):
        torch.testing.assert_close(mine, theirs)
    functional = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))(*leaves)
    for mine, theirs in zip(functional, expected):
        torch.testing.assert_close(mine, theirs)
    many = torch.stack([experts[0], 2 * experts[0]])
    each = torch.func.vmap(grouped_matmul, (None, 0, None))(x[0], many, torch.tensor([0, 2, 2, 6]))
    torch.testing.assert_close(each[1], 2 * each[0])


def test_second_derivatives_name_the_backend_that_has_them(normal, experts):
    x = normal(4, 8).double().requires_grad_()
    offsets = torch.tensor([0, 1, 2, 3, 4, 4])
    y = grouped_matmul(x, experts.gate, offsets)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        dx.sum().backward()


def test_explains_itself():
    found = explain("grouped_matmul")
    assert found.chosen == "torch"
    assert "no native form" in found.reasons["native"]
