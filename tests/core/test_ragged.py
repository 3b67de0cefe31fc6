"""Trajectories that end at different times: nothing after an end reaches a model, a baseline or a score."""

import numpy as np
import pytest
import torch

import worldsim
from worldsim.baselines import BASELINES
from worldsim.fit import windows
from worldsim.plugins import registry
from worldsim.protocols import Trajectory
from worldsim.reading import from_document
from worldsim.truth import held, reached
from worldsim.wrapped import scaling_of

LENGTHS = (3, 9, 6, 1)


def ragged(after=torch.nan):
    """x_t = 10 i + t in trajectory i, ``after`` past its end."""
    frames = torch.arange(9, dtype=torch.float64)
    length = torch.tensor(LENGTHS)[:, None]
    states = 10 * torch.arange(4, dtype=torch.float64)[:, None, None] + frames
    states = torch.where(frames < length[..., None], states, after)[..., None]
    return Trajectory(states, frames, observables={"twice": 2 * states}, length=length)


def test_frames_after_an_end_are_its_last_one():
    end = held(ragged())
    assert end.states[0, 0, :, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2]
    assert torch.equal(end.observables["twice"], 2 * end.states)
    assert torch.equal(end.states[1], ragged().states[1])
    assert reached(ragged()).sum() == sum(LENGTHS)


def test_windows_lie_before_the_end():
    picked = windows(ragged(), 200, 4, torch.Generator().manual_seed(0))
    assert picked.states.isfinite().all()
    assert (picked.length == 4).all()
    starts = set(picked.states[:, 0, 0, 0].tolist())
    assert starts == {10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 20.0, 21.0, 22.0}


def test_windows_longer_than_every_trajectory_keep_their_length():
    short = ragged().rows(torch.tensor([0, 3]))
    picked = windows(short, 20, 4, torch.Generator().manual_seed(0))
    assert set(picked.length.flatten().tolist()) == {1, 3}


@pytest.mark.parametrize("after", [torch.nan, 1e9])
def test_what_follows_an_end_changes_no_scale_and_no_baseline(after):
    truth = ragged(after)
    shift, scale = scaling_of(truth, "component")
    known = truth.states[reached(truth)]
    assert shift == pytest.approx(float(known.mean()))
    assert scale == pytest.approx(float(known.std(correction=0)))
    context = Trajectory(torch.full((2, 1, 1, 1), 21.2, dtype=torch.float64), truth.times[:1])
    for name in ("climatology", "constant", "memoriser"):
        model = BASELINES[name](object(), held(truth))
        guess = model.rollout(context, truth.times[:3], None, 20, torch.Generator().manual_seed(0))
        assert guess.states.max() <= 30, name
    assert guess.states[0, 0, :, 0].tolist() == [21.2, 22.0, 23.0]


def test_a_ragged_world_runs_end_to_end(tmp_path):
    document = {
        "about": "Can what falls over be learned?",
        "system": {"name": "gym", "id": "CartPole-v1"},
        "data": {
            "step": 0.02, "context": 2,
            "splits": {
                "train": {"trajectories": 12, "horizon": 1.0},
                "test": {"trajectories": 8, "horizon": 1.0},
            },
        },
        "models": {
            "whole": {"name": "neural_ode", "width": 4, "fit": {"steps": 2}},
            "ode": {"name": "neural_ode", "width": 4, "fit": {"window": 4, "steps": 6}},
            "flow": {"name": "flow", "width": 8, "depth": 1, "steps": 2, "fit": {"window": 4, "steps": 6}},
        },
        "metrics": ["rollout", {"name": "transport", "feature": "final_state", "minimum": 4}],
        "baselines": ["truth", "persistence", "climatology", "constant", "shuffled", "memoriser"],
        "seeds": [0],
    }  # fmt: skip
    results = worldsim.run(from_document(document, "falls", registry()), out=tmp_path)
    assert [results.failure(entry) for entry in results.entries] == [""] * len(results.entries)
    rows = {(row.model, row.name): row.score for row in results.rows()}
    assert {row.score.reason for row in results.rows()} == {""}
    assert rows["truth", "nrmse"].value == 0
    assert rows["truth", "W2"].value == 0
    assert all(rows[model, "nrmse"].value > 0.5 for model in ("persistence", "constant", "shuffled"))
    assert np.isnan(rows["truth", "nrmse_time"].value).any()  # nobody stands for that long
