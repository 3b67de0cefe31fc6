"""A pytest plugin: outcomes by trial, a table of them, and how many of the trials are passed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from trials import TRIALS


@dataclass
class Outcome:
    """What became of the tests of one trial."""

    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.failed:
            return "FAIL"
        return "PASS" if self.passed else "NOT RUN" if self.skipped else "FAIL"

    @property
    def remark(self) -> str:
        """Why something was not run; of a trial that nothing belongs to, that."""
        if not (self.passed or self.failed or self.skipped):
            return "no test has its mark"
        reasons = "; ".join(dict.fromkeys(self.skipped))
        count = f"{len(self.skipped)} not run, " if self.skipped and self.passed else ""
        return f"{count}{reasons}"


class Table:
    """Only the trials of ``asked`` are run, all when it is empty."""

    def __init__(self, asked: tuple[int, ...] = ()) -> None:
        self.asked = tuple(sorted(set(asked))) or tuple(TRIALS)
        self.outcomes = {number: Outcome() for number in self.asked}
        self.trials: dict[str, list[int]] = {}

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        group = parser.getgroup("faults")
        group.addoption("--seed", type=int, default=0, help="of what is drawn at random")
        group.addoption("--kills", type=int, default=50, help="how often trial 1 kills")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            numbers = {number for mark in item.iter_markers("trial") for number in mark.args}
            if unknown := numbers - set(TRIALS):
                raise pytest.UsageError(f"{item.nodeid} belongs to trial {unknown}; there are 1 to 25")
            self.trials[item.nodeid] = sorted(numbers & set(self.asked))
        others = [item for item in items if not self.trials[item.nodeid]]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if self.trials[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for number in self.trials.get(report.nodeid, ()):
            outcome = self.outcomes[number]
            outcome.seconds += report.duration
            if report.failed:
                outcome.failed += 1
            elif report.skipped:
                outcome.skipped.append(
                    str(report.longrepr[2] if report.longrepr else "").removeprefix("Skipped: ")
                )
            elif report.when == "call":
                outcome.passed += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        say = terminalreporter.write_line
        say("")
        say("| trial | what | tests | seconds | outcome |")
        say("| ---: | --- | ---: | ---: | --- |")
        for number, outcome in self.outcomes.items():
            remark = f": {outcome.remark}" if outcome.remark else ""
            tests = outcome.passed + outcome.failed
            row = (number, TRIALS[number], tests, f"{outcome.seconds:.1f}", f"{outcome.verdict}{remark}")
            say(f"| {' | '.join(map(str, row))} |")
        say(f"{self.count('PASS')}/{len(self.asked)}")

    def count(self, verdict: str) -> int:
        return sum(outcome.verdict == verdict for outcome in self.outcomes.values())
