"""Checks of a model, built, wrapped and rolled out as a run does it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from worldsim.protocols import HasNextToken, Model, Trajectory
from worldsim.seeds import forked
from worldsim.testing.checks import Checks, finite, same, seeded
from worldsim.testing.worlds import World
from worldsim.wrapped import Wrapped

DRAWS = 2
CONTEXT = 3
NEAR = 1e-4
"""Relative error of a frame that went through the model's scaling in float32."""


def check_model(checks: Checks, build: Callable[..., Model], scaling: str, worlds: list[World]) -> None:
    """On the first world that the model can be built for."""
    world, model, truth = _built(build, scaling, worlds)
    _check_loss(checks, model, truth)
    _check_rollout(checks, model, world, truth)
    if callable(getattr(model.inner, "drift", None)):
        _check_drift(checks, model, truth)
    if isinstance(model.inner, HasNextToken):
        _check_next_token(checks, model.inner, truth)


def _built(
    build: Callable[..., Model], scaling: str, worlds: list[World]
) -> tuple[World, Wrapped, Trajectory]:
    refused = []
    for world in worlds:
        truth = world.truth()
        try:
            with forked(0):
                model = Wrapped(partial(_build_on, build, world), scaling, truth, block=4)
                model.rollout(truth.span(0, 1), truth.times, truth.actions, 1, seeded(0))
        except Exception as error:  # a model that was made for the other world may fail anyhow
            refused.append(f"on {world.name}: {type(error).__name__}: {error}")
        else:
            return world, model, truth
    raise AssertionError("no world it works on; give system=...\n    " + "\n    ".join(refused))


def _build_on(build: Callable[..., Model], world: World, scaled: Trajectory) -> Model:
    return build(system=world.system, truth=scaled)


def _check_loss(checks: Checks, model: Wrapped, truth: Trajectory) -> None:
    weights = [p for p in model.parameters() if p.requires_grad]
    if not model.trainable or not weights:
        return
    with forked(1):
        loss = model.loss(truth)
    checks.that(loss.dim() == 0 and finite(loss), "a finite scalar loss", f"{loss.detach()}")
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in weights if p.grad is not None]
    checks.that(bool(gradients) and all(map(finite, gradients)), "a loss with finite gradients")
    checks.that(any(bool(g.any()) for g in gradients), "a loss that some parameter changes")
    with forked(1):
        checks.that(
            same(loss.detach(), model.loss(truth).detach()), "the same loss from the same default generator"
        )


def _check_rollout(checks: Checks, model: Wrapped, world: World, truth: Trajectory) -> None:
    context, times = truth.span(0, CONTEXT), truth.times[CONTEXT - 1 :]
    actions = None if truth.actions is None else truth.actions[:, CONTEXT - 1 :]
    with checks.leaving_random_state("rollout"):
        guess = model.rollout(context, times, actions, DRAWS, seeded(2))
    expected = [len(truth), DRAWS, len(times), *truth.state_shape]
    checks.that(list(guess.states.shape) == expected, f"a rollout {expected}", list(guess.states.shape))
    checks.that(torch.equal(guess.times, times), "a rollout on the times that were asked for")
    last = context.states[:, :, -1]
    error = (guess.states[:, :, 0] - last).abs().max()
    checks.that(
        bool(error <= NEAR * (1 + last.abs().max())), "to begin at the context's last frame", f"{error} off"
    )
    again = model.rollout(context, times, actions, DRAWS, seeded(2))
    checks.that(same(guess.states, again.states), "the same rollout from the same generator, bit for bit")


def _check_drift(checks: Checks, model: Wrapped, truth: Trajectory) -> None:
    """That solvers which give every trajectory its own time may call it."""
    seen = model.inward(truth)
    x, u = seen.states[:, 0, 0], None if seen.actions is None else seen.actions[:, 0]
    with torch.no_grad():
        try:
            one = model.inner.drift(truth.times[0], x, u)
        except (ValueError, RuntimeError):
            return  # a field over something else than the state
        each = model.inner.drift(truth.times[0].expand(len(x)), x, u)
    checks.that(
        each.shape == x.shape and torch.allclose(each, one, rtol=NEAR, atol=NEAR),
        "the same drift at a time t for each trajectory, [trajectory], as at one t without axes",
    )


def _check_next_token(checks: Checks, model: Any, truth: Trajectory) -> None:
    for length in (0, 1, 4):
        law = model.next_token(truth.states[:, 0, :length])
        checks.that(law.dtype == torch.float64, "probabilities in float64", law.dtype)
        total = law.sum(-1)
        proper = bool(((law >= 0).all(-1) & ((total - 1).abs() < 1e-6)).all())
        checks.that(proper, f"a law of the next token after {length} tokens", f"sums {total.tolist()}")
