"""The quick studies with their full assertions; the others run by ``python -m studies``."""

import importlib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"studies.{name}")


QUICK = {
    **{
        f"s{n:02}": {}
        for n in (1, 2, 6, 7, 8, 10, 12, 13, 14, 18, 19, 24, 32, 34, 37, 42, 43, 44, 47, 54, 55)
    },
    "b6": {"paths": 50_000},
    "s03": {"tokens": 2**16},  # the stream of a million tokens is for the studies
    "s29": {"n": 500, "fine": 1000, "distances": False},  # the distances of laws show nothing there
    "s33": {"steps": 200},  # dropless and dropped need no training, only the balance does
    "s45": {},
    "s46": {"horizon": 2.0},  # the order shows early
    "s50": {"steps": 1000},  # the envelopes of a hundred thousand steps are for the studies
    "s51": {"steps": 500},  # a projection costs a millisecond; the bound is the same
}
"""The studies that take seconds -> what is cut down here."""


@pytest.mark.parametrize(("name", "settings"), QUICK.items())
def test_a_quick_study_holds(study, name, settings):
    module = study(name)
    module.check(module.run(module.SEEDS[0], **settings))


def test_the_delta_rule_tracks_permutations(study):
    """The constructed half of a study whose other half trains for half a minute."""
    assert study("s11").swap_error(0) < 1e-9


def test_conditioning_costs_what_it_should(study):
    """The half of a study that trains nothing."""
    module = study("s20")
    module.check_account(module.accounted())


def test_every_study_states_its_claim(study):
    found = study("__main__").names("")
    assert set(QUICK) <= set(found)
    assert found == sorted(found)
    for name in found:
        module = study(name)
        assert module.__doc__
        assert module.CLAIM
        assert module.SEEDS


@pytest.fixture
def runner(study, monkeypatch, tmp_path):
    """The runner over one study whose claim holds when ``answer`` does; it counts its runs."""
    main = study("__main__")
    (tmp_path / "s1.py").write_text("")
    module = type("Study", (), {"CLAIM": "x = 1", "SEEDS": (0, 1), "answer": 1, "runs": 0})

    def run(seed):
        module.runs += 1
        return {"x": module.answer}

    def check(figures):
        assert figures["x"] == 1

    module.run, module.check = run, check
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "HERE", tmp_path)
    monkeypatch.setattr(main, "import_module", lambda name: module)
    return module, lambda *options: CliRunner().invoke(main.main, options)


def test_what_holds_is_kept_and_not_run_again(runner):
    module, invoke = runner
    first, second = invoke(), invoke()
    assert first.exit_code == second.exit_code == 0
    assert "S1 | x 1 | x = 1 | 0 | PASS" in first.output
    assert "(kept)" in second.output
    assert module.runs == 2
    assert invoke("--fresh").exit_code == 0
    assert module.runs == 4


def test_what_fails_says_so_and_is_run_again(runner):
    module, invoke = runner
    module.answer = 2
    failed = invoke()
    assert failed.exit_code == 1
    assert "FAIL" in failed.output
    module.answer = 1
    assert invoke().exit_code == 0
    assert module.runs == 3


def test_an_unknown_study_is_refused(runner):
    _, invoke = runner
    refused = invoke("-k", "s99")
    assert refused.exit_code == 1
    assert "there are: s1" in refused.output
