"""The one training loop: same bits however often it is interrupted, and a clear word when it diverges."""

import pytest
import torch
from torch import nn

from worldsim.fit import FitDiverged, fit, windows
from worldsim.protocols import Trajectory
from worldsim.scenario import FitSettings
from worldsim.seeds import forked


class Line(nn.Module):
    """x(t + 1) = w x(t), with a random number in its loss."""

    def __init__(self):
        super().__init__()
        with forked(7):
            self.net = nn.Linear(1, 1)

    def loss(self, truth):
        x = truth.states[:, 0].float()
        noise = 1e-3 * torch.randn(x[:, :-1].shape)
        return (self.net(x[:, :-1] + noise) - x[:, 1:]).square().mean()


def decaying(n=12, frames=9):
    times = torch.arange(frames, dtype=torch.float64)
    start = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None, None, None]
    return Trajectory(start * 0.5 ** times[None, None, :, None], times)


def weights_after(settings, **options):
    model = Line()
    report = fit(model, decaying(), decaying(5), settings, seed=3, **options)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), report


def test_it_learns():
    weights, report = weights_after(FitSettings(steps=400, batch=8, window=3, learning_rate=0.05))
    assert abs(float(weights[0]) - 0.5) < 0.02
    assert report["steps"] == 400
    assert report["validation"] < 1e-3


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"patience": 50, "validate_every": 10}])
def test_a_resumed_fit_ends_with_the_same_bits(options):
    settings = FitSettings(steps=60, batch=4, window=3, checkpoint_every=25, **options)
    kept = []
    whole, _ = weights_after(settings, save=kept.append)
    assert len(kept) == 2
    for saved in kept:
        resumed, _ = weights_after(settings, saved=saved)
        assert torch.equal(whole, resumed)


def test_the_callers_generators_are_untouched():
    before = torch.get_rng_state()
    weights_after(FitSettings(steps=5))
    assert torch.equal(before, torch.get_rng_state())


def test_early_stop_keeps_the_best_weights():
    settings = FitSettings(steps=5000, batch=4, learning_rate=0.05, patience=3, validate_every=20)
    _, report = weights_after(settings)
    assert report["steps"] < 5000


def test_progress_is_reported():
    seen = []
    settings = FitSettings(steps=50, validate_every=20)
    weights_after(settings, progress=lambda step, losses: seen.append((step, set(losses))))
    assert [step for step, _ in seen] == [20, 40, 50]
    assert seen[0][1] == {"train", "validation"}


def test_a_loss_that_is_not_finite_is_refused_at_its_step():
    class Bad(Line):
        def loss(self, truth):
            return super().loss(truth) / 0

    with pytest.raises(FitDiverged, match="at step 0"):
        fit(Bad(), decaying(), None, FitSettings(steps=5), seed=0)


def test_windows_are_cut_from_every_part_alike():
    truth = decaying()
    truth = truth.replace(
        actions=torch.arange(12 * 9, dtype=torch.float64).reshape(12, 9, 1),
        observables={"twice": 2 * truth.states},
    )
    cut = windows(truth, 30, 4, torch.Generator().manual_seed(0))
    assert cut.states.shape == (30, 1, 4, 1)
    assert torch.equal(cut.observables["twice"], 2 * cut.states)
    first = cut.actions[:, 0, 0].long()
    assert torch.equal(cut.states[:, 0, 0, 0], truth.states[first // 9, 0, first % 9, 0])
    assert torch.equal(cut.actions[:, 1:] - cut.actions[:, :-1], torch.ones(30, 3, 1, dtype=torch.float64))


def test_windows_of_an_uneven_grid_are_refused():
    truth = decaying()
    uneven = truth.replace(times=truth.times.square())
    assert windows(uneven, 30, None, torch.Generator().manual_seed(0)) is uneven
    with pytest.raises(ValueError, match=r"windows of 4 of 9 frames need a uniform time grid"):
        windows(uneven, 30, 4, torch.Generator().manual_seed(0))


def test_cosine_schedule_ends_at_zero():
    settings = FitSettings(steps=10, learning_rate=1.0, schedule="cosine")
    assert settings.learning_rate_at(0) == 1.0
    assert abs(settings.learning_rate_at(10)) < 1e-12
