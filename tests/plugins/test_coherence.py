"""Coherence: the exact values over tokens, and known answers over continuous states."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim.baselines import Persistence
from worldsim.protocols import HistoryPairs
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.metrics import divergences
from worldsim_plugins.metrics.coherence import Coherence
from worldsim_plugins.metrics.continuous_coherence import ranking, separation
from worldsim_plugins.metrics.divergences import divergence
from worldsim_plugins.metrics.history_pairs import couples, spread
from worldsim_plugins.metrics.intervals import never
from worldsim_plugins.metrics.known_coherence import columns
from worldsim_plugins.metrics.myhill_nerode import nerode_classes
from worldsim_plugins.metrics.observed import observer
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck

GOLDEN = {  # belief: compression precision, distinction precision and recall at equal, then at mixed lengths
    ("true", 5): (1, 1, 1, 1, 1, 1),
    ("states", 4): (0.947179, 0.713636, 0.703254, 0.932965, 0.719187, 0.703254),
    ("states", 6): (1, 0.746338, 0.5, 1, 0.746338, 0.5),
    ("uniform", 5): (1, 1, 0, 1, 1, 0),
    ("reject_all", 5): (1, 1, 0, 1, 1, 0),
    ("odd_refusal", 5): (1, 1, 0.471714, 0, 0.325808, 0.471714),
}
PUBLISHED = ("compression_precision", "distinction_precision", "distinction_recall")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth_of(system, n=32, frames=20, step=1.0) -> Trajectory:
    times = step * torch.arange(frames, dtype=torch.float64)
    return system.simulate(system.sample(n, generator()), times, None, generator())


def scored(system, model, truth=None, **options):
    truth = truth_of(system) if truth is None else truth
    return Coherence(system, **options).score(truth, truth, model)


@pytest.fixture(scope="module")
def lattice_scores():
    system = Automaton(preset="lattice")
    return {key: scored(system, BelievedAutomaton(system, belief=key[0], states=key[1])) for key in GOLDEN}


@pytest.mark.parametrize("key", list(GOLDEN), ids=str)
def test_exact_population_values_on_the_lattice(lattice_scores, key):
    scores = lattice_scores[key]
    names = [*PUBLISHED, *(f"{name}_mixed" for name in PUBLISHED)]
    assert [scores[name].value for name in names] == [pytest.approx(value, abs=5e-7) for value in GOLDEN[key]]
    assert all(score.failed == 0 and score.interval is None for score in scores.values())


def test_the_true_automaton_is_perfect_and_without_error(lattice_scores):
    scores = lattice_scores["true", 5]
    for name, score in scores.items():
        if score.better == "higher":
            assert score.value == 1.0 == score.floor, name
        elif score.better == "lower":
            assert score.value == 0.0 == score.floor, name
    assert scores["n_empty"].value == 0.0
    assert scores["coverage"].value == 1.0


@pytest.mark.parametrize("belief", ["uniform", "reject_all"])
def test_knowing_nothing_ranks_at_one_half_and_its_precision_is_shown_as_vacuous(lattice_scores, belief):
    scores = lattice_scores[belief, 5]
    assert scores["coherence_auc"].value == 0.5
    assert scores["coherence_auc_mixed"].value == 0.5
    assert scores["n_empty"].value == 1.0
    assert scores["fidelity"].value > 0.3


def test_a_model_that_goes_by_elapsed_time_is_caught_by_mixed_lengths_only(lattice_scores):
    scores = lattice_scores["odd_refusal", 5]
    assert scores["coherence_auc"].value == 1.0
    assert scores["coherence_auc_mixed"].value < 0.5


def test_next_token_validity(lattice_scores):
    assert lattice_scores["reject_all", 5]["next_token_validity"].value == 0.0
    share_of_legal = (2 * 2 / 3 + 3) / 5
    assert lattice_scores["uniform", 5]["next_token_validity"].value == pytest.approx(share_of_legal)


def test_a_city_is_sampled_by_seed_with_an_interval():
    system = Automaton(preset="grid_city", rows=3, columns=3)
    truth = truth_of(system)
    options = {"prefix_length": 14, "horizon": 4, "pairs": 80}
    right = scored(system, BelievedAutomaton(system), truth, **options)
    for name in (*PUBLISHED, "coherence_auc", "compression_precision_mixed", "coherence_auc_mixed"):
        assert right[name].value == 1.0
        # One-sided: every four prefixes make an independent comparison of two pairs.
        assert right[name].interval == (pytest.approx(0.05 ** (1 / (right[name].n // 4))), 1.0)
    frequent = SimpleNamespace(next_token=lambda tokens: _last_token_repeats(tokens, 4))
    one, same, other = (scored(system, frequent, truth, seed=seed, **options) for seed in (0, 0, 1))
    assert one["coherence_auc"].value == same["coherence_auc"].value
    assert one["coherence_auc"].value != other["coherence_auc"].value
    low, high = one["coherence_auc"].interval
    assert low < one["coherence_auc"].value < high


def _last_token_repeats(tokens, size):
    return 0.7 * torch.nn.functional.one_hot(tokens[:, -1], size).double() + 0.3 / size


def test_two_states_of_one_language_are_one_class():
    twins = {"a": {"x": "b", "y": "c", "z": "a"}, "b": {"x": "a"}, "c": {"x": "a"}}
    system = Automaton(transitions=twins)
    scores = scored(system, BelievedAutomaton(system))
    assert scores["coherence_auc"].value == 1.0
    assert scores["distinction_recall"].value == 1.0
    assert scores["coverage"].value == 1.0


def test_one_class_leaves_nothing_to_distinguish():
    system = Automaton(transitions={"a": {"x": "a", "y": "a"}})
    scores = scored(system, BelievedAutomaton(system))
    assert scores["compression_precision"].value == 1.0
    for name in ("distinction_recall", "coherence_auc"):
        assert math.isnan(scores[name].value)
        assert "prefix_length" in scores[name].reason
        assert scores[name].better == "higher"


def test_a_failing_model_over_tokens_is_counted():
    system = Automaton(preset="lattice")

    def broken(tokens):
        raise RuntimeError("no such token")

    for law in (
        broken,
        lambda tokens: torch.full((len(tokens), 3), torch.nan),
        lambda tokens: torch.ones(2, 2),
    ):
        scores = scored(system, SimpleNamespace(next_token=law))
        assert math.isnan(scores["coherence_auc"].value)
        assert scores["compression_precision"].failed > 0
        assert "the model failed" in scores["coherence_auc"].reason


def test_too_many_words_are_refused():
    system = Automaton(preset="lattice")
    with pytest.raises(NotMeasurable, match="reduce horizon"):
        scored(system, BelievedAutomaton(system), horizon=13)


class Line:
    """x' = v, v' = 0 on a line, noise on x when asked; histories that end in one state, in two frames."""

    history_kinds = ("window_shift", "mirror")

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def sample(self, n, generator):
        return torch.randn(n, 2, dtype=torch.float64, generator=generator)

    def restart(self, states):
        return states

    def simulate(self, start, times, actions, generator):
        lead = times - times[0]
        x = start[:, :1] + start[:, 1:] * lead
        jump = torch.randn(x.shape, dtype=x.dtype, generator=generator) * self.noise
        x = x + torch.where(lead > 0, jump, 0.0)
        states = torch.stack([x, start[:, 1:].expand_as(x)], -1)[:, None]
        return Trajectory(states=states, times=times)

    def equivalent_histories(self, kind, n, times, generator):
        past = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return HistoryPairs(past, past.span(len(times) // 2), lambda states: states)
        return HistoryPairs(past, past.replace(states=-past.states), torch.neg)


class Rolled:
    """A model made of one function from (context, lead times, draws, generator) to states."""

    def __init__(self, future) -> None:
        self.future = future

    def rollout(self, context, times, actions, draws, generator):
        states = self.future(context, times - times[0], draws, generator)
        return Trajectory(states=states, times=times)


def exact(context, lead, draws, generator):
    return Line().simulate(context.states[:, 0, -1], lead, None, generator).states


def constant(context, lead, draws, generator):
    return torch.full((len(context), draws, len(lead), 2), 0.3)


def counts_frames(context, lead, draws, generator):
    return exact(context, lead, draws, generator) + len(context.times)


def falls_back(context, lead, draws, generator):
    right = exact(context, lead, draws, generator)
    return right * torch.where(torch.arange(len(right)) % 10 == 0, torch.nan, 1.0)[:, None, None, None]


def noisy(context, lead, draws, generator):
    line = Line(noise=0.2)
    rows = context.states[:, 0, -1].repeat_interleave(draws, 0)
    return line.simulate(rows, lead, None, generator).states.reshape(len(context), draws, len(lead), 2)


def climatology(context, lead, draws, generator):
    return torch.randn(len(context), draws, len(lead), 2, dtype=torch.float64, generator=generator)


def test_the_truth_is_coherent_over_states():
    system = Line()
    scores = scored(system, Rolled(exact), horizon=4, pairs=40)
    for kind in ("", "_window_shift", "_mirror"):
        for name in ("coherence_auc", "compression", "distinction_recall", "distinction_precision"):
            assert scores[name + kind].value == 1.0 == scores[name + kind].floor
        for name in ("fidelity", "horizon_error"):
            assert scores[name + kind].value == 0.0 == scores[name + kind].floor
    assert scores["coherence_auc"].n == 80
    # One-sided: 40 couples of two states make 20 independent comparisons, and the rule of three.
    assert scores["coherence_auc"].interval == (pytest.approx(1 - never(20)), 1.0)
    assert scores["compression"].interval == (pytest.approx(1 - never(40)), 1.0)
    array = scores["divergence_equivalent"]
    assert array.dims == ("pair", "time")
    assert array.value.shape == (80, 4)
    assert np.abs(array.value).max() < 1e-12
    assert array.coords["time"] == [1.0, 2.0, 3.0, 4.0]
    assert array.coords["pair"].count("mirror") == 40


def test_a_constant_model_ranks_at_exactly_one_half():
    scores = scored(Line(), Rolled(constant), horizon=4, pairs=40)
    for kind in ("", "_window_shift", "_mirror"):
        assert scores[f"coherence_auc{kind}"].value == 0.5
    assert scores["compression_window_shift"].value == 1.0
    assert scores["distinction_recall_window_shift"].value == 0.0
    assert scores["n_empty_window_shift"].value == 1.0
    assert "separates no distinct pair" in scores["distinction_precision_window_shift"].reason
    assert scores["fidelity"].value > 0.5


def test_a_model_that_counts_frames_fails_where_histories_differ_in_length():
    scores = scored(Line(), Rolled(counts_frames), horizon=4, pairs=40, kinds=["window_shift"])
    assert scores["compression"].value == 0.0
    assert scores["coherence_auc"].value < 0.7
    assert (
        scores["coherence_auc"].interval[0]
        < scores["coherence_auc"].value
        < scores["coherence_auc"].interval[1]
    )
    assert "coherence_auc_window_shift" not in scores


def test_a_model_that_fails_on_some_pairs_is_not_measurable():
    scores = scored(Line(), Rolled(falls_back), horizon=4, pairs=40, kinds=["window_shift"])
    for name in ("coherence_auc", "compression", "distinction_recall", "fidelity", "horizon_error"):
        assert scores[name].failed == 4
        assert scores[name].n == 40
        assert math.isnan(scores[name].value)
        assert "4 of 40 pairs have futures that are not finite" in scores[name].reason
    assert "divergence_equivalent" not in scores
    raising = scored(Line(), Rolled(lambda *_: 1 / 0), horizon=4, pairs=40, kinds=["mirror"])
    assert raising["compression"].failed == 40
    assert "ZeroDivisionError" in raising["compression"].reason


def test_stochastic_predictions_are_compared_by_their_laws():
    system = Line(noise=0.2)
    options = {"horizon": 3, "pairs": 40, "draws": 24, "kinds": ["window_shift"]}
    right = scored(system, Rolled(noisy), **options)
    assert right["coherence_auc"].value > 0.95
    assert right["coherence_auc"].floor > 0.95
    assert right["threshold"].value > 0.01
    assert right["compression"].value >= 0.8
    assert right["fidelity"].value == pytest.approx(right["fidelity"].floor, rel=0.1)
    blind = scored(system, Rolled(climatology), **options)
    assert abs(blind["coherence_auc"].value - 0.5) < 0.15
    assert blind["distinction_recall"].value < 0.8
    assert blind["fidelity"].value > 2 * blind["fidelity"].floor
    assert scored(system, Rolled(constant), **options)["coherence_auc"].value == 0.5


def test_without_restarting_only_what_needs_no_truth_is_measured():
    system = SimpleNamespace(
        history_kinds=("mirror",), equivalent_histories=Line().equivalent_histories, simulate=Line().simulate
    )
    scores = scored(system, Rolled(exact), truth_of(Line()), horizon=4, pairs=20)
    assert scores["coherence_auc"].value == 1.0
    assert scores["coherence_auc"].floor is None
    for name in ("fidelity", "distinction_recall", "horizon_error"):
        assert math.isnan(scores[name].value)
        assert "cannot be restarted" in scores[name].reason


def test_what_cannot_be_measured_says_so():
    truth = truth_of(Line())
    with pytest.raises(ValueError, match="no equivalent histories"):
        scored(SimpleNamespace(), Rolled(exact), truth)
    with pytest.raises(NotMeasurable, match="next_token"):
        scored(Automaton(preset="lattice"), Rolled(exact))
    with pytest.raises(NotMeasurable, match="single frame"):
        scored(Line(), Rolled(exact), truth.span(0, 1))
    with pytest.raises(ValueError, match="rotation not built by Line; allowed: window_shift, mirror"):
        Coherence(Line(), kinds=["rotation"])


def test_scores_depend_on_the_seed_alone():
    options = {"horizon": 3, "pairs": 30, "draws": 4}
    draws = [scored(Line(), Rolled(climatology), seed=seed, **options) for seed in (5, 5, 6)]
    values = [score["coherence_auc"].value for score in draws]
    assert values[0] == values[1] != values[2]


def test_distances_in_closed_form():
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    y = torch.tensor([[[[3.0, 4.0], [0.0, 2.0]]]], dtype=torch.float64)
    scale = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(
        divergence(x, y, scale), torch.tensor([[1.0, 0.125**0.5]], dtype=torch.float64)
    )
    # Two point masses at 0 and two at 1: D^2 = 2 |0 - 1|.
    zeros, ones = (torch.full((1, 2, 1, 1), each, dtype=torch.float64) for each in (0.0, 1.0))
    unit = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(divergence(zeros, ones, unit), torch.tensor([[2.0**0.5]], dtype=torch.float64))
    # N(0, 1) and N(1, 1): D^2 = 0.5418065793 (Szekely and Rizzo).
    level = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    normal = torch.special.ndtri(level)[None, :, None, None]
    assert float(divergence(normal, normal + 1, unit)) ** 2 == pytest.approx(0.5418065793, abs=2e-3)
    assert divergence(x, x * torch.nan, scale).isinf().all()


@pytest.mark.parametrize("d", [1, 2])
def test_distances_of_draws_do_not_depend_on_how_many_are_taken_at_once(monkeypatch, d):
    x, y = torch.randn(2, 7, 5, 3, d, generator=generator(), dtype=torch.float64)
    unit = torch.ones(d, dtype=torch.float64)

    def mean(a, b):
        return (a[:, :, None] - b[:, None]).norm(dim=-1).mean((1, 2))

    expected = ((2 * mean(x, y) - mean(x, x) - mean(y, y)) / d**0.5).sqrt()
    for chunk in (2**16, 60, 1):  # all of 21 problems, two, and one
        monkeypatch.setattr(divergences, "CHUNK", chunk)
        torch.testing.assert_close(divergence(x, y, unit, "energy"), expected, rtol=1e-12, atol=0)
        assert (divergence(x, x.flip(1), unit, "energy") == 0).all()
        assert divergence(x, y * torch.nan, unit, "energy").isinf().all()


def test_ranking_counts_ties_half():
    low, high = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 2.0]).double()
    assert ranking(low, high) == 0.875
    assert ranking(high, low) == 0.125
    assert ranking(low, low) == 0.5


def test_separation_of_the_doubling_map():
    """delta_0 = 2^-10, -20, -30 passes 0.1 after floor(log2(0.1 / delta_0)) + 1 = 7, 17, 27 doublings."""
    start = 2.0 ** -torch.tensor([10.0, 20.0, 30.0]).double()
    grown = start[:, None] * 2.0 ** torch.arange(1, 40).double()
    first, ever = separation(grown, 0.1)
    assert first.tolist() == [7, 17, 27]
    assert ever.all()
    assert separation(grown[:, :3], 0.1)[0].tolist() == [4, 4, 4]


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_couples_are_disjoint_and_nobody_is_its_own_partner(n):
    partner, couple = couples(n)
    assert torch.equal(partner.sort().values, torch.arange(n))
    assert (partner != torch.arange(n)).all()
    assert torch.equal(couple[partner], couple)
    assert torch.bincount(couple).tolist() == [2] * (n // 2 - n % 2) + [3] * (n % 2)


def test_one_draw_of_a_stochastic_world_measures_no_coherence():
    """It would call the truth incoherent, and a forecast that never changes coherent."""
    system, times = OrnsteinUhlenbeck(), torch.arange(8, dtype=torch.float64) / 10
    rng = torch.Generator().manual_seed(0)
    truth = system.simulate(system.sample(20, rng), times, None, rng)
    model = Persistence(system, truth)
    with pytest.raises(NotMeasurable, match="compare laws, with draws"):
        Coherence(system, pairs=20).score(truth, truth, model)
    scores = Coherence(system, pairs=20, draws=16).score(truth, truth, model)
    assert scores["fidelity"].value > 1.5 * scores["fidelity"].floor


def test_distances_have_the_scale_of_what_is_there_and_no_scale_of_rounding():
    states = torch.tensor([[1.0, 3.0, 1e9], [1.0, 3.0, 1.0]], dtype=torch.float64)[:, None, :, None]
    rounded = torch.full_like(states, 0.1)
    rounded[0, 0, 0] = math.nextafter(0.1, 1)
    truth = Trajectory(
        torch.cat([states, rounded], -1), torch.arange(3.0).double(), length=torch.tensor([[2], [2]])
    )
    assert spread(truth, observer(None, None)).tolist() == [1.0, 1.0]


def test_cumulative_connect_four():
    """A model that accepts every column is right wherever none is full, (n / (n + 1))^c of the states, and
    in n / (n + 1) of the tokens; it has recall 0 of every pair, and knows nothing."""
    small = columns(3, 2)
    assert [int(nerode_classes(small.table, depth).max()) + 1 for depth in range(5)] == [1, 4, 9, 16, 16]
    assert int(nerode_classes(small.table).max()) + 1 == 16
    legal = small.table >= 0
    assert legal.all(1).double().mean() == pytest.approx((3 / 4) ** 2)
    # Seven columns of 1000 are independent of one another, so that each one's states are enough.
    one = columns(1000, 1).table >= 0
    share = float(one.double().mean())
    assert share == pytest.approx(0.9990010, abs=5e-8)
    assert share**7 == pytest.approx(0.9930279, abs=5e-8)
    uniform = SimpleNamespace(next_token=lambda tokens: torch.full((len(tokens), 2), 0.5))
    truth = Trajectory(torch.zeros(2, 1, 3, dtype=torch.int64), torch.arange(3.0).double())
    scores = Coherence(small, prefix_length=3, horizon=4).score(truth, truth, uniform)
    assert scores["distinction_recall"].value == 0.0
    assert scores["coherence_auc"].value == 0.5
    assert scores["n_empty"].value == 1.0
    assert scores["compression_precision"].value == 1.0
    assert "separates no pair" in scores["distinction_precision_found"].reason


@pytest.mark.parametrize("people", [2, 3])
def test_who_solves_the_seating_puzzle_is_perfect_and_a_constant_is_not(people):
    system = Automaton(preset="seating", people=people)
    options = {"horizon": 1, "prefix_length": people, "pairs": 400}
    right = scored(system, BelievedAutomaton(system), **options)
    size = len(system.alphabet)
    one = torch.eye(size, dtype=torch.float64)[0]
    constant = scored(
        system, SimpleNamespace(next_token=lambda tokens: one.expand(len(tokens), -1)), **options
    )
    for name in (*PUBLISHED, "compression_both", "distinction_precision_found", "coherence_auc"):
        assert right[name].value == 1.0
    assert constant["coherence_auc"].value == 0.5
    assert constant["distinction_recall"].value == 0.0
    assert constant["n_empty"].value == 1.0


def test_a_policy_is_no_knowledge_and_legality_tells_them_apart():
    """Who knows the map and goes the shortest way separates few states by what it does, all by what it takes
    to be possible."""
    system = Automaton(transitions=ROUTES)
    model = BelievedAutomaton(system, belief="shortest_path")
    scores = scored(system, model, prefix_length=4, horizon=3)
    assert scores["compression_precision"].value == 1.0
    assert scores["distinction_recall"].value < 0.7
    for name in ("distinction_recall", "compression_both", "coherence_auc", "distinction_precision_found"):
        assert scores[f"{name}_legality"].value == 1.0
    assert scored(system, BelievedAutomaton(system, belief="uniform"))["coherence_auc_legality"].value == 0.5


ROUTES = {
    "a": {"N": "b", "E": "c"},
    "b": {"S": "a", "E": "d"},
    "c": {"W": "a", "N": "d"},
    "d": {"W": "b", "S": "c", "end": "done"},
    "done": {"end": "done"},
}


def test_states_are_weighed_as_the_truth_visits_them(lattice_scores):
    """The walk is at the ends of the lattice less often than uniformly drawn states are."""
    four = lattice_scores["states", 4]
    assert four["coherence_auc"].value != four["coherence_auc_on_policy"].value
    for name in ("compression_both", "distinction_recall", "coherence_auc"):
        assert lattice_scores["true", 5][f"{name}_on_policy"].value == 1.0
    assert lattice_scores["uniform", 5]["coherence_auc_on_policy"].value == 0.5


def test_precision_without_the_vacuous_pairs(lattice_scores):
    """distinction_precision counts an empty boundary as 1; the other leaves it out and says how many."""
    four, six = (lattice_scores["states", n] for n in (4, 6))
    assert four["n_empty"].value == pytest.approx(0.1012516, abs=5e-7)
    assert four["distinction_precision_found"].value == pytest.approx(0.6629134, abs=5e-7)
    assert six["n_empty"].value == 0.0
    assert six["distinction_precision_found"].value == six["distinction_precision"].value
    assert "separates no pair" in lattice_scores["uniform", 5]["distinction_precision_found"].reason
