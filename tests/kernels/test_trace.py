"""Fields recorded as programs of scalars: that they compute what the field does, and what is refused."""

import pytest
import torch

from worldsim_kernels.solve import ODE, Hamiltonian, Separable
from worldsim_kernels.solve.trace import Refused
from worldsim_kernels.solve.traced import compare, evaluate, traced

D = torch.float64
MATRIX = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=D)
LAYER = torch.nn.Linear(3, 3).double()


def rows(*shape, dtype=D):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, *shape, generator=generator, dtype=D).to(dtype)


def program(term, y):
    """The program of a term, after it was compared with the term."""
    t = torch.zeros(len(y), dtype=D)
    found = traced(term, t, t + 2, y)
    compare(found, term, t, t + 2, y, lambda *given: evaluate(found.program, *given))
    return found


def lorenz(t, y, rho):
    x, v, z = y.unbind(-1)
    return torch.stack([10 * (v - x), x * (rho - z) - v, x * v - 8 / 3 * z], -1)


def written_in_place(t, y):
    out = torch.zeros_like(y)
    out[..., 0] = y[..., 1]
    out[..., 1:] += y[..., 1:] * t[:, None]
    out[:, 2].mul_(3).sub_(y[:, 0])
    kept = torch.empty(3, dtype=y.dtype)
    kept.fill_(2.0)
    kept[1] = -1.0
    return out * kept


def overwritten_constant(t, y):
    scale = torch.ones(3, dtype=y.dtype)
    first = y * scale
    scale[0] = 5.0
    return first + y * scale


def pairs(t, y):
    gap = y[:, :, None] - y[:, None]
    square = (gap * gap).sum(-1, keepdim=True) + 0.1
    return -(gap / (square * square.sqrt())).sum(2)


FIELDS = {
    "unbind and stack": (lambda t, y: lorenz(t, y, 28.0), (3,)),
    "in place": (written_in_place, (3,)),
    "constant overwritten after its use": (overwritten_constant, (3,)),
    "pairs": (pairs, (4, 2)),
    "chunk": (lambda t, y: torch.cat(y.chunk(2, -1)[::-1], -1), (4,)),
    "powers": (lambda t, y: y**2 - y**3 + y**-1 + y**5 + (y * y) ** 1.5 + (y * y) ** -0.5 + y**0, (3,)),
    "elementary": (lambda t, y: y.sin() + y.exp().log1p() * y.tanh() - torch.atan2(y, y.flip(-1)), (3,)),
    "kinks": (
        lambda t, y: torch.where((y > 0) & ~(y > 1), y.clamp(max=0.5), y.abs().relu() - y.sign()),
        (3,),
    ),
    "angles": (lambda t, y: torch.remainder(y, 2) + torch.minimum(y, y.flip(-1)) - y.floor(), (3,)),
    "activations": (
        lambda t, y: torch.nn.functional.silu(y) + y.sigmoid() + torch.nn.functional.softplus(y, 2.0),
        (3,),
    ),
    "taken apart": (lambda t, y: torch.softmax(y, -1) + torch.nn.functional.gelu(y), (3,)),
    "reductions": (
        lambda t, y: (
            y.sum(-1, keepdim=True) * y.mean(-1)[:, None]
            + y.amax(-1, True)
            + y.cumsum(-1)
            + y.norm(dim=-1)[:, None]
        ),
        (3,),
    ),
    "layers": (
        lambda t, y: LAYER(y).tanh() @ MATRIX + torch.einsum("bi,ij,bj->b", y, MATRIX, y)[:, None],
        (3,),
    ),
    "grid": (lambda t, y: torch.roll(y, 1, -1) - 2 * y + torch.roll(y, -1, -1) + y[:, [2, 0, 1, 3]], (4,)),
    "truths": (lambda t, y: (y > 0).double() * 2 - (y.sum(-1, True) > 0) * y, (3,)),
    "its own derivative": (
        lambda t, y: torch.func.vmap(torch.func.grad(lambda x: (x**4).sum() + x[0].sin() * x[1]))(y),
        (3,),
    ),
    "constant": (lambda t, y: torch.ones_like(y), (3,)),
    "time": (lambda t, y: (t * t)[:, None].expand_as(y), (3,)),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_program_computes_what_its_field_does(case):
    field, shape = FIELDS[case]
    y, t = rows(*shape), torch.linspace(0, 1, 5, dtype=D)
    found = program(ODE(field), y)
    slope = evaluate(found.program, t, y, found.arguments, found.data)
    torch.testing.assert_close(slope, field(t, y), rtol=1e-13, atol=1e-13)


def test_arguments_are_per_row_whatever_their_dtype():
    y = rows(3)
    args = (torch.arange(5.0, dtype=D), torch.arange(5), torch.arange(5) > 2, rows(2, 3).float())

    def field(t, y, a, b, c, d):
        return torch.where(c[:, None], y * a[:, None], y) + y * b[:, None] * d[:, 1]

    found = program(ODE(field, args), y)
    assert found.arguments.shape == (5, 6)  # what is not used is not among them
    t = torch.zeros(5, dtype=D)
    slope = evaluate(found.program, t, y, found.arguments, found.data)
    torch.testing.assert_close(slope, field(t, y, *args), rtol=1e-14, atol=0)


def test_terms_of_mechanics():
    y = rows(4)
    energy = Hamiltonian(lambda y: (y[..., 2:] ** 2).sum(-1) / 2 - y[..., :2].cos().prod(-1))
    halves = Separable(lambda p: p, lambda q: -q / (q * q).sum(-1, keepdim=True))
    for term in (energy, halves):
        found, t = program(term, y), torch.zeros(5, dtype=D)
        slope = evaluate(found.program, t, y, found.arguments, found.data)
        torch.testing.assert_close(slope, term(t, y), rtol=1e-13, atol=1e-13)


def test_a_parameter_is_data_and_a_number_is_part_of_the_program():
    weight = torch.nn.Parameter(torch.tensor(2.0, dtype=D))
    held = {"factor": 3.0}
    term, y, t = ODE(lambda t, y: y * weight.exp() * held["factor"]), rows(2), torch.zeros(5, dtype=D)
    first = program(term, y)
    with torch.no_grad():
        weight.fill_(-1.0)
    second = program(term, y)
    assert second.program is first.program
    held["factor"] = 4.0
    third = program(term, y)
    assert third.program is not first.program
    slope = evaluate(third.program, t, y, third.arguments, third.data)
    torch.testing.assert_close(slope, term(t, y), rtol=1e-14, atol=0)


def test_equal_operations_are_one():
    found = program(ODE(lambda t, y: (y[:, :1] * y[:, 1:]).expand(-1, 2) + (y[:, 1:] * y[:, :1])), rows(2))
    assert [node[0] for node in found.program.nodes] == ["y", "y", "mul", "add"]


counter = torch.zeros((), dtype=D)
REFUSED = {
    "control flow": (lambda t, y: y if y.sum() > 0 else -y, "control flow depends on the state"),
    "item": (lambda t, y: y * float(y[0, 0]), "control flow depends on the state"),
    "mixes rows": (lambda t, y: y - y.mean(0), "mixes rows"),
    "leaves torch": (lambda t, y: torch.from_numpy(y.numpy() * 2), "leaves torch"),
    "random": (lambda t, y: y + torch.randn_like(y), "random"),
    "lower precision": (lambda t, y: y.float().double(), "rounds to torch.float32"),
    "another dtype": (lambda t, y: y * (t.float() + 1)[:, None], "float32"),
    "complex": (lambda t, y: torch.polar(y, y).real, "complex128"),
    "solve": (lambda t, y: torch.linalg.solve(MATRIX + y[:, None], y), "_linalg_solve_ex"),
    "fails": (lambda t, y: y * y.new_ones(4), "must match the size"),
    "state": (lambda t, y: y + counter.add_(1), "did not make"),
    "large": (lambda t, y: (y.repeat(1, 200) @ torch.ones(600, 600, dtype=D))[:, :3], "20000 scalar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_program_is_refused_with_the_reason(case):
    field, words = REFUSED[case]
    with pytest.raises(Refused, match=words):
        program(ODE(field), rows(3))


def test_a_constant_field_does_not_vouch_for_one_that_hides_its_state():
    program(ODE(lambda t, y: torch.zeros_like(y) + 1), rows(3))
    with pytest.raises(Refused, match="leaves torch"):
        program(ODE(REFUSED["leaves torch"][0]), rows(3))
    program(ODE(lambda t, y: torch.zeros_like(y) + 1), rows(3))
