"""The selective scan: every form against the float64 loop, and the properties a scan must have."""

import pytest
import torch

from worldsim_kernels import backends, selective_scan
from worldsim_kernels.selective import BACKENDS, NAMES

torch.set_num_threads(1)
FORMS = ("torch", "native")
LOW = {torch.float16: (2e-3, 2e-3), torch.bfloat16: (6e-3, 1.2e-2)}
ALL = frozenset(("D", "z", "delta_bias", "initial_state"))


def available(form):
    reason = BACKENDS["selective_scan"].reason(form)
    if form == "native" and reason is not None:
        pytest.skip(f"NOT RUN: {reason}")
    return form


@pytest.fixture(params=FORMS)
def form(request):
    return available(request.param)


def error(found, exact):
    """RMS of the difference over RMS of the exact values, which float32 may round to zero."""
    found, exact = found.detach().double(), exact.detach()
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(batch=2, length=37, channels=20, states=4, groups=None, present=ALL, low=torch.float32):
    """Named arguments; the sequences have dtype ``low``, parameters and state float32."""
    rows = (batch, length, states) if groups is None else (batch, length, groups, states)
    made = {
        "u": draw(batch, length, channels, seed=1).to(low),
        "delta": (draw(batch, length, channels, seed=2) - 1).to(low),
        "A": -(draw(channels, states, seed=3).exp().float()),
        "B": draw(*rows, seed=4).to(low),
        "C": draw(*rows, seed=5).to(low),
        "D": draw(channels, seed=6).float(),
        "z": draw(batch, length, channels, seed=7).to(low),
        "delta_bias": draw(channels, seed=8).float() / 2,
        "initial_state": draw(batch, channels, states, seed=9).float(),
    }
    return {name: x for name, x in made.items() if name not in ALL or name in present}


def solve(arguments, grads, **options):
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    made = selective_scan(**leaves, **options)
    slopes = torch.autograd.grad(made, list(leaves.values()), grads, allow_unused=True)
    found = {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), slopes)}
    return {"output": made.output, "state": made.state, **found}


def compare(arguments, forward, backward, backend, **options):
    made = selective_scan(**arguments, **options)
    grads = [draw(*x.shape, seed=10 + i).to(x.dtype) for i, x in enumerate(made)]
    double = {name: x.double() for name, x in arguments.items()}
    exact = solve(double, [g.double() for g in grads], backend="reference", **options)
    found = solve(arguments, grads, backend=backend, **options)
    for name, x in found.items():
        assert x.isfinite().all(), name
        assert error(x, exact[name]) <= (forward if name in ("output", "state") else backward), name


SIZES = {
    "many tiles, a full chunk": {"batch": 1, "length": 64, "channels": 160, "states": 16},
    "an odd number of everything": {"batch": 3, "length": 37, "channels": 21, "states": 5},
    "more states than lanes": {"length": 9, "channels": 3, "states": 19},
    "groups that no tile fills": {"length": 33, "channels": 36, "states": 8, "groups": 2},
    "one token": {"length": 1},
    "no token": {"length": 0},
}


@pytest.mark.parametrize("size", SIZES)
def test_forms_agree_with_the_float64_loop(form, size):
    compare(case(**SIZES[size]), 5e-6, 5e-6, form)


@pytest.mark.parametrize("absent", sorted(ALL))
def test_optional_arguments(form, absent):
    compare(case(present=ALL - {absent}), 5e-6, 5e-6, form)


def test_no_optional_argument_and_no_softplus(form):
    arguments = case(present=frozenset())
    compare(arguments, 5e-6, 5e-6, form)
    arguments["delta"] = arguments["delta"].abs()
    compare(arguments, 5e-6, 5e-6, form, delta_softplus=False)


@pytest.mark.parametrize("low", LOW)
def test_low_precision(form, low):
    compare(case(length=60, low=low), *LOW[low], form)


def test_float64_runs_in_float64():
    double = {name: x.double() for name, x in case(length=40).items()}
    compare(double, 1e-13, 1e-12, "torch")
    assert backends.explain("selective_scan", **double).chosen == "torch"
    with pytest.raises(ValueError, match="an argument is float64"):
        selective_scan(**double, backend="native")


@pytest.mark.parametrize("gate", [0.0, -0.6, -20.0, -150.0, -float("inf")])
def test_gates_of_any_strength(form, gate):
    """The gate is delta A, with delta = 1."""
    arguments = case(length=70, present=frozenset({"initial_state"}))
    arguments["delta"] = torch.ones_like(arguments["delta"])
    arguments["A"] = torch.full_like(arguments["A"], gate)
    compare(arguments, 5e-6, 5e-6, form, delta_softplus=False)


def test_extreme_steps(form):
    """Softplus far out on both sides, where it is e^x and x."""
    arguments = case(length=40)
    arguments["delta"] = torch.linspace(-80, 60, 40)[None, :, None].expand(2, 40, 20).clone()
    compare(arguments, 5e-6, 5e-6, form)


def test_a_nan_is_not_swallowed(form):
    for name in ("A", "delta", "u"):
        arguments = case()
        arguments[name].view(-1)[3] = torch.nan
        assert selective_scan(**arguments, backend=form).state.isnan().any(), name


def test_any_strides(form):
    arguments = case(length=41)
    arguments["u"] = draw(2, 20, 41).float().transpose(1, 2)
    arguments["delta"] = draw(2, 41, 40).float()[..., ::2]
    arguments["z"] = draw(41, 2, 60).float().transpose(0, 1)[..., 7:27]
    arguments["B"] = draw(2, 4, 41).float().transpose(1, 2)
    arguments["C"] = draw(4, 41, 8).float()[::2, :, ::2]
    arguments["A"] = -draw(4, 20).exp().float().T
    arguments["initial_state"] = draw(4, 20, 2).float().permute(2, 1, 0)
    compare(arguments, 5e-6, 5e-6, form)


def test_a_split_with_the_state_carried_is_the_whole(form):
    arguments = case(length=70)
    whole = selective_scan(**arguments, backend=form)
    timed, start = ("u", "delta", "B", "C", "z"), arguments.pop("initial_state")
    parts = []
    for tokens in (slice(0, 37), slice(37, None)):
        part = {name: x[:, tokens] if name in timed else x for name, x in arguments.items()}
        made = selective_scan(**part, initial_state=start, backend=form)
        start = made.state
        parts.append(made.output)
    torch.testing.assert_close(torch.cat(parts, 1), whole.output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(start, whole.state, atol=1e-5, rtol=1e-5)


def test_the_past_does_not_see_the_future(form):
    arguments = case(length=50)
    before = selective_scan(**arguments, backend=form).output
    for name in ("u", "delta", "B", "C", "z"):
        changed = arguments[name].clone()
        changed[:, 33:] += 1
        after = selective_scan(**{**arguments, name: changed}, backend=form).output
        assert torch.equal(before[:, :33], after[:, :33])


def test_bits_do_not_depend_on_threads():
    available("native")
    arguments = case(batch=1, length=2000, channels=200, states=8)
    grads = [torch.ones(1, 2000, 200), torch.ones(1, 200, 8)]
    try:
        one = solve(arguments, grads, backend="native")
        torch.set_num_threads(3)
        three = solve(arguments, grads, backend="native")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_it_is_a_state_scan_without_shared_heads(form):
    """A channel is an affine scan over its states."""
    from worldsim_kernels import affine_scan

    arguments = case(present=frozenset())
    u, delta, A, B, C = arguments.values()
    step = torch.nn.functional.softplus(delta)
    h = affine_scan((step[..., None] * A).exp(), (step * u)[..., None] * B[:, :, None], backend=form).output
    made = selective_scan(**arguments, backend=form)
    torch.testing.assert_close(made.output, (h * C[:, :, None]).sum(-1), atol=1e-5, rtol=1e-5)


def test_the_reference_passes_gradcheck_twice():
    double = {name: x.double().requires_grad_() for name, x in case(1, 3, 2, 2).items()}

    def run(*tensors):
        return tuple(selective_scan(**dict(zip(double, tensors)), backend="reference"))

    assert torch.autograd.gradcheck(run, tuple(double.values()))
    assert torch.autograd.gradgradcheck(run, tuple(double.values()))


def test_the_operator_is_well_formed():
    arguments = case(1, 5, 3, 2, groups=1)
    ordered = [arguments[name].requires_grad_() for name in NAMES]
    torch.library.opcheck(torch.ops.worldsim.selective_scan.default, (*ordered, True, ""))


def test_it_compiles_whole():
    arguments = {name: x.requires_grad_() for name, x in case(length=9).items()}

    def loss(arguments):
        return selective_scan(**arguments).output.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(arguments), list(arguments.values()))
    exact = torch.autograd.grad(loss(arguments), list(arguments.values()))
    for x, y in zip(found, exact):
        torch.testing.assert_close(x, y)


def test_torch_func(form):
    arguments = case(6, 10)
    shared = {name: arguments.pop(name) for name in ("A", "D", "delta_bias")}
    split = {name: x.unflatten(0, (3, 2)) for name, x in arguments.items()}

    def loss(each, shared):
        return selective_scan(**each, **shared, backend=form).output.square().sum()

    slopes = torch.vmap(torch.func.grad(loss, (0, 1)), (0, None))(split, shared)
    for i in range(3):
        alone = torch.func.grad(loss, (0, 1))({name: x[i] for name, x in split.items()}, shared)
        for many, one in zip(slopes, alone):
            for name in one:
                torch.testing.assert_close(many[name][i], one[name], atol=1e-5, rtol=1e-4)


def test_second_derivatives_name_the_backend_that_has_them(form):
    arguments = case()
    u = arguments.pop("u").requires_grad_()
    made = selective_scan(u, **arguments, backend=form).output.square().sum()
    (slope,) = torch.autograd.grad(made, u, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        slope.sum().backward()


def test_errors_name_the_argument():
    good = case()
    for name, wrong, message in (
        ("A", good["A"].T, r"A has shape \[4, 20\]; expected \[D=20, N\]"),
        ("B", good["B"][:, 1:], r"B has shape \[2, 36, 4\]; expected \[B=2, T=37, N=4\]"),
        ("z", good["z"][..., 1:], "z has shape"),
        ("D", good["D"][1:], "D has shape"),
        ("delta_bias", good["delta_bias"][None], "delta_bias has shape"),
        ("initial_state", good["initial_state"][:1], "initial_state has shape"),
        ("delta", good["delta"][:1], "delta has shape"),
        ("A", good["A"][:, :0], "at least one channel and state"),
    ):
        with pytest.raises(ValueError, match=message):
            selective_scan(**{**good, name: wrong})
    with pytest.raises(ValueError, match="B has 3 groups"):
        selective_scan(**case(groups=3))
    with pytest.raises(TypeError, match="u has dtype"):
        selective_scan(**{**good, "u": good["u"].int()})
    good["C"][1, 2, 3] = torch.inf
    with pytest.raises(ValueError, match=r"C is inf at \[1, 2, 3\]"):
        selective_scan(**good, check=True)


def test_the_choice_is_explained():
    available("native")
    assert backends.explain("selective_scan", **case()).chosen == "native"
    wide = backends.explain("selective_scan", **case(length=1, channels=1, states=300))
    assert wide.chosen == "torch"
    assert "at most 256 states" in wide.reasons["native"]


def test_what_is_no_tensor_is_named():
    u = torch.ones(1, 2, 3)
    with pytest.raises(TypeError, match="selective_scan: B must be a tensor, not NoneType"):
        selective_scan(u, u, -torch.ones(3, 2), None, torch.ones(1, 2, 2))
