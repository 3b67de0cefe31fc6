"""Do the events of a forecast come in the right order, and when they should?

An event is the passing of a level by a quantity: a component of the state, or an observable that the true
system gives. Its time lies where the line between two frames meets the level, so it is known to a fraction of
a frame, and two passings between two frames are missed, in the truth as well. The k-th event of a kind in the
forecast is compared with the k-th of that kind in the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, HasObservables, Metric, Model, System
from worldsim_plugins.metrics.comparison import compare, mean_interval, within
from worldsim_plugins.metrics.observed import observables_of

Events: TypeAlias = dict[str, list[float]]
"""Kind of event -> its times, ascending."""


class OrderOfEvents:
    """order_of_events, the share of forecasts whose events are of the same kinds in the same order as the
    truth's; event_time_error, the mean distance in time of an event from its true counterpart; events_missed
    and events_spurious, the shares of true events without a counterpart and of forecast ones without; events,
    how many there are in a true trajectory on average.

    ``of`` names components or observables; kinds are named after the quantity and the direction. Events at
    one and the same time, to a millionth of a frame, are in no order. Of several draws the first is taken.
    The floor is that of a forecast that is the truth.

    Raises ValueError over tokens, and for a name that is neither a component nor an observable of one
    number. Where the truth has no event at all nothing is measurable.
    """

    met_by: Mapping[str, str] = {
        "events_missed": "climatology and shuffled, which pass the level often enough",
        "events_spurious": "persistence and constant, in which nothing happens",
    }

    def __init__(
        self,
        system: System,
        *,
        of: Annotated[
            list[str], Field(min_length=1, description="components of the state or observables to watch")
        ],
        level: Annotated[float, Field(description="what is passed, in the quantity's units")] = 0.0,
        direction: Annotated[
            Literal["up", "down", "both"], Field(description="which passings are events")
        ] = "both",
    ) -> None:
        if isinstance(system, HasAutomaton):
            raise ValueError("events are passings of a level by a number: tokens have none")
        self.system, self.names, self.level = system, tuple(dict.fromkeys(of)), level
        known = (*getattr(system, "labels", {}).get("component", ()), *observables_of(system))
        unknown = [name for name in self.names if name not in known]
        if known and unknown:
            raise ValueError(
                f"of: {type(system).__name__} has no {', '.join(unknown)}; it has {', '.join(known)}"
            )
        self.directions = ("up", "down") if direction == "both" else (direction,)

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        both = compare(truth, prediction)
        if both.failed:
            lost = Score(float("nan"), n=len(truth), failed=both.failed, reason=both.reason)
            return dict.fromkeys(("order_of_events", "event_time_error"), lost)
        seen, times = within(truth), truth.times.double()
        true = self._events(truth.states[:, 0].double(), truth, seen, times)
        found = self._events(prediction.states[:, 0].double(), truth, seen, times)
        total = sum(len(at) for row in true for at in row.values())
        if not total:
            raise NotMeasurable(
                f"no trajectory of the truth passes {self.level:g} in {', '.join(self.names)}: choose "
                "another level, or a longer horizon"
            )
        return _scores(true, found, total, float(times.diff().min()), truth.units.get("time", "1"))

    def _events(self, states: Tensor, truth: Trajectory, seen: Tensor, times: Tensor) -> list[Events]:
        """Of each row of ``states`` ``[trajectory, time, *state]``."""
        rows: list[Events] = [{} for _ in states]
        for name in self.names:
            for direction in self.directions:
                for row, at in enumerate(
                    crossings(self._quantity(name, states, truth), seen, times, direction)
                ):
                    rows[row][f"{name} {direction}"] = at
        return rows

    def _quantity(self, name: str, states: Tensor, truth: Trajectory) -> Tensor:
        """``[trajectory, time]``, less the level."""
        components = truth.labels.get("component", ())
        known: list[str] = []
        if len(truth.state_shape) == 1:
            known += components
            if name in components:
                return states[..., components.index(name)] - self.level
        if isinstance(self.system, HasObservables):
            observed = self.system.observe(states[:, None])
            known += observed
            if name in observed and observed[name].dim() == 3:
                return observed[name][:, 0] - self.level
        raise ValueError(f"of: no number {name!r} at each time; there are {', '.join(known) or 'none'}")


def crossings(value: Tensor, seen: Tensor, times: Tensor, direction: str) -> list[list[float]]:
    """Times at which each row of ``value`` ``[trajectory, time]`` passes 0 in ``direction``."""
    value = value if direction == "up" else -value
    before, after = value[:, :-1], value[:, 1:]
    passed = (before < 0) & (after >= 0) & seen[:, 1:]
    part = torch.where(passed, before / (before - after), 0.0)
    at = times[:-1] + part * times.diff()
    return [row[here].tolist() for row, here in zip(at, passed)]


def order(events: Events, tie: float) -> list[frozenset[tuple[str, int]]]:
    """The events in groups of one time, each the set of its kinds and numbers."""
    flat = sorted((at, kind, k) for kind, times in events.items() for k, at in enumerate(times))
    groups: list[set[tuple[str, int]]] = []
    last = -float("inf")
    for at, kind, k in flat:
        if at - last > tie or not groups:
            groups.append(set())
        groups[-1].add((kind, k))
        last = at
    return [frozenset(group) for group in groups]


def _scores(true: list[Events], found: list[Events], total: int, step: float, unit: str) -> dict[str, Score]:
    n, tie = len(true), 1e-6 * step
    right = torch.tensor([order(a, tie) == order(b, tie) for a, b in zip(true, found)], dtype=torch.float64)
    missed, spurious, count, errors = 0, 0, 0, []
    for expected, given in zip(true, found):
        apart: list[float] = []
        for kind, times in expected.items():
            for one, other in zip_longest(times, given[kind]):
                missed, spurious = missed + (other is None), spurious + (one is None)
                if one is not None and other is not None:
                    apart.append(abs(one - other))
            count += len(given[kind])
        if apart:
            errors.append(sum(apart) / len(apart))
    shared: dict[str, Any] = {"n": n}
    error = torch.tensor(errors, dtype=torch.float64)
    scores = {
        "order_of_events": Score(
            float(right.mean()), better="higher", floor=1.0, interval=mean_interval(right), **shared
        ),
        "events_missed": Score(missed / total, floor=0.0, **shared),
        "events_spurious": Score(spurious / count if count else 0.0, floor=0.0, **shared),
        "events": Score(total / n, better="", **shared),
    }
    if not errors:
        scores["event_time_error"] = Score(
            float("nan"),
            units=unit,
            reason="no event of the truth has a counterpart in the forecast",
            **shared,
        )
    else:
        scores["event_time_error"] = Score(
            float(error.mean()), units=unit, floor=0.0, interval=mean_interval(error), n=len(error)
        )
    return scores


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"order_of_events": OrderOfEvents}
