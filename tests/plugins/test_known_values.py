"""``worldsim score --selftest`` holds our metrics to what is known of them, and would notice."""

import pytest

from worldsim.plugins import load_plugins
from worldsim.testing.ground_truths import ground_truths
from worldsim_plugins.metrics import known_values

OURS = list(ground_truths(load_plugins()))


@pytest.mark.parametrize(("metric", "one"), OURS, ids=[f"{metric}: {one.what}" for metric, one in OURS])
def test_a_metric_gives_the_known_value(metric, one):
    assert one.holds, one


def test_which_metrics_are_held_to_something():
    assert {"transport", "forecast", "information"} <= {metric for metric, _ in OURS}


def test_a_wrong_distance_is_noticed(monkeypatch):
    """Half the squared distance is a common mistake."""
    right = known_values.wasserstein2

    def halved(x, y):
        found = right(x, y)
        return found._replace(W2_squared=found.W2_squared / 2)

    monkeypatch.setattr(known_values, "wasserstein2", halved)
    assert [one.what for one in known_values.of_transport() if not one.holds] == [
        "W2 squared of a sample moved by (0.3, 0.4)"
    ]
