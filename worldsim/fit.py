"""Train a model: one loop over an ``nn.Module``, resumable, its budget in steps and never in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from worldsim.errors import NotFinite
from worldsim.protocols import Paced, Trajectory
from worldsim.seeds import derive, forked, generator

if TYPE_CHECKING:
    from worldsim.ranks import Ranks
    from worldsim.scenario import FitSettings

Tensors = dict[str, torch.Tensor]
Progress = Callable[[int, Mapping[str, float]], None]


class FitDiverged(NotFinite):
    """A loss was not finite; the message says at which step."""


@dataclass
class FitState:
    """All that a fit needs to go on: it is what a checkpoint holds."""

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    best_weights: Tensors = field(default_factory=dict)
    train_loss: float = float("nan")


def fit(
    model: nn.Module,
    train: Trajectory,
    validation: Trajectory | None,
    settings: FitSettings,
    seed: int,
    *,
    saved: Tensors | None = None,
    save: Callable[[Tensors], None] | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Minimise ``model.loss`` over random windows of ``train``; leaves the chosen weights in ``model``.

    Every draw of step k comes from (seed, k), so a fit that resumes from ``saved`` ends with the same bits
    as one that was never interrupted. ``save`` receives the whole state each ``checkpoint_every`` steps.
    With ``patience`` the weights of the lowest validation loss are kept, and the fit ends early when it has
    not fallen for that many checks. As one of ``ranks`` it learns from its share of the rows of each batch
    (see ``worldsim.ranks``). Raises FitDiverged on a loss that is not finite.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights or not getattr(model, "trainable", True):
        return {"steps": 0.0}
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    average = _average(model, settings.ema)
    state = FitState()
    if saved:
        state = _restore(saved, model, optimiser, average)
    device = weights[0].device
    model.train()
    if ranks is not None:
        ranks.take(model)
    mine = (ranks.rank,) if ranks is not None and ranks.rank else ()
    while state.step < settings.steps:
        with forked(derive(seed, "fit", state.step, *mine), device):
            _step(model, train, settings, seed, optimiser, average, state, ranks)
        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            losses = _check(average or model, validation, settings, seed, state, ranks)
            if progress:
                progress(state.step, losses)
            if (
                settings.patience
                and state.step - state.best_step >= settings.patience * settings.validate_every
            ):
                break
        if save and state.step % settings.checkpoint_every == 0 and state.step < settings.steps:
            save(_dump(model, optimiser, average, state))
    _choose(model, average, state, settings)
    model.eval()
    report = {"steps": float(state.step), "train": state.train_loss}
    return report if validation is None else {**report, "validation": state.best}


def _step(
    model: Any,
    train: Trajectory,
    settings: FitSettings,
    seed: int,
    optimiser: torch.optim.Optimizer,
    average: AveragedModel | None,
    state: FitState,
    ranks: Ranks | None,
) -> None:
    for group in optimiser.param_groups:
        group["lr"] = settings.learning_rate_at(state.step)
    if isinstance(model, Paced):
        model.pace(state.step / settings.steps)
    batch = windows(train, settings.batch, settings.window, generator(seed, "batch", state.step))
    loss = model.loss(batch) if ranks is None else ranks.loss(batch)
    whole = loss.detach() if ranks is None else ranks.mean(loss)
    if not bool(torch.isfinite(whole)):
        raise FitDiverged(
            f"the loss is {float(whole)} at step {state.step}; lower fit.learning_rate or fit.clip"
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if settings.clip:
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimiser.step()
    if average is not None:
        average.update_parameters(model)
    state.step += 1
    state.train_loss = float(whole)


def windows(truth: Trajectory, batch: int, window: int | None, rng: torch.Generator) -> Trajectory:
    """``batch`` random windows of ``window`` frames (whole trajectories when None), drawn with replacement.

    Windows of ragged trajectories end before these do, where any is long enough. Times start where the
    first trajectory's do: a window's absolute time is not shown to the model, and ValueError is raised where
    that would change the steps between frames.
    """
    frames = len(truth.times)
    width = frames if window is None else min(window, frames)
    n = len(truth)
    if width == frames and batch >= n:
        return truth
    if width == frames:
        return truth.rows(torch.randint(n, (batch,), generator=rng))
    gaps = truth.times.diff()
    if not torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-6, atol=0):
        raise ValueError(
            f"windows of {width} of {frames} frames need a uniform time grid, and steps here go from "
            f"{float(gaps.min()):g} to {float(gaps.max()):g}: leave fit.window out, or resample the data"
        )
    rows, first = _places(truth, batch, width, rng)
    frame = first[:, None] + torch.arange(width)
    left = None if truth.length is None else truth.length[rows] - first.to(truth.length)[:, None]
    return Trajectory(
        states=truth.states[rows[:, None], :, frame].transpose(1, 2),
        times=truth.times[:width],
        actions=None if truth.actions is None else truth.actions[rows[:, None], frame],
        observables={k: v[rows[:, None], :, frame].transpose(1, 2) for k, v in truth.observables.items()},
        length=None if left is None else left.clamp(0, width),
        axes=truth.axes,
        labels=truth.labels,
        units=truth.units,
    )


def _places(
    truth: Trajectory, batch: int, width: int, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Trajectory and first frame of ``batch`` windows, each ``[batch]``."""
    n, frames = len(truth), len(truth.times)
    if truth.length is None:
        rows = torch.randint(n, (batch,), generator=rng)
        return rows, torch.randint(frames - width + 1, (batch,), generator=rng)
    room = truth.length.amin(1).cpu() - width + 1
    long_enough = (room > 0).nonzero()[:, 0]
    pool = long_enough if len(long_enough) else torch.arange(n)
    rows = pool[torch.randint(len(pool), (batch,), generator=rng)]
    chance = torch.rand(batch, dtype=torch.float64, generator=rng)
    return rows, (chance * room[rows].clamp(min=1)).long()


def _check(
    model: Any,
    validation: Trajectory | None,
    settings: FitSettings,
    seed: int,
    state: FitState,
    ranks: Ranks | None,
) -> dict[str, float]:
    losses = {"train": state.train_loss}
    if validation is None:
        return losses
    network: Any = model.module if isinstance(model, AveragedModel) else model
    draw = windows(validation, settings.batch, settings.window, generator(seed, "validation"))
    training = network.training
    network.eval()
    with forked(derive(seed, "validation")), torch.no_grad():
        loss = torch.as_tensor(network.loss(draw))
    losses["validation"] = float(loss if ranks is None else ranks.mean(loss))
    network.train(training)
    if losses["validation"] < state.best:
        state.best, state.best_step = losses["validation"], state.step
        if settings.patience:
            state.best_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
    return losses


def _average(model: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def _choose(model: nn.Module, average: AveragedModel | None, state: FitState, settings: FitSettings) -> None:
    if settings.patience and state.best_weights:
        model.load_state_dict(state.best_weights)
    elif average is not None:
        model.load_state_dict(average.module.state_dict())


def _dump(
    model: nn.Module, optimiser: torch.optim.Optimizer, average: AveragedModel | None, state: FitState
) -> Tensors:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in state.best_weights.items()}
    for index, slot in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    numbers = (state.step, state.best, state.best_step, state.train_loss)
    tensors["state"] = torch.tensor(numbers, dtype=torch.float64)
    return {k: v.detach().clone().contiguous() for k, v in tensors.items()}


def _restore(
    saved: Tensors, model: nn.Module, optimiser: torch.optim.Optimizer, average: AveragedModel | None
) -> FitState:
    def part(name: str) -> Tensors:
        return {k.removeprefix(name + "."): v for k, v in saved.items() if k.startswith(name + ".")}

    model.load_state_dict(part("model"))
    if average is not None:
        average.load_state_dict(part("average"))
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in part("optimiser").items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**deepcopy(optimiser.state_dict()), "state": slots})
    step, best, best_step, train_loss = saved["state"].tolist()
    return FitState(int(step), best, int(best_step), part("best"), train_loss)
