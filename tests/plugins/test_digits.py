"""The digits: two parts without a common picture, the class that was asked for, nothing drawn elsewhere."""

import sys

import pytest
import torch

from worldsim.protocols import HasActions

pytest.importorskip("sklearn", reason="NOT RUN: needs the extra [data]")

from worldsim_plugins.systems.digits import Digits, pictures


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(system, n=200, frames=3):
    times = torch.arange(frames, dtype=torch.float64)
    actions = system.sample_actions(n, times, rng(1))
    return system.simulate(system.sample(n, rng()), times, actions, rng())


def test_the_parts_are_all_pictures_and_share_none():
    parts = [Digits(part=part) for part in ("train", "test")]
    assert [len(part.images) for part in parts] == [1300, 497]
    assert all(part.classes.unique().tolist() == list(range(10)) for part in parts)
    every = torch.cat([part.images for part in parts]).flatten(1)
    assert torch.equal(every * 16, pictures()[0].flatten(1))
    assert len(every.unique(dim=0)) == 1797


def test_after_a_blank_frame_there_is_a_digit_of_the_class_that_was_asked_for():
    system = Digits(part="test")
    assert isinstance(system, HasActions)
    truth = drawn(system)
    assert truth.states.shape == (200, 1, 3, 8, 8, 1)
    assert truth.states.dtype == torch.float64
    assert (truth.states[:, :, 0] == 0).all()
    assert torch.equal(truth.states[:, :, 1], truth.states[:, :, 2])
    assert truth.states.max() == 1
    index = (truth.states[:, 0, 1, None] == system.images).flatten(2).all(2).double().argmax(1)
    assert torch.equal(system.classes[index], truth.actions[:, 0].argmax(1))
    assert len(index.unique()) > 120


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    pictures.cache_clear()
    first = drawn(Digits()).states
    assert torch.equal(drawn(Digits()).states, first)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(ValueError, match="digits need actions"):
        Digits().simulate(torch.zeros(1), torch.zeros(2), None, rng())
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    pictures.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'worldsim\[data\]'"):
        Digits()
