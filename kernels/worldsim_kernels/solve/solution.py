"""What a solve gives back: states, and for every row how it ended and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Status(IntEnum):
    """How a row ended. All but the first two are failures; the row's states from there on are NaN."""

    DONE = 0
    EVENT = 1
    MAX_STEPS = 2
    STEP_TOO_SMALL = 3
    NOT_FINITE = 4
    NOT_SETTLED = 5
    ZENO = 6


ADVICE = {
    Status.MAX_STEPS: "it needs more steps than max_steps: loosen the tolerance, raise max_steps, or use a "
    "stiff stepper (rodas5p, kvaerno5)",
    Status.STEP_TOO_SMALL: "its step fell below the rounding of t: the solution is singular there, or the "
    "tolerance is below the rounding of the dtype; use float64, loosen rtol and atol, or stop before",
    Status.NOT_FINITE: "the field is not finite at its state: check its start and its parameters",
    Status.NOT_SETTLED: "the equations of an implicit step could not be solved: take a smaller step, or see "
    "whether the field is smooth there",
    Status.ZENO: "an event crossed more often than its limit, or again and again without time to pass, as "
    "of a ball that comes to rest: make rest a terminal event, raise the limit, or solve to an earlier t1",
}


class SolveFailed(RuntimeError):
    """Rows failed and the caller asked for all of them."""


@dataclass(frozen=True)
class Stats:
    """Counts for each row, int64 ``[row]``."""

    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class Steps:
    """The accepted steps of each row: what a replay needs.

    t      ``[row, step + 1]`` float64, from the start on; after ``count`` steps, the last time repeats
    y      ``[row, step + 1, *state]``
    count  ``[row]`` int64
    """

    t: Tensor
    y: Tensor
    count: Tensor


@dataclass(frozen=True)
class EventLog:
    """Crossings of each row in the order in which they were met.

    which  ``[row, crossing]`` int64, the number of the event; -1 beyond ``count``
    t      ``[row, crossing]`` float64
    y      ``[row, crossing, *state]``, before any reset
    count  ``[row]`` int64
    step   ``[row, crossing]`` int64, the number of the accepted step in which it was met
    """

    which: Tensor
    t: Tensor
    y: Tensor
    count: Tensor
    step: Tensor


@dataclass(frozen=True)
class Solution:
    """``n`` rows that were solved, each on its own.

    t, y      the end of each row, ``[row]`` float64 and ``[row, *state]``: t1, or where a terminal event
              stopped it, or where it failed (``y`` is NaN there)
    saved     ``[row, time, *state]`` at the times that were asked for; NaN at those a row did not reach
    status    ``[row]`` int8, of ``Status``
    steps     with ``Save(steps=True)``
    dense     with ``Save(dense=True)``: ``times [row, time] -> [row, time, *state]``
    events    when events were given
    backend   what ran
    """

    t: Tensor
    y: Tensor
    status: Tensor
    stats: Stats
    saved: Tensor | None = None
    steps: Steps | None = None
    dense: Callable[[Tensor], Tensor] | None = None
    events: EventLog | None = None
    backend: str = "torch"

    @property
    def failed(self) -> Tensor:
        """``[row]`` bool."""
        return self.status > Status.EVENT

    def check(self) -> Solution:
        """Itself. Raises SolveFailed that says which rows failed, why, and what to do."""
        if bool(self.failed.any()):
            raise SolveFailed(self.complaint())
        return self

    def complaint(self) -> str:
        """One sentence for each kind of failure; "" when there is none."""
        said = []
        for status, advice in ADVICE.items():
            rows = (self.status == status).nonzero()[:, 0].tolist()
            if rows:
                shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
                at = float(self.t[rows[0]].detach())
                said.append(
                    f"{len(rows)} of {len(self.status)} rows ended with {status.name} (row {shown}; row "
                    f"{rows[0]} at t = {at:.6g}): {advice}"
                )
        return "; ".join(said)
