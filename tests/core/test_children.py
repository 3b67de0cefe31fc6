"""Supervised children: whatever happens to one item costs that item alone, and is called by its name."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import perilous
import pytest

from worldsim.children import Crew, Died, Returned
from worldsim.errors import WorldsimError


def outcomes(items, workers=1, watch=lambda *seen: None, **limits):
    """Item -> what became of it."""
    crew = Crew(workers, perilous.prepared, **limits)
    return {outcome.item: outcome for outcome in crew.map(items, watch)}


def test_every_item_has_one_outcome_in_few_processes():
    seen = []
    items = [("double", number) for number in range(20)] + [("speak", f"no {i}") for i in range(4)]
    found = outcomes(items, workers=2, watch=lambda *told: seen.append(told))
    assert [found["double", number].value for number in range(20)] == list(range(0, 40, 2))
    assert len({found["speak", f"no {i}"].value for i in range(4)}) <= 2
    assert {(item, text) for _, item, text in seen if item[0] == "double"} == {
        (("double", number), text) for number in range(20) for text in ("", f"doubling {number}")
    }
    assert {number for number, _, _ in seen} <= {0, 1}, "each of the two is called by one number"


def test_what_one_case_wrote_is_told_apart_from_the_others():
    found = outcomes([("speak", "one"), ("double", 1), ("speak", "two")])
    assert found["speak", "one"].log == "one\nand one\n"
    assert found["double", 1].log == ""
    assert found["speak", "two"].log == "two\nand two\n"


PERILS = {
    ("leaves", 0): ("crash", 0, "", "left with exit code 0"),
    ("leaves", 3): ("crash", 3, "", "left with exit code 3"),
    ("aborts",): ("crash", None, "SIGABRT", "SIGABRT"),
    ("reads_nowhere",): ("crash", None, "SIGSEGV", "SIGSEGV"),
    ("killed",): ("crash", None, "SIGKILL", "SIGKILL"),
    ("raises",): ("exception", None, "", "KeyboardInterrupt: a plugin's own"),
    ("hangs_in_c",): ("timeout", None, "", "took more than 4 s"),
    ("unpicklable",): ("exception", None, "", "pickle"),
}


@pytest.fixture(scope="module")
def perils():
    """All of them in one crew, each followed by a bystander."""
    items = [each for i, peril in enumerate(PERILS) for each in (peril, ("double", i))]
    return outcomes(items, workers=2, timeout=4.0)


@pytest.mark.trial(5, 6)
@pytest.mark.parametrize("item", PERILS)
def test_a_death_is_called_by_its_name(perils, item):
    kind, exit_code, name, words = PERILS[item]
    death = perils[item]
    assert isinstance(death, Died)
    assert (death.kind, death.exit_code, death.signal) == (kind, exit_code, name)
    assert words in death.message


@pytest.mark.trial(5, 6)
def test_no_bystander_is_lost(perils):
    for i in range(len(PERILS)):
        assert perils["double", i].value == 2 * i


def test_a_death_keeps_what_was_written_and_where_it_was(perils):
    assert perils["leaves", 0].log == "about to leave\n"
    assert "in reads_nowhere" in perils["reads_nowhere",].log
    assert "in raises" in perils["raises",].traceback
    assert perils["hangs_in_c",].log == "hanging\n"
    assert "in hangs_in_c" in perils["hangs_in_c",].traceback


@pytest.mark.trial(6)
def test_a_crash_without_a_time_limit_is_noticed():
    assert outcomes([("leaves", 0)])["leaves", 0].kind == "crash"


@pytest.mark.trial(24)
def test_memory_is_limited_and_the_next_case_starts_afresh():
    items = [("fills", 16), *(("hoards", 60 + i) for i in range(3)), ("double", 1)]
    found = outcomes(items, memory=200 * 2**20)
    assert found["fills", 16].kind == "oom"
    assert "may hold 210 MB" in found["fills", 16].message
    hoarders = [found["hoards", 60 + i] for i in range(3)]
    assert all(isinstance(each, Returned) for each in hoarders), hoarders
    assert len({each.value for each in hoarders}) > 1
    assert found["double", 1].value == 2


def test_less_memory_than_a_child_needs_by_itself_is_called_so(tmp_path):
    item = ("sleeps", str(tmp_path / "mark"))
    death = outcomes([item], memory=10**6)[item]
    assert death.kind == "oom"
    assert "may hold 1 MB, of which" in death.message


def test_what_items_have_in_common_is_sent_once():
    one, other = {"name": "one"}, {"name": "other"}
    items = [(one, ("whose", 1)), (one, ("whose", 2)), (other, ("whose", 3)), (one, ("whose", 4))]
    crew = Crew(1, perilous.prepared, parts=lambda item: item)
    found = [outcome.value for outcome in crew.map(items, lambda *seen: None)]
    assert found == [("one", False), ("one", True), ("other", False), ("one", False)]


def test_children_that_last_are_the_same_until_they_die_or_are_let_go():
    """One that was killed between two items is replaced, and is no item's death."""
    crew, found = Crew(1, perilous.prepared, lasting=True), []
    for kill in (False, True, False):
        (spoken,) = crew.map([("speak", "here")], lambda *seen: None)
        found.append(spoken.value)
        if kill:
            os.kill(spoken.value, signal.SIGKILL)
            crew.crew[0].process.join()
    assert found[0] == found[1] != found[2]
    (died,) = crew.map([("leaves", 3)], lambda *seen: None)
    assert (died.kind, crew.crew) == ("crash", {})
    (spoken,) = crew.map([("speak", "here")], lambda *seen: None)
    process = crew.crew[0].process
    crew.close()
    assert (process.exitcode, crew.crew) == (0, {})


def test_children_that_cannot_begin_end_the_run_with_what_they_said():
    crew = Crew(1, perilous.dies)
    with pytest.raises(WorldsimError, match=r"exit code 3[^$]*cannot begin"):
        list(crew.map([("double", 1)], lambda *seen: None))


def test_closing_kills_what_is_under_way_and_what_it_started(tmp_path):
    mark = tmp_path / "mark"
    crew = Crew(2, perilous.prepared)
    running = crew.map([("has_a_process", str(mark)), ("double", 1)], lambda *seen: None)
    assert next(running).value == 2
    assert waited(mark.exists)
    running.close()
    for pid in mark.read_text().split():
        assert waited(lambda pid=int(pid): not alive(pid))


def test_stopping_begins_nothing_more_and_ends_in_time(tmp_path):
    mark = tmp_path / "mark"
    crew = Crew(1, perilous.prepared)
    items = [("double", 1), ("sleeps", str(mark)), ("double", 2)]
    found = []
    for outcome in crew.map(items, lambda number, item, text: item[0] == "sleeps" and crew.stop(0.2)):
        found.append(outcome.item)
    assert found == [("double", 1)]


def test_an_item_is_finished_within_the_grace():
    crew = Crew(1, perilous.prepared)
    items = [("double", 1), ("double", 2)]
    running = crew.map(items, lambda number, item, text: crew.stop(60.0))
    assert [outcome.value for outcome in running] == [2]


@pytest.mark.trial(1)
def test_nobody_outlives_a_parent_that_was_killed(tmp_path):
    """Neither a child that sleeps, nor one that holds the interpreter's lock in C."""
    mark = tmp_path / "mark"
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import perilous
        from worldsim.children import Crew

        if __name__ == "__main__":
            items = [("hangs_in_c",), ("sleeps", {str(mark)!r})]
            list(Crew(2, perilous.prepared).map(items, lambda *seen: None))
        """),
        encoding="utf-8",
    )
    parent = subprocess.Popen([sys.executable, script])
    assert waited(lambda: mark.exists() and len(descendants(parent.pid)) >= 3, 60)
    time.sleep(0.5)  # the other child comes to its hang
    children = descendants(parent.pid)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 5
    assert not [pid for pid in children if not waited(lambda pid=pid: not alive(pid), end - time.monotonic())]


def descendants(pid):
    """Every process below ``pid``."""
    below = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            below.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                int(stat.parent.name)
            )
        except OSError:
            continue
    found, todo = [], [pid]
    while todo:
        todo += (next_ones := below.get(todo.pop(), []))
        found += next_ones
    return found


def waited(holds, seconds=30):
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


def alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
