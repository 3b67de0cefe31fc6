"""Each named mixer against the form its paper gives, in float64: a matrix over all pairs where there is one,
else the update in the paper's own order and orientation."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from worldsim_kernels import mixers
from worldsim_kernels.scan import BACKENDS

torch.set_num_threads(1)
B, T, H, K, V = 2, 21, 3, 8, 5


def over_pairs(q, k, v, log_decay=None, start=None):
    """o_t = sum over s <= t of (q_t . e^{c_t - c_s} k_s) v_s, with c the running sum of the gates."""
    c = torch.zeros_like(q) if log_decay is None else log_decay.cumsum(1)
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()[None, :, :, None, None]
    between = (c[:, :, None] - c[:, None]).masked_fill(~later, -torch.inf).exp()
    weights = torch.einsum("bthk,bshk,btshk->btsh", q, k, between)
    output = torch.einsum("btsh,bshv->bthv", weights, v)
    return output if start is None else output + torch.einsum("bthk,bhkv->bthv", q * c.exp(), start)


def linear(q, k, v, start):
    q, k, ones = F.elu(q) + 1, F.elu(k) + 1, torch.ones_like(v[..., :1])
    numerator = over_pairs(q, k, v, start=start[..., :-1])
    return numerator / (over_pairs(q, k, ones, start=start[..., -1:]) + 1e-10)


def linear_everywhere(q, k, v):
    weights = torch.einsum("bthk,bshk->bhts", F.relu(q), F.relu(k))
    return torch.einsum("bhts,bshv->bthv", weights / (weights.sum(-1, keepdim=True) + 1e-10), v)


def retained(q, k, v, start):
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(H)], dtype=q.dtype)
    return over_pairs(q, k, v, gamma.log()[:, None].expand(q.shape), start) / K**0.5


def lightened(q, k, v, slopes, start):
    return over_pairs(q, k, v, -slopes[:, None].expand(q.shape), start)


def dual(x, dt, A, B_, C, D, start):
    """Two groups for four heads: heads 0 and 1 read the first."""
    groups = torch.tensor([0, 0, 1, 1])
    decay = (dt * A)[..., None].expand(*dt.shape, B_.shape[-1])
    return over_pairs(C[:, :, groups], dt[..., None] * B_[:, :, groups], x, decay, start) + D[:, None] * x


def gated(q, k, v, g, start):
    return over_pairs(q, k, v, g, start) / K**0.5


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def delta(q, k, v, beta, start, g=None):
    """Decay, look up what the key holds, and move it towards the new value by beta."""
    q, k = unit(q), unit(k)
    state, outputs = start, []
    for t in range(q.shape[1]):
        if g is not None:
            state = state * (g[:, t, :, :, None] if g.dim() == 4 else g[:, t, :, None, None]).exp()
        held = (k[:, t, :, :, None] * state).sum(-2)
        moved = beta[:, t, :, None] * (v[:, t] - held)
        state = state + k[:, t, :, :, None] * moved[:, :, None, :]
        outputs.append((q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, 1) / K**0.5


def generalised(r, w_log, k, v, kappa, eta, start):
    """With the state V x K, as published: S = S (diag(w) - kappa^T (eta kappa)) + v^T k, o = S r."""
    state, outputs = start.mT, []
    for t in range(r.shape[1]):
        change = torch.diag_embed(w_log[:, t].exp()) - kappa[:, t, :, :, None] * (eta * kappa)[:, t, :, None]
        state = state @ change + v[:, t, :, :, None] * k[:, t, :, None]
        outputs.append((state @ r[:, t, :, :, None])[..., 0])
    return torch.stack(outputs, 1)


def carried(mixer):
    return lambda start, **inputs: mixer(**inputs, initial_state=start)


def normal(seed, *size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens():
    return {"q": normal(0, B, T, H, K), "k": normal(1, B, T, H, K), "v": normal(2, B, T, H, V)}


def shares(seed, *size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


START = {"start": normal(3, B, H, K, V)}
BETA = {"beta": 2 * shares(4, B, T, H)}
SCALAR = {"g": -shares(5, B, T, H)}
VECTOR = {"g": -2 * shares(6, B, T, H, K)}
PAIR = {"kappa": F.normalize(normal(7, B, T, H, K), dim=-1), "eta": shares(8, B, T, H, K)}
DUAL = {
    "x": normal(0, B, T, 4, V),
    "dt": shares(1, B, T, 4),
    "A": -shares(2, 4),
    "B": normal(3, B, T, 2, K),
    "C": normal(4, B, T, 2, K),
    "D": normal(5, 4),
    "start": normal(6, B, 4, K, V),
}
WIDE = ("g", "w_log", "beta", "slopes", "dt", "A", "D", "start")


def rwkv7(q, **inputs):
    return mixers.rwkv7(r=q, **inputs)


CASES = {
    "linear_attention": (
        mixers.linear_attention,
        linear,
        tokens() | {"start": shares(3, B, H, K, V + 1)},
    ),
    "retention": (mixers.retention, retained, tokens() | START),
    "lightning": (mixers.lightning, lightened, tokens() | START | {"slopes": shares(9, H)}),
    "ssd": (mixers.ssd, lambda B, **inputs: dual(B_=B, **inputs), DUAL),
    "gla": (mixers.gla, gated, tokens() | START | VECTOR),
    "delta_rule": (mixers.delta_rule, delta, tokens() | START | BETA),
    "gated_delta_rule": (mixers.gated_delta_rule, delta, tokens() | START | BETA | SCALAR),
    "kda": (mixers.kda, delta, tokens() | START | BETA | VECTOR),
    "rwkv7": (
        rwkv7,
        lambda q, **inputs: generalised(q, **inputs),
        tokens() | START | PAIR | {"w_log": 0.6 * VECTOR["g"] / 2},
    ),
}
names = pytest.mark.parametrize("name", CASES)


def inputs_of(name, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {key: x.to(wide if key in WIDE else dtype) for key, x in CASES[name][2].items()}


def with_gradients(run, inputs, weights):
    """The output and the gradient of its weighted sum to every input."""
    given = {key: x.clone().requires_grad_() for key, x in inputs.items()}
    output = run(**given)
    found = torch.autograd.grad((output * weights.to(output.dtype)).sum(), list(given.values()))
    return {"output": output.detach()} | dict(zip(given, found, strict=True))


def relative(found, expected):
    return float((found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def beyond(name, dtype, backend, forward, backward):
    """Errors beyond the bounds, against the published form of the very inputs."""
    mixer, published, _ = CASES[name]
    inputs, weights = inputs_of(name, dtype), normal(20, *CASES[name][2].get("v", DUAL["x"]).shape).to(dtype)

    def run(start, **others):
        return mixer(**others, initial_state=start, backend=backend).output

    found = with_gradients(run, inputs, weights)
    expected = with_gradients(published, {key: x.double() for key, x in inputs.items()}, weights)
    assert found["output"].dtype == dtype
    errors = {key: relative(found[key], expected[key]) for key in expected}
    return {key: x for key, x in errors.items() if not x <= (forward if key == "output" else backward)}


@names
@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_it_is_the_published_form_with_all_its_gradients(name, backend):
    reason = BACKENDS["state_scan"].reason(backend)
    if reason is not None:
        pytest.skip(f"NOT RUN: {reason}")
    assert beyond(name, torch.float32, backend, 5e-6, 5e-6) == {}


@names
def test_it_is_the_published_form_in_float64(name):
    assert beyond(name, torch.float64, "reference", 1e-12, 1e-12) == {}


@names
@pytest.mark.parametrize(
    ("dtype", "forward", "backward"), [(torch.float16, 2e-3, 2e-3), (torch.bfloat16, 6e-3, 1.2e-2)]
)
def test_half_precision_keeps_its_bounds(name, dtype, forward, backward):
    assert beyond(name, dtype, None, forward, backward) == {}


PER_TOKEN = ("q", "k", "v", "g", "beta", "kappa", "eta", "w_log", "x", "dt", "B", "C")


def piece(inputs, begin, end):
    return {key: x[:, begin:end] if key in PER_TOKEN else x for key, x in inputs.items() if key != "start"}


@names
def test_pieces_with_the_state_carried_are_the_whole(name):
    mixer, inputs = CASES[name][0], inputs_of(name, torch.float64)
    whole, state, outputs = mixer(**piece(inputs, 0, T)), None, []
    for begin, end in ((0, 1), (1, 1), (1, 9), (9, T)):
        output, state = mixer(**piece(inputs, begin, end), initial_state=state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), whole.output, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, whole.state, rtol=1e-10, atol=1e-12)


@names
def test_packed_sequences_are_separate_ones(name):
    mixer, inputs = CASES[name][0], inputs_of(name, torch.float64)
    one = {key: x[:1] if key in PER_TOKEN else x for key, x in inputs.items()}
    bounds = [0, 4, 4, 5, T]
    packed = mixer(**piece(one, 0, T), cu_seqlens=torch.tensor(bounds))
    runs = [mixer(**piece(one, begin, end)) for begin, end in pairwise(bounds)]
    separate = (torch.cat([run.output for run in runs], 1), torch.cat([run.state for run in runs]))
    torch.testing.assert_close(tuple(packed), separate, rtol=1e-10, atol=1e-12)


@names
def test_no_token_hears_of_a_later_one(name):
    mixer, inputs = CASES[name][0], inputs_of(name, torch.float32)
    given = {key: x.clone().requires_grad_() for key, x in piece(inputs, 0, T).items() if key in PER_TOKEN}
    others = {key: x for key, x in piece(inputs, 0, T).items() if key not in PER_TOKEN}
    output = mixer(**given, **others).output
    for gradient in torch.autograd.grad(output[:, :8].square().sum(), list(given.values())):
        assert gradient[:, :8].any()
        assert not gradient[:, 8:].any()


@names
def test_strided_inputs_serve(name):
    mixer, inputs = CASES[name][0], inputs_of(name, torch.float32)
    strided = {
        key: torch.stack([x, x], -1)[..., 0].transpose(0, -1).contiguous().transpose(0, -1)
        for key, x in inputs.items()
    }
    run = carried(mixer)
    torch.testing.assert_close(run(**strided), run(**inputs), rtol=1e-5, atol=1e-6)


def test_attention_over_all_tokens_is_two_products():
    inputs, weights = tokens(), normal(20, B, T, H, V)

    def ours(**given):
        return mixers.linear_attention(**given, feature_map="relu", causal=False).output

    found = with_gradients(ours, inputs, weights)
    expected = with_gradients(linear_everywhere, inputs, weights)
    for key in expected:
        assert relative(found[key], expected[key]) < 1e-12
    low = {key: x.float() for key, x in inputs.items()}
    assert relative(ours(**low), linear_everywhere(**{key: x.double() for key, x in low.items()})) < 5e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(ours(**low), expected["output"]) < 5e-6


def test_what_came_before_joins_attention_over_all_tokens():
    inputs = tokens()
    _, before = mixers.linear_attention(**{key: x[:, :9] for key, x in inputs.items()}, causal=False)
    rest = {key: x[:, 9:] for key, x in inputs.items()}
    output, state = mixers.linear_attention(**rest, causal=False, initial_state=before)
    whole = mixers.linear_attention(**inputs, causal=False)
    torch.testing.assert_close(output, whole.output[:, 9:])
    torch.testing.assert_close(state, whole.state)


def test_long_half_precision_sums_do_not_overflow():
    q = torch.full((1, 3000, 1, 64), 2.0, dtype=torch.float16)
    for causal in (True, False):
        output = mixers.linear_attention(q, q, q, causal=causal).output
        torch.testing.assert_close(output, q, rtol=1e-3, atol=0)


def test_a_feature_map_may_widen_and_a_scale_counts_without_the_denominator():
    inputs = tokens()

    def both(x):
        return torch.cat([x.relu(), (-x).relu()], -1)

    found = mixers.linear_attention(**inputs, feature_map=both, normalise=False, scale=0.5)
    assert found.state.shape == (B, H, 2 * K, V)
    expected = over_pairs(both(inputs["q"]), both(inputs["k"]), inputs["v"]) / 2
    torch.testing.assert_close(found.output, expected)


def test_one_group_is_shared_by_all_heads():
    inputs = DUAL | {"B": DUAL["B"][:, :, :1], "C": DUAL["C"][:, :, :1]}
    del inputs["start"]
    both = inputs | {"B": inputs["B"].expand(-1, -1, 2, -1), "C": inputs["C"].expand(-1, -1, 2, -1)}
    torch.testing.assert_close(mixers.ssd(**inputs), mixers.ssd(**both))
    without = {key: x for key, x in inputs.items() if key != "D"}
    expected = mixers.ssd(**inputs).output - inputs["D"][:, None] * inputs["x"]
    torch.testing.assert_close(mixers.ssd(**without).output, expected)


def test_default_decays():
    gates = mixers.retention_gates(8, dtype=torch.float64)
    torch.testing.assert_close(gates.exp(), 1 - 2.0 ** -torch.arange(5.0, 13, dtype=torch.float64))
    assert mixers.lightning_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    last = mixers.lightning_slopes(8, layer=3, layers=4)
    torch.testing.assert_close(last, mixers.lightning_slopes(8) * 1e-5, rtol=1e-2, atol=0)
    inputs = tokens()
    found = mixers.lightning(**inputs)
    slopes = mixers.lightning_slopes(H, dtype=torch.float64)
    torch.testing.assert_close(found.output, lightened(**inputs, slopes=slopes, start=None))


@pytest.mark.parametrize("strength", [0.0, -0.6, -20.0, -torch.inf])
def test_gates_of_any_strength(strength):
    for name in ("gla", "kda", "gated_delta_rule"):
        mixer, published, _ = CASES[name]
        inputs = inputs_of(name, torch.float32)
        inputs["g"] = torch.full_like(inputs["g"], strength)
        wide = {key: x.double() for key, x in inputs.items()}
        if name == "gla":
            # c_t - c_s is inf - inf there, so the pairs are no reference.
            wide["g"] = wide["g"].clamp_min(-800)
        found = carried(mixer)(**inputs).output
        assert relative(found, published(**wide)) < 5e-6


def test_the_reference_has_second_derivatives():
    inputs = {key: x[:1, :3, :1] for key, x in (tokens() | BETA | VECTOR).items()}
    inputs = {key: (x[..., :3] if x.dim() == 4 else x).clone() for key, x in inputs.items()}
    given = [x.requires_grad_() for x in inputs.values()]

    def run(*arguments):
        return mixers.kda(**dict(zip(inputs, arguments)), backend="reference")

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_it_compiles_whole_with_its_backward():
    inputs = inputs_of("gated_delta_rule", torch.float32)

    def loss(**given):
        return carried(mixers.gated_delta_rule)(**given).output

    weights = normal(20, B, T, H, V)
    compiled = with_gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"), inputs, weights)
    for key, expected in with_gradients(loss, inputs, weights).items():
        torch.testing.assert_close(compiled[key], expected, rtol=1e-4, atol=1e-5)


def test_function_transforms():
    inputs = inputs_of("retention", torch.float32)
    q, k, v = (inputs[key] for key in "qkv")

    def loss(q, k, v):
        return mixers.retention(q[None], k[None], v[None]).output.square().sum()

    found = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)))(q, k, v)
    given = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(mixers.retention(*given).output.square().sum(), given)
    torch.testing.assert_close(found, expected)


def refused(call, kind, *parts):
    with pytest.raises(kind) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_refusals_name_the_mixer_and_the_argument():
    q, k, v = tokens().values()
    beta, g = BETA["beta"], VECTOR["g"]
    refused(lambda: mixers.retention(q, k[:, :3], v), ValueError, "retention: k", "T=21")
    refused(lambda: mixers.retention(q, k, v.float()), TypeError, "retention: v", "float32")
    refused(lambda: mixers.retention(q, k, v, g), ValueError, "retention: g", "H=3")
    refused(lambda: mixers.lightning(q, k, v, slopes=g), ValueError, "lightning: slopes")
    refused(lambda: mixers.gla(q, k, v, g[..., 0]), ValueError, "gla: g", "K=8")
    refused(lambda: mixers.gla(q, k, v, None), TypeError, "gla: g", "NoneType")
    refused(lambda: mixers.delta_rule(q, k, v, g), ValueError, "delta_rule: beta")
    refused(lambda: mixers.delta_rule(q, k, v, beta + 1, check=True), ValueError, "beta", "0 to 2")
    refused(lambda: mixers.gated_delta_rule(q, k, v, g, beta), ValueError, "gated_delta_rule: g")
    refused(lambda: mixers.kda(q, k, v, g[..., 0], beta), ValueError, "kda: g")
    refused(lambda: mixers.rwkv7(q, g, k, v, q, beta), ValueError, "rwkv7: eta")
    refused(lambda: mixers.rwkv7(q, g, k, v, q, -q.abs(), check=True), ValueError, "rwkv7: eta")


def test_refusals_of_linear_attention_and_ssd():
    inputs, start = tokens(), START["start"]
    one, offsets = {key: x[:1] for key, x in inputs.items()}, torch.tensor([0, T])
    attend, ssd = mixers.linear_attention, mixers.ssd
    refused(lambda: attend(**inputs, feature_map="exp"), ValueError, "feature_map", "elu, relu")
    refused(lambda: attend(**one, causal=False, cu_seqlens=offsets), ValueError, "cu_seqlens", "causal")
    refused(lambda: attend(**inputs, initial_state=start), ValueError, "initial_state", "V=6")
    refused(lambda: attend(**inputs, causal=False, initial_state=start), ValueError, "initial_state", "V=6")
    given = {key: x for key, x in DUAL.items() if key != "start"}
    three = {key: given[key][:, :, [0, 1, 0]] for key in "BC"}
    refused(lambda: ssd(**given | {"B": three["B"]}), ValueError, "ssd: C", "G=3")
    refused(lambda: ssd(**given | three), ValueError, "ssd: B", "G=3")
    refused(lambda: ssd(**given | {"C": given["C"].float()}), TypeError, "ssd: C", "float32")
    refused(lambda: ssd(**given | {"D": given["D"][:2]}), ValueError, "ssd: D")
    refused(lambda: ssd(**given | {"dt": given["dt"][0]}), ValueError, "ssd: dt")


def test_linear_attention_over_all_tokens_takes_the_same_options():
    x = torch.ones(1, 2, 1, 3)
    with pytest.raises(ValueError, match="linear_attention: v is nan"):
        mixers.linear_attention(x, x, x * torch.nan, causal=False, check=True)
    with pytest.raises(TypeError, match="chunk"):
        mixers.linear_attention(x, x, x, causal=False, chunk=3)


def test_lightning_of_no_heads():
    x = torch.ones(1, 2, 0, 3)
    assert mixers.lightning(x, x, x).output.shape == x.shape
