"""Checks of a system: shapes, determinism, and every capability that it claims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldsim import protocols
from worldsim.protocols import System, Trajectory
from worldsim.seeds import forked
from worldsim.testing.checks import Checks, finite, same, seeded
from worldsim.testing.worlds import simulated, step_of
from worldsim.truth import check_truth

TRAJECTORIES, FRAMES = 4, 6
EXACT = 1e-6
"""Relative error of what holds to rounding or to a solver's tolerance."""


def check_system(checks: Checks, build: Callable[[], System], step: float | None) -> None:
    system = build()
    times = (step or step_of(system)) * torch.arange(FRAMES, dtype=torch.float64)
    with checks.leaving_random_state("sample and simulate"):
        truth = simulated(system, times, 0, TRAJECTORIES)
    check_truth(truth, TRAJECTORIES, times, type(system).__name__)
    checks.passed()
    _check_data(checks, truth)
    with forked(12345):
        again = simulated(build(), times, 0, TRAJECTORIES)
    checks.that(same(truth.states, again.states), "the same states from the same generator, bit for bit")
    for capability, check in CAPABILITIES.items():
        if isinstance(system, getattr(protocols, capability)):
            checks.about(f"{checks.subject}, {capability}").run(check, system, truth)


def _check_data(checks: Checks, truth: Trajectory) -> None:
    allowed = (torch.float64, torch.int64)
    checks.that(truth.states.dtype in allowed, "states in float64, or int64 for tokens", truth.states.dtype)
    checks.that(truth.times.dtype == torch.float64, "times in float64", truth.times.dtype)
    for name, value in truth.observables.items():
        expected = list(truth.states.shape[:3])
        checks.that(list(value.shape[:3]) == expected, f"{name} to be {expected} + [...]", list(value.shape))
    if truth.axes:
        checks.that(len(truth.axes) == len(truth.state_shape), "a name for every state axis", truth.axes)
        for axis, size in zip(truth.axes, truth.state_shape, strict=True):
            labels = truth.labels.get(axis)
            checks.that(labels is None or len(labels) == size, f"{size} labels along {axis!r}", labels)


def check_energy(checks: Checks, system: Any, truth: Trajectory) -> None:
    states = truth.states[:, :, -1:]  # the first may be blank
    with torch.no_grad():
        energy = system.energy(states)
    expected = list(states.shape[: states.dim() - len(truth.state_shape)])
    checks.that(list(energy.shape) == expected, f"energy of shape {expected}", list(energy.shape))
    checks.that(energy.dtype == torch.float64, "energy of float64 states in float64", energy.dtype)
    leaf = states.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(system.energy(leaf).sum(), leaf)
    checks.that(
        finite(gradient) and bool(gradient.any()), "an energy with a finite gradient that is not zero"
    )


def check_observables(checks: Checks, system: Any, truth: Trajectory) -> None:
    observed = system.observe(truth.states)
    for name in system.conserved:
        checks.that(name in observed, f"{name!r} among what observe gives", sorted(observed))
        drift = (observed[name] - observed[name][:, :, :1]).abs().amax()
        size = observed[name].abs().amax() + 1e-6
        checks.that(
            bool(drift <= EXACT * size), f"{name!r} conserved along the truth", f"a drift of {drift:.3g}"
        )


def check_restart(checks: Checks, system: Any, truth: Trajectory) -> None:
    states = truth.states[:, 0, -1]
    begun = system.simulate(system.restart(states), truth.times, truth.actions, seeded(1))
    error = (begun.states[:, 0, 0] - states).abs().max()
    checks.that(
        bool(error <= EXACT * (1 + states.abs().max())), "to start where restart says", f"{error:.3g} off"
    )


def check_drift(checks: Checks, system: Any, truth: Trajectory) -> None:
    x = truth.states[:, 0, 0]
    u = None if truth.actions is None else truth.actions[:, 0]
    drift = system.drift(truth.times[0], x, u)
    checks.that(drift.shape == x.shape, f"a drift of shape {list(x.shape)}", list(drift.shape))
    checks.that(finite(drift), "a finite drift")
    each = system.drift(truth.times[0].expand(len(x)), x, u)
    checks.that(
        each.shape == x.shape and torch.allclose(each, drift, rtol=EXACT),
        "the same drift at a time t for each trajectory, [trajectory], as at one t without axes",
    )
    if "derivative" in truth.observables:
        kept = truth.observables["derivative"][:, 0, 0]
        checks.that(torch.allclose(kept, drift, rtol=EXACT), "the observable derivative to be the drift")


def check_actions(checks: Checks, system: Any, truth: Trajectory) -> None:
    with checks.leaving_random_state("sample_actions"):
        first, second = (system.sample_actions(TRAJECTORIES, truth.times, seeded(3)) for _ in range(2))
    expected = [TRAJECTORIES, len(truth.times)]
    checks.that(list(first.shape[:2]) == expected, f"actions {expected} + [...]", list(first.shape))
    checks.that(same(first, second), "the same actions from the same generator")
    checks.that(truth.actions is not None, "simulate to keep the actions in the trajectory")


def check_automaton(checks: Checks, system: Any, truth: Trajectory) -> None:
    table = system.transitions()
    size = len(system.alphabet)
    checks.that(
        table.dim() == 2 and table.shape[1] == size, f"transitions [state, {size}]", list(table.shape)
    )
    checks.that(bool(((table >= -1) & (table < len(table))).all()), "next states, or -1 where illegal")
    checks.that(
        bool((table >= 0).any(1).all()), "a legal token in every state: the language is prefix-closed"
    )
    checks.that(0 <= int(system.initial) < len(table), "an initial state in the table", system.initial)
    state = torch.full((TRAJECTORIES,), int(system.initial))
    for token in truth.states[:, 0].T:
        state = torch.where(state < 0, state, table[state.clamp(min=0), token])
    checks.that(bool((state >= 0).all()), "every simulated word to be legal from the initial state")


def check_histories(checks: Checks, system: Any, truth: Trajectory) -> None:
    """Both histories of a pair end at one time, and the world's own futures from them agree."""
    for kind in system.history_kinds:
        with checks.leaving_random_state(f"equivalent_histories({kind!r})"):
            pairs = system.equivalent_histories(kind, TRAJECTORIES, truth.times, seeded(5))
        first, second = pairs.first, pairs.second
        rows = [len(first), len(second)]
        checks.that(rows == [TRAJECTORIES] * 2, f"{kind}: {TRAJECTORIES} pairs", rows)
        checks.that(bool(first.times[-1] == second.times[-1]), f"{kind}: both histories to end at one time")
        if isinstance(system, protocols.Restartable):
            futures = [_future(system, part, truth) for part in (first, second)]
            error = (futures[0] - pairs.align(futures[1])).abs().max()
            size = 1 + futures[0].abs().max()
            checks.that(
                bool(error <= EXACT * size), f"{kind}: equal futures after align", f"{error:.3g} apart"
            )


def check_alike(checks: Checks, system: Any, truth: Trajectory) -> None:
    """Both histories of a pair end at one time, and the world's own futures from them do not agree."""
    for kind in system.alike_kinds:
        with checks.leaving_random_state(f"alike_histories({kind!r})"):
            pairs = system.alike_histories(kind, TRAJECTORIES, truth.times, seeded(6))
        first, second = pairs.first, pairs.second
        checks.that(bool(first.times[-1] == second.times[-1]), f"{kind}: both histories to end at one time")
        if isinstance(system, protocols.Restartable):
            futures = [_future(system, part, truth) for part in (first, second)]
            apart = (futures[0] - pairs.align(futures[1])).abs().flatten(1).amax(1)
            checks.that(bool((apart > 0).all()), f"{kind}: futures that differ", apart)


def check_forecast(checks: Checks, system: Any, truth: Trajectory) -> None:
    times = truth.times[-1] + truth.times - truth.times[0]
    future = system.forecast(truth, times, None, 3, seeded(8))
    expected = [len(truth), 3, len(times), *truth.state_shape]
    checks.that(list(future.states.shape) == expected, f"futures {expected}", list(future.states.shape))
    given = truth.states[:, :, -1].expand_as(future.states[:, :, 0])
    checks.that(bool((future.states[:, :, 0] == given).all()), "futures that begin at the last given frame")


def _future(system: Any, history: Trajectory, truth: Trajectory) -> Tensor:
    """The world's own continuation, under the same actions and noise for every history."""
    start = system.restart(history.states[:, 0, -1])
    future: Trajectory = system.simulate(start, truth.times, truth.actions, seeded(7))
    return future.states


CAPABILITIES: dict[str, Callable[..., None]] = {
    "HasEnergy": check_energy,
    "HasObservables": check_observables,
    "Restartable": check_restart,
    "HasDrift": check_drift,
    "HasActions": check_actions,
    "HasAutomaton": check_automaton,
    "HasEquivalentHistories": check_histories,
    "HasAlikeHistories": check_alike,
    "HasForecast": check_forecast,
}
"""Capability -> what claiming it means."""
