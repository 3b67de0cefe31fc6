"""Every model under every constraint: which cells there are, what they measure, and how they are shown."""

from __future__ import annotations

import copy
import json
import math

import pytest

import worldsim
from worldsim.batch import tasks
from worldsim.composed import Cell, Measured, grids
from worldsim.errors import ScenarioError
from worldsim.planning import make_plan
from worldsim.plugins import registry
from worldsim.quick import first_look
from worldsim.reading import from_document
from worldsim.report import write_report
from worldsim.tables import grid_table

DOCUMENT = {
    "about": "Which ways are there?",
    "system": {"name": "pendulum"},
    "data": {
        "step": 0.25,
        "splits": {
            "train": {"trajectories": 8, "horizon": 1.0},
            "test": {"trajectories": 16, "horizon": 1.0},
        },
    },
    "models": {
        "flow": {"name": "flow", "width": 8, "depth": 1, "steps": 4},
        "ode": {"name": "neural_ode", "width": 8, "depth": 1},
    },
    "under": [
        {"name": "energy", "mechanisms": ["penalty"], "weight": 0.5},
        {"name": "energy", "mechanisms": ["guidance", "projection"]},
        {"name": "energy", "mechanisms": ["structure"]},
    ],
    "fit": {"steps": 5, "batch": 4},
    "constraints": ["energy"],
    "metrics": ["one_step", {"name": "transport", "frames": 2}],
    "baselines": ["truth"],
    "seeds": [0, 1],
}  # fmt: skip


def scenario(**changes):
    return from_document({**copy.deepcopy(DOCUMENT), **changes}, "tiny", registry())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return worldsim.run(scenario(), out=tmp_path_factory.mktemp("kept"))


def test_every_model_stands_once_more_under_each_constraint_that_can_hold_it():
    read = scenario()
    assert set(read.models) == {"flow", "ode", "flow.energy.trained", "flow.energy.guided-projected"} | {
        "ode.energy.trained"
    }
    undefined = {label: one.undefined for label, one in read.compositions.items() if one.undefined}
    assert set(undefined) == {
        "ode.energy.guided-projected",
        "flow.energy.structural",
        "ode.energy.structural",
    }
    assert "cannot be corrected while it samples" in undefined["ode.energy.guided-projected"]
    assert "no map is known" in undefined["flow.energy.structural"]


def test_what_is_not_trained_anew_shares_its_weights():
    cases = {case.model: case for case in scenario().cases() if case.seed == 0}
    held = cases["flow.energy.guided-projected"]
    assert cases["flow"].fit_key == held.fit_key
    assert cases["flow"].key != held.key
    assert cases["flow"].fit_key != cases["flow.energy.trained"].fit_key


def test_a_whole_number_means_the_same_as_one_with_a_point():
    keys = {
        scenario(under=[{"name": "energy", "mechanisms": ["penalty"], "weight": weight}]).cases()[4].key
        for weight in (1, 1.0)
    }
    assert len(keys) == 1


def test_cases_that_train_come_before_those_that_take_it_over(tmp_path):
    order = [task.label for task in tasks(make_plan([scenario()], tmp_path), ())]
    assert order.index("tiny/flow/1") < order.index("tiny/flow.energy.guided-projected/0")
    assert sorted(order) == sorted(case.label for case in scenario().cases())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"under": [{"name": "enrgy"}]}, "no constraint 'enrgy'"),
        ({"under": [{"name": "energy", "mechanisms": ["guide"]}]}, "unknown mechanism 'guide'"),
        ({"under": [{"name": "energy", "noise": -1}]}, "expected a number >= 0"),
        ({"under": [{"name": "energy", "covariance": "full"}]}, "unknown covariance 'full'"),
        ({"under": ["energy", "energy"]}, "there is a model 'flow.energy.projected' already"),
        ({"under": "energy"}, "expected a list of constraints"),
        ({"models": {"flow": {"name": "flow", "constraints": ["energy"]}}}, "beside 'under'"),
        ({"models": {"f" * 60: {"name": "flow"}}}, "cannot label a model"),
        ({"system": {"name": "pendulum", "damping": 0.1}}, "does not conserve its energy"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_computed(changes, message):
    with pytest.raises(ScenarioError, match=message):
        scenario(**changes)


def test_a_first_look_keeps_the_cells():
    assert set(first_look(scenario()).compositions) == set(scenario().compositions)


def test_the_grid_says_what_holds_which_law_comes_out_and_at_what_cost(kept):
    (grid,) = grids(kept, "tiny")
    assert (grid.constraint, grid.split, grid.law) == ("energy", "test", "W2")
    assert grid.columns == ("", "trained", "guided-projected", "structural")
    free, trained, projected, structural = grid.cells["flow"]
    assert projected.found.worst <= 1e-10 < free.found.violation
    assert projected.found.flagged == 0
    assert (trained.measure, projected.measure) == ("learned", "projected")
    assert free.found.cost == 1
    assert projected.found.cost > 0
    assert projected.found.law_floor == free.found.law_floor > 0
    assert structural.found is None
    assert structural.note.startswith("undefined: structure (no map")
    assert grid.cells["ode"][2].note.startswith("undefined: guidance")


def test_a_law_is_worse_beyond_two_standard_errors():
    def cell(law, error):
        return Cell("flow", "projected", "projected", Measured(0, 0, 0, law, 1.0, error, 0.1, 1.1))

    free = cell(2.0, 0.1).found
    assert not cell(2.2, 0.1).law_is_worse(free)
    assert cell(2.3, 0.1).law_is_worse(free)
    assert not Cell("flow", "", "learned", None).law_is_worse(free)
    assert not cell(math.nan, 0.1).law_is_worse(free)


def test_the_grid_is_in_the_terminal_and_in_the_report(kept, tmp_path):
    from rich.console import Console

    out = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    out.print(grid_table(grids(kept, "tiny")[0]))
    text = out.export_text()
    page = write_report(kept, tmp_path / "report.html").read_text()
    for words in ("guided-projected", "projected", "undefined: structure"):
        assert words in text
        assert words in page
    assert "What a constraint does to a law" in page
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    names = {trace.get("name") for figure in figures.values() for trace in figure["data"]}
    assert "flow, guided-projected" in names
