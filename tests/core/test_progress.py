"""What is shown of a batch while it goes on: on a terminal, and in a log."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from worldsim.cli import progress as module
from worldsim.cli.progress import Lines, Rows, duration, progress
from worldsim.executors import Progress
from worldsim.run import Receipt


def receipt(number, status="done", message=""):
    return Receipt(str(number), f"tiny/ode/{number}", status, 0.25, message)


def test_a_log_has_few_lines_and_every_failure(capsys):
    with progress(1000) as display:
        for number in range(1000):
            display.working(Progress("1", f"tiny/ode/{number}"))
            display.finished(receipt(number, *(("failed", "boom") if number == 500 else ())))
    lines = capsys.readouterr().out.splitlines()
    assert "failed: tiny/ode/500: boom" in lines
    assert lines[-1].startswith("[1000/1000] 999 done, 1 failed, ")
    assert lines[-1].endswith("; last tiny/ode/999 (0.2 s)")
    assert len(lines) < 10


def test_a_log_is_told_of_a_long_case(capsys, monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.0)
    lines = Lines(2)
    said = []
    monkeypatch.setattr(lines, "say", lambda: (said.append(lines.line()), lines.over.set()))
    with lines:
        lines.working(Progress("1", "tiny/ode/0", "step 3 of 9"))
        lines.thread.join(30)
    assert said[0].startswith("[0/2] none done, ")
    assert said[-1].endswith("; at tiny/ode/0 step 3 of 9")


def test_a_batch_goes_on_when_the_reader_of_its_log_has_gone():
    script = (
        "import sys\nfrom types import SimpleNamespace as Receipt\n"
        "from worldsim.cli.progress import Lines\n"
        "sys.stdin.readline()\n"
        "with Lines(2) as lines:\n"
        "    for _ in range(2):\n"
        "        lines.finished(Receipt(label='a', status='failed', message='boom', seconds=1.0))\n"
        "sys.exit(lines.count)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", script], text=True, **pipes)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate("go\n", timeout=60)
    assert (process.returncode, err) == (2, "")


def test_what_is_left_is_told_from_what_was_spent():
    lines = Lines(4)
    lines.begun -= 30
    lines.finished(receipt(0))
    assert lines.line().startswith("[1/4] 1 done, 30 s, 90 s left; last ")


def test_a_terminal_shows_every_worker_and_what_failed():
    out = io.StringIO()
    rows = Rows(40, Console(file=out, width=120, force_terminal=True, color_system=None))
    for number in range(20):
        rows.working(Progress(str(number), f"tiny/ode/{number}"))
    rows.working(Progress("3", "tiny/ode/3", "step 10 of 200, train 0.1"))
    rows.finished(receipt(0))
    rows.finished(receipt(1, "failed", "[red]boom[/red]"))
    rows.console.print(rows)
    text = out.getvalue()
    assert "failed: tiny/ode/1: [red]boom[/red]" in text
    assert "2/40" in text
    assert "1 failed" in text
    assert "tiny/ode/3  0 s  step 10 of 200, train 0.1" in text
    assert "and 4 more" in text


def test_a_terminal_gets_the_rows(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with progress(1) as display:
        assert isinstance(display, Rows)
        display.finished(receipt(0))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (130, "2 min"), (3700, "1 h 02 min"), (1e5, "27 h 47 min")],
)
def test_durations_are_for_people(seconds, words):
    assert duration(seconds) == words
