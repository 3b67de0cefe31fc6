"""Gravity of all pairs: every form against the definition in float64, forward and backward."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from worldsim_kernels import explain, native
from worldsim_kernels.backends import interpreted, missing_triton
from worldsim_kernels.solve import nbody
from worldsim_kernels.solve.nbody import nbody_forces, nbody_potential

F64 = torch.float64
BOUNDS = {torch.float32: 3e-6, F64: 3e-15}
SHAPES = [(3, 9, 2), (2, 70, 3), (2, 65, 1), (0, 8, 2), (3, 5, 2), (1, 1, 3), (2, 0, 2)]
FORMS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(native.why_not("nbody") is not None, reason="no C")),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            missing_triton() is not None or not interpreted(), reason="NOT RUN: no Triton interpreter"
        ),
    ),
]


def bodies(rows, count, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, count, dim, generator=generator, dtype=F64)
    return x, torch.rand(rows, count, generator=generator, dtype=F64) + 0.1


def results(x, m, backend, softening=0.2):
    """Accelerations, potential energy, and the gradients of a sum that weighs both."""
    x, m = x.clone().requires_grad_(), m.clone().requires_grad_()
    a = nbody_forces(x, m, 1.3, softening, backend=backend)
    u = nbody_potential(x, m, 1.3, softening, backend=backend)
    weights = torch.arange(a.numel(), dtype=a.dtype).view_as(a).cos()
    total = (weights * a).sum() + (u * torch.arange(1, len(u) + 1, dtype=a.dtype)).sum()
    return [a.detach(), u.detach(), *torch.autograd.grad(total, (x, m))]


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_agrees_with_the_definition_in_float64(backend, shape, dtype):
    x, m = bodies(*shape)
    if backend == "native" and shape[1] < nbody.FEW:
        assert explain("nbody", positions=x, masses=m).chosen == "torch"
        return
    expected = results(x, m, "reference")
    for found, exact in zip(results(x.to(dtype), m.to(dtype), backend), expected):
        assert found.dtype is dtype
        assert found.shape == exact.shape
        assert float((found.double() - exact).norm()) <= BOUNDS[dtype] * float(exact.norm())


def test_the_definition_is_newtons_law():
    """Two masses: m_2 / d^2 towards each other, and energy -m_1 m_2 / d; the gradient is the force."""
    x, m = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]], dtype=F64), torch.tensor([3.0, 5.0], dtype=F64)
    a = nbody_forces(x, m)
    torch.testing.assert_close(a, torch.tensor([[[1.25, 0.0], [-0.75, 0.0]]], dtype=F64))
    assert float(nbody_potential(x, m)) == pytest.approx(-7.5, rel=1e-15)
    place = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nbody_potential(place, m).sum(), place)
    torch.testing.assert_close(-slope, m[:, None] * a)


@pytest.mark.parametrize("backend", FORMS[:2])
def test_gradients_by_finite_differences(backend):
    x, m = (each.requires_grad_() for each in bodies(1, 8, 2, seed=1))
    for function in (nbody_forces, nbody_potential):
        assert torch.autograd.gradcheck(lambda x, m: function(x, m, 0.7, 0.1, backend=backend), (x, m))  # noqa: B023
    shared = torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: nbody_forces(x.detach(), m, backend=backend), (shared,))


@pytest.mark.parametrize("backend", FORMS[:2])
def test_a_row_has_the_same_bits_in_every_batch_and_for_any_number_of_threads(backend):
    x, m = bodies(5, 300, 3)
    x[2, 7] = float("nan")
    together = results(x, m, backend)
    for i in (0, 4):
        alone = nbody_forces(x[i : i + 1], m[i : i + 1], 1.3, 0.2, backend=backend)
        assert torch.equal(alone[0], together[0][i])
    assert together[0][2].isnan().all()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = results(x, m, backend)
    finally:
        torch.set_num_threads(before)
    keep = [0, 1, 3, 4]
    for one, other in zip(again, together):
        assert torch.equal(one[keep], other[keep])


@pytest.mark.parametrize("backend", FORMS)
def test_bodies_at_one_place_give_nan_and_not_a_number_that_looks_right(backend):
    x, m = bodies(1, 9, 3)
    x[0, 1] = x[0, 0]
    a = nbody_forces(x, m, backend=backend)
    assert a[0, :2].isnan().all()
    assert a[0, 2:].isfinite().all()
    assert nbody_forces(x, m, 1.0, 0.1, backend=backend).isfinite().all()


def test_few_bodies_of_many_rows_take_the_chunks_of_the_torch_form(monkeypatch):
    x, m = bodies(3, 10, 2)
    whole = results(x, m, "torch")
    monkeypatch.setattr(nbody, "CHUNK", 3 * 10 * 2 * 4)
    assert all(torch.equal(a, b) for a, b in zip(results(x, m, "torch"), whole))


def test_transforms_and_what_is_refused():
    x, m = bodies(4, 3, 2)
    mapped = torch.vmap(lambda x, m: nbody_forces(x, m))(x.unflatten(0, (2, 2)), m.unflatten(0, (2, 2)))
    assert torch.equal(mapped.flatten(0, 1), nbody_forces(x, m))
    for arguments, kind, message in (
        ((x[0], m), ValueError, "positions has shape"),
        ((x, m[:, :2]), ValueError, "masses has shape"),
        ((x, m.float()), TypeError, "masses has dtype"),
        ((x.half(), m.half()), TypeError, "positions has dtype"),
        ((x, m, 1.0, -0.1), ValueError, "softening must not be negative"),
        ((x, m, torch.ones(())), TypeError, "gravity must be a number"),
    ):
        with pytest.raises(kind, match=message):
            nbody_forces(*arguments)
    four = torch.zeros(1, 8, 4)
    assert "1 to 3" in explain("nbody", positions=four, masses=four[..., 0]).reasons["native"]
    with pytest.raises(ValueError, match="4 components"):
        nbody_forces(four, four[..., 0], backend="native")
