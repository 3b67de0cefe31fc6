"""The scan of affine maps: every form against the float64 loop, and the properties a scan must have."""

import pytest
import torch

from worldsim_kernels import affine_scan, backends
from worldsim_kernels.affine import BACKENDS, affine_scan_reference, associative_scan

torch.set_num_threads(1)
FORMS = ("torch", "native")
LOW = {torch.float16: (2e-3, 2e-3), torch.bfloat16: (6e-3, 1.2e-2)}


def available(form):
    reason = BACKENDS["affine_scan"].reason(form)
    if form == "native" and reason is not None:
        pytest.skip(f"NOT RUN: {reason}")
    return form


@pytest.fixture(params=FORMS)
def form(request):
    return available(request.param)


def error(found, exact):
    """RMS of the difference over RMS of the exact values."""
    found, exact = found.detach().double(), exact.detach()
    return float((found - exact).norm() / exact.norm().clamp(min=1e-300))


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(batch, length, lanes, dtype=torch.float32):
    a = draw(batch, length, lanes, seed=1).sigmoid().to(dtype)
    return a, draw(batch, length, lanes, seed=2, dtype=dtype), draw(batch, lanes, seed=3)


def solve(arguments, grads, **options):
    """Output, state and gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in arguments]
    made = affine_scan(*leaves, **options)
    slopes = torch.autograd.grad(made, leaves, grads, allow_unused=True)
    return [*made, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, slopes))]


def compare(arguments, forward, backward, **options):
    made = affine_scan(*arguments)
    grads = [draw(*x.shape, seed=9, dtype=x.dtype) for x in made]
    reverse = options.get("reverse", False)
    exact = solve(
        [x.double() for x in arguments], [g.double() for g in grads], backend="reference", reverse=reverse
    )
    found = solve(arguments, grads, **options)
    for name, x, y in zip(("output", "state", "a", "b", "initial"), found, exact):
        assert error(x, y) <= (forward if name in ("output", "state") else backward), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [(2, 37, 5), (1, 130, 70), (2, 1, 3), (1, 0, 2), (0, 4, 2), (2, 64, 1)])
def test_forms_agree_with_the_float64_loop(form, size, reverse):
    compare(case(*size), 5e-6, 5e-6, backend=form, reverse=reverse)


@pytest.mark.parametrize("dtype", LOW)
def test_low_precision(form, dtype):
    compare(case(2, 60, 20, dtype), *LOW[dtype], backend=form)


def test_float64_stays_float64(form):
    compare([x.double() for x in case(2, 50, 20)], 1e-14, 1e-13, backend=form)


def test_a_decay_in_float32_keeps_a_low_precision_input_accurate(form):
    a = 1 - draw(1, 300, 4).sigmoid() / 1000
    b = draw(1, 300, 4, seed=2).bfloat16()
    made = affine_scan(a, b, backend=form)
    exact = affine_scan_reference(a.double(), b.double())
    assert made.output.dtype == torch.bfloat16
    assert made.state.dtype == torch.float32
    assert error(made.state, exact.state) <= 5e-6


@pytest.mark.parametrize("decay", [1.0, 0.5488, 2e-9, 0.0, -0.9])
def test_constant_decays(form, decay):
    compare((torch.full((1, 200, 8), decay), *case(1, 200, 8)[1:]), 5e-6, 5e-6, backend=form)


@pytest.mark.parametrize("shape", [(5,), (1,), (17, 1), (2, 17, 1), (1, 17, 5), ()])
def test_a_broadcasts(form, shape):
    a, b = draw(*shape, seed=1).sigmoid(), draw(2, 17, 5)
    leaves = [a.requires_grad_(), b]
    exact = affine_scan_reference(a.double(), b.double()).output
    found = affine_scan(*leaves, backend=form).output
    assert error(found.detach(), exact.detach()) <= 5e-6
    slope, true = (torch.autograd.grad(x.square().sum(), a)[0] for x in (found, exact))
    assert error(slope, true.double()) <= 5e-6


@pytest.mark.parametrize("lanes", [(), (3, 2), (2, 1, 4)])
def test_any_axes_of_lanes(form, lanes):
    a, b, start = draw(2, 9, *lanes).sigmoid(), draw(2, 9, *lanes, seed=2), draw(2, *lanes, seed=3)
    made = affine_scan(a, b, start, backend=form)
    exact = affine_scan_reference(a.double(), b.double(), start.double())
    assert made.output.shape == b.shape
    assert made.state.shape == start.shape
    assert error(made.output, exact.output) <= 5e-6


@pytest.mark.parametrize("reverse", [False, True])
def test_any_strides(form, reverse):
    a, b, start = draw(2, 6, 41).transpose(1, 2).sigmoid(), draw(4, 41, 12)[::2, :, ::2], draw(6, 2).T
    compare((a, b, start), 5e-6, 5e-6, backend=form, reverse=reverse)


def test_a_split_with_the_state_carried_is_the_whole(form):
    a, b, start = case(2, 50, 7)
    whole = affine_scan(a, b, start, backend=form)
    first = affine_scan(a[:, :23], b[:, :23], start, backend=form)
    second = affine_scan(a[:, 23:], b[:, 23:], first.state, backend=form)
    torch.testing.assert_close(
        torch.cat([first.output, second.output], 1), whole.output, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(second.state, whole.state, atol=1e-6, rtol=1e-5)


def test_the_past_does_not_see_the_future(form):
    a, b, _ = case(1, 40, 3)
    later = b.clone()
    later[:, 25:] += 1
    before, after = (affine_scan(a, x, backend=form).output for x in (b, later))
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


def test_bits_do_not_depend_on_threads():
    a, b, start = case(3, 4000, 300)
    available("native")
    try:
        grads = [torch.ones_like(b), torch.ones_like(start)]
        one = solve((a, b, start), grads, backend="native")
        torch.set_num_threads(3)
        three = solve((a, b, start), grads, backend="native")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(x, y) for x, y in zip(one, three))


def test_only_what_is_asked_for_is_differentiated(form):
    a, b, start = case(1, 20, 3)
    b.requires_grad_()
    made = affine_scan(a, b, start, backend=form)
    (alone,) = torch.autograd.grad(made.state.sum(), b, retain_graph=True)
    exact = b.detach().double().requires_grad_()
    state = affine_scan_reference(a.double(), exact, start.double()).state
    assert error(alone, torch.autograd.grad(state.sum(), exact)[0]) <= 5e-6


def test_the_reference_passes_gradcheck_twice():
    arguments = [x.double().requires_grad_() for x in case(1, 4, 2)]
    assert torch.autograd.gradcheck(affine_scan_reference, arguments)
    assert torch.autograd.gradgradcheck(affine_scan_reference, arguments)


def test_the_operator_is_well_formed():
    a, b, start = (x.requires_grad_() for x in case(2, 5, 3))
    torch.library.opcheck(torch.ops.worldsim.affine_scan.default, (a, b, start, False, ""))


def test_it_compiles_whole():
    a, b, start = (x.requires_grad_() for x in case(2, 12, 3))

    def loss(a, b, start):
        return affine_scan(a, b, start).output.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(a, b, start), (a, b, start))
    exact = torch.autograd.grad(loss(a, b, start), (a, b, start))
    for x, y in zip(found, exact):
        torch.testing.assert_close(x, y)


def test_torch_func(form):
    a, b, start = (x.unflatten(0, (3, 2)) for x in case(6, 10, 4))

    def loss(a, b, start):
        return affine_scan(a, b, start, backend=form).output.square().sum()

    slopes = torch.vmap(torch.func.grad(loss))(a, b, start)
    for i in range(3):
        torch.testing.assert_close(slopes[i], torch.func.grad(loss)(a[i], b[i], start[i]))


def test_second_derivatives_name_the_backend_that_has_them(form):
    a, b, _ = (x.requires_grad_() for x in case(1, 5, 2))
    (slope,) = torch.autograd.grad(affine_scan(a, b, backend=form).output.sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        slope.sum().backward()


def test_errors_name_the_argument():
    a, b, start = case(2, 5, 3)
    with pytest.raises(ValueError, match=r"a has shape \[2, 5, 4\]; expected \[2, 5, 3\]"):
        affine_scan(torch.ones(2, 5, 4), b)
    with pytest.raises(ValueError, match="initial has shape"):
        affine_scan(a, b, start[:1])
    with pytest.raises(ValueError, match="b has shape"):
        affine_scan(a, b[0, 0])
    with pytest.raises(TypeError, match="a has dtype"):
        affine_scan(a.int(), b)
    with pytest.raises(ValueError, match=r"b is nan at \[1, 2, 0\]"):
        affine_scan(a, torch.where(b == b[1, 2, 0], torch.nan, b), check=True)


def test_the_choice_is_explained():
    available("native")
    a, b, _ = case(1, 3, 2)
    assert backends.explain("affine_scan", a=a, b=b).chosen == "native"
    assert backends.explain("affine_scan").chosen == "native"


@pytest.mark.parametrize("method", ["odd_even", "hillis_steele"])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 8, 37])
def test_log_depth_forms_agree_with_the_loop(method, length):
    a, b, start = (x.double() for x in case(2, length, 3))
    maps = associative_scan(a, b, method)
    exact = affine_scan_reference(a, b, start)
    torch.testing.assert_close(
        maps.decay * start[:, None] + maps.offset, exact.output, atol=1e-13, rtol=1e-13
    )


@pytest.mark.parametrize("method", ["odd_even", "hillis_steele"])
def test_log_depth_forms_pass_gradcheck(method):
    a, b, _ = (x.double().requires_grad_() for x in case(1, 7, 2))
    assert torch.autograd.gradcheck(lambda a, b: associative_scan(a, b, method), (a, b))


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_is_no_tensor_is_named(name):
    given = dict.fromkeys("ab", torch.ones(1, 2, 3)) | {name: 0.5}
    for scan in (affine_scan, associative_scan):
        with pytest.raises(TypeError, match=f"{scan.__name__}: {name} must be a tensor, not float"):
            scan(**given)


def test_an_unknown_method_is_refused():
    x = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="method is 'blelloch'; expected odd_even or hillis_steele"):
        associative_scan(x, x, "blelloch")


def test_an_output_of_no_steps_gives_the_initial_state_no_gradient():
    b, initial = torch.ones(2, 0, 3), torch.ones(2, 3, requires_grad=True)
    affine_scan(b, b, initial, backend="torch").output.sum().backward()
    assert torch.equal(initial.grad, torch.zeros(2, 3))
