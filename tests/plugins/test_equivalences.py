"""Systems whose equal and alike histories are known exactly, and what coherence says of models of them."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import Trajectory
from worldsim.baselines import Persistence, Truth
from worldsim_plugins.metrics.coherence import Coherence
from worldsim_plugins.metrics.divergences import BLUR, divergence, entropic_cost, sinkhorn_divergence
from worldsim_plugins.systems.double_integrator import DoubleIntegrator
from worldsim_plugins.systems.doubling_map import DoublingMap
from worldsim_plugins.systems.linear_gaussian import LinearGaussian
from worldsim_plugins.systems.mass_spring import DrivenMassSpring, MassSpring
from worldsim_plugins.systems.pendulum import DrivenPendulum, Pendulum

torch.set_num_threads(1)
F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(count: int, step: float = 1.0) -> torch.Tensor:
    return step * torch.arange(count, dtype=F64)


def truth_of(system, count=20, step=1.0, n=24) -> Trajectory:
    times, start = steps(count, step), system.sample(n, seeded())
    actions = system.sample_actions(n, times, seeded(1)) if hasattr(system, "sample_actions") else None
    return system.simulate(start, times, actions, seeded(2))


def scored(system, model, step=1.0, **options):
    truth = truth_of(system, step=step)
    return Coherence(system, **{"pairs": 40, "resamples": 20, **options}).score(truth, truth, model)


class Rolled:
    """A model made of one function from (context, times, actions, draws, generator) to states."""

    def __init__(self, future) -> None:
        self.future = future

    def rollout(self, context, times, actions, draws, generator):
        return Trajectory(self.future(context, times, actions, draws, generator), times)


@pytest.mark.parametrize("kind", DoubleIntegrator.history_kinds)
def test_the_pushes_of_equal_histories_differ_and_their_ends_do_not(kind):
    system, times = DoubleIntegrator(), steps(10, 0.3)
    pairs = system.equivalent_histories(kind, 6, times, seeded(3))
    first, second = pairs.first, pairs.second
    assert first.times[-1] == second.times[-1]
    torch.testing.assert_close(second.states[:, :, -1], first.states[:, :, -1], rtol=0, atol=1e-13)
    if kind in ("moment_swap", "loop"):
        assert (first.actions - second.actions).abs().flatten(1).amax(1).min() > 0.4
        assert (first.states - second.states).abs().flatten(1).amax(1).min() > 0.01
    else:
        assert len(second.times) < len(first.times)
    for past in (first, second):
        again = system.simulate(past.states[:, 0, 0], past.times, past.actions, seeded())
        torch.testing.assert_close(again.states, past.states, rtol=0, atol=1e-13)
    if kind == "no_op":
        assert not torch.equal(first.states[:, :, 3:], second.states)
    if kind != "window_shift":
        with pytest.raises(ValueError, match="at least 6"):
            system.equivalent_histories(kind, 6, steps(5), seeded())


@pytest.mark.parametrize(
    "system", [Pendulum(), DrivenPendulum(), MassSpring(), DrivenMassSpring(), DoubleIntegrator()]
)
def test_alike_histories_end_at_one_position_and_are_true(system):
    pairs = system.alike_histories("same_position", 5, steps(9, 0.2), seeded(1))
    half = pairs.first.states.shape[-1] // 2
    one, two = (past.states[:, 0, -1] for past in (pairs.first, pairs.second))
    assert torch.equal(one[:, :half], two[:, :half])
    assert (one[:, half:] - two[:, half:]).abs().amax(1).min() > 1e-3
    for past in (pairs.first, pairs.second):
        again = system.simulate(past.states[:, 0, 0], past.times, past.actions, seeded())
        torch.testing.assert_close(again.states, past.states, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="same_position"):
        system.alike_histories("near", 5, steps(9), seeded())


def test_what_sees_positions_alone_cannot_tell_alike_histories_apart():
    """A model that ignores the velocity, and one that does not, on pairs of equal position."""

    def blind(context, times, actions, draws, generator):
        # Answers may differ by chance where they are compared as draws; here they are one number.
        return context.states[:, :, -1:, :1].expand(-1, draws, len(times), 2)

    system = Pendulum()
    options = {"step": 0.2, "horizon": 6, "distinct": ["shuffled", "same_position"], "observable": "q"}
    options["kinds"] = ["window_shift", "mirror"]
    scores = scored(system, Rolled(blind), **options)
    assert scores["coherence_auc_same_position"].value == 0.5
    assert scores["distinction_recall_same_position"].value == 0.0
    assert scores["n_empty_same_position"].value == 1.0
    assert scores["coherence_auc_mirror"].value > 0.9
    right = scored(system, Truth(system, truth_of(system, step=0.2)), **options)
    for name in ("", "_same_position", "_mirror", "_window_shift"):
        assert right[f"coherence_auc{name}"].value == right[f"distinction_recall{name}"].value == 1.0
    array = right["divergence_distinct"]
    assert array.value.shape == (120, 6)
    assert array.coords["pair"].count("same_position") == 40
    alone = scored(system, Rolled(blind), **{**options, "distinct": ["same_position"]})
    assert alone["coherence_auc"].value == alone["coherence_auc_window_shift"].value == 0.5


@pytest.mark.parametrize(("near", "k_world", "k_model"), [(10, 7, 4), (20, 17, 9), (30, 27, 14)])
def test_the_doubling_map_separates_when_it_must(near, k_world, k_model):
    """2^-near passes 0.1 after 7, 17 and 27 doublings; a model that quadruples is there after 4, 9 and 14.
    Chords are 2 sin(pi d) long in units of the spread, so 0.1 of the circle is 2 sin(pi / 10)."""

    def quadrupled(context, times, actions, draws, generator):
        x = context.states[:, :, -1:]
        return torch.frac(x * 4.0 ** torch.arange(len(times), dtype=F64)[:, None])

    system = DoublingMap(near=near)
    options = {"kinds": ["preimages"], "distinct": ["near"], "observable": "circle", "history": 6}
    options |= {"horizon": k_world + 3, "epsilon": 2 * math.sin(math.pi / 10), "pairs": 20}
    right = scored(system, Truth(system, truth_of(system)), **options)
    wrong = scored(system, Rolled(quadrupled), **options)
    assert right["horizon_error"].value == 0.0
    assert wrong["horizon_error"].value == pytest.approx(math.log(k_world / k_model), abs=1e-12)
    distances = right["divergence_distinct"].value
    assert ((distances > options["epsilon"]).argmax(1) + 1 == k_world).all()
    assert right["compression"].value == right["coherence_auc"].value == 1.0


def test_the_doubling_map_is_exact_and_says_when_it_ends():
    system = DoublingMap()
    for kind in system.history_kinds:
        pairs = system.equivalent_histories(kind, 30, steps(12), seeded())
        assert torch.equal(pairs.first.states[:, :, -1], pairs.second.states[:, :, -1])
        again = system.simulate(pairs.first.states[:, 0, 0], steps(12), None, seeded())
        assert torch.equal(again.states, pairs.first.states)
    with pytest.raises(ValueError, match="52 exact steps"):
        system.simulate(system.sample(2, seeded()), steps(60), None, seeded())
    with pytest.raises(ValueError, match="whole steps"):
        system.simulate(system.sample(2, seeded()), steps(6, 0.5), None, seeded())
    with pytest.raises(ValueError, match="shorten"):
        system.equivalent_histories("preimages", 4, steps(50), seeded())


def test_the_belief_is_that_of_the_kalman_filter():
    """Against the filter's recursion, and its covariance against the spread of the hidden state."""
    system = LinearGaussian(period=6.0, decay=0.9)
    truth = system.simulate(system.sample(4000, seeded()), steps(7), None, seeded(1))
    seen, hidden = truth.states[:, 0, :, 0], truth.observables["hidden"][:, 0, -1]
    gain, covariance = system.belief(7)
    mean, spread = torch.zeros(4000, 2, dtype=F64), system.variance * torch.eye(2, dtype=F64)
    unit = torch.eye(2, dtype=F64)
    for t in range(7):
        if t:
            mean, spread = mean @ system.A.T, system.A @ spread @ system.A.T + system.process**2 * unit
        k = spread[:, 0] / (spread[0, 0] + system.measurement**2)
        mean = mean + (seen[:, t] - mean[:, 0])[:, None] * k
        spread = spread - k[:, None] * spread[0]
    torch.testing.assert_close(seen @ gain.T, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(covariance, spread, rtol=0, atol=1e-12)
    error = hidden - mean
    assert (error.T @ error / 4000 - covariance).abs().max() < 4 * covariance.diagonal().max() / 4000**0.5


def test_pasts_of_one_belief_differ_by_much_and_their_belief_by_rounding():
    system = LinearGaussian()
    pairs = system.equivalent_histories("belief_equal", 50, steps(16), seeded())
    first, second = (past.states[:, 0, :, 0] for past in (pairs.first, pairs.second))
    assert (first - second).norm(dim=1).min() > 0.5
    gain = system.belief(16)[0]
    assert ((first - second) @ gain.T).abs().max() < 1e-14
    law = torch.cov(torch.cat([second]).T)
    assert torch.linalg.eigvalsh(law).min() > -1e-9
    with pytest.raises(ValueError, match="consecutive"):
        system.equivalent_histories("belief_equal", 5, steps(8, 2.0), seeded())


def test_who_goes_by_the_last_measurement_is_incoherent_where_beliefs_are_equal():
    system = LinearGaussian()
    truth = truth_of(system)
    options = {"horizon": 3, "draws": 24, "history": 12}
    right = scored(system, Truth(system, truth), **options)
    last = scored(system, Persistence(system, truth), **options)
    assert right["compression"].value >= 0.85
    assert right["coherence_auc"].value > 0.85
    assert right["coherence_auc"].floor > 0.85
    assert right["fidelity"].value < 1.3 * right["fidelity"].floor
    assert last["compression"].value < 0.5
    assert last["coherence_auc"].value < right["coherence_auc"].interval[0]


def test_more_tests_of_a_driven_world_find_more():
    """A model that forgets its velocity when it is pushed hard: one sequence of actions may miss it."""

    def forgets(context, times, actions, draws, generator):
        state = context.states[:, 0, -1].double().clone()
        odd = (context.times[-1] - context.times[0]) > 1.4
        state[:, 1] = torch.where((actions[:, 0, 0] > 0.6) & odd, 0.0, state[:, 1])
        return system.simulate(state, times, actions, generator).states

    system = DoubleIntegrator()
    options = {"step": 0.2, "horizon": 3, "kinds": ["no_op"], "history": 9}
    few, many = (scored(system, Rolled(forgets), tests=tests, **options) for tests in (1, 8))
    assert few["compression"].value > 0.5 > many["compression"].value
    assert (
        scored(system, Truth(system, truth_of(system, step=0.2)), tests=4, **options)["compression"].value
        == 1
    )


def test_the_actions_of_distinct_pairs_are_the_same():
    """Else a model that knows nothing of its past would tell any two states apart by what is done to them."""

    def pushed(context, times, actions, draws, generator):
        return system.simulate(torch.zeros(len(context), 2).double(), times, actions, generator).states

    system = DoubleIntegrator()
    scores = scored(system, Rolled(pushed), step=0.2, horizon=4)
    assert scores["coherence_auc"].value == 0.5
    assert scores["distinction_recall"].value == 0.0


def test_what_does_not_exist_is_refused():
    for options, message in [
        ({"observable": "spin"}, "no 'spin'; allowed: q, p, energy"),
        ({"distinct": ["near"]}, "near not built by Pendulum; allowed: shuffled, same_position"),
        ({"kinds": ["rotation"]}, "rotation not built"),
        ({"tests": 2}, "takes no actions"),
        ({"divergence": "nrmse", "draws": 4}, "one draw"),
    ]:
        with pytest.raises(ValueError, match=message):
            Coherence(Pendulum(), **options)
    with pytest.raises(ValueError, match="no 'spin'; allowed: y"):
        Coherence(LinearGaussian(), observable="spin")


def test_energy_is_one_number_for_many_states():
    """Coherence of an observable: by its energy a pendulum is where it is not by its state."""
    system = Pendulum()

    def resting(context, times, actions, draws, generator):
        energy = system.energy(context.states[:, 0, -1].double())
        height = torch.stack([torch.acos(1 - energy), torch.zeros_like(energy)], -1)
        return height[:, None, None].expand(-1, draws, len(times), 2)

    options = {"step": 0.2, "horizon": 4, "kinds": ["window_shift"]}
    by_energy = scored(system, Rolled(resting), observable="energy", epsilon=1e-6, **options)
    assert by_energy["distinction_recall"].value == 1.0
    assert by_energy["fidelity"].value < 1e-9
    assert scored(system, Rolled(resting), **options)["fidelity"].value > 0.3


def test_debiased_transport_has_its_closed_forms():
    x = torch.randn(5, 12, 2, generator=seeded(), dtype=F64)
    move = torch.tensor([0.3, 0.4], dtype=F64)
    same = sinkhorn_divergence(x, x.flip(1), BLUR**2 * 2)
    torch.testing.assert_close(same, torch.zeros(5, dtype=F64), rtol=0, atol=1e-9)
    # S(a, a + m) = |m|^2 at every epsilon and for every finite sample.
    for epsilon, error in ((0.5, 5e-4), (2.0, 1e-5)):
        found = sinkhorn_divergence(x, x + move, epsilon)
        torch.testing.assert_close(found, torch.full((5,), 0.25, dtype=F64), rtol=0, atol=error)
    cost = torch.cdist(x, x + move).square()
    value = entropic_cost(cost, 1e3)
    torch.testing.assert_close(value, cost.mean((1, 2)), rtol=2e-3, atol=0)
    unit = torch.ones(2, dtype=F64)
    shifted = divergence(x[:, :, None], (x + move)[:, :, None], unit, "sinkhorn")
    torch.testing.assert_close(shifted, torch.full((5, 1), 0.125**0.5, dtype=F64), rtol=0, atol=1e-3)
    assert divergence(x[:, :, None] * torch.nan, x[:, :, None], unit, "sinkhorn").isinf().all()


def test_the_batched_transport_is_that_of_the_kernel():
    from worldsim_kernels.transport import sinkhorn

    x, y = torch.randn(2, 3, 10, 2, generator=seeded(1), dtype=F64)
    ours = sinkhorn_divergence(x, 1.3 * y, 0.5)
    kernel = sinkhorn(x, 1.3 * y, epsilon=0.5, debias=True, tolerance=1e-7).value
    torch.testing.assert_close(ours, kernel, rtol=1e-4, atol=1e-6)


def test_sinkhorn_in_the_place_of_the_energy_distance():
    def thrice(context, times, actions, draws, generator):
        return 3 * context.states[:, :, -1:].expand(-1, draws, len(times), 1)

    system = LinearGaussian()
    options = {"horizon": 2, "draws": 12, "history": 12, "divergence": "sinkhorn", "pairs": 20}
    right = scored(system, Truth(system, truth_of(system)), **options)
    assert right["compression"].value >= 0.8
    assert right["threshold"].value > 0.01
    assert scored(system, Rolled(thrice), **options)["compression"].value < 0.5
