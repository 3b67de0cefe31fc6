"""The state recurrence: its reference against matrices, every backend against the reference."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import scan_cases as cases
import torch
from scan_cases import error, failures, gradients, made

from worldsim_kernels import backends, native, state_scan
from worldsim_kernels.scan import BACKENDS, state_scan_reference

torch.set_num_threads(1)

SHAPES = [
    (1, 0, 2, 4, 4),
    (3, 1, 1, 1, 1),
    (1, 32, 1, 8, 64),
    (1, 65, 1, 20, 130),
    (1, 34, 1, 64, 16),
    (1, 5, 1, 3, 33),
]
FORMS = [(gate, low, bonus) for gate in cases.GATES for low in (False, True) for bonus in (False, True)]
MISSING = native.why_not("state_scan")
needs_native = pytest.mark.skipif(MISSING is not None, reason=f"NOT RUN: {MISSING}")
BACKEND = [pytest.param("native", marks=needs_native), "torch"]


def on(backend):
    return lambda **arguments: state_scan(**arguments, backend=backend)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_reference_is_a_masked_product_of_matrices(scale):
    case = made("scalar", shape=(2, 9, 2, 4, 5), dtype=torch.float64, start=False)
    far = case["g"].cumsum(1)
    decay = (far[:, :, None] - far[:, None]).exp() * torch.ones(9, 9, dtype=torch.float64).tril()[:, :, None]
    scores = torch.einsum("bthk,bshk->btsh", case["q"], case["k"]) * decay
    output, state = state_scan_reference(**case, scale=scale)
    assert error(output, scale * torch.einsum("btsh,bshv->bthv", scores, case["v"])) < 1e-14
    last = (far[:, -1:] - far).exp()
    assert error(state, torch.einsum("bsh,bshk,bshv->bhkv", last, case["k"], case["v"])) < 1e-14


def test_the_reference_applies_the_transition_matrix():
    case = made("vector", low_rank=True, bonus=True, shape=(1, 6, 1, 4, 3), dtype=torch.float64)
    q, k, v, g, a, b = (case[name][0, :, 0] for name in ("q", "k", "v", "g", "a", "b"))
    state, expected = case["initial_state"][0, 0], []
    for t in range(6):
        written = torch.outer(k[t], v[t])
        expected.append((state + case["bonus"][0][:, None] * written).T @ q[t])
        state = (g[t].exp().diag() + torch.outer(b[t], a[t])) @ state + written
    output, final = state_scan_reference(**case)
    assert error(output[0, :, 0], torch.stack(expected)) < 1e-14
    assert error(final[0, 0], state) < 1e-14


@pytest.mark.parametrize("form", [("none", False, False), ("scalar", True, False), ("vector", True, True)])
def test_the_reference_has_first_and_second_derivatives(form):
    case = made(*form, shape=(1, 3, 1, 2, 2), dtype=torch.float64)
    names = list(case)
    given = [case[name].requires_grad_() for name in names]

    def run(*values):
        return tuple(state_scan(**dict(zip(names, values, strict=True)), backend="reference"))

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


@pytest.mark.parametrize("backend", BACKEND)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_gradient(backend, form):
    case = made(*form)
    assert not failures(gradients(on(backend), case, 0.5), case, 0.5)


@pytest.mark.parametrize("backend", BACKEND)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [("none", False, False), ("head", True, False), ("vector", False, True)])
def test_every_dtype(backend, dtype, form):
    case = made(*form, dtype=dtype, shape=(1, 33, 2, 8, 8))
    assert not failures(gradients(on(backend), case), case)


@pytest.mark.parametrize("backend", BACKEND)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [("none", False, False), ("vector", True, True)])
def test_every_shape(backend, shape, form):
    case = made(*form, shape=shape)
    assert not failures(gradients(on(backend), case), case)


@pytest.mark.parametrize("backend", BACKEND)
@pytest.mark.parametrize("strength", [0.0, -0.6, -20.0, -torch.inf])
@pytest.mark.parametrize("form", [("scalar", False), ("vector", False), ("vector", True)])
def test_gates_from_none_to_all(backend, strength, form):
    case = made(*form, strength=strength, shape=(1, 70, 2, 16, 16))
    found = gradients(on(backend), case)
    assert all(x.isfinite().all() for x in found.values())
    assert not failures(found, case)


@pytest.mark.parametrize("backend", BACKEND)
@pytest.mark.parametrize("form", [("none", False, False), ("head", True, False), ("vector", True, True)])
def test_packed_sequences_are_separate_ones(backend, form):
    case = made(*form, shape=(1, 0, 2, 8, 16), lengths=(5, 0, 40, 1))
    assert not failures(gradients(on(backend), case), case)


@pytest.mark.parametrize("backend", BACKEND)
def test_any_strides(backend):
    case = made("vector", low_rank=True, bonus=True, shape=(2, 35, 2, 8, 12))

    def spread(x):
        """The same numbers, last axis first in memory, with gaps."""
        wide = x.new_full((x.shape[-1], 2, *x.shape[:-1]), torch.nan)
        wide[:, 0] = x.movedim(-1, 0)
        return wide[:, 0].movedim(0, -1)

    def run(scale, **arguments):
        return state_scan(**{name: spread(x) for name, x in arguments.items()}, scale=scale, backend=backend)

    assert not failures(gradients(run, case), case)


@pytest.mark.parametrize("backend", BACKEND)
@pytest.mark.parametrize("cut", [1, 32, 50])
def test_a_split_with_its_state_carried_is_the_whole(backend, cut):
    case = made("vector", low_rank=True, bonus=True, shape=(1, 70, 2, 16, 16))
    bonus, state = case.pop("bonus"), case.pop("initial_state")
    whole = state_scan(**case, bonus=bonus, initial_state=state, backend=backend)
    first = state_scan(
        **{n: x[:, :cut] for n, x in case.items()}, bonus=bonus, initial_state=state, backend=backend
    )
    rest = {n: x[:, cut:] for n, x in case.items()}
    last = state_scan(**rest, bonus=bonus, initial_state=first.state, backend=backend)
    assert error(torch.cat([first.output, last.output], 1), whole.output.double()) < 1e-6
    assert error(last.state, whole.state.double()) < 1e-6


@pytest.mark.parametrize("backend", BACKEND)
def test_the_past_does_not_see_the_future(backend):
    case = made("vector", low_rank=True, shape=(1, 70, 2, 16, 16))
    changed = {n: x.clone() for n, x in case.items()}
    for name in ("q", "k", "v", "a", "b"):
        changed[name][:, 41:] += 1
    before, after = (state_scan(**each, backend=backend).output[:, :41] for each in (case, changed))
    assert error(after, before.double()) < 1e-6


@needs_native
@pytest.mark.parametrize("form", [("none", False, False), ("vector", True, True)])
def test_the_number_of_threads_does_not_change_the_bits(monkeypatch, form):
    case = made(*form, shape=(1, 40, 3, 16, 70))
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(native, "threads", lambda work, n=threads: n)
        found.append(gradients(on("native"), case))
    for other in found[1:]:
        assert all(torch.equal(other[name], found[0][name]) for name in other)


@needs_native
def test_long_sequences_keep_few_states():
    """More chunks than are kept: the states between are made again."""
    case = made("none", shape=(1, 32 * 2048 + 40, 1, 1, 1), start=False)
    found = gradients(on("native"), case)
    q, k, v = (case[name].double().requires_grad_() for name in "qkv")
    output, state = (q * (k * v).cumsum(1)), (k * v).sum(1)[..., None]
    draw = torch.Generator().manual_seed(1)
    targets = [torch.randn(x.shape, generator=draw, dtype=torch.float64) for x in (output, state)]
    loss = (output * targets[0].float()).sum() + (state * targets[1].float()).sum()
    for name, expected in zip("qkv", torch.autograd.grad(loss, (q, k, v)), strict=True):
        assert error(found[name], expected) < 5e-6


@pytest.mark.parametrize("form", [("none", False, False), ("vector", True, True)])
def test_the_operator_is_registered_rightly(form):
    case = made(*form, shape=(2, 5, 2, 3, 4))
    given = {name: x.requires_grad_() for name, x in case.items()}
    names = ("q", "k", "v", "g", "a", "b", "bonus", "initial_state", "cu_seqlens")
    torch.library.opcheck(torch.ops.worldsim.state_scan, (*(given.get(n) for n in names), 0.5, ""))


def test_it_compiles_whole_with_its_backward():
    case = made("scalar", low_rank=True, shape=(1, 9, 2, 4, 4))
    compiled = torch.compile(lambda **x: state_scan(**x), fullgraph=True)
    found, expected = gradients(compiled, case), gradients(on(None), case)
    assert all(error(found[name], expected[name].double()) < 1e-6 for name in expected)


def test_vmap_and_grad_of_functions():
    case = made("vector", low_rank=True, bonus=True, shape=(3, 9, 2, 4, 4))
    bonus = case.pop("bonus")

    def run(bonus, arguments):
        return state_scan(**{n: x[None] for n, x in arguments.items()}, bonus=bonus)

    def loss(bonus, arguments):
        output, state = run(bonus, arguments)
        return output.square().sum() + state.sum()

    together = state_scan(**case, bonus=bonus)
    assert torch.allclose(torch.vmap(run, (None, 0))(bonus, case).output[:, 0], together.output, atol=1e-6)
    whole = torch.func.grad(lambda u, x: sum_of(state_scan(**x, bonus=u)), (0, 1))(bonus, case)
    each = torch.vmap(torch.func.grad(loss, (0, 1)), (None, 0))(bonus, case)
    assert torch.allclose(each[0].sum(0), whole[0], rtol=1e-4, atol=1e-4)
    assert all(torch.allclose(each[1][name], whole[1][name], rtol=1e-4, atol=1e-4) for name in case)


def sum_of(found):
    return found.output.square().sum() + found.state.sum()


def test_vmap_over_packed_rows():
    one, two = (made("scalar", shape=(1, 0, 2, 4, 4), lengths=(3, 6), seed=seed) for seed in (0, 1))
    offsets = one.pop("cu_seqlens")
    del two["cu_seqlens"]
    both = {name: torch.stack([one[name], two[name]]) for name in one}
    found = torch.vmap(lambda x: state_scan(**x, cu_seqlens=offsets))(both)
    for n, each in enumerate((one, two)):
        expected = state_scan(**each, cu_seqlens=offsets)
        assert torch.allclose(found.output[n], expected.output, atol=1e-6)
        assert torch.allclose(found.state[n], expected.state, atol=1e-6)


def test_higher_derivatives_name_the_backend_that_has_them():
    q, k, v = (torch.randn(1, 3, 1, 2, requires_grad=True) for _ in range(3))
    (first,) = torch.autograd.grad(state_scan(q, k, v).output.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        torch.autograd.grad(first.sum(), k)
    tangent = torch.func.jvp(lambda x: state_scan(x, k, v, backend="reference").output, (q,), (q,))[1]
    assert torch.allclose(tangent, state_scan(q, k, v).output, atol=1e-6)


WRONG = {
    "q": torch.zeros(1, 4, 2),
    "k": torch.zeros(1, 4, 2, 5),
    "v": torch.zeros(1, 5, 2, 6),
    "g": torch.zeros(1, 4, 2, 5),
    "a": torch.zeros(1, 4, 2, 2),
    "b": torch.zeros(1, 4, 2, 3, dtype=torch.float64),
    "bonus": torch.zeros(3),
    "initial_state": torch.zeros(2, 2, 3, 6),
    "cu_seqlens": torch.zeros(1, dtype=torch.int64),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_argument(name):
    case = made("vector", low_rank=True, bonus=True, shape=(1, 4, 2, 3, 6))
    with pytest.raises((TypeError, ValueError), match=f"state_scan: .*{name}"):
        state_scan(**{**case, name: WRONG[name]})


def test_errors_of_pairs_packs_and_values():
    case = made("scalar", low_rank=True, shape=(2, 4, 2, 3, 6))
    with pytest.raises(ValueError, match="b is missing"):
        state_scan(**{**case, "b": None})
    with pytest.raises(ValueError, match="B=2"):
        state_scan(**{**case, "cu_seqlens": torch.tensor([0, 4])})
    case["g"][1, 2, 0] = 0.5
    with pytest.raises(ValueError, match=r"g is 0\.5 at \[1, 2, 0\]"):
        state_scan(**case, check=True)
    case = made(shape=(1, 0, 1, 2, 2), lengths=(3, 4))
    case["cu_seqlens"][1] = 9
    with pytest.raises(ValueError, match="cu_seqlens is"):
        state_scan(**case, check=True)
    case["q"][0, 1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"q is nan at \[0, 1, 0, 1\]"):
        state_scan(**case, check=True)


@needs_native
def test_offsets_beyond_the_tokens_are_never_followed():
    case = made(shape=(1, 0, 1, 2, 2), lengths=(3, 4), start=False)
    case["cu_seqlens"][-1] = 900
    with pytest.raises(ValueError, match="cu_seqlens is"):
        state_scan(**case, backend="native")


@needs_native
def test_the_choice_is_explained():
    assert backends.explain("state_scan").chosen == "native"
    case = made(shape=(1, 4, 1, 2, 2))
    assert "native" in str(backends.explain("state_scan", **case))
    with backends.use("torch"):
        assert backends.explain("state_scan", **case).chosen == "torch"
    assert BACKENDS["state_scan"].choose("", **case) == "native"


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("offsets", [[0, 3], [0, 9], [0, 3, 2, 4], [-1, 4]])
def test_offsets_that_do_not_rise_to_the_length_are_refused(backend, offsets):
    q = torch.randn(1, 4, 2, 3)
    with pytest.raises(ValueError, match=r"cu_seqlens is \[.*T=4"):
        state_scan(q, q, q, cu_seqlens=torch.tensor(offsets), backend=backend)


@pytest.mark.parametrize("scale", ["a", torch.ones((), requires_grad=True)])
def test_a_scale_is_a_number(scale):
    q = torch.randn(1, 4, 2, 3)
    with pytest.raises(TypeError, match="state_scan: scale must be a number, not"):
        state_scan(q, q, q, scale=scale)


def test_the_reference_of_no_tokens_can_be_differentiated():
    q = torch.randn(2, 0, 1, 3, requires_grad=True)
    output, _ = state_scan(q, q, q, backend="reference")
    output.sum().backward()
    assert q.grad is not None
    assert q.grad.shape == q.shape
