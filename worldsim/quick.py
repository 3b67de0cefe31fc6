"""A first look at a scenario: the same question, asked of hastier models."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from worldsim.reading import from_document
from worldsim.scenario import FitSettings, Scenario

SHARE = 10
NOTE = f"(A first look: the first seed alone, and 1/{SHARE} of the training steps.)"


def first_look(scenario: Scenario) -> Scenario:
    """``scenario`` with its first seed alone, and every fit a tenth as long; data and metrics stay.

    Its cases have keys of their own, and ``about`` says what they are.
    """
    document = copy.deepcopy(dict(scenario.document))
    document["about"] = f"{scenario.about.rstrip()} {NOTE}"
    document["seeds"] = list(scenario.seeds[:1])
    fit = document.setdefault("fit", {})
    fit["steps"] = _tenth(fit.get("steps", FitSettings().steps))
    for model in document["models"].values():
        own = model.get("fit") if isinstance(model, dict) else None
        if own and "steps" in own:
            own["steps"] = _tenth(own["steps"])
    hasty = from_document(document, scenario.name, scenario.registry)
    return replace(hasty, file=scenario.file)


def _tenth(steps: Any) -> int:
    """At least one step, where there were any."""
    return min(int(steps), max(1, int(steps) // SHARE))
