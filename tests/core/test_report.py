"""The report says what the numbers say, draws what is kept, and runs nothing that a stranger wrote."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from kept_folder import keep_plan

from worldsim.errors import WorldsimError
from worldsim.protocols import Score
from worldsim.report import write_report
from worldsim.report.answers import answer, number, phrase, times
from worldsim.report.plots import MOST_POINTS, axis, log_range, packed, styles, thinned
from worldsim.report.portraits import _plane
from worldsim.report.sections import section
from worldsim.report.standings import Board, Standing, boards, headlines, kinds, main_split
from worldsim.results import Results, Row
from worldsim.score import to_document
from worldsim.store import Store

ATTACK = "<script>alert(1)</script>"
SEEDS = (0, 1)


def standing(model, kind, values, *, floor=None, reasons=(), failed=0):
    return Standing(model, kind, dict(enumerate(values)), tuple(reasons), floor, None, failed)


def board(*standings, name="drift_energy", better="lower", units="1", label=""):
    return Board("test", "metric", name, label, better, units, standings)


def curve(scale, count=700):
    time = np.linspace(0.1, 70.0, count)
    return Score(scale * (1 + time), dims=("time",), coords={"time": time})


def pendulum_scores(model, seed):
    size = {"neural_ode": 0.5, "hamiltonian": 0.02, "truth": 1e-10, "persistence": 0.0}[model] * (
        1 + 0.1 * seed
    )
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(12, 2))
    pair = {"dims": ("pair", "time"), "better": "", "coords": {"time": [0.1, 0.2, 0.3]}}
    scores = {
        "drift_energy": Score(size, floor=1e-10, n=20),
        "drift_energy_time": curve(size),
        "nrmse": Score(size, n=20),
        "nrmse_time": curve(size),
        "valid_time": Score(1 / (size + 0.01), better="higher", units="s"),
        "divergence_equivalent": Score(generator.random((5, 3)) * size, **pair),
        "divergence_distinct": Score(generator.random((5, 3)), **pair),
        "threshold": Score(0.01, better=""),
        "coupling_truth": Score(points, dims=("point", "axis"), better=""),
        "coupling_prediction": Score(points + size, dims=("point", "axis"), better=""),
        "coupling_match": Score(np.arange(12.0), dims=("point",), better=""),
    }
    if model == "neural_ode" and seed == 1:
        scores["W2"] = Score(math.nan, n=20, failed=2, reason=f"{ATTACK} is not finite")
    return scores


def planet_scores(model, seed):
    size = {"neural_ode": 0.1, "two_body": 0.001}[model]
    coords = {"body": ["mercury", f"{ATTACK}"]}
    time = np.linspace(5.0, 5475.0, 50)
    return {
        "position_error": Score(np.array([size, 2 * size]), dims=("body",), units="au", coords=coords),
        "position_error_time": Score(
            np.outer([size, 2 * size], time),
            dims=("body", "time"),
            units="au",
            coords={**coords, "time": time},
        ),
        "position_floor": Score(np.array([1e-6, 2e-6]), dims=("body",), better="", units="au", coords=coords),
    }


def token_scores(model, seed):
    return {"token_validity": Score(0.9, better="higher", floor=1.0, interval=(0.85, 0.95))}


def dataset(axes, shape, labels, dtype=np.float64):
    count, rows = 900, 3
    base = np.sin(np.arange(rows * count * math.prod(shape)).reshape(rows, 1, count, *shape))
    states = base.astype(dtype) if dtype == np.float64 else (base > 0).astype(dtype)
    data = xr.Dataset(
        {
            "state": (("trajectory", "draw", "time", *axes), states),
            "truth": (("trajectory", "time", *axes), states[:, 0]),
        },
        coords={"time": ("time", np.arange(count) * 0.1, {"units": "s"}), **labels},
    )
    data.attrs["units"] = ["q=rad", "time=s"]
    return data


SCENARIOS = {
    "swing": (
        {"neural_ode": "neural_ode", "hamiltonian": "hamiltonian"}, ["truth", "persistence"], pendulum_scores,
        dataset(("component",), (2,), {"component": ["q", "p"]}),
    ),
    "sky": (
        {"neural_ode": {"name": "neural_ode"}, "two_body": "two_body"}, [], planet_scores,
        dataset(("body", "component"), (2, 4), {"body": ["a", "b"], "component": ["x", "y", "vx", "vy"]}),
    ),
    "words": ({ATTACK: ATTACK}, [], token_scores, dataset((), (), {}, np.int64)),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with three scenarios, one failed case and one that is missing."""
    root = tmp_path_factory.mktemp("results")
    store, number = Store(root), 0
    for scenario, (models, baselines, scores, data) in SCENARIOS.items():
        lines = []
        document = {"about": f"Is {scenario} understood? {ATTACK} \u2028", "models": models}
        cases = [(m, s, False) for m in models for s in SEEDS] + [(b, 0, True) for b in baselines]
        for model, seed, baseline in cases:
            key, number = f"{number:032x}", number + 1
            learned = not baseline and model != "two_body"
            lines.append({"key": key, "model": model, "seed": seed, "baseline": baseline, "learned": learned})
            tree = xr.DataTree.from_dict({"/": xr.Dataset(), "/test": data, "/far": data})
            store.keep_run(key, tree, {})
            kept = to_document(scores(model, seed))
            store.keep_scores(key, "a" * 32, {"test": kept, "far": kept})
        if scenario == next(iter(SCENARIOS)):
            lines += [dict(lines[0], key="f" * 32, seed=2), dict(lines[0], key="e" * 32, seed=3)]
        environment = {"command": ATTACK, "torch": "2"}
        keep_plan(root, scenario, document, {"all": "a" * 32}, lines, environment)
    store.keep_failure("f" * 32, {"message": f"ValueError: {ATTACK}"})
    return Results(root)


class Page(HTMLParser):
    """Elements, handlers and visible text."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_data(self, data):
        if self.tags and self.lasttag == "script" and self.in_script:
            self.scripts[-1][1] += data
        elif self.lasttag != "style":
            self.text.append(data)

    @property
    def in_script(self):
        return self.cdata_elem == "script"


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = write_report(results, tmp_path_factory.mktemp("page") / "report.html")
    text = path.read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    return text, parsed


def script(page, name):
    return json.loads(next(text for attrs, text in page[1].scripts if attrs.get("id") == name))


def test_the_page_is_one_file_of_a_bearable_size(page):
    text, parsed = page
    assert len(text.encode()) < 10e6
    assert text.count("plotly.js v") == 1
    assert not [
        a
        for a in parsed.attributes
        if a[1] == "src" or (a[1] == "href" and not a[2].startswith(("#", "data:")))
    ]


@pytest.mark.trial(20)
def test_nothing_that_a_stranger_wrote_can_run(page):
    text, parsed = page
    assert ATTACK not in text
    assert ATTACK in "".join(parsed.text)
    assert len(parsed.scripts) == 4
    assert not [a for a in parsed.attributes if a[1].startswith("on")]
    figures = next(text for attrs, text in parsed.scripts if attrs.get("id") == "figures")
    assert not re.search("[<>&\u2028\u2029]", figures)
    assert "&lt;script&gt;" in json.dumps(script(page, "figures"))
    assert "<script>" not in json.dumps(script(page, "figures"))


@pytest.mark.trial(20)
def test_scripts_are_allowed_by_their_hash_alone(page):
    import base64
    import hashlib

    policy = next(
        value for tag, name, value in page[1].attributes if name == "content" and "default-src" in value
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]
    for attrs, text in page[1].scripts:
        if "id" not in attrs:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


@pytest.mark.trial(20)
@pytest.mark.slow
def test_a_browser_finds_nothing_of_a_stranger_to_run(results, tmp_path):
    """The document as a browser has made it, figures and their labels drawn."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium to open the report in")
    report = write_report(results, tmp_path / "report.html")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, *options, profile, report.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=True)
    parsed = Page()
    parsed.feed(done.stdout)
    root = {name: value for tag, name, value in parsed.attributes if tag == "html"}
    assert (root["data-ready"], root["data-errors"]) == ("1", "0")
    assert ATTACK in "".join(parsed.text)
    assert "main-svg" in done.stdout
    assert not [text for _, text in parsed.scripts if text.strip() == "alert(1)"]
    assert not [each for each in parsed.attributes if each[1].startswith("on")]
    assert not [each for each in parsed.attributes if str(each[2]).strip().startswith("javascript:")]


def test_a_number_that_is_none_does_not_look_like_one(page):
    visible = "".join(page[1].text)
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", visible)
    assert "not measurable" in visible
    row = next(n for n in script(page, "numbers") if n["score"] == "W2" and n["split"] == "test")
    assert row["value"] is None
    assert "not finite" in row["reason"]


def test_what_failed_and_what_is_missing_come_first(page, results):
    visible = "".join(page[1].text)
    assert visible.index("2 cases have no complete result") < visible.index("Is swing understood?")
    assert f"failed: ValueError: {ATTACK}" in re.sub(r"\s+", " ", visible)
    lost = section(results, "swing").failures
    assert [(f.model, f.status, f.seeds) for f in lost] == [
        ("neural_ode", "failed", ("2",)),
        ("neural_ode", "missing", ("3",)),
    ]


def test_every_number_can_be_taken_away(page):
    numbers = script(page, "numbers")
    drift = [
        n for n in numbers if (n["scenario"], n["split"], n["score"]) == ("swing", "test", "drift_energy")
    ]
    assert [(n["model"], n["seed"]) for n in drift][:4] == [
        (m, s) for m in ("neural_ode", "hamiltonian") for s in SEEDS
    ]
    assert drift[1]["value"] == pytest.approx(0.55)
    mercury = [n for n in numbers if n["label"] == "mercury" and n["score"] == "position_error"]
    assert {n["value"] for n in mercury} == {0.1, 0.001}


def test_every_place_has_a_figure_that_plotly_accepts(page):
    figures = script(page, "figures")
    places = [value for _, name, value in page[1].attributes if name == "data-figure"]
    assert sorted(places) == sorted(figures)
    assert len(places) == 20
    for figure in figures.values():
        go.Figure({"data": figure["data"], "layout": figure["layout"]})


def test_figures_appear_when_their_arrays_exist(results):
    titles = {
        scenario: [p.title for p in section(results, scenario).panels] for scenario in results.scenarios
    }
    assert titles["swing"] == [
        "Every seed", "Phase portrait: q and p",
        "Drift of energy over time", "Forecast error (nRMSE) over time",
        "Equivalent histories, and distinct ones", "Transport to the truth",
    ]  # fmt: skip
    assert titles["sky"] == ["Every seed", "Orbits", "Position error of each body over time"]
    assert titles["words"] == ["Every seed", "Tokens"]


def test_curves_are_thinned_and_drift_is_logarithmic(results):
    panel = next(p for p in section(results, "swing").panels if p.title.startswith("Drift"))
    plot = panel.plots[0]
    assert plot.layout["yaxis"]["type"] == "log"
    assert {trace["name"] for trace in plot.data if "name" in trace} == {
        "neural_ode",
        "hamiltonian",
        "truth",
        "persistence",
    }
    assert all(len(trace["x"]["bdata"]) <= math.ceil(MOST_POINTS * 4 * 4 / 3) + 4 for trace in plot.data)


def test_one_model_has_one_colour_everywhere(results):
    colours = {}
    for panel in section(results, "swing").panels[1:]:
        for plot in panel.plots:
            for trace in plot.data:
                if trace.get("name") in ("neural_ode", "hamiltonian") and "line" in trace:
                    colours.setdefault(trace["name"], set()).add(trace["line"]["color"])
    assert {len(c) for c in colours.values()} == {1}
    assert colours["neural_ode"] != colours["hamiltonian"]


def test_all_splits_have_a_table_with_intervals_floors_and_directions(results):
    tables = section(results, "swing").tables
    assert [t.split for t in tables] == ["test", "far"]
    line = next(line for line in tables[0].lines if line.title == "drift_energy")
    assert (line.arrow, line.floor) == ("↓", "1e-10")
    cells = dict(zip([model for model, _ in tables[0].models], line.cells))
    assert (cells["hamiltonian"].text, cells["hamiltonian"].detail, cells["hamiltonian"].best) == (
        "0.021",
        "0.02 to 0.022",
        True,
    )
    assert not cells["persistence"].best


def test_kinds_come_from_the_plan(results):
    assert dict(section(results, "sky").tables[0].models) == {
        "neural_ode": "learned",
        "two_body": "reference",
    }
    assert dict(section(results, "words").tables[0].models) == {ATTACK: "learned"}


def test_the_answer_is_made_from_the_numbers():
    two = [
        standing("ode", "learned", [0.2, 0.3, 0.4], floor=1e-10),
        standing("hnn", "learned", [0.02, 0.01, 0.02], floor=1e-10),
        standing("truth", "truth", [1e-10]),
        standing("persistence", "baseline", [0.0]),
        standing("constant", "baseline", [2.0]),
    ]
    assert answer([board(*two)]) == (
        "hnn drifts 18× less in energy than ode (10× to 30× over 3 seeds, less on every seed); hnn beats "
        "every baseline but persistence, which scores like the truth without following it; the true "
        "system drifts 1e-10."
    )


def test_every_model_is_told_where_there_are_more_than_two():
    values = {"projected": [1e-8], "guided": [1e-3], "penalised": [0.39], "free": [0.4]}
    said = answer([board(*(standing(model, "learned", value) for model, value in values.items()))])
    assert "(1e-08 against 0.001), then penalised 0.39, free 0.4" in said


def test_rounding_is_no_victory():
    """A baseline that keeps an energy to the last digit has not beaten a model, nor has the truth lost."""
    three = [
        standing("ode", "learned", [0.2]), standing("hnn", "learned", [0.01]),
        standing("truth", "truth", [2e-15]), standing("shuffled", "baseline", [3e-15]),
        standing("constant", "baseline", [1.0]),
    ]  # fmt: skip
    said = answer([board(*three)])
    assert said.startswith("hnn drifts 20× less in energy than ode")
    assert "every baseline but shuffled, which scores like the truth" in said


def coherent(*standings, name="coherence_auc", better="higher"):
    return replace(board(*standings, name=name, better=better), metric="coherence")


def test_coherence_alone_ranks_nobody():
    """A model that is as wrong as a baseline does not win by being wrong in the same way everywhere."""
    frozen, ode = standing("frozen", "learned", [1.0]), standing("ode", "learned", [0.9])
    others = [standing("truth", "truth", [1.0]), standing("persistence", "baseline", [1.0])]
    fidelity = coherent(
        standing("frozen", "learned", [0.4]), standing("ode", "learned", [0.02]),
        standing("truth", "truth", [0.0]), standing("persistence", "baseline", [0.3]),
        standing("memoriser", "baseline", [0.01]), name="fidelity", better="lower",
    )  # fmt: skip
    auc = coherent(frozen, ode, *others)
    assert answer([auc]).startswith("frozen has the highest")
    said = answer([auc], [auc, fidelity])
    assert said.startswith("ode has coherence (AUC) 0.9")
    assert "distance from the true futures (fidelity): ode 0.02, frozen 0.4" in said
    assert "frozen does not rank: no nearer to the true futures than the baseline persistence" in said
    assert answer([coherent(frozen, *others)], [fidelity]).startswith("No model ranks in coherence (AUC): no")


def test_a_model_that_scores_better_than_the_truth_does_not_go_unremarked():
    mean = standing("ode", "learned", [0.94]), standing("truth", "truth", [0.98])
    assert answer([board(*mean, name="nrmse")]).endswith("the true system has 0.98, no better.")


def test_a_score_below_its_floor_says_why():
    flow = standing("flow", "learned", [0.5], floor=0.9)
    said = answer([board(flow, standing("ode", "learned", [1.5], floor=0.9), name="W2")])
    assert "below the floor of 0.9, which is between independent samples" in said
    assert "below the floor" not in answer([board(standing("flow", "learned", [1.0], floor=0.9), name="W2")])


def test_a_baseline_that_wins_is_named():
    text = answer([board(
        standing("ode", "learned", [0.4, 0.6]), standing("flow", "learned", [0.7, 0.8]),
        standing("kepler", "reference", [0.01]), standing("constant", "baseline", [0.45]), name="nrmse",
    )])  # fmt: skip
    assert text == (
        "No learned model beats kepler in forecast error (nRMSE): it has 0.01, lower on every seed; the "
        "best learned model, ode, has 0.5."
    )


def test_nobody_wins_by_leaving_out_what_failed():
    text = answer([board(
        standing("lucky", "learned", [0.01], reasons=["3 of 20 rollouts are not finite"]),
        standing("honest", "learned", [0.4, 0.5]), standing("other", "learned", [0.6, 0.45]), name="nrmse",
    )])  # fmt: skip
    assert text.startswith(
        "honest has 1.2× lower forecast error (nRMSE) than other "
        "(0.9× to 1.5× over 2 seeds, lower on 1 of 2 seeds)"
    )
    assert text.endswith("lucky does not rank: 3 of 20 rollouts are not finite.")


def test_what_cannot_be_measured_is_said_with_its_reason():
    assert answer(
        [board(standing("ode", "learned", [], reasons=["tokens have no distance"]), name="W2")]
    ) == ("Distance from the true law (W2) is not measurable for any model: tokens have no distance.")


def test_equal_scores_are_level_and_bounded_ones_have_no_ratio():
    level = board(
        standing("a", "model", [1.0]), standing("b", "model", [1.0]), better="higher", name="coherence_auc"
    )
    assert answer([level]) == "a and b are level in coherence (AUC) at 1."
    close = board(standing("a", "model", [0.62701]), standing("b", "model", [0.62702]), name="nrmse")
    assert answer([close]) == "a and b are level to three digits in forecast error (nRMSE) at 0.627."
    close = board(
        standing("a", "model", [0.9]), standing("b", "model", [0.3]), better="higher", name="coherence_auc"
    )
    assert answer([close]) == "a has the highest coherence (AUC), 0.9 against 0.3 of b."


def test_a_score_over_named_things_is_answered_for_each():
    def pair(label, ode, kepler):
        return board(
            standing("ode", "learned", [ode]), standing("kepler", "reference", [kepler]),
            name="position_error", units="au", label=label,
        )  # fmt: skip

    assert answer([pair("mars", 0.2, 0.1), pair("venus", 0.3, 0.01)]) == (
        "No learned model beats kepler in position error: kepler has mars 0.1, venus 0.01 au; the best "
        "learned model: ode has mars 0.2, venus 0.3 au."
    )
    assert "for 1 of 2 (the best: kepler has mars 0.1, venus 0.4 au)" in answer(
        [pair("mars", 0.2, 0.1), pair("venus", 0.3, 0.4)]
    )


def test_a_description_ranks_nothing():
    rows = [Row("s", "ode", 0, False, "test", "m", "threshold", Score(0.01, better=""))]
    found = boards(rows, kinds(rows, {}))
    assert found[0].ranked() == []
    assert headlines(found, main_split(found)) == []


def test_headlines_leave_out_variants_and_put_named_things_first():
    def row(name, dims=()):
        value, coords = (np.ones(2), {"body": ["a", "b"]}) if dims else (1.0, {})
        return Row("s", "ode", 0, False, "test", "m", name, Score(value, dims=dims, coords=coords))

    rows = [row("W2"), row("W2_squared"), row("nrmse"), row("where", ("body",)), row("zeal")]
    found = boards(rows, kinds(rows, {}))
    assert [[b.title for b in group] for group in headlines(found, "test")] == [
        ["where, a", "where, b"],
        ["W2"],
    ]


def scored(name, values, met_by="", metric="m", better="lower"):
    """Rows of a score, by model; names of baselines are baselines."""
    return [
        Row("s", model, 0, model in ("truth", "persistence"), "test", metric, name,
            Score(value, better=better, met_by=met_by))
        for model, value in values.items()
    ]  # fmt: skip


def first_looks(rows):
    found = boards(rows, kinds(rows, {"ode": True}))
    return [[b.title for b in group] for group in headlines(found, "test")], found


def test_a_score_that_is_met_without_understanding_is_no_headline_where_there_is_another():
    drift = scored("drift", {"ode": 0.1, "truth": 0.0}, met_by="persistence, which never changes")
    error = scored("error", {"ode": 0.2, "truth": 0.0, "persistence": 1.0})
    assert first_looks([*drift, *error])[0] == [["error"]]
    lost = [replace(row, score=Score(float("nan"), reason="it is not")) for row in error]
    for rows in (drift, [*drift, *lost]):  # a score that nobody has is no other
        names, found = first_looks(rows)
        assert ["drift"] in names
        said = answer([found[0]], found)
        assert said.endswith("It can be met without understanding, by persistence, which never changes.")


def test_a_score_in_which_a_baseline_is_as_good_as_the_truth_is_no_headline_either():
    level = scored("valid", {"ode": 2.0, "truth": 3.0, "persistence": 3.0}, better="higher")
    error = scored("error", {"ode": 0.2, "truth": 0.1, "persistence": 1.0})
    assert first_looks([*level, *error])[0] == [["error"]]
    names, found = first_looks(level)
    assert names == [["valid"]]
    assert "persistence scores like the truth without following it" in answer([found[0]], found)


def test_coherence_stays_a_headline_beside_its_fidelity():
    auc = scored(
        "coherence_auc", {"ode": 1.0, "truth": 1.0, "persistence": 1.0}, "persistence", "c", "higher"
    )
    far = scored("fidelity", {"ode": 0.1, "truth": 0.0, "persistence": 1.0}, metric="c")
    recall = scored("recall", {"ode": 0.5, "truth": 1.0, "persistence": 1.0}, "persistence", "c", "higher")
    assert first_looks([*auc, *recall, *far])[0] == [["coherence_auc"], ["fidelity"]]


@pytest.mark.parametrize(
    ("components", "plane"),
    [
        (("q", "p"), (0, 1)),
        (("q1", "q2", "p1", "p2"), (0, 2)),
        (("x", "y", "vx", "vy"), (0, 1)),
        (("cos", "sin", "w"), (0, 1)),
    ],
)
def test_a_portrait_sets_position_against_momentum(components, plane):
    assert _plane(components) == plane


def test_numbers_are_written_for_readers():
    assert [number(v) for v in (5475.0, 0.00123456, 0.0, 1e-10, math.nan)] == [
        "5,480",
        "0.00123",
        "0",
        "1e-10",
        "–",
    ]
    assert [times(v) for v in (1.234, 23.4, 1234.0, 1e7)] == ["1.2×", "23×", "1,234×", "over 100,000×"]
    assert phrase("violation_angular_momentum") == "violation of angular momentum"


def test_axes_are_logarithmic_only_where_they_must_be():
    assert log_range([[1.0, 1000.0]]) == pytest.approx([-0.15, 3.15])
    assert not any(log_range(v) for v in ([[1.0, 10.0]], [[-1.0, 1000.0]], [[0.0, np.nan]], []))
    assert thinned(5).tolist() == [0, 1, 2, 3, 4]
    assert len(thinned(10_000)) == MOST_POINTS
    assert packed(np.array([np.inf, 1e300]))["dtype"] == "f4"


def test_ticks_are_few_and_never_a_single_one():
    assert axis("", [-16.2, 0.3])["dtick"] == 4
    assert axis("", [-0.6, 0.9])["ticktext"] == ["0.1", "0.2", "0.5", "1", "2", "5"]


def test_more_models_than_colours_still_have_looks():
    looks = styles({f"m{i}": "learned" for i in range(12)} | {"truth": "truth", "constant": "baseline"})
    assert looks["truth"].colour == "#111111"
    assert looks["m0"].faint == "rgba(0,114,178,0.16)"


@pytest.mark.parametrize("library", ["plotly", "jinja2"])
def test_a_missing_library_says_what_to_install(results, tmp_path, monkeypatch, library):
    for name in [n for n in sys.modules if n.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(WorldsimError, match=r"pip install 'worldsim\[report\]'"):
        write_report(results, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_rollout_costs_its_picture_alone(results, tmp_path):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(results.root, root)
    for path in (root / "runs").rglob("*.zip"):
        path.write_bytes(b"")
    found = section(Results(root), "swing")
    assert "Phase portrait: q and p" not in [p.title for p in found.panels]
    assert found.answers
