import builtins
import math

import numpy as np
import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.metrics import persistence
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck

gudhi = pytest.importorskip("gudhi", reason="NOT RUN: needs the extra [topology]")

from worldsim_plugins.metrics.persistence import (  # noqa: E402
    alpha_diagrams,
    betti,
    bottleneck,
    cubical_diagrams,
    farthest_points,
    lengths,
    rips_diagrams,
)
from worldsim_plugins.metrics.topology import Topology  # noqa: E402

torch.set_num_threads(1)
ANGLE = torch.arange(60, dtype=torch.float64) * 2 * math.pi / 60
POLYGON = torch.stack([ANGLE.cos(), ANGLE.sin()], 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_regular_polygon_has_one_loop_of_known_birth_and_death():
    pieces, loops = rips_diagrams(POLYGON, 1)
    np.testing.assert_allclose(loops, [[0.1046719125, 1.7320508076]], rtol=0, atol=5e-11)
    assert loops[0, 0] == pytest.approx(2 * math.sin(math.pi / 60), abs=1e-12)
    assert len(pieces) == 60
    assert np.isinf(pieces).sum() == 1
    np.testing.assert_allclose(np.sort(lengths(pieces))[:-1], 2 * math.sin(math.pi / 60), atol=1e-12)


def test_the_alpha_complex_of_the_polygon_and_its_cocircular_ties():
    pieces, loops = alpha_diagrams(POLYGON, 1)
    np.testing.assert_allclose(loops, [[0.0523359562, 1.0]], rtol=0, atol=5e-11)
    assert len(pieces) == 60
    tree = gudhi.AlphaComplex(points=POLYGON.numpy()).create_simplex_tree()
    tree.compute_persistence(min_persistence=-1)
    raw = np.sqrt(tree.persistence_intervals_in_dimension(1))
    assert len(raw) > 1  # all but one are born and die at the radius of the circle
    assert np.allclose(raw[np.isclose(raw[:, 0], 1)], 1)


def test_the_slow_way_agrees_with_the_fast_one(monkeypatch):
    points = torch.randn(25, 3, dtype=torch.float64, generator=seeded(0))
    fast, imported = rips_diagrams(points, 1), builtins.__import__

    def without(name, *rest):
        if name == "gudhi._ripser_ext":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    slow = rips_diagrams(points, 1)
    for one, other in zip(fast, slow):
        np.testing.assert_allclose(np.sort(one, 0), np.sort(other, 0), atol=1e-6)  # the core is in float32


def test_a_few_points_have_no_loops_and_no_errors():
    for count in (1, 2, 3):
        pieces, loops = rips_diagrams(POLYGON[:count], 1)
        assert (len(pieces), len(loops)) == (count, 0)


def test_islands_and_lakes_of_a_field():
    field = torch.zeros(7, 7, dtype=torch.float64)
    field[2:5, 2:5] = 1
    field[3, 3] = 0  # a pit on a hill: two pieces below, and the plain goes round the hill
    pieces, loops = cubical_diagrams(field)
    np.testing.assert_allclose(pieces, [[0, np.inf], [0, 1]])
    np.testing.assert_allclose(loops, [[0, 1]])
    wave = (2 * math.pi * torch.arange(8, dtype=torch.float64) / 8).cos()
    torus = cubical_diagrams(wave[:, None] + wave / 2, periodic=True)
    assert [betti(each, 0.1) for each in torus] == [1, 2]


def test_the_bottleneck_distance_has_its_definition():
    one, other = np.array([[0.0, 1.0]]), np.array([[0.1, 1.4]])
    assert bottleneck(one, other) == pytest.approx(0.4, abs=1e-12)
    assert bottleneck(one, np.empty((0, 2))) == pytest.approx(0.5)
    assert bottleneck(np.empty((0, 2)), np.empty((0, 2))) == 0
    assert bottleneck(np.array([[0.0, 0.2], [5.0, 5.1]]), np.empty((0, 2))) == pytest.approx(0.1)
    endless = np.array([[0.0, np.inf]])
    assert bottleneck(endless, endless + np.array([[0.3, 0.0]])) == pytest.approx(0.3)
    assert bottleneck(one, np.concatenate([one, endless])) == math.inf


def test_farthest_points_cover():
    points = torch.rand(500, 2, dtype=torch.float64, generator=seeded(0))
    cover = farthest_points(points, 40)
    assert float(torch.cdist(points, cover).amin(1).max()) < float(torch.pdist(cover).min()) + 1e-12
    assert farthest_points(points[:10], 40) is not points
    torch.testing.assert_close(farthest_points(points[:10], 40), points[:10])


TIMES = torch.arange(41, dtype=torch.float64) * 0.25


class Ring:
    """Once round the unit circle, give or take, in 10 units of time."""

    def sample(self, n, generator):
        return torch.rand(n, 2, dtype=torch.float64, generator=generator)

    def simulate(self, start, times, actions, generator):
        angle = 2 * math.pi * (start[:, :1] + times / 10)
        radius = 1 + 0.1 * (start[:, 1:] - 0.5)
        states = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)[:, None]
        return Trajectory(states, times, axes=("component",))


def rounds(n, seed):
    return Ring().simulate(Ring().sample(n, seeded(seed)), TIMES, None, None)


def test_a_limit_cycle_is_one_piece_with_one_loop_and_a_still_forecast_is_not():
    metric, truth = Topology(Ring(), points=64), rounds(8, 0)
    scores = metric.score(truth, rounds(8, 1), None)
    for k, count in ((0, 1), (1, 1)):
        assert scores[f"betti_{k}"].value == scores[f"betti_{k}_truth"].value == count
        assert scores[f"betti_{k}_error"].value == 0
        assert scores[f"bottleneck_{k}"].value <= 1.5 * scores[f"bottleneck_{k}_floor_q95"].value
        assert scores[f"bottleneck_{k}"].floor > 0
    assert scores["diagram_1"].dims == ("bar_1", "end")
    still = truth.replace(states=truth.states[:, :, :1].expand_as(truth.states))
    lost = metric.score(truth, still, None)
    assert lost["betti_1"].value == 0
    assert lost["betti_1_error"].value == 1
    assert lost["bottleneck_1"].value > 3 * lost["bottleneck_1_floor_q95"].value
    same = metric.score(truth, truth, None)
    assert same["bottleneck_0"].value == same["bottleneck_1"].value == 0


def test_what_cannot_be_measured_says_so(monkeypatch):
    system = OrnsteinUhlenbeck(dim=4)
    generator = seeded(0)
    truth = system.simulate(system.sample(20, generator), TIMES, None, generator)
    with pytest.raises(NotMeasurable, match="4 dimensions is too large"):
        Topology(system, complex="alpha").score(truth, truth, None)
    with pytest.raises(NotMeasurable, match="tokens"):
        Topology(system).score(truth.replace(states=truth.states[..., 0].long()), truth, None)
    exploded = truth.states.clone()
    exploded[2, :, 9:] = math.nan
    lost = Topology(system).score(truth, truth.replace(states=exploded), None)
    assert lost["bottleneck_0"].failed == 1
    monkeypatch.setattr(persistence, "find_spec", lambda name: None)
    with pytest.raises(NotMeasurable, match=r"pip install 'worldsim\[topology\]'"):
        Topology(system)


class Hills:
    """Fields ``[y, x, component]`` with one to three hills."""

    def sample(self, n, generator):
        return torch.rand(n, 4, dtype=torch.float64, generator=generator)

    def simulate(self, start, times, actions, generator):
        grid = torch.linspace(0, 1, 12, dtype=torch.float64)
        bump = [
            (-((grid[:, None] - y[:, None, None]) ** 2 + (grid - x[:, None, None]) ** 2) / 0.02).exp()
            for y, x in ((start[:, 0], start[:, 1]), (start[:, 2], start[:, 3]))
        ]
        states = (bump[0] + bump[1])[:, None, None, :, :, None].expand(-1, 1, len(times), -1, -1, -1)
        return Trajectory(states, times, axes=("y", "x", "component"), labels={"component": ("u",)})


def test_fields_are_compared_by_their_islands():
    system = Hills()
    truth = system.simulate(system.sample(12, seeded(0)), TIMES[:3], None, None)
    metric = Topology(system, persistence=0.3)
    same = metric.score(truth, truth, None)
    assert same["bottleneck_0"].value == same["bottleneck_1"].value == 0
    assert same["bottleneck_1"].floor > 0
    assert same["betti_0"].value >= 1
    flat = metric.score(truth, truth.replace(states=truth.states * 0), None)
    assert flat["bottleneck_1"].value > flat["bottleneck_1"].floor
    assert flat["betti_1"].value == 0
    assert flat["bottleneck_1"].interval[0] < flat["bottleneck_1"].value
    with pytest.raises(ValueError, match="component 2"):
        Topology(system, component=2).score(truth, truth, None)
