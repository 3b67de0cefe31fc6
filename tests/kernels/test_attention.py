"""Attention: every form against the float64 definition, and what an attention must obey."""

import math

import pytest
import torch
from attention_cases import CASES, F64, SHIFTED, assert_near, error, made, outcome

from worldsim_kernels import attend, explain, fused, merge, tiles, use
from worldsim_kernels.attention import attend_reference
from worldsim_kernels.masks import distance_bias, gaussian_bias, light_cone, physical_attention

torch.set_num_threads(1)


def plain(q, k, v, bias=None, mask=None, tau=None, causal=False, window=None):
    return attend_reference(q, k, v, bias, mask, causal, window, q.shape[-1] ** -0.5, tau)


@pytest.fixture
def small_tiles(monkeypatch):
    """So that a short sequence has many tiles, the last ones ragged."""
    monkeypatch.setattr(tiles, "KEYS", 16)
    monkeypatch.setattr(tiles, "TILE", 2048)


@pytest.fixture
def no_fused(monkeypatch):
    monkeypatch.setattr(fused, "applies", lambda *arguments: False)


@pytest.mark.parametrize("name", CASES)
def test_torch_is_near_float64(name):
    assert_near(CASES[name], "torch", torch.float32)
    if name not in SHIFTED:
        assert_near(CASES[name], "torch", torch.float32, with_lse=False)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tiles_are_exact_in_float64(case, small_tiles, no_fused):
    assert_near(case, "torch", F64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "mask and bias, warm", "warm", "other width of values"])
def test_low_precision_is_near_float64(name, dtype):
    assert_near(CASES[name], "torch", dtype)
    assert_near(CASES[name], "torch", dtype, with_lse=False)


def test_the_reference_equals_softmax_and_torchs_attention():
    (q, k, v, bias, _), _, _ = made(G=4, bias=(1, 4, 37, 53))
    bias = bias.masked_fill(bias == -math.inf, -1.0)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(each.double().transpose(1, 2) for each in (q, k, v)), attn_mask=bias.double()
    )
    assert error(plain(*(each.double() for each in (q, k, v, bias))).output.transpose(1, 2), wanted) < 1e-14


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 2}], ids=str)
def test_the_reference_has_right_gradients_of_both_orders(options):
    (q, k, v, bias, tau), mask, _ = made(1, 3, 4, 2, 1, 2, bias=(2, 3, 4), mask=(3, 4), warm=True, dtype=F64)
    bias = torch.where(bias == -math.inf, 0.1, bias)
    mask[-1, 0] = True
    mask[:, 0] = True
    leaves = [each.requires_grad_() for each in (q, k, v, bias, tau)]

    def both(q, k, v, bias, tau):
        output, lse = attend(q, k, v, bias, mask, temperature=tau, backend="reference", **options)
        return output, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(both, leaves)
    assert torch.autograd.gradgradcheck(both, leaves)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_query_that_sees_nothing_gets_nothing(backend):
    (q, k, v, _, _), _, _ = made()
    mask = torch.ones(37, 53, dtype=torch.bool)
    mask[5] = False
    for options in ({"mask": mask}, {"bias": torch.zeros(37, 53).masked_fill(~mask, -math.inf)}):
        output, lse = attend(q, k, v, **options, backend=backend)
        assert (output[:, 5] == 0).all()
        assert (lse[:, 5] == -math.inf).all()
        assert lse[:, :5].isfinite().all()
        found = outcome([q, k, v, None, None], mask, {}, backend)
        assert all(each.isfinite().all() for each in found[2:])
        assert (found[2][:, 5] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_what_a_mask_leaves_and_causal_hides_is_not_seen(backend):
    q = torch.randn(2, 7, 4, 8, generator=torch.Generator().manual_seed(0))
    rows, keys = torch.ones(7, 7, dtype=torch.bool), torch.ones(2, 1, 1, 7, dtype=torch.bool)
    rows[3, :4], keys[1, ..., :2] = False, False
    for mask, blind in ((rows, [(0, 3), (1, 3)]), (keys, [(1, 0), (1, 1)])):
        output, lse = attend(q, q, q, mask=mask, causal=True, backend=backend)
        assert (lse == -math.inf).all(-1).nonzero().tolist() == [list(each) for each in blind]
        assert (output == 0).flatten(2).all(-1).nonzero().tolist() == [list(each) for each in blind]


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("where", ["q", "k", "bias"])
def test_a_row_of_scores_that_are_not_numbers_is_not_a_row_without_keys(where, backend):
    given = {"q": torch.ones(2, 7, 4, 8), "k": torch.ones(2, 7, 4, 8), "bias": torch.zeros(2, 4, 7, 7)}
    # Query 2 of head 1 of sample 0, or the first key there, which is all that query 0 may see.
    place = {"q": (0, 2, 1), "k": (0, 0, 1), "bias": (0, 1, 2)}[where]
    given[where][place] = math.nan
    output, lse = attend(**given, v=torch.ones(2, 7, 4, 8), causal=True, backend=backend)
    touched = [[0, i, 1] for i in ((2,) if where != "k" else range(7))]
    assert lse.isnan().nonzero().tolist() == touched
    assert output.isnan().all(-1).nonzero().tolist() == touched
    assert output.isnan().sum() == 8 * len(touched)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("shape", [{"T": 0}, {"S": 0}, {"B": 0}, {"T": 0, "S": 0}, {"V": 0}], ids=str)
def test_empty_axes(shape, backend):
    inputs, _, _ = made(**{"warm": True, "bias": (4, 1, 1)} | shape)
    output, lse, *gradients = outcome(inputs, None, {"causal": True}, backend)
    q, _, v = inputs[:3]
    assert output.shape == (*q.shape[:3], v.shape[-1])
    assert lse.shape == q.shape[:3]
    if shape.get("S") == 0:
        assert (output == 0).all()
        assert (lse == -math.inf).all()
    assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("causal", [True, False])
def test_huge_scores_stay_finite(causal, small_tiles, no_fused):
    (q, k, v, _, _), _, _ = made(dtype=F64)
    exact = plain(1000 * q, k, v, causal=causal)
    for given in ((1000 * q, k, v), (1000 * q.float(), k.float(), v.float())):
        output, lse = attend(*given, causal=causal, backend="torch")
        assert output.isfinite().all()
        assert lse.isfinite().all()
    assert error(attend(1000 * q, k, v, causal=causal).output, exact.output) < 1e-12


def test_a_causal_output_knows_nothing_of_later_keys():
    (q, k, v, _, _), _, _ = made(S=37)
    before = attend(q, k, v, causal=True)
    k[:, 20:], v[:, 20:] = 7.0, -3.0
    after = attend(q, k, v, causal=True)
    assert torch.equal(before.output[:, :20], after.output[:, :20])
    assert torch.equal(before.lse[:, :20], after.lse[:, :20])
    assert not torch.equal(before.output[:, 20:], after.output[:, 20:])


def test_a_window_is_the_mask_it_stands_for():
    (q, k, v, _, _), _, _ = made(T=6, S=8, dtype=F64)
    lead = torch.arange(8) - (torch.arange(6)[:, None] + 2)
    local, mask = attend(q, k, v, causal=True, window=3), (lead <= 0) & (lead > -3)
    assert mask.sum(1).tolist() == [3] * 6
    assert error(local.output, plain(q, k, v, mask=mask).output) < 1e-14


def test_the_temperature_divides_scores_and_bias():
    (q, k, v, bias, _), _, _ = made(bias=(1, 1, 37, 53), dtype=F64)
    half = attend(q, k, v, bias, temperature=torch.tensor(0.5, dtype=F64))
    twice = attend(q, k, v, 2 * bias, scale=2 * 16**-0.5)
    assert error(half.output, twice.output) < 1e-14
    assert error(half.lse, twice.lse) < 1e-14


def test_grouped_heads_are_repeated_ones():
    (q, k, v, _, _), _, _ = made()
    grouped = attend(q, k, v, window=60)
    repeated = attend(q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2), window=60)
    assert error(grouped.output, repeated.output) < 1e-6


@pytest.mark.parametrize("options", [{}, {"window": 9}], ids=["fused", "tiles"])
def test_any_strides(options):
    (q, k, v, _, _), _, _ = made()
    odd = (
        q.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        torch.stack((k, k), -1)[..., 1],
        v[:, :, :1].expand(-1, -1, 2, -1),
    )
    exact = [each.contiguous() for each in odd]
    assert not any(each.is_contiguous() for each in odd)
    ours, theirs = attend(*odd, **options), attend(*exact, **options)
    assert torch.equal(ours.output, theirs.output)
    leaf = odd[0].clone().requires_grad_()
    output = attend(leaf, *odd[1:], **options).output
    spread = torch.ones(()).expand(output.shape)
    (strided,) = torch.autograd.grad(output, leaf, spread, retain_graph=True)
    (whole,) = torch.autograd.grad(output, leaf, spread.contiguous())
    assert torch.equal(strided, whole)


def test_parts_merge_into_the_whole():
    inputs, _, _ = made(dtype=F64)
    q, k, v = (each.requires_grad_() for each in inputs[:3])
    whole = attend(q, k, v)
    parts = merge([attend(q, k[:, a:b], v[:, a:b]) for a, b in ((0, 7), (7, 7), (7, 40), (40, 53))])
    for ours, theirs in zip(parts, whole):
        assert error(ours, theirs) < 1e-14
    gradients = [
        torch.autograd.grad(each.output.sin().sum() + each.lse.cos().sum(), (q, k, v))
        for each in (parts, whole)
    ]
    assert all(error(a, b) < 1e-13 for a, b in zip(*gradients))


def test_unlike_parts_do_not_merge():
    q = torch.ones(2, 3, 4, 8)
    with pytest.raises(ValueError, match=r"merge: parts have outputs .*\[1, 3, 4, 8\]"):
        merge([attend(q, q, q), attend(q[:1], q[:1], q[:1])])


def test_nothing_merges_into_nothing():
    (q, k, v, _, _), _, _ = made()
    blind = attend(q, k[:, :0], v[:, :0])
    both = merge([blind, blind])
    assert (both.output == 0).all()
    assert (both.lse == -math.inf).all()
    with pytest.raises(ValueError, match="no parts"):
        merge([])


def test_lse_is_a_sinkhorn_half_step():
    """f = -eps lse with scale 2 / eps and a bias of the keys, and its gradient the weights."""
    draw = torch.Generator().manual_seed(0)
    x, y, g = (torch.randn(*size, generator=draw, dtype=F64) for size in ((30, 3), (40, 3), (40,)))
    eps, b = 0.3, torch.full((40,), 1 / 40, dtype=F64)
    cost = (x[:, None] - y).square().sum(-1)
    wanted = -eps * torch.logsumexp((g - cost) / eps + b.log(), 1)
    bias = ((g - y.square().sum(-1)) / eps + b.log()).requires_grad_()
    lse = attend(x[None, :, None], y[None, :, None], y[None, :, None], bias, scale=2 / eps).lse[0, :, 0]
    assert error(-eps * lse + x.square().sum(-1), wanted) < 1e-14
    (slope,) = torch.autograd.grad(lse.sum(), bias)
    assert error(slope, ((g - cost) / eps + b.log()).softmax(1).sum(0)) < 1e-13


@pytest.mark.parametrize("options", [{}, {"window": 4, "causal": True}], ids=["fused", "tiles"])
def test_the_operator_is_well_registered(options):
    (q, k, v, bias, tau), _, _ = made(1, 5, 6, 2, 2, 4, bias=(1, 2, 5, 6), warm=True)
    for leaf in (q, k, v, tau):
        leaf.requires_grad_()
    arguments = (q, k, v, bias, None, tau, options.get("causal", False), options.get("window"), 0.5, "torch")
    torch.library.opcheck(torch.ops.worldsim.attend.default, arguments)


def test_compiles_whole():
    (q, k, v, bias, _), _, _ = made(bias=(1, 1, 1, 53))
    leaves = [each.requires_grad_() for each in (q, k, v, bias)]

    def loss(*leaves):
        output, lse = attend(*leaves, causal=True)
        return output.square().sum() + lse.sin().sum()

    wanted = torch.autograd.grad(loss(*leaves), leaves)
    made_ = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    assert all(error(a, b) < 1e-6 for a, b in zip(torch.autograd.grad(made_, leaves), wanted))


@pytest.mark.parametrize("batched_bias", [False, True])
def test_vmap_and_grad(batched_bias):
    (q, k, v, _, _), _, _ = made(6, 5, 7, 2, 1, 4)
    q, k, v = (each.reshape(3, 2, *each.shape[1:]) for each in (q, k, v))
    bias = torch.randn(2, 1, 5, 7, generator=torch.Generator().manual_seed(1))
    bias = bias if batched_bias else bias[:1]

    def loss(q, k, v):
        output, lse = attend(q, k, v, bias)
        return output.square().sum() + lse.sin().sum()

    made_ = torch.func.vmap(torch.func.grad(loss))(q, k, v)
    each = torch.stack([torch.func.grad(loss)(*(x[n] for x in (q, k, v))) for n in range(3)])
    assert error(made_, each) < 1e-6
    outputs = torch.func.vmap(lambda *x: attend(*x, bias).output)(q, k, v)
    assert error(outputs[2], attend(q[2], k[2], v[2], bias).output) < 1e-6


def test_second_derivatives_name_the_backend_that_has_them():
    inputs, _, _ = made(1, 3, 4, 1, 1, 2)
    q, k, v = (each.requires_grad_() for each in inputs[:3])

    def norm(backend):
        output = attend(q, k, v, backend=backend).output
        (slope,) = torch.autograd.grad(output.square().sum(), q, create_graph=True)
        return slope.square().sum()

    with pytest.raises(NotImplementedError, match="backend='reference'"):
        norm("torch").backward()
    norm("reference").backward()
    assert q.grad.isfinite().all()


def test_the_same_bits_on_any_number_of_threads():
    (q, k, v, _, _), _, _ = made(2, 300, 400, 4, 2, 32)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(attend(q, k, v).output)
    torch.set_num_threads(1)
    assert torch.equal(*found)


WRONG = {
    "q": ({"q": torch.ones(3, 4, 5)}, ValueError, r"q has shape \[3, 4, 5\]; expected \[B, T, H, K\]"),
    "k": ({"k": torch.ones(2, 53, 2, 8)}, ValueError, "k has shape .* K=16"),
    "v": ({"v": torch.ones(2, 50, 2, 8)}, ValueError, "v has shape .* S=53"),
    "heads": ({"k": torch.ones(2, 53, 3, 16), "v": torch.ones(2, 53, 3, 16)}, ValueError, "k has 3 heads"),
    "dtype": ({"k": torch.ones(2, 53, 2, 16).half()}, TypeError, "k has dtype .* q has"),
    "bias": ({"bias": torch.ones(37, 52)}, ValueError, r"bias has shape \[37, 52\]; expected \[T=37, S=53\]"),
    "bias axes": ({"bias": torch.ones(1, 1, 1, 37, 53)}, ValueError, "bias has shape"),
    "bias type": ({"bias": 1.0}, TypeError, "bias must be a tensor"),
    "mask": ({"mask": torch.ones(37, 53)}, TypeError, "mask has dtype"),
    "temperature": (
        {"temperature": torch.ones(3)},
        ValueError,
        r"temperature has shape \[3\]; expected \[H=4\]",
    ),
    "window": ({"window": 0}, ValueError, "window is 0"),
    "window type": ({"window": 2.5}, TypeError, "window must be a whole number, not float"),
    "scale": ({"scale": torch.tensor(0.5)}, TypeError, "scale must be a number, not Tensor"),
    "no numbers": ({"q": torch.ones(2, 37, 4, 0)}, ValueError, "q has shape .*; expected K of at least 1"),
    "backend": ({"backend": "native"}, ValueError, "attend has no native form"),
}
UNFIT = {
    "finite": ({"q": torch.full((2, 37, 4, 16), math.nan)}, "q is nan"),
    "infinite bias": ({"bias": torch.full((53,), math.inf)}, "bias is inf"),
    "cold": ({"temperature": torch.tensor(0.0)}, "temperature is 0.0; it must be positive"),
    "reversed": ({"temperature": -torch.ones(4)}, "temperature is -1.0"),
}


@pytest.mark.parametrize(("wrong", "kind", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(wrong, kind, message):
    (q, k, v, _, _), _, _ = made()
    with pytest.raises(kind, match=f"attend: .*{message}"):
        attend(**{"q": q, "k": k, "v": v} | wrong)


@pytest.mark.parametrize(("wrong", "message"), UNFIT.values(), ids=UNFIT)
def test_check_finds_unfit_numbers(wrong, message):
    (q, k, v, _, _), _, _ = made()
    attend(q, k, v, torch.full((53,), -math.inf), temperature=torch.ones(4), check=True)
    with pytest.raises(ValueError, match=f"attend: {message}"):
        attend(**{"q": q, "k": k, "v": v} | wrong, check=True)


def test_the_choice_is_explained():
    found = explain("attend")
    assert found.chosen == "torch"
    assert found.reasons["native"] == "attend has no native form"
    (q, k, v, _, _), _, _ = made(dtype=F64)
    with use("triton"), pytest.raises(ValueError, match="float64"):
        attend(q, k, v)


# Biases and masks


def test_distance_and_gaussian_bias():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, generator=draw), torch.randn(2, 6, 3, generator=draw)
    length = torch.tensor([0.5, 2.0])
    apart = torch.cdist(x, y)
    made_, bell = distance_bias(x, y, length), gaussian_bias(x, y, length)
    assert made_.shape == bell.shape == (2, 2, 5, 6)
    for head, size in enumerate(length):
        torch.testing.assert_close(made_[:, head], -apart / size)
        torch.testing.assert_close(bell[:, head], -apart.square() / (2 * size**2))
    assert distance_bias(x[0], y[0], 2.0).shape == (1, 5, 6)


def test_wrong_positions_are_named():
    x = torch.ones(5, 2)
    for call, kind, words in (
        (lambda: distance_bias("x", x, 1.0), TypeError, "distance_bias: positions_q must be a tensor"),
        (lambda: distance_bias(x, x[:, :1], 1.0), ValueError, "distance_bias: positions_k has .* D=2"),
        (lambda: gaussian_bias(x[0], x, 1.0), ValueError, "gaussian_bias: positions_q has shape"),
        (lambda: gaussian_bias(x, x, torch.ones(2, 2)), ValueError, r"length has shape \[2, 2\]"),
        (lambda: distance_bias(x, x, 0.0), ValueError, "length is 0.0; it must be positive"),
        (lambda: light_cone(x, torch.ones(4), 1.0), ValueError, "light_cone: t has .*T=5"),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_a_light_cone_holds_what_may_have_been_heard():
    x, t = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0.0, 1.0, 2.0])
    seen = light_cone(x, t, 1.0)
    assert seen.tolist() == [[[True, False, False], [True, True, False], [False, False, True]]]
    assert light_cone(x, t, 2.0)[0, 2].tolist() == [True, False, True]


def test_physical_attention_learns_its_length_and_temperature():
    draw = torch.Generator().manual_seed(0)
    x, t = torch.randn(9, 2, generator=draw, dtype=F64), torch.arange(9, dtype=F64)
    inputs, _, _ = made(2, 9, 9, 4, 4, dtype=F64)
    q, k, v = inputs[:3]
    length, tau = (torch.linspace(a, 2, 4, dtype=F64, requires_grad=True) for a in (0.5, 0.7))

    def loss(length, tau, backend=None):
        options = {"length": length, "temperature": tau, "mask": light_cone(x, t, 3.0), "backend": backend}
        output, lse = physical_attention(q, k, v, x, x, **options)
        return output.sin().sum() + lse.sum()

    ours, exact = (
        torch.autograd.grad(loss(length, tau, each), (length, tau)) for each in (None, "reference")
    )
    assert all(error(a, b) < 1e-13 for a, b in zip(ours, exact))
    assert all((each != 0).all() for each in ours)
