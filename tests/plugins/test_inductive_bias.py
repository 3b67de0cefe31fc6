"""The metric ``inductive_bias`` on latents that are known: of the state, of legality, of nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from worldsim import NotMeasurable
from worldsim.baselines import BASELINES
from worldsim_plugins.generators.sequence import Sequence
from worldsim_plugins.metrics.bias_probe import inductive_bias
from worldsim_plugins.metrics.inductive_bias import LatentInductiveBias, regression
from worldsim_plugins.systems.automaton import Automaton

LATTICE = Automaton(preset="lattice")
QUICK = {"inputs": 200, "sets": 60}


class Latent:
    """Keeps ``of(state)`` of the true state after a context."""

    def __init__(self, of, system=LATTICE):
        self.of, self.system = of, system

    def latent_of(self, context, generator):
        return self.of(self.system.state_after(context.states[:, 0]), generator)


def one_hot(state, generator):
    return torch.nn.functional.one_hot(state, 5).double()


def legality(state, generator):
    return (LATTICE.transitions()[state] >= 0).double()


def nothing(state, generator):
    return torch.ones(len(state), 3)


def noise(state, generator):
    return torch.randn(len(state), 30, generator=generator)


def scores(of, **settings):
    return LatentInductiveBias(LATTICE, **{**QUICK, **settings}).score(None, None, Latent(of))


def test_a_latent_that_is_the_state_is_its_own_ceiling():
    found = scores(one_hot)
    assert set(found) == {"r_ib", "d_ib", "d_ib_alike", "d_ib_unlike"}
    assert found["r_ib"].value == found["r_ib"].floor == 1.0
    for name in ("d_ib", "d_ib_alike", "d_ib_unlike"):
        assert found[name].value == found[name].floor
        assert found[name].interval[0] < 1 < found[name].interval[1]


def test_a_latent_that_is_nothing_labels_all_alike():
    found = scores(nothing)
    assert (found["r_ib"].value, found["d_ib"].value) == (1.0, 0.0)


def test_a_latent_of_legality_does_not_tell_states_with_the_same_next_tokens():
    """1, 2 and 3 on the lattice: one label for the three of them, and free of 0 and of 4."""
    found = scores(legality)
    assert found["r_ib"].value == 1.0
    assert found["d_ib_alike"].value == 0.0
    assert found["d_ib_unlike"].interval[0] < 1 < found["d_ib_unlike"].interval[1]
    assert 0 < found["d_ib"].value < found["d_ib_unlike"].value


def test_a_latent_that_is_noise_tells_nothing_of_the_state():
    """Labels differ as often within a state as between two."""
    found = scores(noise, inputs=2000, sets=20)
    error = sum((one.interval[1] - one.interval[0]) / 4 for one in (found["r_ib"], found["d_ib"]))
    assert abs(found["r_ib"].value + found["d_ib"].value - 1) < 3 * error
    assert found["r_ib"].value < 0.8


def test_pairs_are_counted_as_if_they_were_listed():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (7, 40), generator=generator)
    states = torch.randint(5, (40,), generator=generator)
    alike = torch.tensor([0, 0, 1, 1, 2])[states]
    found = inductive_bias(labels, states, alike)
    sums = {"same": [], "different": [], "alike": [], "unlike": []}
    for i in range(40):
        for j in range(i):
            differ = (labels[:, i] != labels[:, j]).double()
            same = states[i] == states[j]
            sums["same" if same else "different"].append(differ)
            if not same:
                sums["alike" if alike[i] == alike[j] else "unlike"].append(differ)
    rate = {name: torch.stack(parts).mean(0) for name, parts in sums.items()}
    assert found.same == pytest.approx(float(1 - 2 * rate["same"].mean()))
    assert found.different == pytest.approx(float(2 * rate["different"].mean()))
    assert found.different_alike == pytest.approx(float(2 * rate["alike"].mean()))
    assert found.different_unlike == pytest.approx(float(2 * rate["unlike"].mean()))
    assert found.standard_error[2] == pytest.approx(float(2 * rate["alike"].std()) / 7**0.5)


def test_the_regression_is_at_the_minimum_of_its_loss():
    rng = np.random.default_rng(0)
    features, truth = rng.normal(size=(80, 3)), np.array([2.0, -1.0, 0.5])
    labels = torch.from_numpy((features @ truth + rng.normal(size=80) > 0).astype(np.int64))
    said = regression(features, 0.1)(torch.arange(80), labels)

    def loss(weights):
        margin = (2 * labels.numpy() - 1) * (features @ weights[:3] + weights[3])
        return np.log1p(np.exp(-margin)).mean() + 0.05 * weights[:3] @ weights[:3]

    best = optimize.minimize(
        loss, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    ).x
    assert said.tolist() == (features @ best[:3] + best[3] > 0).astype(int).tolist()
    alike = regression(features, 0.1)(torch.arange(5), torch.ones(5, dtype=torch.int64))
    assert alike.tolist() == [1] * 80


def test_more_features_than_examples_change_nothing_but_the_basis():
    """A fit in the span of the examples is that in all features: copies of a feature share its weight."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(1)
    few = rng.normal(size=(60, 3))
    rows, labels = torch.arange(8), torch.randint(2, (8,), generator=generator)
    wide = np.concatenate([few / 10**0.5] * 10, 1)
    assert regression(few, 0.1)(rows, labels).tolist() == regression(wide, 0.1)(rows, labels).tolist()


def test_a_network_offers_its_features_and_the_truth_its_state():
    truth = LATTICE.simulate(
        LATTICE.sample(4, torch.Generator().manual_seed(0)), torch.arange(9.0).double(), None, None
    )
    metric = LatentInductiveBias(LATTICE, **QUICK)
    torch.manual_seed(0)
    found = metric.score(None, None, Sequence(LATTICE, truth, width=8))
    assert found["r_ib"].value < found["r_ib"].floor
    right = metric.score(None, None, BASELINES["truth"](LATTICE, truth))
    assert right["r_ib"].value == right["r_ib"].floor == 1.0
    shuffled = metric.score(None, None, BASELINES["shuffled"](LATTICE, truth))
    assert abs(shuffled["r_ib"].value + shuffled["d_ib"].value - 1) < 0.1
    with pytest.raises(NotMeasurable, match="offers no latent"):
        metric.score(None, None, BASELINES["uniform"](LATTICE, truth))


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    one, two, other = (scores(legality, seed=seed)["d_ib"] for seed in (0, 0, 1))
    assert one == two
    assert one.value != other.value
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_asked_says_so():
    with pytest.raises(ValueError, match="needs an automaton"):
        LatentInductiveBias(object())
    with pytest.raises(ValueError, match="prefix_lengths"):
        LatentInductiveBias(LATTICE, prefix_lengths=(5, 4))
    still = Automaton(transitions={"a": {"x": "a", "y": "a"}})
    with pytest.raises(NotMeasurable, match="end in one state"):
        LatentInductiveBias(still, **QUICK).score(None, None, Latent(one_hot, still))
    two = Automaton(transitions={"a": {"x": "a", "y": "b"}, "b": {"x": "a"}})
    lost = LatentInductiveBias(two, **QUICK).score(None, None, Latent(one_hot, two))["d_ib_alike"]
    assert math.isnan(lost.value)
    assert "no pair of words" in lost.reason
    broken = scores(lambda state, generator: state / 0.0 * torch.nan)["r_ib"]
    assert broken.failed == 200
    assert "latent_of must give finite" in broken.reason
