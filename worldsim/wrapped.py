"""A model as the rest of worldsim sees it: in physical units, under its constraints, block by block.

The wrapper standardises what the model sees (the scaling is part of the checkpoint), shows it what is free
under a structure, adds the training penalty, corrects while sampling, and projects at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from worldsim import seeds
from worldsim.constrained import Corrected, conflict_free, projected
from worldsim.mechanisms import Use
from worldsim.protocols import (
    HasLatent,
    HasNextToken,
    HasParametrisation,
    HasTokenLaws,
    Model,
    Paced,
    Trajectory,
)
from worldsim.truth import concatenate, reached
from worldsim.untouched import untouched

NEAR = 1e-4
"""What a frame may lose in a model's dtype, of itself and of the states' spread."""


def scaling_of(truth: Trajectory, kind: str) -> tuple[Tensor, Tensor]:
    """Shift and scale, each ``[component]`` float64, over all but the last state axis.

    kind  "component": each by its own mean and standard deviation; "canonical": one scale for all
          positions and one for all momenta (the halves of the last axis), which keeps Hamilton's equations;
          "none": zero and one.
    """
    states = truth.states
    if kind == "none" or not states.is_floating_point():
        return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    flat = states[reached(truth)].double()
    flat = flat.reshape(-1, states.shape[-1]) if truth.state_shape else flat
    shift, spread = flat.mean(0), flat.std(0, correction=0)
    varies = spread > 1e-12 * flat.abs().amax(0)  # below, it is the rounding of a constant
    spread = torch.where(varies, spread, torch.zeros_like(spread))
    if kind == "canonical":
        if spread.numel() % 2 or not truth.state_shape:
            raise ValueError(
                "scaling 'canonical' needs a last state axis (q, p), half and half; the state is "
                f"{list(truth.state_shape)}"
            )
        halves = (spread**2).reshape(2, -1).mean(1).sqrt()
        spread = halves.repeat_interleave(spread.shape[0] // 2)
    elif kind != "component":
        raise ValueError(f"scaling is {kind!r}; allowed are 'component', 'canonical' and 'none'")
    return shift, torch.where(spread > 0, spread, torch.ones_like(spread))


class Wrapped(nn.Module):
    """A built model, its scaling and its constraints: what is fitted, rolled out, scored and kept."""

    shift: Tensor
    scale: Tensor
    spread: Tensor
    """Unit in which a correction counts how far it moves a state; the scale, unless a structure is free."""

    def __init__(
        self,
        build: Callable[[Trajectory], Model],
        kind: str,
        train: Trajectory,
        uses: Sequence[Use] = (),
        *,
        window: int | None = None,
        block: int = 32,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.uses = tuple(uses)
        self.trained_on = train.state_shape
        shift, scale = scaling_of(self.freed(train), kind)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        if self.structure is not None:
            scale = scaling_of(train, "none" if kind == "none" else "component")[1]
        self.register_buffer("spread", scale.clone())  # a checkpoint keeps no two names of one tensor
        self.floating = train.states.is_floating_point()
        self.dtype = dtype if kind != "none" and self.floating else None
        self.block = block
        self.inner: Any = build(self.inward(self.freed(train.span(0, window))))
        self._adopt(kind, dtype)
        # On the instance: a class that has the method is taken for one that offers it.
        if isinstance(self.inner, HasLatent):
            self.latent_of = self._latent_of
        if isinstance(self.inner, HasNextToken):
            self.next_token = self._next_token
        if isinstance(self.inner, HasTokenLaws):
            self.token_laws = self._token_laws
        if isinstance(self.inner, Paced):
            self.pace = self._pace
        self.eval()

    def _adopt(self, kind: str, dtype: torch.dtype) -> None:
        """Raises ValueError for a model that would be scaled wrongly, or never fitted, without a word."""
        name, declared = type(self.inner).__name__, getattr(self.inner, "scaling", kind)
        if declared != kind:
            raise ValueError(
                f"{name} declares scaling {declared!r}, and its builder does not: set the attribute "
                f"scaling = {declared!r} on the builder too"
            )
        parts = getattr(self.inner, "__dict__", {}).values()
        learns = any(isinstance(part, nn.Module | nn.Parameter) for part in parts)
        if learns and self.trainable and not isinstance(self.inner, nn.Module):
            raise ValueError(
                f"{name} holds parameters that no fit would find: make it an nn.Module, or say "
                "trainable = False"
            )
        if isinstance(self.inner, nn.Module) and dtype != torch.float32:
            self.inner.to(dtype)
        weights = [p for p in self.parameters() if p.is_floating_point()]
        if kind == "none" and weights and self.floating:
            self.dtype = weights[0].dtype

    @property
    def structure(self) -> HasParametrisation | None:
        """The constraint that says what the model generates in the place of states."""
        found = [u.constraint for u in self.uses if u.by("structure")]
        maps = [c for c in found if isinstance(c, HasParametrisation)]
        if len(maps) > 1:
            raise ValueError("a model can generate what is free under one constraint, not under several")
        return maps[0] if maps else None

    def freed(self, physical: Trajectory) -> Trajectory:
        """What the model sees and generates in the place of ``physical``."""
        return physical if self.structure is None else self.structure.free(physical)

    def formed(self, free: Trajectory, times: Tensor) -> Trajectory:
        """The inverse of ``freed``, at ``times``."""
        return free if self.structure is None else self.structure.obeying(free, times)

    @property
    def trainable(self) -> bool:
        return bool(getattr(self.inner, "trainable", True))

    def _pace(self, done: float) -> None:
        self.inner.pace(done)

    def _next_token(self, tokens: Tensor) -> Tensor:
        """The inner model's law of the next token."""
        law: Tensor = self.inner.next_token(tokens)
        return law

    def _token_laws(self, tokens: Tensor) -> Tensor:
        """The inner model's laws along ``tokens``."""
        laws: Tensor = self.inner.token_laws(tokens)
        return laws

    @torch.no_grad()
    def _latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        """What the inner model keeps of a context in physical units, on the CPU."""
        bare = replace(context, observables={}).to(device=self.shift.device)
        shown = self.inward(self.freed(bare))
        return torch.as_tensor(self.inner.latent_of(shown, generator)).cpu()

    def inward(self, physical: Trajectory) -> Trajectory:
        """Standardised, in the model's dtype; the "derivative" observable is scaled with the states."""
        if self.dtype is None:
            return physical
        observables = dict(physical.observables)
        if "derivative" in observables:
            observables["derivative"] = observables["derivative"] / self.scale
        states = (physical.states - self.shift) / self.scale
        return replace(physical, states=states, observables=observables).to(dtype=self.dtype)

    def outward(self, scaled: Trajectory) -> Trajectory:
        """Physical units, float64."""
        if not self.floating:
            return scaled
        return replace(scaled, states=scaled.states.double() * self.scale + self.shift)

    def loss(self, truth: Trajectory) -> Tensor:
        """The model's own loss, joined by weight * mean residual^2 of its estimate for each penalty."""
        penalties = [use for use in self.uses if use.by("penalty")]
        shown = self.inward(self.freed(truth))
        shared = {"states": truth.states, "times": truth.times, "actions": truth.actions}
        with untouched(f"{type(self.inner).__name__}.loss", {**truth.observables, **shared}):
            if not penalties:
                return torch.as_tensor(self.inner.loss(shown))
            loss, estimate = self.inner.loss_and_estimate(shown)
        physical = self.formed(self.outward(estimate), truth.times)
        for use in penalties:
            penalty = use.held.weight * use.constraint.residual(physical).square().mean().to(loss.dtype)
            free = use.held.gradients == "conflict_free" and torch.is_grad_enabled()
            weights = [p for p in self.parameters() if p.requires_grad]
            loss = conflict_free(loss, penalty, weights) if free else loss + penalty
        return torch.as_tensor(loss)

    @torch.no_grad()
    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``differentiable_rollout`` without its graph."""
        return self.differentiable_rollout(context, times, actions, draws, generator)

    def differentiable_rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """Physical units, on the CPU; blocks of a fixed size, the last one padded and cropped.

        ``generator`` gives one seed, and each block has a generator of its own from it. Observables of the
        context are what a model does not see, and are not shown to it. Raises ValueError for actions that do
        not go with the context and ``times``.
        """
        if actions is not None and actions.shape[:2] != (len(context), len(times)):
            raise ValueError(
                f"actions must be [trajectory, time, *action] = {[len(context), len(times), '...']}, one for "
                f"each time of the forecast, found {list(actions.shape)}"
            )
        device = self.shift.device
        context, times = replace(context, observables={}).to(device=device), times.to(device)
        actions = None if actions is None else actions.to(device)
        seed = int(torch.randint(2**62, (), generator=generator))
        parts = []
        for first in range(0, len(context), self.block):
            rng = seeds.generator(seed, first // self.block)
            rows = torch.arange(first, first + self.block).clamp(max=len(context) - 1)
            acts = None if actions is None else actions[rows]
            part = self._rollout_block(context.rows(rows), times, acts, draws, rng)
            parts.append(part.rows(slice(0, min(self.block, len(context) - first))))
        return concatenate(parts)

    def _rollout_block(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        guides = [use for use in self.uses if use.by("guidance")]
        given, known = self.freed(context), self._known_times(context, times)
        acts = None if actions is None else actions[:, : len(known)]
        try:
            arguments = (self.inward(given), known, acts, draws, generator)
            with untouched(f"{type(self.inner).__name__}.rollout", {"times": known, "actions": acts}):
                if guides:
                    guess = self.inner.guided_rollout(*arguments, Corrected(self, guides, context, times))
                else:
                    guess = self.inner.rollout(*arguments)
        except (RuntimeError, ValueError) as error:
            if context.state_shape == self.trained_on:
                raise
            # Some models do carry over to other shapes (more bodies, say): only trying tells.
            raise ValueError(
                f"{type(self.inner).__name__} was built for states {list(self.trained_on)} and cannot take "
                f"{list(context.state_shape)}: give this split a system with states of that shape, or take a "
                f"model that is not bound to one ({error})"
            ) from error
        self._check(guess, given, known, draws)
        physical = self.formed(self.as_given(self.outward(guess).to(device="cpu"), given), times.cpu())
        for use in self.uses:
            if use.by("projection"):
                physical = projected(physical, use, self.spread.cpu())
        actions = None if actions is None else actions.cpu()
        return replace(
            physical, axes=context.axes, labels=context.labels, units=context.units, actions=actions
        )

    def as_given(self, guess: Trajectory, given: Trajectory) -> Trajectory:
        """``guess`` with frame 0 to the bit: it has been through the model's dtype, and may no longer obey
        what it obeyed. One that is another frame altogether is left for who checks it."""
        found = guess.states[:, :, :1]
        first = given.states[:, :1, -1:].to(found).expand_as(found)
        near = (found - first).abs() <= NEAR * (first.abs() + self.scale.cpu())
        states = torch.cat([torch.where(near, first, found), guess.states[:, :, 1:]], 2)
        return replace(guess, states=states)

    def _known_times(self, context: Trajectory, times: Tensor) -> Tensor:
        """Those of ``times`` that the model itself generates."""
        if self.structure is None:
            return times
        still = context.states[:, :, -1:].expand(-1, -1, len(times), *context.state_shape)
        return self.freed(replace(context, states=still, times=times, actions=None, length=None)).times

    def _check(self, guess: Any, context: Trajectory, times: Tensor, draws: int) -> None:
        name = type(self.inner).__name__
        if not isinstance(guess, Trajectory):
            raise TypeError(f"{name}.rollout must return a Trajectory, it returned {type(guess).__name__}")
        if not isinstance(guess.states, Tensor):
            raise TypeError(f"{name}.rollout: states must be a tensor, found {type(guess.states).__name__}")
        expected = (len(context), draws, len(times), *context.state_shape)
        if tuple(guess.states.shape) != expected:
            raise ValueError(
                f"{name}.rollout: states must be [trajectory, draw, time, *state] = {list(expected)}, "
                f"found {list(guess.states.shape)}"
            )
        allowed = "floating point" if self.floating else "int64"
        is_allowed = guess.states.is_floating_point() if self.floating else guess.states.dtype == torch.int64
        if not is_allowed or guess.states.device != context.states.device:
            raise ValueError(
                f"{name}.rollout: states must be {allowed} on {context.states.device}, found "
                f"{guess.states.dtype} on {guess.states.device}"
            )
        if guess.times.shape != times.shape or not bool((guess.times == times).all()):
            raise ValueError(f"{name}.rollout: its times are not the times it was asked for")
        for key, value in guess.observables.items():
            if tuple(value.shape[:3]) != expected[:3]:
                raise ValueError(
                    f"{name}.rollout: {key} must begin with [trajectory, draw, time] = {list(expected[:3])}, "
                    f"found {list(value.shape)}"
                )
