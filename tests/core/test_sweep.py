"""Sweeps: one file for many cases, each of them the one that would be written by hand."""

import copy
import re
from html import escape

import pytest

import worldsim
from worldsim.batch import read_scenarios, tasks
from worldsim.errors import ScenarioError, WorldsimError
from worldsim.planning import make_plan
from worldsim.plugins import registry
from worldsim.quick import first_look
from worldsim.reading import from_document
from worldsim.scenario import LABEL

SPLIT = {"trajectories": 4, "horizon": 0.5}
DOCUMENT = {
    "about": "Which width?",
    "system": "pendulum",
    "data": {"step": 0.25, "splits": {"train": SPLIT, "test": SPLIT}},
    "models": {
        "ode": {"name": "neural_ode", "width": 4, "depth": 1},
        "net": {"name": "hamiltonian", "width": 4},
    },
    "fit": {"steps": 3, "batch": 4},
    "metrics": ["rollout"],
    "baselines": ["truth"],
    "seeds": [0, 1],
}
TEXT = """\
about: Which width?
system: {name: pendulum}
data:
  step: 0.25
  splits:
    train: {trajectories: 4, horizon: 0.5}
    test: {trajectories: 4, horizon: 0.5}
models:
  ode: {name: neural_ode, width: 4, depth: 1}
  bare: neural_ode
metrics: [rollout]
baselines: [truth]
seeds: [0, 1]
"""


def scenario(sweep=None, **changes):
    swept = {"sweep": sweep} if sweep else {}
    return from_document({**copy.deepcopy(DOCUMENT), **changes, **swept}, "tiny", registry())


def by_hand(**changes):
    return {case.label: case for case in scenario(**changes).cases()}


def written(tmp_path, sweep, text=TEXT):
    file = tmp_path / "tiny.yaml"
    file.write_text(f"{text}{sweep}", encoding="utf-8")
    return file


def problems(file):
    with pytest.raises(ScenarioError) as error:
        worldsim.load_all(file)
    return [str(problem).removeprefix(f"{file}:") for problem in error.value.problems]


def test_a_model_stands_at_every_combination_of_its_values():
    read = scenario({"models": {"ode": {"width": [4, 8], "depth": [1, 2]}}})
    assert list(read.models) == [
        "ode[width=4,depth=1]", "ode[width=4,depth=2]", "ode[width=8,depth=1]", "ode[width=8,depth=2]", "net"
    ]  # fmt: skip
    assert read.name == "tiny"
    assert len(read.cases()) == 5 * 2 + 1


def test_a_swept_case_is_the_case_written_by_hand():
    swept = {c.label: c for c in scenario({"models": {"ode": {"width": [4, 8]}}}).cases()}
    wide = {**DOCUMENT["models"], "ode": {**DOCUMENT["models"]["ode"], "width": 8}}
    for label, case in by_hand().items():
        other = swept[label.replace("ode", "ode[width=4]")]
        assert (other.key, other.fit_key) == (case.key, case.fit_key)
    for label, case in by_hand(models=wide).items():
        other = swept[label.replace("ode", "ode[width=8]")]
        assert (other.key, other.fit_key) == (case.key, case.fit_key)
    assert swept["tiny/ode[width=4]/0"].fit_key != swept["tiny/ode[width=8]/0"].fit_key


def test_the_fit_of_every_model_is_swept_unless_a_model_sweeps_its_own():
    read = scenario({"fit": {"steps": [3, 4]}, "models": {"net": {"fit": {"steps": [5, 6, 7]}}}})
    assert {label: spec.fit.steps for label, spec in read.models.items()} == {
        "ode[steps=3]": 3, "ode[steps=4]": 4, "net[steps=5]": 5, "net[steps=6]": 6, "net[steps=7]": 7
    }  # fmt: skip
    assert all(spec.fit.batch == 4 for spec in read.models.values())
    assert read.cases()[2].key == by_hand(fit={"steps": 4, "batch": 4})["tiny/ode/0"].key


def test_a_swept_system_is_a_world_of_its_own(tmp_path):
    file = written(tmp_path, "sweep:\n  system: {mass: [1.0, 2.0]}\n  models: {ode: {width: [4, 8]}}\n")
    light, heavy = worldsim.load_all(file)
    assert (light.name, heavy.name) == ("tiny[mass=1.0]", "tiny[mass=2.0]")
    assert light.world != heavy.world
    assert list(light.models) == list(heavy.models) == ["ode[width=4]", "ode[width=8]", "bare"]
    alone = written(tmp_path, "", TEXT.replace("{name: pendulum}", "{name: pendulum, mass: 2.0}"))
    hand = {case.model: case for case in worldsim.load(alone).cases() if case.seed == 0}
    cases = {case.model: case for case in heavy.cases() if case.seed == 0}
    for label, model in (("ode[width=4]", "ode"), ("bare", "bare"), ("truth", "truth")):
        assert (cases[label].key, cases[label].fit_key) == (hand[model].key, hand[model].fit_key)
    assert heavy.world == worldsim.load(alone).world


def test_swept_data_share_no_scenario(tmp_path):
    file = written(
        tmp_path,
        "sweep:\n  data:\n    step: [0.25, 0.125]\n    splits: {train: {trajectories: [4, 6]}}\n",
    )
    read = worldsim.load_all(file)
    assert [(s.name, s.data.step, s.data.splits["train"].trajectories) for s in read] == [
        ("tiny[step=0.25,trajectories=4]", 0.25, 4), ("tiny[step=0.25,trajectories=6]", 0.25, 6),
        ("tiny[step=0.125,trajectories=4]", 0.125, 4), ("tiny[step=0.125,trajectories=6]", 0.125, 6),
    ]  # fmt: skip
    assert {s.data.splits["test"].trajectories for s in read} == {4}
    with pytest.raises(WorldsimError, match=r"stands for 4 scenarios \(tiny\[step=0.25,trajectories=4\]"):
        worldsim.load(file)
    assert len(read_scenarios([file])) == 4


def test_a_worker_reads_what_was_written_out(tmp_path):
    file = written(tmp_path, "sweep: {system: {mass: [2.0]}, models: {ode: {width: [4, 8]}}}\n")
    read = worldsim.load(file)
    assert "sweep" not in read.document
    again = from_document(read.document, read.name, registry())
    assert [case.key for case in again.cases()] == [case.key for case in read.cases()]
    assert [case.label for case in again.cases()] == [case.label for case in read.cases()]
    assert {spec.fit.steps for spec in first_look(read).models.values()} == {200}


def test_labels_are_unique_and_safe_for_files_and_pages():
    leapfrog, exact = {"name": "leapfrog", "step": 0.125}, {"name": "leapfrog", "step": 0.25}
    sweep = {"models": {"net": {"separable": [True], "solver": [leapfrog, exact, "rk4"]}}}
    labels = list(scenario(sweep).models)[1:]
    assert labels == [f"net[separable=true,solver={word}]" for word in ("leapfrog.0", "leapfrog.1", "rk4")]
    odd = {"models": {"ode": {"fit": {"window": [None, 2]}, "width": [4]}}}
    assert next(iter(scenario(odd).models)) == "ode[window=null,width=4]"
    energies = {"data": {"splits": {"test": {"system": {"energy": [[0.5, 1.0]]}}}}}
    assert scenario(energies).name == "tiny[energy=0.5_1.0]"
    for label in [*labels, scenario(energies).name]:
        assert LABEL.fullmatch(label)
        assert escape(label) == label
        assert not re.search(r'[\\/:*?"<>|\s]', label)


def test_names_of_axes_are_as_long_as_they_must_be():
    sweep = {"data": {"splits": {"train": {"trajectories": [5]}, "test": {"trajectories": [6]}}}}
    assert scenario(sweep).name == "tiny[train.trajectories=5,test.trajectories=6]"


def test_constraints_are_put_on_every_swept_model(tmp_path):
    read = scenario({"models": {"ode": {"width": [4, 8]}}}, under=["energy"], constraints=["energy"])
    assert "ode[width=8].energy.projected" in read.models
    order = [task.model for task in tasks(make_plan([read], tmp_path), ())]
    assert order.index("ode[width=8]") < order.index("ode[width=4].energy.projected")


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ("sweep: {models: {ode: {width: [4, four]}}}",
         "14:35: sweep.models.ode.width[1]: expected a whole number, found a string 'four'"),
        ("sweep: {models: {ode: {widht: [4]}}}", "14:32: sweep.models.ode.widht[0]: unknown key"),
        ("sweep: {models: {odd: {width: [4]}}}", "14:18: sweep.models.odd: no model is labelled 'odd'"),
        ("sweep: {models: {ode: {width: 4}}}",
         "14:24: sweep.models.ode.width: expected lists of values, found 4"),
        ("sweep: {models: {ode: {width: []}}}",
         "14:24: sweep.models.ode.width: expected lists of values, found nothing"),
        ("sweep: {models: {ode: [4]}}", "14:18: sweep.models.ode: expected lists of values, found [4]"),
        ("sweep: {models: {ode: {width: [4, 8, 4]}}}", "14:38: sweep.models.ode.width[2]: 4 is listed twice"),
        ("sweep: {models: {ode: {width: {x: [4]}}}}",
         "14:32: sweep.models.ode.width.x: models.ode.width has no keys of its own"),
        ("sweep: {system: {mass: [1.0, -2.0]}}", "14:30: sweep.system.mass[1]: must be > 0"),
        ("sweep: {fit: {steps: [-1]}}", "14:23: sweep.fit.steps[0]: "),
        ("sweep: {data: {step: [0.25, 0.3]}}", "6:30: data.splits.train.horizon: 0.5 is not a multiple"),
        ("sweep: {seeds: [0, 1]}", "14:9: sweep.seeds: this cannot be swept"),
        ("sweep: [width]", "14:1: sweep: expected a mapping of models, system, data, fit"),
        ("swept: {}", "14:1: swept: unknown key"),
        ("tags: [a b]", "14:8: tags[0]: 'a b' cannot be a tag"),
        ("tags: [a, a]", "14:11: tags[1]: 'a' is listed twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_where_it_is_written(tmp_path, sweep, told):
    found = problems(written(tmp_path, sweep))
    assert any(problem.startswith(told) for problem in found), found


def test_a_mistake_that_every_model_and_world_shares_is_told_once(tmp_path):
    text = TEXT.replace("depth: 1", "dept: 1")
    sweep = "sweep:\n  system: {mass: [1.0, 2.0]}\n  models: {ode: {width: [4, 8, wide]}}\n"
    found = problems(written(tmp_path, sweep, text))
    assert len(found) == 2
    assert found[0].startswith("9:")
    assert "sweep.models.ode.width[2]" in found[1]


def test_too_many_models_are_refused_by_number(tmp_path):
    values = ", ".join(map(str, range(1, 400)))
    sweep = f"sweep: {{models: {{ode: {{width: [{values}], depth: [{values}]}}}}}}\n"
    (problem,) = problems(written(tmp_path, sweep))
    assert "159202 models are more than 100000" in problem


def test_tags_are_kept_and_mean_nothing():
    tagged = scenario(tags=["slow", "paper-2"])
    assert tagged.tags == ("slow", "paper-2")
    assert [case.key for case in tagged.cases()] == [case.key for case in scenario().cases()]
