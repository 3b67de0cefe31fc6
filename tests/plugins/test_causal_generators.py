"""Generators built causally show no frame what is done after it: exact zeros, and a leak is caught."""

from __future__ import annotations

import pytest
import torch

from worldsim import Trajectory
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.consistency import Consistency
from worldsim_plugins.generators.diffusion import Diffusion
from worldsim_plugins.generators.diffusion_forcing import DiffusionForcing
from worldsim_plugins.generators.flow import Flow

FRAMES, CUT = 6, 3


def truth() -> Trajectory:
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(4, 1, FRAMES, 2, generator=rng)
    actions = torch.randn(4, FRAMES, 1, generator=rng)
    return Trajectory(states, 0.5 * torch.arange(FRAMES, dtype=torch.float64), actions)


def built(kind, causal: bool):
    data = truth()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {} if kind is DiffusionForcing else {"causal": causal}
        model = kind(data, width=16, backbone=Transformer(depth=1, heads=2), **settings).double()
        for name, weight in model.named_parameters():  # so that it says something before it is trained
            if name.endswith("out.weight") or "modulation" in name or "deviation.4" in name:
                torch.nn.init.normal_(weight, std=0.3)
    return model


def leak(model) -> float:
    """Of frames up to ``CUT`` when the actions from then on are others."""
    data = truth()
    others = data.actions.clone()
    others[:, CUT:] += 1.0
    first, second = (
        model.rollout(data.span(0, 1), data.times, actions, 2, torch.Generator().manual_seed(1)).states
        for actions in (data.actions, others)
    )
    assert not torch.equal(first, second)
    return float((first - second)[:, :, : CUT + 1].abs().max())


@pytest.mark.parametrize("kind", [Flow, Diffusion, Consistency, DiffusionForcing])
def test_nothing_leaks_from_what_is_done_later(kind) -> None:
    assert leak(built(kind, True)) == 0


@pytest.mark.parametrize("kind", [Flow, Diffusion, Consistency])
def test_a_model_that_sees_the_whole_window_leaks(kind) -> None:
    assert leak(built(kind, False)) > 1e-6
