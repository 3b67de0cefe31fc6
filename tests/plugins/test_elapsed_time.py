"""The model that goes by the number of frames: without error for one length, and found out by two."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from worldsim_plugins.generators.elapsed_time import ElapsedTime
from worldsim_plugins.metrics.coherence import Coherence
from worldsim_plugins.systems.pendulum import Pendulum

TIMES = torch.linspace(0, 4, 41, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("frames", [1, 3])
def test_it_is_right_after_as_many_frames_as_it_expects(frames):
    system = Pendulum()
    truth = system.simulate(system.sample(6, generator()), TIMES, None, generator())
    model = ElapsedTime(system, frames=frames)
    for shown in (frames, frames + 2):
        out = model.rollout(truth.span(0, shown), TIMES[shown - 1 :], None, 2, generator())
        wrong = float((out.states - truth.states[:, :, shown - 1 :]).abs().max())
        assert (wrong < 1e-6) == (shown == frames)
        assert torch.equal(out.states[:, :, :1], truth.states[:, :, shown - 1 : shown].expand(-1, 2, -1, -1))


def test_two_lengths_of_history_find_it_out():
    system = Pendulum()
    truth = system.simulate(system.sample(20, generator()), TIMES, None, generator())
    metric = Coherence(system, kinds=["window_shift", "mirror"], horizon=20, pairs=64)
    scores = metric.score(truth, truth, ElapsedTime(system))
    assert scores["compression_mirror"].value == 1.0
    assert scores["coherence_auc_mirror"].value == 1.0
    assert scores["compression_window_shift"].value < 0.1


def test_a_system_that_cannot_be_restarted_is_refused():
    with pytest.raises(ValueError, match="cannot"):
        ElapsedTime(SimpleNamespace())
