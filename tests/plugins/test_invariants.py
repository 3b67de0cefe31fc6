import math

import pytest
import torch

from worldsim import NotMeasurable
from worldsim_plugins.metrics.invariants import Invariants
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.pendulum import Pendulum

torch.set_num_threads(1)
SYSTEM, TIMES = Pendulum(), torch.arange(11, dtype=torch.float64) / 2


def simulated(n=20, system=SYSTEM):
    generator = torch.Generator().manual_seed(0)
    return system.simulate(system.sample(n, generator), TIMES, None, generator)


TRUTH = simulated()
ENERGY = TRUTH.observables["energy"][:, 0, 0]


def faster(factor):
    """The same orbit with momenta grown by ``factor`` ``[time]``, so that energy grows as p^2 does."""
    states = TRUTH.states.clone()
    states[..., 1] *= factor
    return TRUTH.replace(states=states)


RISE = torch.linspace(1, 2, 11, dtype=torch.float64)


def test_the_truth_keeps_its_energy_and_is_its_own_floor():
    score = Invariants(SYSTEM).score(TRUTH, TRUTH, None)["drift_energy"]
    assert score.value < 1e-12
    assert score.floor == score.value
    assert score.n == 20
    slope = Invariants(SYSTEM).score(TRUTH, TRUTH, None)["drift_energy_slope"]
    assert slope.value == slope.floor < 1e-12
    assert slope.units == "(s)-1"


def test_drift_is_the_largest_in_time_and_the_median_over_trajectories():
    factor = torch.linspace(1, 2, 11, dtype=torch.float64)
    grown = faster(factor)
    drift = (SYSTEM.energy(grown.states[:, 0]) - ENERGY[:, None]).abs()
    drift = drift / torch.maximum(ENERGY, ENERGY.std(correction=0))[:, None]
    scores = Invariants(SYSTEM).score(TRUTH, grown, None)
    assert scores["drift_energy"].value == pytest.approx(float(drift[:, 1:].amax(1).quantile(0.5)))
    over_time = torch.as_tensor(scores["drift_energy_time"].value)
    torch.testing.assert_close(over_time, drift[:, 1:].quantile(0.5, dim=0))
    low, high = scores["drift_energy"].interval
    assert low < scores["drift_energy"].value < high


def test_the_scale_may_be_declared():
    grown = faster(torch.full((11,), 1.5, dtype=torch.float64))
    half = Invariants(SYSTEM, scale={"energy": 2.0}).score(TRUTH, grown, None)["drift_energy"].value
    full = Invariants(SYSTEM, scale={"energy": 1.0}).score(TRUTH, grown, None)["drift_energy"].value
    assert full == pytest.approx(2 * half)
    slopes = [
        Invariants(SYSTEM, scale={"energy": size})
        .score(TRUTH, faster(RISE), None)["drift_energy_slope"]
        .value
        for size in (1.0, 2.0)
    ]
    assert slopes[0] == pytest.approx(2 * slopes[1])
    with pytest.raises(ValueError, match="momentum"):
        Invariants(SYSTEM, scale={"momentum": 1.0})
    with pytest.raises(ValueError, match="positive"):
        Invariants(SYSTEM, scale={"energy": 0.0})


def test_the_squared_error_is_the_mean_that_papers_give():
    grown = faster(torch.linspace(1, 2, 11, dtype=torch.float64))
    error = SYSTEM.energy(grown.states[:, 0, 1:]) - ENERGY[:, None]
    score = Invariants(SYSTEM, squared=True).score(TRUTH, grown, None)["squared_error_energy"]
    assert score.value == pytest.approx(float(error.square().mean()), rel=1e-12)
    assert (score.units, score.n) == ("(J)2", 20)
    assert score.interval[0] < score.value < score.interval[1]
    assert "squared_error_energy" not in Invariants(SYSTEM).score(TRUTH, grown, None)


def test_the_squared_error_weighs_ragged_trajectories_alike_and_needs_finite_ones():
    grown = faster(torch.linspace(1, 2, 11, dtype=torch.float64))
    metric = Invariants(SYSTEM, squared=True)
    length = torch.full((20, 1), 11)
    length[0] = 4
    rows = (SYSTEM.energy(grown.states[:, 0, 1:]) - ENERGY[:, None]).square()
    means = torch.cat([rows[:1, :3].mean(1), rows[1:].mean(1)])
    score = metric.score(TRUTH.replace(length=length), grown, None)["squared_error_energy"]
    assert score.value == pytest.approx(float(means.mean()), rel=1e-12)
    lost = grown.states.clone()
    lost[3, 0, 7] = torch.nan
    score = metric.score(TRUTH, grown.replace(states=lost), None)["squared_error_energy"]
    assert math.isnan(score.value)
    assert score.failed == 1
    assert "1 of 20" in score.reason


def test_a_wrong_first_frame_does_not_hide():
    grown = faster(torch.full((11,), 1.5, dtype=torch.float64))
    assert Invariants(SYSTEM).score(TRUTH, grown, None)["drift_energy"].value > 0.1


class Momentum:
    """A free particle in a frame where the total momentum is ``total``."""

    conserved = ("momentum",)

    def observe(self, states):
        return {"momentum": states.sum(-2)}


def test_vectors_are_measured_by_their_norm():
    states = torch.zeros(3, 1, 11, 2, 2, dtype=torch.float64)
    states[..., 0, :] = torch.tensor([3.0, 4.0])
    truth = TRUTH.rows(slice(0, 3)).replace(states=states + torch.arange(11)[:, None, None] * 0)
    turned = states.clone()
    turned[:, :, 1:, 0] = torch.tensor([4.0, 3.0], dtype=torch.float64)
    scores = Invariants(Momentum()).score(truth, truth.replace(states=turned), None)
    assert scores["drift_momentum"].value == pytest.approx(2**0.5 / 5)


def test_an_invariant_that_is_only_rounding_needs_a_declared_scale():
    noise = torch.randn(6, 1, 11, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = TRUTH.rows(slice(0, 6)).replace(states=1e-16 * noise)
    moved = truth.replace(states=truth.states + 0.5)
    lost = Invariants(Momentum()).score(truth, moved, None)
    assert set(lost) == {"drift_momentum", "drift_momentum_slope"}
    assert "declare scale.momentum" in lost["drift_momentum_slope"].reason
    assert math.isnan(lost["drift_momentum"].value)
    assert "declare scale.momentum" in lost["drift_momentum"].reason
    declared = Invariants(Momentum(), scale={"momentum": 1.0}).score(truth, moved, None)["drift_momentum"]
    assert declared.value == pytest.approx(2**0.5)


def test_a_vanishing_scale_is_never_a_number():
    truth = TRUTH.rows(slice(0, 6)).replace(states=torch.zeros(6, 1, 11, 2, 2, dtype=torch.float64))
    score = Invariants(Momentum()).score(truth, truth.replace(states=truth.states + 1), None)
    assert math.isnan(score["drift_momentum"].value)
    assert score["drift_momentum"].failed == 6


@pytest.mark.trial(7)
def test_a_rollout_that_explodes_makes_the_drift_not_measurable():
    states = TRUTH.states.clone()
    states[2, :, 5:] = math.nan
    scores = Invariants(SYSTEM).score(TRUTH, TRUTH.replace(states=states), None)
    assert math.isnan(scores["drift_energy"].value)
    assert scores["drift_energy"].failed == 1
    assert "1 of 20 rollouts" in scores["drift_energy"].reason
    assert max(scores["drift_energy_time"].value[:4]) < 1e-12
    assert all(math.isnan(value) for value in scores["drift_energy_time"].value[4:])


def test_an_observable_that_is_not_finite_counts_as_failed():
    class Singular(Momentum):
        def observe(self, states):
            return {"momentum": 1 / states.sum(-2)}

    truth = TRUTH.rows(slice(0, 6)).replace(states=torch.ones(6, 1, 11, 2, 2, dtype=torch.float64))
    fallen = truth.states.clone()
    fallen[0, :, 3] = 0
    score = Invariants(Singular()).score(truth, truth.replace(states=fallen), None)["drift_momentum"]
    assert math.isnan(score.value)
    assert score.failed == 1


def test_ragged_ends_are_masked():
    length = torch.full((20, 1), 11)
    length[:10] = 4
    states = TRUTH.states.clone()
    states[:10, :, 4:] = math.nan
    score = Invariants(SYSTEM).score(TRUTH.replace(states=states, length=length), TRUTH, None)
    assert score["drift_energy"].value < 1e-12
    assert score["drift_energy"].failed == 0


@pytest.mark.parametrize("system", [OrnsteinUhlenbeck(), Pendulum(damping=0.1), object()])
def test_a_system_that_conserves_nothing_says_so(system):
    with pytest.raises(NotMeasurable, match="conserves nothing"):
        Invariants(system).score(TRUTH, TRUTH, None)


class Oscillator:
    """H = (p^2 + q^2) / 2."""

    conserved = ("energy",)

    def observe(self, states):
        return {"energy": states.square().sum(-1) / 2}


H, N = 0.1, 1000


def integrated(step):
    """A rollout of N steps of length H from (q, p) = (1, 0), and a truth that stays there in energy."""
    q, p = 1.0, 0.0
    frames = [(q, p)]
    for _ in range(N):
        q, p = step(q, p)
        frames.append((q, p))
    times = H * torch.arange(N + 1, dtype=torch.float64)
    truth = torch.stack([torch.cos(times), -torch.sin(times)], -1)
    trajectory = TRUTH.rows(slice(0, 1)).replace(times=times, observables={}, states=truth[None, None])
    scores = Invariants(Oscillator()).score(
        trajectory, trajectory.replace(states=torch.tensor(frames, dtype=torch.float64)[None, None]), None
    )
    return scores, scores["drift_energy_time"].value


def rk4(q, p):
    # exp(-i h) to fourth order, for z = q + i p.
    z = complex(q, p) * (1 - 1j * H - H**2 / 2 + 1j * H**3 / 6 + H**4 / 24)
    return z.real, z.imag


def midpoint(q, p):
    z = complex(q, p) * (1 - 1j * H / 2) / (1 + 1j * H / 2)
    return z.real, z.imag


def implicit(q, p):
    z = complex(q, p) / (1 + 1j * H)
    return z.real, z.imag


def verlet(q, p):
    half = p - H / 2 * q
    q = q + H * half
    return q, half - H / 2 * q


def kick_drift(q, p):
    p = p - H * q
    return q + H * p, p


def test_explicit_euler_gains_energy_as_a_power():
    scores, drift = integrated(lambda q, p: (q + H * p, p - H * q))
    assert 1 + scores["drift_energy"].value == pytest.approx(20959.1556378, rel=1e-11)
    assert 1 + drift[-1] == pytest.approx((1 + H**2) ** N, rel=1e-12)


def test_implicit_euler_loses_it_as_its_inverse():
    scores, drift = integrated(implicit)
    assert 1 - drift[-1] == pytest.approx(4.77118457e-5, rel=1e-8)
    assert scores["drift_energy_slope"].value > 1e-3


def test_runge_kutta_drifts_steadily():
    scores, drift = integrated(rk4)
    assert drift[-1] == pytest.approx(1.387143e-5, rel=1e-6)
    assert scores["drift_energy"].value == drift[-1]
    # (1 - h^6 / 72 + h^8 / 576)^N is a line to 1e-5 of itself.
    rate = (H**6 / 72 - H**8 / 576) / H
    assert scores["drift_energy_slope"].value == pytest.approx(rate, rel=1e-4)


def test_the_implicit_midpoint_conserves_a_quadratic_energy():
    scores, _ = integrated(midpoint)
    assert scores["drift_energy"].value < 1e-12
    assert scores["drift_energy_slope"].value < 1e-14


def test_verlet_oscillates_within_its_bound_and_does_not_drift():
    scores, drift = integrated(verlet)
    assert scores["drift_energy"].value == pytest.approx(0.0025, rel=1e-5)
    assert scores["drift_energy"].value <= H**2 / 4 + 1e-12
    # The nearby energy p^2 / 2 + (1 - h^2 / 4) q^2 / 2 is conserved, so the slope is an oscillation's rest.
    assert scores["drift_energy_slope"].value < 1e-3 * drift.max() / H
    q, p = 1.0, 0.0
    for _ in range(N):
        q, p = verlet(q, p)
    assert p * p / 2 + (1 - H**2 / 4) * q * q / 2 == pytest.approx((1 - H**2 / 4) / 2, abs=1e-13)


def test_symplectic_euler_oscillates_within_its_bound():
    scores, _ = integrated(kick_drift)
    assert scores["drift_energy"].value == pytest.approx(1 / (1 - H / 2) - 1, abs=5e-6)
    assert scores["drift_energy"].value == pytest.approx(0.05263, abs=5e-6)
    q, p = 1.0, 0.0
    for _ in range(N):
        q, p = kick_drift(q, p)
    assert (q * q + p * p) / 2 - H / 2 * q * p == pytest.approx(0.5, abs=1e-13)


def test_a_slope_needs_two_frames_and_leaves_out_what_is_not_reached():
    short = Invariants(SYSTEM).score(TRUTH.span(0, 2), TRUTH.span(0, 2), None)["drift_energy_slope"]
    assert "two frames" in short.reason
    length = torch.full((20, 1), 6)
    ragged = TRUTH.replace(length=length)
    full = Invariants(SYSTEM).score(ragged, faster(RISE), None)["drift_energy_slope"]
    cut = Invariants(SYSTEM).score(TRUTH.span(0, 6), faster(RISE).span(0, 6), None)["drift_energy_slope"]
    assert full.value == pytest.approx(cut.value)
