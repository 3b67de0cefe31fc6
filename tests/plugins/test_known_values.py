"""``worldsim score --selftest`` holds our metrics to what is known of them, and would notice."""

import pytest
import torch

from worldsim.plugins import load_plugins
from worldsim.protocols import HasGroundTruths
from worldsim_plugins.metrics import known_coherence, known_dynamics, known_shapes, known_values
from worldsim_plugins.metrics.coherence import Coherence
from worldsim_plugins.metrics.invariants import Invariants

PLUGINS = load_plugins()
HELD = [
    name for name in PLUGINS.tables["metric"] if isinstance(PLUGINS.builder("metric", name), HasGroundTruths)
]


@pytest.mark.parametrize("metric", HELD)
def test_a_metric_gives_the_known_values(metric):
    found = PLUGINS.builder("metric", metric).ground_truths()
    assert found
    assert missed(found) == []
    assert len({one.what for one in found}) == len(found)


def test_which_metrics_are_held_to_something():
    assert {
        *("transport", "forecast", "information", "coherence", "sampled_coherence", "invariants"),
        *("chaos", "causality", "climate", "rollout", "spectra", "topology"),
    } <= set(HELD)


def missed(rows):
    return [one.what for one in rows if not one.holds]


def test_a_wrong_distance_is_noticed(monkeypatch):
    """Half the squared distance is a common mistake."""
    right = known_values.wasserstein2

    def halved(x, y):
        found = right(x, y)
        return found._replace(W2_squared=found.W2_squared / 2)

    monkeypatch.setattr(known_values, "wasserstein2", halved)
    assert missed(known_values.of_transport()) == ["W2 squared of a sample moved by (0.3, 0.4)"]


def test_a_boundary_that_is_lost_is_noticed(monkeypatch):
    monkeypatch.setattr(known_coherence, "boundary_sizes", lambda table, longest: torch.zeros(4, 5, 5))
    assert missed(known_coherence.of_coherence(Coherence)) == [
        "sizes of the boundaries |MNB_5| of the lattice, largest error"
    ]


def test_words_that_are_too_short_are_noticed():
    found = missed(known_coherence.of_coherence(lambda system, **keys: Coherence(system, horizon=3)))
    assert "lattice, four positions: distinction_recall" in found
    assert "lattice, the truth: distinction_recall" not in found


def test_an_absolute_drift_is_noticed():
    """The energy is 1/2 at first, so that it is half the relative one."""

    def absolute(system):
        return Invariants(system, scale={"energy": 1.0})

    assert len(missed(known_dynamics.of_invariants(absolute))) == 5  # all but what is 0


def test_an_unnormalised_spectrum_is_noticed(monkeypatch):
    right = known_shapes.fourier_rmse
    monkeypatch.setattr(known_shapes, "fourier_rmse", lambda errors, edges: 64 * right(errors, edges))
    assert missed(known_shapes.of_spectra()) == ["the same, its own band"]


def test_without_gudhi_shapes_are_held_to_nothing(monkeypatch):
    monkeypatch.setattr(known_shapes, "find_spec", lambda name: None)
    assert known_shapes.of_topology() == []
