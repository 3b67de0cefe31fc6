"""Gradients of a solve: against finite differences, against each other, and what they keep in memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from worldsim_kernels.solve import (
    ODE,
    PID,
    Constant,
    ContinuousAdjoint,
    Hamiltonian,
    Replay,
    Reversible,
    Save,
    Separable,
    SolveFailed,
    Status,
    ThroughSteps,
    solve,
)

D = torch.float64
TIGHT = PID(1e-10, 1e-10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def swinging(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
    return torch.stack([y[:, 1] * a[:, 0], -a[:, 1] * y[:, 0] - 0.1 * y[:, 1] + torch.sin(t)], 1)


def data() -> dict[str, Tensor]:
    """Three rows of different lengths, one of which goes backwards in time."""
    t0 = torch.tensor([0.0, 0.1, 0.2], dtype=D)
    t1 = torch.tensor([1.0, 2.1, -1.2], dtype=D)
    times = torch.stack([t0 + part * (t1 - t0) for part in (0.2, 0.3, 0.71, 0.9)], 1)
    found = {"y0": drawn(3, 2), "a": 0.5 + drawn(3, 2, seed=1).abs(), "t0": t0, "t1": t1, "times": times}
    return {name: value.requires_grad_() for name, value in found.items()}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def spring(p: Tensor, k: Tensor) -> Tensor:
    return p


def force(q: Tensor, k: Tensor) -> Tensor:
    return -k * q - 0.3 * q**3


@pytest.mark.parametrize("way", [ThroughSteps(), Replay(), Replay(every=3)], ids=str)
@pytest.mark.parametrize(
    ("stepper", "controller"), [("dopri8", TIGHT), ("midpoint", Constant(0.25))], ids=["adaptive", "constant"]
)
def test_by_start_arguments_and_all_times(way, stepper, controller):
    """Of low order, the constant one: what follows a step that moves with its targets depends on it."""
    given = data()

    def solved(y0, a, t0, t1, times):
        term, save = ODE(swinging, (a,)), Save(times=times)
        found = solve(term, y0, t0, t1, stepper=stepper, controller=controller, save=save, gradient=way)
        return found.y, found.saved

    assert gradcheck(solved, tuple(given.values()), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("way", [ThroughSteps(), Replay(), ContinuousAdjoint(1e-9, 1e-9)], ids=str)
def test_a_saved_time_at_the_end_moves_along_the_field(way, exact):
    given = data()
    times = torch.stack([given["t0"], given["t1"]], 1).detach().requires_grad_()
    term = ODE(swinging, (given["a"].detach(),))
    save = Save(times=times, exact=exact)
    y0, t0, t1 = (given[name].detach() for name in ("y0", "t0", "t1"))
    found = solve(term, y0, t0, t1, stepper="dopri5", controller=TIGHT, save=save, gradient=way)
    (slope,) = torch.autograd.grad(found.saved[:, :, 0].sum(), times)
    wanted = torch.stack([term(time, found.saved[:, i].detach())[:, 0] for i, time in enumerate((t0, t1))], 1)
    torch.testing.assert_close(slope, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("exact", [False, True])
def test_saved_times_that_end_a_step_are_differentiable(exact):
    given = data()

    def solved(times):
        save, term = Save(times=times, exact=exact), ODE(swinging, (given["a"].detach(),))
        y0, t0, t1 = (given[name].detach() for name in ("y0", "t0", "t1"))
        return solve(term, y0, t0, t1, stepper="dopri5", controller=TIGHT, save=save).saved

    assert gradcheck(solved, (given["times"],), atol=1e-6, fast_mode=True)


ADAPTIVE = ["dopri5", "tsit5", "bosh3", "dopri8", "rodas5p"]


@pytest.mark.parametrize("stepper", ADAPTIVE)
def test_replay_is_autograd_through_the_frozen_steps(stepper):
    given, net = data(), network()

    def field(t, y, a):
        return a * net(y) + torch.sin(t)[:, None]

    def grads(way):
        term, save = ODE(field, (given["a"],)), Save(times=given["times"])
        controller = PID(1e-5, 1e-5)
        found = solve(
            term,
            given["y0"],
            given["t0"],
            given["t1"],
            stepper=stepper,
            controller=controller,
            save=save,
            gradient=way,
        )
        loss = found.y.square().sum() + (found.saved**3).sum()
        return torch.autograd.grad(loss, [*given.values(), *net.parameters()])

    wanted = grads(ThroughSteps())
    for way in (Replay(), Replay(every=4)):
        for one, other in zip(grads(way), wanted):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stepper", ["leapfrog", "yoshida4", "yoshida6"])
def test_reversible_is_autograd_through_the_frozen_steps(stepper):
    y0, k = drawn(4, 4).requires_grad_(), (1 + drawn(4, 2, seed=1).abs()).requires_grad_()
    t1 = torch.tensor([3.0, 2.0, -1.0, 0.0], dtype=D, requires_grad=True)
    times = (t1.detach()[:, None] * torch.tensor([0.0, 0.5, 0.8, 1.0], dtype=D)).requires_grad_()

    def grads(way):
        term, save = Separable(spring, force, (k,)), Save(times=times)
        found = solve(term, y0, 0.0, t1, stepper=stepper, controller=Constant(0.1), save=save, gradient=way)
        return torch.autograd.grad(found.y.square().sum() + (found.saved**3).sum(), [y0, k, t1, times])

    wanted = grads(ThroughSteps())
    for way in (Reversible(), Replay()):
        for one, other in zip(grads(way), wanted):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stepper", ["implicit_midpoint", "gauss4", "discrete_gradient"])
def test_reversible_undoes_implicit_steps_to_what_they_are_solved_to(stepper):
    y0, k = drawn(4, 2).requires_grad_(), (1 + drawn(4, seed=1).abs()).requires_grad_()

    def grads(way):
        term = Hamiltonian(
            lambda y, k: k * y[:, 0] ** 2 / 2 + y[:, 1] ** 2 / 2 + (y[:, 0] * y[:, 1]) ** 2, (k,)
        )
        options = {"stepper": stepper, "controller": Constant(0.1), "gradient": way}
        found = solve(term, 0.4 * y0, 0.0, 0.8, save=Save(times=torch.tensor([0.35], dtype=D)), **options)
        return torch.autograd.grad(found.check().y.square().sum() + (found.saved**3).sum(), [y0, k])

    wanted = grads(ThroughSteps())
    for way in (Reversible(), Replay()):
        for one, other in zip(grads(way), wanted):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_reversible_keeps_nothing_but_the_end_and_can_be_pulled_back_twice():
    y0, k = drawn(4, 4).requires_grad_(), torch.ones(4, 2, dtype=D)
    term = Separable(spring, force, (k,))
    found = solve(term, y0, 0.0, 3.0, stepper="leapfrog", controller=Constant(0.01), gradient=Reversible())
    assert vars(found.y.grad_fn.past)["y"].shape == y0.shape
    first, second = (torch.autograd.grad(found.y.sum(), y0, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_reversible_refuses_what_minus_h_does_not_undo():
    y0 = drawn(2, 2).requires_grad_()
    field = ODE(lambda t, y: -y)
    with pytest.raises(ValueError, match="does not undo a step of rk4"):
        solve(field, y0, 0.0, 1.0, stepper="rk4", controller=Constant(0.1), gradient=Reversible())
    energy = Hamiltonian(lambda y: (y**4).sum(1))
    with pytest.raises(ValueError, match="does not undo a step of tao"):
        solve(energy, y0, 0.0, 1.0, stepper="tao", controller=Constant(0.1), gradient=Reversible())


@pytest.mark.parametrize("stepper", ["tao", "adaptive_leapfrog"])
def test_replay_of_a_stepper_that_remembers(stepper):
    """What it hands on is part of the state, and has a cotangent of its own."""
    y0, k = drawn(3, 4).requires_grad_(), (1 + drawn(3, 2, seed=1).abs()).requires_grad_()

    def potential(q, k):
        return (k * q.square() / 2 + 0.075 * q**4).sum(1) - 20

    def kinetic(p, k):
        return p.square().sum(1) / 2

    def energy(y, k):
        q, p = y.chunk(2, -1)
        return potential(q, k) + kinetic(p, k) + 0.1 * (q * p).sum(1)

    def grads(way):
        split = Separable(spring, force, (k,), potential, kinetic)
        term = Hamiltonian(energy, (k,)) if stepper == "tao" else split
        found = solve(term, y0, 0.0, 1.0, stepper=stepper, controller=Constant(0.2), gradient=way)
        return torch.autograd.grad(found.check().y.square().sum(), [y0, k])

    wanted = grads(ThroughSteps())
    for way in (Replay(), Replay(every=2)):
        for one, other in zip(grads(way), wanted):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_continuous_adjoint_is_right_to_its_tolerance_and_all_agree_with_a_tight_reference():
    given, net = data(), network()
    with torch.no_grad():
        given["times"][1, 2:] = float("nan")

    def field(t, y, a):
        return a * net(y) + torch.sin(t)[:, None]

    def grads(way, stepper="dopri5", tolerance=1e-9):
        term, save = ODE(field, (given["a"],)), Save(times=given["times"])
        controller = PID(tolerance, tolerance)
        found = solve(
            term,
            given["y0"],
            given["t0"],
            given["t1"],
            stepper=stepper,
            controller=controller,
            save=save,
            gradient=way,
        )
        loss = found.y.square().sum() + (found.saved[~given["times"].isnan()] ** 3).sum()
        return torch.autograd.grad(loss, [*given.values(), *net.parameters()])

    def error(found):
        pairs = zip(found, reference)
        return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)

    reference = grads(ThroughSteps(), "dopri8", 1e-12)
    assert error(grads(Replay())) < 1e-6
    loose, tight = (error(grads(ContinuousAdjoint(tol, tol))) for tol in (1e-4, 1e-7))
    assert 1e-7 < loose < 1e-2
    assert tight < 1e-5
    assert tight < loose / 10


def test_the_adjoint_says_when_it_cannot_go_back():
    y0 = torch.tensor([[1.0]], dtype=D, requires_grad=True)
    way, field = ContinuousAdjoint(1e-4, 1e-4), ODE(lambda t, y: -200 * y)
    found = solve(field, y0, 0.0, 5.0, stepper="kvaerno5", controller=PID(1e-4, 1e-4), gradient=way)
    with pytest.raises(SolveFailed):
        found.y.sum().backward()


WAYS = [ThroughSteps(), Replay(), Replay(every=3)]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_second_derivatives(way):
    y0 = drawn(2, 2).requires_grad_()
    net, direction = network(), drawn(2, 2, seed=5)

    def gradient(y0, way, graph=True):
        found = solve(
            ODE(lambda t, y: net(y)), y0, 0.0, 1.0, stepper="rk4", controller=Constant(0.1), gradient=way
        )
        return torch.autograd.grad(found.y.square().sum(), y0, create_graph=graph)[0]

    (product,) = torch.autograd.grad((gradient(y0, way) * direction).sum(), y0)
    step = 1e-5
    ahead, behind = (
        gradient((y0 + sign * step * direction).detach().requires_grad_(), Replay(), graph=False)
        for sign in (1, -1)
    )
    torch.testing.assert_close(product, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("way", WAYS[1:], ids=str)
def test_a_penalty_on_a_gradient_has_the_gradients_of_autograd(way):
    """Of start, args, times and parameters, one of which the start is computed from as well."""

    def penalties(way):
        given, net = data(), network()
        inputs = [*given.values(), *net.parameters()]
        first = net[2].bias
        found = solve(
            ODE(lambda t, y, a: swinging(t, y, a) + net(y), (given["a"],)),
            given["y0"] * first,
            given["t0"],
            given["t1"],
            stepper="bosh3",
            controller=PID(1e-3, 1e-3),
            save=Save(times=given["times"]),
            gradient=way,
        )
        # A sum, whose cotangent has no graph.
        wanted = [given["y0"], given["a"], given["times"], first]
        slopes = torch.autograd.grad(found.y.sum() + found.saved[:, 1].sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in slopes), inputs)

    for one, other in zip(penalties(way), penalties(ThroughSteps()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_what_has_first_derivatives_alone_says_so():
    """Also where the first are of a sum, so that no cotangent requires a gradient."""
    y0 = drawn(2, 2).requires_grad_()
    field = Hamiltonian(lambda y: y.square().sum(1) ** 2)
    for settings in (
        {"stepper": "dopri5", "gradient": ContinuousAdjoint()},
        {"stepper": "gauss4", "controller": Constant(0.1)},
    ):
        end = solve(field, y0, 0.0, 0.3, **settings).y
        (slope,) = torch.autograd.grad(end.sum(), y0, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives alone"):
            slope.square().sum().backward()


def test_memory():
    """A replay keeps one state per step, or fewer; the graph of the steps keeps every stage."""
    n, net = 16, network()
    y0 = drawn(n, 2).requires_grad_()
    count = 0

    def counted(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    def solved(way):
        nonlocal count
        count = 0
        with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
            return solve(
                ODE(lambda t, y: net(y)), y0, 0.0, 1.0, stepper="rk4", controller=Constant(0.02), gradient=way
            )

    solved(ThroughSteps())
    stages = count
    replayed = solved(Replay())
    kept = sum(each.y.numel() for each in replayed.y.grad_fn.past.kept)
    assert kept == 50 * y0.numel()
    assert count + kept < stages / 10
    checkpoints = solved(Replay(every=7))
    assert sum(each.y.numel() for each in checkpoints.y.grad_fn.past.kept) == 8 * y0.numel()
    one, other = (torch.autograd.grad(each.y.sum(), y0)[0] for each in (replayed, checkpoints))
    assert torch.equal(one, other)


def rational(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """Blows up where a[:, 1] > 0; the four operations alone."""
    return a[:, :1] * y - y * y * y / (1 + y * y) + a[:, 1:] * y * y * y * y


@pytest.mark.parametrize("way", [ThroughSteps(), Replay(), Replay(every=3)], ids=str)
@pytest.mark.parametrize("bad", ["nan", "blow-up", "too many steps"])
def test_a_failed_row_changes_no_bit_of_its_neighbours_gradients(way, bad):
    y0, a = drawn(5, 3), torch.stack([0.5 * torch.ones(5, dtype=D), torch.zeros(5, dtype=D)], 1)
    alone = torch.tensor([0, 1, 3, 4])
    y0[2], a[2] = 1.5, torch.tensor([0.5, {"blow-up": 50.0}.get(bad, 0.0)], dtype=D)
    if bad == "nan":
        y0[2, 0] = float("nan")
    t1 = torch.tensor([1.0, 2.0, 3.0, 0.5, 1.5], dtype=D)
    tolerance = torch.full((5,), 1e-6, dtype=D)
    tolerance[2] = 1e-14 if bad == "too many steps" else 1e-6

    def grads(rows):
        start, args = y0[rows].clone().requires_grad_(), a[rows].clone().requires_grad_()
        end = t1[rows].clone().requires_grad_()
        times = end.detach()[:, None] * torch.tensor([0.3, 1.0], dtype=D)
        found = solve(
            ODE(rational, (args,)),
            start,
            0.0,
            end,
            stepper="dopri5",
            controller=PID(tolerance[rows], tolerance[rows]),
            save=Save(times=times),
            gradient=way,
            max_steps=60,
        )
        fine = ~found.failed
        loss = (found.y[fine] ** 2).sum() + (found.saved[fine] ** 3).sum() + found.t[fine].sum()
        return found, torch.autograd.grad(loss, [start, args, end])

    found, whole = grads(torch.arange(5))
    assert found.failed.tolist() == [False, False, True, False, False]
    assert found.y[2].isnan().all()
    _, own = grads(alone)
    for one, other in zip(whole, own):
        assert torch.equal(one[alone], other)
        assert torch.equal(one[2], torch.zeros_like(one[2]))


def test_a_row_has_the_same_gradient_in_every_batch():
    y0, a = drawn(7, 3), 0.5 * torch.ones(7, 2, dtype=D) * torch.tensor([1.0, 0.0], dtype=D)
    t1 = torch.linspace(0.5, 3.0, 7, dtype=D)

    def grad(rows):
        start = y0[rows].clone().requires_grad_()
        found = solve(ODE(rational, (a[rows],)), start, 0.0, t1[rows], stepper="dopri5")
        return torch.autograd.grad(found.y.square().sum(), start)[0]

    whole = grad(torch.arange(7))
    for rows in (torch.tensor([3]), torch.tensor([6, 0, 2])):
        assert torch.equal(grad(rows), whole[rows])


def duffing(q: Tensor, a: Tensor) -> Tensor:
    return -a[:, :1] * q - a[:, 1:] * q * q * q


def spring_energy(y: Tensor, a: Tensor) -> Tensor:
    q, p = y[:, 0], y[:, 1]
    return a[:, 0] * q * q / 2 + a[:, 1] * (q * q) * (q * q) / 4 + p * p / 2


FAMILIES = {
    "rosenbrock23": PID(1e-3, 1e-3),
    "rodas5p": PID(1e-5, 1e-5),
    "kvaerno5": PID(1e-5, 1e-5),
    "auto": PID(1e-5, 1e-5),
    "leapfrog": Constant(0.1),
    "yoshida4": Constant(0.1),
    "gauss4": Constant(0.1),
    "tao": Constant(0.1),
    "discrete_gradient": Constant(0.1),
    "adaptive_leapfrog": Constant(0.1),
}


@pytest.mark.parametrize("stepper", FAMILIES)
def test_in_every_family_a_row_has_its_own_gradient_beside_one_that_fails(stepper):
    y0, a = 0.5 * drawn(5, 2), 0.5 + drawn(5, 2, seed=1).abs()
    y0[2, 0] = float("nan")
    t1 = torch.tensor([0.5, -0.7, 0.6, 0.3, 1.0], dtype=D)
    split = stepper in ("leapfrog", "yoshida4", "adaptive_leapfrog")

    def grads(rows):
        start, args = y0[rows].clone().requires_grad_(), a[rows].clone().requires_grad_()
        times = t1[rows, None] * torch.tensor([0.4, 1.0], dtype=D)
        if split:
            energies = (
                lambda q, a: spring_energy(torch.cat([q, 0 * q], 1), a),
                lambda p, a: (p * p)[:, 0] / 2,
            )
            term = Separable(lambda p, a: p, duffing, (args,), *energies)
        else:
            term = Hamiltonian(spring_energy, (args,))
        save, control = Save(times=times), FAMILIES[stepper]
        found = solve(term, start, 0.0, t1[rows], stepper=stepper, controller=control, save=save)
        fine = ~found.failed
        loss = found.y[fine].square().sum() + (found.saved[fine] ** 3).sum()
        return found, torch.autograd.grad(loss, [start, args])

    found, whole = grads(torch.arange(5))
    assert found.status.tolist() == [0, 0, int(Status.NOT_FINITE), 0, 0]
    for rows in (torch.tensor([0]), torch.tensor([4, 1])):
        part, own = grads(rows)
        assert torch.equal(part.saved, found.saved[rows])
        for one, other in zip(whole, own):
            assert torch.equal(one[rows], other)
            assert not one[2].any()


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=D))
        self.late = nn.Parameter(torch.tensor(0.2, dtype=D))

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        later = bool((t > 0.5).all())
        return -self.weight * y + (self.late * y if later else 0)

    forward = drift


def closed_over(kind: str):
    module, leaf = Field(), torch.tensor(0.7, dtype=D, requires_grad=True)
    made = leaf.exp()  # a graph that exists before the solve, and is entered by every step
    return {
        "module": (module, module.weight),
        "bound method": (module.drift, module.late),
        "partial": (partial(lambda k, t, y: -k * y, leaf), leaf),
        "leaf": (lambda t, y: -leaf * y, leaf),
        "made of a leaf": (lambda t, y: -made * y, leaf),
    }[kind]


@pytest.mark.parametrize("kind", ["module", "bound method", "partial", "leaf", "made of a leaf"])
def test_what_a_field_closes_over_is_found(kind):
    y0, grads = torch.ones(1, 2, dtype=D), []
    for way in (ThroughSteps(), None, ContinuousAdjoint(1e-8, 1e-8)):
        field, parameter = closed_over(kind)
        controller = PID(1e-8, 1e-8)
        found = solve(ODE(field), y0, 0.0, 1.0, stepper="dopri5", controller=controller, gradient=way)
        found.y.sum().backward()
        grads.append(parameter.grad)
    assert grads[0].abs() > 0.1
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[2], grads[0], rtol=1e-4, atol=1e-5)


def test_no_graph_where_nothing_requires_one():
    y0 = torch.ones(2, 2, dtype=D)
    plain = solve(ODE(lambda t, y: -y), y0, 0.0, 1.0, stepper="dopri5", save=Save(times=torch.tensor([0.5])))
    assert not plain.y.requires_grad
    assert not plain.saved.requires_grad
    with torch.no_grad():
        assert not solve(ODE(Field()), y0, 0.0, 1.0, stepper="dopri5").y.requires_grad
    found = solve(ODE(Field()), y0, 0.0, 1.0, stepper="dopri5")
    assert found.y.requires_grad
    assert not found.t.requires_grad
    assert found.steps is None
    assert (found.status == Status.DONE).all()


def test_a_learned_energy():
    net, y0 = network(), drawn(3, 2).requires_grad_()
    term = Hamiltonian(lambda y: net(y).square().sum(1))

    def grads(way):
        found = solve(term, y0, 0.0, 1.0, stepper="dopri5", gradient=way)
        return torch.autograd.grad(found.y.square().sum(), [y0, *net.parameters()], allow_unused=True)

    for one, other in zip(grads(Replay()), grads(ThroughSteps())):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_is_no_gradient_is_refused():
    y0 = torch.ones(1, 1, dtype=D)
    with pytest.raises(TypeError, match="gradient must be"):
        solve(ODE(lambda t, y: -y), y0, 0.0, 1.0, stepper="dopri5", gradient="replay")
    with pytest.raises(ValueError, match="every must be at least 1"):
        Replay(every=0)
