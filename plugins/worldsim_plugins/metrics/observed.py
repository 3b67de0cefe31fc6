"""What of a state is compared: all of it, a component, or an observable that the system gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim.protocols import HasActions, HasObservables, System

Observe = Callable[[Tensor], Tensor]
"""From states ``[row, draw, time, *state]`` to what is compared, ``[row, draw, time, feature]``."""


def observer(system: System, name: str | None) -> Observe:
    """The observable ``name``, or the whole state for None.

    Raises ValueError where the system has no such component and no such observable.
    """
    if name is None:
        return lambda states: states.flatten(3) if states.ndim > 3 else states[..., None]
    labels = tuple(getattr(system, "labels", {}).get("component", ()))
    if name in labels:
        place = labels.index(name)
        return lambda states: states[..., place : place + 1].flatten(3)
    given = observables_of(system)
    if name not in given:
        allowed = ", ".join((*labels, *given)) or "none on this system"
        raise ValueError(f"observable: {type(system).__name__} has no {name!r}; allowed: {allowed}")

    def observed(states: Tensor) -> Tensor:
        value: Tensor = system.observe(states)[name]  # type: ignore[attr-defined]
        return value.reshape(*states.shape[:3], -1)

    return observed


def observables_of(system: System) -> tuple[str, ...]:
    """Names of what it observes, from one state of it; none where it observes nothing."""
    if not isinstance(system, HasObservables):
        return ()
    generator, times = torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64)
    actions = system.sample_actions(1, times, generator) if isinstance(system, HasActions) else None
    truth = system.simulate(system.sample(1, generator), times, actions, generator)  # type: ignore[attr-defined]
    return tuple(system.observe(truth.states))
