"""Tables in the terminal: readable at eighty columns, floors told, coherence never without fidelity."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from worldsim.protocols import Score
from worldsim.results import Row
from worldsim.tables import besides, headlines, interval, published_table, summarise, terminal_tables

SCORES = {
    "transport": {"W2": 0.5, "W2_squared": 0.25},
    "coherence": {"coherence_auc": 0.9, "coherence_auc_mixed": 0.8, "compression": 0.7, "recall": 0.6,
                  "fidelity": 0.1},
    "rollout": {"nrmse": 0.123456, "valid_time": 7.0, "crps": 0.4},
}  # fmt: skip


def rows(models=("a_model_of_some_length", "truth"), seeds=(0, 1)):
    for model in models:
        for seed in seeds if model != "truth" else (0,):
            for metric, scores in SCORES.items():
                for name, value in scores.items():
                    floor = 0.7 if name == "W2" else None
                    score = Score(value * (1 + seed), floor=floor)
                    yield Row("a_scenario", model, seed, model == "truth", "test", metric, name, score)


class Kept:
    def compositions(self, scenario):
        return {}

    def rows(self, scenario):
        return rows()


def printed(width, every=False):
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    for table in terminal_tables(Kept(), "a_scenario", every, width):
        console.print(table)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 160])
@pytest.mark.parametrize("every", [False, True])
def test_nothing_is_cut_or_broken(width, every):
    text = printed(width, every)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    names = [name for scores in SCORES.values() for name in scores] if every else headlines(summarise(rows()))
    for name in names:
        assert f" {name} ↓ " in text
    tables = text.count("a_scenario · test")
    assert text.count("│ a_model_of_some_length │") == tables
    assert text.count("(more)") == tables - 1


def test_a_wide_terminal_needs_fewer_tables():
    assert printed(60).count("(more)") > printed(120).count("(more)") > printed(300).count("(more)") == 0


def test_headlines_leave_out_variants_and_keep_fidelity():
    assert headlines(summarise(rows())) == [
        "W2", "coherence_auc", "compression", "fidelity", "nrmse", "valid_time", "crps",
    ]  # fmt: skip


def test_a_floor_is_told_where_it_is_not_the_truths_own_score():
    last = next(line for line in printed(300).splitlines() if "│ floor" in line)
    assert [cell.strip() for cell in last.strip("│").split("│")] == ["floor", "0.7", *["–"] * 6]


def test_what_could_be_measured_comes_first():
    found = list(rows())
    lost = replace(found[3].score, value=float("nan"), reason="it is zero everywhere")
    found = [replace(row, score=lost) if row.name == "coherence_auc" else row for row in found]
    assert headlines(summarise(found))[1:4] == ["compression", "recall", "fidelity"]


def test_what_is_met_without_understanding_gives_way():
    found = [
        replace(row, score=replace(row.score, met_by="truth")) if row.name in ("W2", "compression") else row
        for row in rows()
    ]
    assert headlines(summarise(found))[:4] == ["W2", "coherence_auc", "recall", "fidelity"]


PUBLISHED = [
    {"model": "a_model_of_some_length", "quantity": "their error", "value": 0.2, "spread": 0.05,
     "source": "Somebody 2020, table 1", "score": "nrmse", "note": "at T = 1"},
    {"model": "a_model_of_some_length", "quantity": "another", "value": 3.0, "source": "Somebody 2020"},
    {"model": "a_model_of_some_length", "quantity": "a third", "value": 3.0, "source": "S", "score": "nmrse"},
]  # fmt: skip


class Compared(Kept):
    def document(self, scenario):
        return {"published": PUBLISHED}


def test_published_numbers_stand_beside_ours():
    first, second, third = besides(Compared(), "a_scenario")
    assert first.published == "0.2 ± 0.05"
    assert first.ours.startswith("0.185")  # the mean over both seeds
    assert second.ours == "–"
    assert third.ours == "nmrse is not kept"
    assert published_table(Compared(), "a_scenario").row_count == 3


@pytest.mark.parametrize("seeds", [5, 10])
def test_intervals_over_seeds_hold_the_mean_in_ninety_five_of_a_hundred(seeds):
    """A thousand times: of normal scores, and of shares of 64 independent pairs."""
    rng = np.random.default_rng(0)
    drawn = {
        0.8: rng.normal(0.8, 0.02, (1000, seeds)),
        0.9: rng.binomial(64, 0.9, (1000, seeds)) / 64,
    }
    for mean, scores in drawn.items():
        ends = [interval(each.tolist()) for each in scores]
        assert 0.93 <= np.mean([low <= mean <= high for low, high in ends]) <= 0.97
    few = rng.normal(size=4).tolist()
    assert interval(few) == (min(few), max(few))
