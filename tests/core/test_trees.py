"""Trajectories survive the way to xarray and back."""

import torch
import xarray as xr

from worldsim.protocols import Trajectory
from worldsim.trees import from_dataset, to_dataset


class Bodies:
    conserved = ("energy",)

    def observe(self, states):
        return {"energy": states.square().sum((-1, -2))}


def trajectory(draws):
    rng = torch.Generator().manual_seed(draws)
    states = torch.randn(3, draws, 5, 2, 4, dtype=torch.float64, generator=rng)
    return Trajectory(
        states, torch.arange(5, dtype=torch.float64) * 0.1,
        axes=("body", "component"),
        labels={"body": ("sun", "moon"), "component": ("x", "y", "vx", "vy")},
        units={"x": "m", "time": "s", "energy": "J"},
    )  # fmt: skip


def test_there_and_back():
    truth = trajectory(1)
    truth = truth.replace(
        observables={"spin": truth.states[..., 0].clone()},
        actions=torch.ones(3, 5, 1, dtype=torch.float64),
        length=torch.tensor([[5], [4], [5]]),
    )
    dataset = to_dataset(truth, trajectory(2), Bodies())
    assert dataset["state"].dims == ("trajectory", "draw", "time", "body", "component")
    assert list(dataset["body"].values) == ["sun", "moon"]
    assert dataset["time"].attrs["units"] == "s"
    assert dataset["energy"].attrs["units"] == "J"
    back, guess = from_dataset(dataset)
    assert torch.equal(back.states, truth.states)
    assert torch.equal(guess.states, trajectory(2).states)
    assert torch.equal(back.observables["spin"], truth.observables["spin"])
    assert torch.equal(guess.observables["energy"], Bodies().observe(trajectory(2).states)["energy"])
    assert torch.equal(back.actions, truth.actions)
    assert torch.equal(back.length, truth.length)
    assert back.axes == truth.axes
    assert dict(back.labels) == dict(truth.labels)
    assert dict(back.units) == dict(truth.units)


def test_tokens_have_no_component_axis():
    tokens = Trajectory(torch.ones(2, 1, 3, dtype=torch.int64), torch.arange(3, dtype=torch.float64))
    dataset = to_dataset(tokens, tokens, object())
    assert dataset["state"].dims == ("trajectory", "draw", "time")
    assert isinstance(dataset, xr.Dataset)
    assert from_dataset(dataset)[0].states.dtype == torch.int64
