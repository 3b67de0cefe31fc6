"""What authors outside do is run rightly or refused with a reason, and never wrong without a word."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import worldsim
from worldsim import Score, Trajectory
from worldsim.baselines import Memoriser
from worldsim.errors import ScenarioError
from worldsim.fit import fit
from worldsim.plugins import registry
from worldsim.reading import from_document
from worldsim.scenario import FitSettings
from worldsim.score import from_document as read_scores
from worldsim.score import residual_scores, score_with, to_document
from worldsim.trees import to_dataset
from worldsim.truth import _repeats, _simulate_block, check_truth
from worldsim.wrapped import Wrapped, scaling_of

F64 = torch.float64


def truth(n=6, frames=5, size=2, **fields):
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(n, 1, frames, size, dtype=F64, generator=rng)
    return Trajectory(states, torch.arange(frames, dtype=F64), axes=("component",), **fields)


class Noisy(nn.Module):
    """Dropout, and the global random numbers, in a rollout that passes its context's observables on."""

    def __init__(self, truth):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(truth.state_shape[-1], truth.state_shape[-1]), nn.Dropout(0.5))
        self.shown = None

    def loss(self, truth):
        return (self.net(truth.states) - truth.states).square().mean()

    def rollout(self, context, times, actions, draws, generator):
        self.shown = set(context.observables)
        frames = [context.states[:, :1, -1].expand(-1, draws, -1)]
        for _ in times[1:]:
            frames.append(self.net(frames[-1]))
        return context.replace(states=torch.stack(frames, 2), times=times)


def rolled(model, data, draws=1):
    context = data.span(0, 2)
    return model.rollout(context, data.times[1:], None, draws, torch.Generator().manual_seed(0))


def test_a_context_shows_no_observable_and_a_rollout_may_pass_it_on():
    data = truth(observables={"hidden": torch.zeros(6, 1, 5)})
    model = Wrapped(Noisy, "component", data, block=4)
    assert "hidden" not in rolled(model, data, draws=3).observables
    assert model.inner.shown == set()


def test_dropout_is_for_training_alone():
    data = truth()
    model = Wrapped(Noisy, "component", data, block=4)
    before = torch.get_rng_state()
    assert torch.equal(rolled(model, data).states, rolled(model, data).states)
    fit(model, data, data, FitSettings(steps=3, batch=4, validate_every=2), 0)
    assert not model.inner.net.training
    assert torch.equal(rolled(model, data).states, rolled(model, data).states)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("scaling", ["component", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_of_the_dtype_that_was_asked_for(scaling, dtype):
    data = truth()
    model = Wrapped(Noisy, scaling, data, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.loss(data).dtype == dtype
    assert rolled(model, data).states.dtype == F64


@pytest.mark.trial(8)
def test_a_rollout_on_other_times_or_with_odd_observables_is_refused():
    data = truth()

    class Late(Noisy):
        def rollout(self, *arguments):
            guess = super().rollout(*arguments)
            return guess.replace(times=guess.times + 1)

    class Odd(Noisy):
        def rollout(self, *arguments):
            return super().rollout(*arguments).replace(observables={"energy": torch.zeros(6, 1, 2)})

    for kind, words in ((Late, "not the times"), (Odd, "energy must begin with")):
        with pytest.raises(ValueError, match=words):
            rolled(Wrapped(kind, "component", data), data)


def test_a_builder_that_hides_the_scaling_is_refused():
    class Canonical(Noisy):
        scaling = "canonical"

    with pytest.raises(ValueError, match="set the attribute scaling = 'canonical' on the builder"):
        Wrapped(Canonical, "component", truth())


def test_parameters_that_no_fit_would_find_are_refused():
    def build(data, trainable):
        return SimpleNamespace(net=nn.Linear(2, 2), trainable=trainable)

    with pytest.raises(ValueError, match=r"make it an nn\.Module, or say trainable = False"):
        Wrapped(partial(build, trainable=True), "component", truth())
    assert not Wrapped(partial(build, trainable=False), "component", truth()).trainable


def test_the_rounding_of_a_constant_is_no_scale():
    data = truth()
    constant = torch.full_like(data.states[..., :1], 0.1)
    constant[0] = math.nextafter(0.1, 1)
    fixed = data.replace(states=torch.cat([data.states[..., :1], constant], -1))
    assert fixed.states[..., 1].std(correction=0) > 0
    assert scaling_of(fixed, "component")[1][1] == 1
    other = fixed.replace(states=fixed.states + torch.tensor([0.0, 0.1], dtype=F64)).rows(slice(1, 2))
    guess = Memoriser(object(), fixed).rollout(other.span(0, 1), other.times, None, 1, None)
    assert torch.equal(guess.states[0, 0, 1:, 0], fixed.states[1, 0, 1:, 0])


def test_states_that_are_single_numbers_are_scaled_too():
    data = truth()
    shift, scale = scaling_of(data.replace(states=300 + data.states[..., 0], axes=()), "component")
    assert float(shift) == pytest.approx(300, abs=1)
    assert 0.5 < float(scale) < 1.5
    with pytest.raises(ValueError, match=r"needs a last state axis \(q, p\)"):
        scaling_of(data.replace(states=data.states[..., :1]), "canonical")


@pytest.mark.trial(8)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"states": torch.zeros(6, 1, 5, 2)}, "expected states in float64"),
        ({"states": torch.zeros(6, 1, 4, 2, dtype=F64)}, r"states must be .* found \[6, 1, 4, 2\]"),
        ({"states": torch.zeros(6, 1, 5, 2, dtype=F64, device="meta")}, "must be on the CPU .* found meta"),
        ({"states": torch.zeros(6, 1, 5, 2, dtype=F64, requires_grad=True)}, "found cpu and a gradient"),
        ({"length": torch.zeros(6, dtype=torch.int64)}, "length must be"),
        ({"observables": {"x": torch.zeros(6, 5)}}, "x must begin with"),
        (
            {"length": torch.full((6, 1), 3), "observables": {"x": torch.full((6, 1, 5), torch.nan)}},
            "not finite",
        ),
    ],
)
def test_a_truth_that_breaks_its_promises_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        check_truth(truth().replace(**changes), 6, truth().times, "odd")


@pytest.mark.trial(8)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda states: states[:, :, :-1], r"Odd.rollout: states must be .* 4, 2\], found .* 3, 2\]"),
        (lambda states: states.to(torch.int64), "must be floating point on cpu, found torch.int64 on cpu"),
        (lambda states: states.to(torch.complex64), "must be floating point on cpu, found torch.complex64"),
        (lambda states: states.to("meta"), "must be floating point on cpu, found torch.float32 on meta"),
        (lambda states: None, "states must be a tensor, found NoneType"),
    ],
)
def test_a_rollout_of_another_shape_dtype_or_device_is_refused(change, words):
    class Odd(Noisy):
        def rollout(self, *arguments):
            guess = super().rollout(*arguments)
            return guess.replace(states=change(guess.states))

    with pytest.raises((ValueError, TypeError), match=words):
        rolled(Wrapped(Odd, "component", truth()), truth())


@pytest.mark.trial(8)
def test_a_rollout_leaves_its_gradient_behind():
    class Live(Noisy):
        def rollout(self, *arguments):
            with torch.enable_grad():
                return super().rollout(*arguments)

    assert not rolled(Wrapped(Live, "component", truth()), truth()).states.requires_grad


class Shifting(Noisy):
    """Moves its clock, in the tensor that it was given."""

    def loss(self, truth):
        truth.times.add_(1)
        return super().loss(truth)

    def rollout(self, context, times, *rest):
        times -= float(times[0])
        return super().rollout(context, times, *rest)


class Overwriting:
    """Writes its forecast of tokens over those that it learns from."""

    trainable = False

    def loss(self, truth):
        truth.states[:, :, 1:] = truth.states[:, :, :-1]
        return torch.zeros(())


class Clock:
    """A system that moves the clock it is given."""

    conserved = ()

    def sample(self, n, generator):
        return torch.zeros(n, 1, dtype=F64)

    def simulate(self, start, times, actions, generator):
        times += 1
        return Trajectory(start[:, None, None] + times[:, None], times, axes=("component",))

    def observe(self, states):
        return {"height": states.abs_()[..., 0]}


@pytest.mark.trial(8)
def test_what_is_given_to_be_read_is_not_changed():
    """Others would go on with it, and a model that moves its times would be asked for the wrong ones."""
    data, tokens = truth(), truth().replace(states=torch.ones(6, 1, 5, dtype=torch.int64))
    model = Wrapped(Shifting, "component", data)
    for call, words in [
        (lambda: rolled(model, data), "Shifting.rollout changed the times"),
        (lambda: model.loss(data), "Shifting.loss changed the times"),
        (lambda: Wrapped(lambda _: Overwriting(), "none", tokens).loss(tokens), "changed the states"),
        (lambda: _simulate_block(Clock(), 2, torch.arange(3.0, dtype=F64), None), "Clock.simulate changed"),
        (lambda: to_dataset(data, data, Clock()), "Clock.observe changed the states"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_starts_that_come_again_in_every_block_are_noticed():
    one, other = truth(), truth().replace(states=1 + truth().states)
    start = torch.arange(6)
    assert _repeats([start, start[:2]], [one, one.rows(slice(0, 2))])
    assert not _repeats([start, start], [one, other])
    assert not _repeats([start, start + 1], [one, one])


def test_names_that_stand_for_something_else_are_refused():
    data = truth()
    with pytest.raises(ValueError, match="'length'; these names are taken"):
        to_dataset(data, data.replace(observables={"length": data.states[..., 0]}), object())


@pytest.mark.parametrize(
    ("residual", "worst"),
    [
        (lambda x: x[..., 0], 1.0),  # frame 0 holds 9, and was given
        (lambda x: x.amax(2), 9.0),  # [trajectory, draw, component]: there is no frame to leave out
        (lambda x: x[..., 0].amax(2), 9.0),
    ],
)
def test_a_residual_needs_no_time_axis(residual, worst):
    data = truth().replace(states=torch.ones(6, 1, 5, 2, dtype=F64))
    data.states[:, :, 0] = 9
    constraint = SimpleNamespace(residual=lambda trajectory: residual(trajectory.states))
    assert residual_scores("c", constraint, data)["violation_c"].value == worst


def test_an_endless_interval_is_kept_and_read():
    read = read_scores(to_document({"x": Score(1.0, interval=(0.0, math.inf))}))
    assert read["x"].interval[0] == 0
    assert math.isnan(read["x"].interval[1])


PLUGIN = """
import torch
from worldsim import NotMeasurable, Score, Trajectory, hookimpl

class Driven:
    def sample(self, n, generator):
        return torch.rand(n, 1, dtype=torch.float64, generator=generator)

    def sample_actions(self, n, times, generator):
        return torch.rand(n, len(times), 1, dtype=torch.float64, generator=generator)

    def simulate(self, start, times, actions, generator):
        return Trajectory(start[:, None, None] + times[:, None], times, axes=("component",))

class Boom:
    def score(self, truth, prediction, model):
        raise KeyError("boom")

class Global:
    def score(self, truth, prediction, model):
        return {"global": Score(float(torch.rand(())), better="")}

class Never:
    def residual(self, trajectory):
        raise NotMeasurable("not here")

@hookimpl
def worldsim_systems():
    return {"driven": Driven}

@hookimpl
def worldsim_metrics():
    return {"boom": Boom, "global": Global}

@hookimpl
def worldsim_constraints():
    return {"never": Never}
"""


def run(tmp_path, **changes):
    file = tmp_path / "strange.py"
    file.write_text(PLUGIN)
    split = {"trajectories": 2, "horizon": 1.0}
    document = {
        "about": "Does it break?", "system": "pendulum",
        "data": {"step": 0.5, "splits": {"train": split, "test": split}},
        "models": {"ode": {"name": "neural_ode", "width": 2, "fit": {"steps": 0}}},
        "metrics": ["rollout"], "baselines": ["persistence"], "seeds": [0], **changes,
    }  # fmt: skip
    scenario = from_document(document, "strange", registry((file,)))
    return worldsim.run(scenario, out=tmp_path / "out", plugins=[file])


@pytest.mark.trial(4)
def test_a_metric_that_raises_is_named_and_costs_no_other_metric(tmp_path):
    results = run(tmp_path, metrics=["boom", "global", "rollout"], constraints=["never"])
    failure = results.failure(results.find("strange", "persistence"))
    assert "metric 'boom' of strange" in failure
    assert {results.status(entry) for entry in results.entries} == {"failed"}
    assert "KeyError: 'boom'" in failure
    rows = {row.name: row.score for row in results.rows() if row.model == "persistence"}
    assert "nrmse" in rows
    assert "global" in rows
    assert rows["never"].reason == "not here"


def test_the_global_random_numbers_are_a_metric_s_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = {row.model: row.score.value for row in run(tmp_path / "a", metrics=["global"]).rows()}
    torch.rand(3)
    second = {row.model: row.score.value for row in run(tmp_path / "b", metrics=["global"]).rows()}
    assert first == second


def test_a_driven_system_must_keep_its_actions(tmp_path):
    results = run(tmp_path, system="driven")
    assert "keep the actions" in results.failure(results.entries[0])


@pytest.mark.parametrize(
    ("system", "words"),
    [({"energy": [3.0, 1.0]}, "low <= high"), ({"damping": 0.1}, "does not conserve its energy")],
)
def test_the_world_of_every_split_is_checked_before_anything_is_computed(tmp_path, system, words):
    split = {"trajectories": 2, "horizon": 1.0}
    data = {"step": 0.5, "splits": {"train": split, "test": split, "other": {**split, "system": system}}}
    with pytest.raises(ScenarioError, match=words) as caught:
        run(tmp_path, data=data, constraints=["energy"])
    assert caught.value.problems[0].key == "data.splits.other.system"


class Told:
    """A metric that says who meets two of its scores; one score says so itself."""

    met_by = {"drift_*_slope": "nobody moves", "drift_*": "persistence"}  # noqa: RUF012

    def score(self, truth, prediction, model):
        return {
            "drift_energy": Score(0.1),
            "drift_energy_slope": Score(0.1),
            "drift_own": Score(0.1, met_by="its own word"),
            "drift_described": Score(0.1, better=""),
            "error": Score(0.1),
        }


def test_what_a_metric_says_of_its_scores_is_kept_with_them():
    scores = score_with("told", Told(), truth(), truth(), None)
    said = {name: score.met_by for name, score in read_scores(to_document(scores)).items()}
    assert said == {
        "drift_energy": "persistence", "drift_energy_slope": "nobody moves", "drift_own": "its own word",
        "drift_described": "", "error": "",
    }  # fmt: skip


def test_scores_that_were_kept_before_are_read():
    kept = to_document({"error": Score(0.1)})
    del kept["error"]["met_by"]
    assert read_scores(kept) == {"error": Score(0.1)}
