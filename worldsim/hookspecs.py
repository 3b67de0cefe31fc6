"""The hooks. Seven give a mapping from a name to a builder, one gives a folder, three watch.

A builder is any callable, often the class itself. Its **positional** parameters are given by worldsim,
by name; its **keyword-only** parameters are the keys a scenario may write, checked against their
annotations. Return a mapping, never a generator. Names are unique; order never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from worldsim.protocols import Backbone, Constraint, Dynamics, Generator, Metric, Solver, System
    from worldsim.scenario import Case

ENTRY_POINT_GROUP = "worldsim.plugins"

hookspec = pluggy.HookspecMarker("worldsim")
hookimpl = pluggy.HookimplMarker("worldsim")


@hookspec
def worldsim_systems() -> Mapping[str, Callable[..., System]]:  # type: ignore[empty-body]
    """True worlds, by name. Builder: ``builder(*, ...)``."""


@hookspec
def worldsim_dynamics() -> Mapping[str, Callable[..., Dynamics]]:  # type: ignore[empty-body]
    """Models that are vector fields. Builder: ``builder(system, truth, *, ...)``.

    ``truth`` holds training trajectories as the model will see them (scaled): take shapes and typical
    rates from it. Either positional parameter may be left out.
    """


@hookspec
def worldsim_generators() -> Mapping[str, Callable[..., Generator]]:  # type: ignore[empty-body]
    """Models that turn noise or tokens into trajectories. Builder: ``builder(system, truth, *, ...)``."""


@hookspec
def worldsim_constraints() -> Mapping[str, Callable[..., Constraint]]:  # type: ignore[empty-body]
    """What trajectories must obey. Builder: ``builder(system, *, ...)``."""


@hookspec
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:  # type: ignore[empty-body]
    """Scores. Builder: ``builder(system, *, ...)``."""


@hookspec
def worldsim_solvers() -> Mapping[str, Callable[..., Solver]]:  # type: ignore[empty-body]
    """Integrators, named inside the model that uses them. Builder: ``builder(*, ...)``."""


@hookspec
def worldsim_backbones() -> Mapping[str, Callable[..., Backbone]]:  # type: ignore[empty-body]
    """Networks over sequences, named inside the generator that uses them. Builder: ``builder(*, ...)``."""


@hookspec
def worldsim_scenarios() -> Path:  # type: ignore[empty-body]
    """A folder whose sub-folders are suites of scenario files."""


@hookspec
def worldsim_case_started(case: Case) -> None:
    """A case begins, in the process that computes it."""


@hookspec
def worldsim_fit_progress(case: Case, step: int, losses: Mapping[str, float]) -> None:
    """A fit has reached ``step``; ``losses`` holds "train" and, where there is a split, "validation"."""


@hookspec
def worldsim_case_finished(case: Case, result: Any) -> None:
    """A case ended: ``result`` is a ``Receipt`` (key, status, seconds, message)."""
