"""Every backend of the row operations against their definitions in float64, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from worldsim_kernels import explain, modulate, native, rms_norm, rotary, rows, swiglu, token_shift, use, xpos

torch.set_num_threads(1)
BOUNDS = {torch.float32: (5e-6, 5e-6), torch.float16: (2e-3, 2e-3), torch.bfloat16: (6e-3, 1.2e-2)}
F64 = torch.float64


@pytest.fixture(params=["native", "torch"])
def backend(request):
    if request.param == "native" and native.why_not("rows"):
        pytest.skip("NOT RUN: no C compiler")
    return request.param


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


# 300 rows of one group are more than two blocks of the C form; 37 is no multiple of its vectors.
CASES = {
    "rms_norm": (lambda *a, **o: rms_norm(*a, **o).output, [(2, 150, 37), (37,)]),
    "rms_norm plain": (lambda x, **o: rms_norm(x, **o).output, [(5, 64)]),
    "rms_norm residual": (
        lambda x, r, w, scale, shift, **o: rms_norm(x, w, residual=r, scale=scale, shift=shift, **o),
        [(3, 150, 37), (3, 150, 37), (37,), (3, 37), (3, 37)],
    ),
    "rms_norm each row": (
        lambda x, w, scale, **o: rms_norm(x, w, scale=scale, **o).output,
        [(3, 5, 19), (19,), (3, 5, 19)],
    ),
    "modulate": (modulate, [(3, 150, 37), (3, 37), (3, 37)]),
    "modulate all": (modulate, [(300, 16), (16,), (16,)]),
    "swiglu": (swiglu, [(3, 5, 37), (3, 5, 37)]),
    "token_shift": (token_shift, [(2, 300, 37), (37,), (2, 37)]),
    "token_shift six": (token_shift, [(2, 5, 19), (6, 19), (2, 19)]),
    "token_shift one": (token_shift, [(2, 1, 19), (19,)]),
}


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def tensors(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


def errors(run, inputs, backend):
    """Largest relative error of the outputs, and of the gradients of all inputs, to float64."""
    low = [x.detach().requires_grad_() for x in inputs]
    high = [x.detach().double().requires_grad_() for x in inputs]
    found, expected = tensors(run(*low, backend=backend)), tensors(run(*high, backend="reference"))
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in found]
    mine = torch.autograd.grad(found, low, grads)
    theirs = torch.autograd.grad(expected, high, [grad.double() for grad in grads])
    assert all(a.dtype == b.dtype for a, b in zip(mine, low))
    return max(map(error, found, expected)), max(map(error, mine, theirs))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_definition_in_float64(case, dtype, backend, normal):
    run, shapes = CASES[case]
    forward, backward = errors(run, [normal(*shape).to(dtype) for shape in shapes], backend)
    assert forward <= BOUNDS[dtype][0]
    assert backward <= BOUNDS[dtype][1]


@pytest.mark.parametrize("case", CASES)
def test_float64_stays_float64(case, backend, normal):
    run, shapes = CASES[case]
    assert max(errors(run, [normal(*shape).double() for shape in shapes], backend)) < 1e-14


@pytest.mark.parametrize("case", CASES)
def test_the_reference_has_right_derivatives(case, normal):
    run, shapes = CASES[case]
    small = [normal(*(min(n, 3) for n in shape)).double().requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *a: tuple(tensors(run(*a, backend="reference"))), small)
    if "one" not in case:
        assert torch.autograd.gradgradcheck(
            lambda *a: tuple(tensors(run(*a, backend="reference"))), small, atol=1e-4
        )


@pytest.mark.parametrize("case", ["rms_norm residual", "modulate", "swiglu", "token_shift"])
def test_any_strides(case, backend, normal):
    run, shapes = CASES[case]
    dense = [normal(*shape) for shape in shapes]
    # Rows in a wider tensor, then channels two apart, then axes permuted.
    wide = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in dense]
    apart = [x.repeat_interleave(2, -1)[..., ::2] for x in dense]
    permuted = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in dense]
    for strided in (wide, apart, permuted):
        assert max(errors(run, strided, backend)) <= 5e-6


def test_the_halves_of_a_projection_are_read_where_they_lie(backend, normal):
    a, b = normal(4, 6, 64).chunk(2, -1)
    assert rows._rows(a).data_ptr() == a.data_ptr()
    assert torch.equal(swiglu(a, b, backend=backend), swiglu(a.clone(), b.clone(), backend=backend))


def test_swiglu_at_the_ends(backend):
    a = torch.tensor([-1e30, -200.0, -100.0, -0.0, 0.0, 100.0, 1e30], requires_grad=True)
    y = swiglu(a, torch.ones(7), backend=backend)
    assert y.tolist() == pytest.approx([0, 0, 0, 0, 0, 100, 1e30])
    (da,) = torch.autograd.grad(y.sum(), a)
    assert da.tolist() == pytest.approx([0, 0, 0, 0.5, 0.5, 1, 1])


def test_rms_norm_is_torchs(backend, normal):
    x, w = normal(50, 100), normal(100)
    torch.testing.assert_close(
        rms_norm(x, w, backend=backend).output, F.rms_norm(x, (100,), w, 1e-6), rtol=5e-7, atol=0
    )
    y = modulate(x, torch.zeros(100), torch.zeros(100), backend=backend)
    assert error(y, F.layer_norm(x.double(), (100,), eps=1e-6)) < 2e-7


def test_the_derivative_at_zero_is_finite(backend):
    x = torch.zeros(3, 8, requires_grad=True)
    y = rms_norm(x, eps=1e-6, backend=backend).output
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.full((3, 8), 1e3))


def test_a_stream_is_normalised_and_carried_on(backend, normal):
    x, stream = normal(4, 8).bfloat16(), normal(4, 8)
    y, total = rms_norm(x, residual=stream, backend=backend)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(total, x.float() + stream, rtol=0, atol=0)
    alone = rms_norm(stream, backend=backend)
    assert alone.residual is stream


@pytest.mark.parametrize("mu", [(8,), (6, 8)])
def test_token_shift_in_parts_is_that_of_the_whole(mu, backend, normal):
    x, mu = normal(2, 9, 8), normal(*mu)
    whole = token_shift(x, mu, backend=backend)
    last, parts = None, []
    for start, end in ((0, 1), (1, 1), (1, 4), (4, 9)):
        part, last = token_shift(x[:, start:end], mu, last, backend=backend)
        parts.append(part)
    assert torch.equal(torch.cat(parts, -2), whole.output)
    assert torch.equal(last, whole.last)
    assert torch.equal(last, x[:, -1])


def test_token_shift_does_not_see_the_future(backend, normal):
    x, mu = normal(1, 6, 4), normal(4)
    later = x.clone()
    later[:, 3:] += 1
    before, after = (token_shift(each, mu, backend=backend).output for each in (x, later))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


def test_no_rows(backend):
    x, none = torch.zeros(2, 0, 8, requires_grad=True), torch.zeros(2, 8, requires_grad=True)
    for y in (
        rms_norm(x, torch.ones(8), scale=none, backend=backend).output,
        modulate(x, none, none, backend=backend),
        swiglu(x, x, backend=backend),
    ):
        assert y.shape == x.shape
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    y, last = token_shift(x, torch.ones(3, 8), none, backend=backend)
    assert y.shape == (3, 2, 0, 8)
    assert torch.equal(last, none)
    assert torch.autograd.grad(last.sum(), none)[0].eq(1).all()


def test_the_same_bits_whatever_the_number_of_threads(normal):
    if native.why_not("rows"):
        pytest.skip("NOT RUN: no C compiler")
    x, w, scale, shift = normal(4, 500, 1024), normal(1024), normal(4, 1024), normal(4, 1024)

    def all_of():
        leaves = [each.clone().requires_grad_() for each in (x, w, scale, shift)]
        y = rms_norm(leaves[0], leaves[1], scale=leaves[2], shift=leaves[3], backend="native").output
        z = token_shift(leaves[0], leaves[1], backend="native").output
        u = swiglu(leaves[0], y, backend="native")
        return [y, z, u, *torch.autograd.grad((z * z + u).sum(), leaves)]

    one = all_of()
    try:
        torch.set_num_threads(2)
        two = all_of()
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (rows._NORM, ((6, 5), (6, 5), (5,), (2, 5), (2, 5), 1e-6, False)),
        (rows._NORM, ((6, 5), None, None, (2, 5), None, 1e-6, True)),
        (rows._SWIGLU, ((6, 5), (6, 5))),
        (rows._SHIFT, ((2, 4, 5), (3, 5), (2, 5))),
    ],
    ids=["rms_norm", "modulate", "swiglu", "token_shift"],
)
def test_operators_are_well_made(operator, arguments, normal):
    made = [normal(*a).requires_grad_() if isinstance(a, tuple) else a for a in arguments]
    torch.library.opcheck(operator._forward.default, (*made, "torch"))


def test_compiles_whole_with_its_backward(normal):
    def block(x, w, mu, scale):
        r, k = token_shift(x, mu).output
        return rms_norm(swiglu(r, k), w, scale=scale, residual=x).output.square().sum()

    leaves = [normal(*shape).requires_grad_() for shape in ((2, 6, 8), (8,), (2, 8), (2, 8))]
    expected = torch.autograd.grad(block(*leaves), leaves)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(torch.autograd.grad(compiled(*leaves), leaves), expected):
        torch.testing.assert_close(mine, theirs)


def test_under_vmap_and_grad(normal):
    x, w, scale, mu = normal(3, 2, 5, 8), normal(8), normal(3, 2, 8), normal(3, 2, 8)

    def loss(x, w, scale, mu):
        y = rms_norm(x, w, scale=scale).output
        return (swiglu(y, x) + token_shift(modulate(x, scale, scale), mu).output.sum(0)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)), (0, None, 0, 0))(x, w, scale, mu)
    for n in range(3):
        leaves = [each.clone().requires_grad_() for each in (x[n], w, scale[n], mu[n])]
        for all_of, one in zip(found, torch.autograd.grad(loss(*leaves), leaves)):
            torch.testing.assert_close(all_of[n], one)


def test_second_derivatives_name_the_backend_that_has_them(normal):
    x = normal(2, 8).requires_grad_()
    (dx,) = torch.autograd.grad(rms_norm(x).output.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        dx.sum().backward()
    with use("reference"):
        (dx,) = torch.autograd.grad(rms_norm(x).output.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda x: rms_norm(x, torch.ones(7)), ValueError, r"rms_norm: weight has shape \[7\]; .*D=8"),
        (lambda x: rms_norm(x, residual=x[:1]), ValueError, "residual has shape"),
        (lambda x: rms_norm(torch.tensor(1.0)), ValueError, "rms_norm: x has shape"),
        (lambda x: rms_norm(x.long()), TypeError, "rms_norm: x has dtype"),
        (lambda x: modulate(x, x[:, :1, :], x), ValueError, "modulate: scale has shape"),
        (lambda x: modulate(x, x, x[:, 0]), ValueError, "shift has shape .* that of scale"),
        (lambda x: swiglu(x, x[..., :4]), ValueError, "swiglu: b has shape"),
        (lambda x: rms_norm(x, eps="small"), TypeError, "rms_norm: eps must be a number, not str"),
        (lambda x: modulate(x, x, None), TypeError, "modulate: shift must be a tensor"),
        (lambda x: swiglu([1.0], x), TypeError, "swiglu: a must be a tensor"),
        (lambda x: swiglu(x.sum(), x), ValueError, "swiglu: a has shape"),
        (lambda x: token_shift(x, x[:0, 0]), ValueError, r"token_shift: mu has shape .*; expected \[M=1"),
        (lambda x: rotary(x[None], [0, 1]), TypeError, "rotary: positions must be a tensor"),
        (lambda x: swiglu(x, x.half()), TypeError, "swiglu: b has dtype"),
        (lambda x: token_shift(x[0], x[0, 0]), ValueError, "token_shift: x has shape"),
        (lambda x: token_shift(x, x[0, :, :5]), ValueError, "token_shift: mu has shape"),
        (lambda x: token_shift(x, x[0, 0], x[0, 0]), ValueError, "token_shift: previous has shape"),
        (lambda x: rotary(x[None, ..., :7]), ValueError, "rotary: x has 7 channels"),
        (lambda x: rotary(x[None], torch.zeros(9)), ValueError, "rotary: positions has shape"),
        (lambda x: xpos(x), ValueError, "xpos: x has shape"),
    ],
)
def test_errors_name_the_argument(call, kind, words, normal):
    with pytest.raises(kind, match=words):
        call(normal(2, 3, 8))


def test_an_absent_triton_says_why(normal):
    x = normal(2, 8).double()
    assert explain("rms_norm", x=x).reasons["triton"] is not None
    assert explain("swiglu").chosen in ("native", "torch")


def turns(rotate, width, x):
    """Rotation by -theta undoes it, and products depend on distances alone."""
    torch.testing.assert_close(rotate(rotate(x, torch.arange(5)), -torch.arange(5)), x)
    q, k = x[:, :1], x[:, 1:2]

    def product(s, t):
        return (rotate(q, torch.tensor([s])) * rotate(k, torch.tensor([t]))).sum((1, 3))

    torch.testing.assert_close(product(7, 3), product(1_000_004, 1_000_000), rtol=1e-9, atol=1e-9)


def test_the_last_of_no_tokens_has_a_gradient(normal):
    previous = normal(3, 8).requires_grad_()
    output, last = token_shift(normal(3, 0, 8), normal(8), previous)
    (unused,) = torch.autograd.grad(output.sum(), previous, retain_graph=True)
    assert torch.equal(unused, torch.zeros(3, 8))
    assert torch.equal(torch.autograd.grad(last.sum(), previous)[0], torch.ones(3, 8))


@pytest.mark.parametrize("rotate", [rotary, xpos, lambda x, t: rotary(x, t, interleaved=False)])
def test_rotations(rotate, normal):
    turns(rotate, 8, normal(2, 5, 3, 8).double())


def test_angles_of_rotations():
    one = torch.zeros(1, 3, 1, 8)
    one[..., 0::2] = 1
    for rotate, speeds in (
        (rotary, [1, 1e-1, 1e-2, 1e-3]),
        (xpos, [1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4]),
    ):
        angles = torch.arange(3, dtype=F64)[:, None] * torch.tensor(speeds, dtype=F64)
        expected = torch.stack([angles.cos(), angles.sin()], -1).flatten(1)
        torch.testing.assert_close(rotate(one)[0, :, 0].double(), expected, rtol=1e-6, atol=1e-7)
    halves = rotary(torch.tensor([1.0, 1, 0, 0]).expand(1, 2, 1, 4), interleaved=False)[0, 1, 0]
    torch.testing.assert_close(
        halves,
        torch.tensor([1.0, 0.01, 1, 0.01], dtype=F64)
        .cos()
        .float()
        .where(torch.tensor([True, True, False, False]), torch.tensor([1.0, 0.01, 1, 0.01]).sin()),
    )


def test_positions_of_millions_and_of_each_sample(normal):
    x = normal(2, 3, 1, 8)
    far = torch.tensor([[0, 1, 2], [4_000_000, 4_000_001, 4_000_002]])
    assert error(rotary(x, far), rotary(x.double(), far)) < 2e-7
    torch.testing.assert_close(rotary(x, far)[:1], rotary(x[:1]))
