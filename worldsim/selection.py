"""Which cases are meant: by words, scenario, tag, model, seed, and whether they failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from worldsim.errors import WorldsimError, did_you_mean
from worldsim.plan_files import Entry, ScenarioPlan

Test = Callable[[str], bool]


@dataclass(frozen=True)
class Selection:
    """Every part narrows; one that is empty leaves all.

    words      an expression over labels: words, ``and``, ``or``, ``not`` and brackets
    scenarios  names, or globs of them
    models     labels; the one before a sweep stands for all that it makes
    seeds      of models; baselines have none
    limit      how many, of those with something to do where there is something to do
    """

    words: str = ""
    scenarios: Sequence[str] = ()
    tags: Sequence[str] = ()
    models: Sequence[str] = ()
    seeds: Sequence[int] = ()
    failed: bool = False
    limit: int | None = None

    @cached_property
    def _by_words(self) -> Test:
        return expression(self.words)

    def has_scenario(self, name: str, tags: Collection[str]) -> bool:
        named = not self.scenarios or any(name == each or fnmatchcase(name, each) for each in self.scenarios)
        return named and (not self.tags or not set(self.tags).isdisjoint(tags))

    def has(self, entry: Entry) -> bool:
        """Whether a case of a scenario that is meant is; ``failed`` and ``limit`` are not looked at."""
        if self.models and not {entry.model, entry.model.partition("[")[0]} & set(self.models):
            return False
        if self.seeds and not entry.baseline and entry.seed not in self.seeds:
            return False
        return not self.words or self._by_words(entry.label)

    def of(self, plans: Sequence[ScenarioPlan]) -> list[Entry]:
        """The cases that are meant. Raises WorldsimError when a part means nothing that is there."""
        self.refuse_unknown(plans)
        named = [plan for plan in plans if self.has_scenario(plan.scenario, plan.tags)]
        found = [entry for plan in named for entry in plan.entries if self.has(entry)]
        if not found and any(plan.entries for plan in plans):
            raise WorldsimError(f"no case is meant by {self}; worldsim status names what there is")
        return found

    def __str__(self) -> str:
        parts = [
            *([f"-k {self.words!r}"] if self.words else []),
            *(f"--scenario {name}" for name in self.scenarios),
            *(f"--tag {tag}" for tag in self.tags),
            *(f"--model {model}" for model in self.models),
            *(f"--seed {seed}" for seed in self.seeds),
        ]
        return " ".join(parts) or "the scenarios"

    def refuse_unknown(self, plans: Sequence[ScenarioPlan]) -> None:
        names = [plan.scenario for plan in plans]
        for glob in self.scenarios:
            if not any(name == glob or fnmatchcase(name, glob) for name in names):
                raise WorldsimError(f"no scenario is called {glob!r}; {did_you_mean(glob, names)}")
        tags = {tag for plan in plans for tag in plan.tags}
        for tag in self.tags:
            if tag not in tags:
                raise WorldsimError(f"no scenario has the tag {tag!r}; {did_you_mean(tag, tags)}")
        if self.models:
            labels = {entry.model for plan in plans for entry in plan.entries}
            labels |= {label.partition("[")[0] for label in labels}
            for label in self.models:
                if label not in labels:
                    raise WorldsimError(
                        f"no scenario has a model or baseline {label!r}; {did_you_mean(label, labels)}"
                    )
        if self.seeds:
            seeds = sorted({e.seed for plan in plans for e in plan.entries if not e.baseline})
            for seed in self.seeds:
                if seed not in seeds:
                    raise WorldsimError(
                        f"no scenario has the seed {seed}; allowed: {', '.join(map(str, seeds))}"
                    )


EVERYTHING = Selection()


def expression(text: str) -> Test:
    """``flow and not (seed or truth)`` as a test of labels: a word is anywhere in them, in either case.

    Raises WorldsimError, naming what was not expected.
    """
    words = re.findall(r"[()]|[^\s()]+", text)
    test = _either(words, text)
    if words:
        raise _unexpected(words, text, "and, or, or the end")
    return test


def _either(words: list[str], text: str) -> Test:
    tests = [_both(words, text)]
    while words and words[0] == "or":
        del words[0]
        tests.append(_both(words, text))
    return lambda label: any(test(label) for test in tests)


def _both(words: list[str], text: str) -> Test:
    tests = [_one(words, text)]
    while words and words[0] == "and":
        del words[0]
        tests.append(_one(words, text))
    return lambda label: all(test(label) for test in tests)


def _one(words: list[str], text: str) -> Test:
    if not words or words[0] in ("and", "or", ")"):
        raise _unexpected(words, text, "a word, not, or a bracket")
    word = words.pop(0)
    if word == "not":
        test = _one(words, text)
        return lambda label: not test(label)
    if word != "(":
        return lambda label: word.lower() in label.lower()
    test = _either(words, text)
    if not words or words.pop(0) != ")":
        raise WorldsimError(f"-k {text!r}: a bracket is not closed")
    return test


def _unexpected(words: list[str], text: str, expected: str) -> WorldsimError:
    found = repr(words[0]) if words else "the end"
    return WorldsimError(f"-k {text!r}: expected {expected}, found {found}; for example 'flow and not truth'")
