"""How a model is held to a constraint: gradients, guidance in a metric, structure, and what is refused."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from worldsim.constrained import Corrected, conflict_free, projected
from worldsim.mechanisms import MECHANISMS, Held, Use, missing_mechanisms, undefined
from worldsim.protocols import Trajectory
from worldsim.wrapped import Wrapped


def trajectories(n: int = 6, frames: int = 4, seed: int = 0) -> Trajectory:
    states = torch.randn(n, 1, frames, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Trajectory(states, torch.arange(frames, dtype=torch.float64), labels={"component": ("a", "b")})


class OnLine:
    """a + b = 1 in every frame but the given one; x = (a, 1 - a) is a map of any a onto it."""

    local_in_time = True

    def residual(self, trajectory):
        found = trajectory.states.double().sum(-1) - 1
        return torch.cat([torch.zeros_like(found[:, :, :1]), found[:, :, 1:]], 2)


class Along(OnLine):
    def free(self, trajectory):
        return trajectory.replace(states=trajectory.states[..., :1], labels={})

    def obeying(self, free, times):
        states = torch.cat([free.states, 1 - free.states], -1).double()
        return free.replace(states=states, times=times)


class Loose(OnLine):
    """A structure that holds to nothing, and shows a model the second number in other units."""

    def free(self, trajectory):
        return trajectory.replace(states=trajectory.states * torch.tensor([1.0, 7.0]), labels={})

    def obeying(self, free, times):
        return free.replace(states=free.states.double() / torch.tensor([1.0, 7.0]), times=times)


class Sampler(nn.Module):
    """Draws normal numbers; corrected, it gives what the correction makes of them."""

    def __init__(self, truth: Trajectory) -> None:
        super().__init__()
        self.seen = truth.state_shape
        self.weight = nn.Parameter(torch.zeros(()))

    def loss(self, truth):
        return self.loss_and_estimate(truth)[0]

    def loss_and_estimate(self, truth):
        return (self.weight - 3) ** 2, truth.replace(states=truth.states + self.weight)

    def rollout(self, context, times, actions, draws, generator):
        first = context.states[:, :1, -1:].expand(-1, draws, -1, *context.state_shape)
        shape = (len(context), draws, len(times) - 1, *context.state_shape)
        states = torch.cat([first, torch.randn(shape, generator=generator).to(first)], 2)
        return context.replace(states=states, times=times, observables={}, length=None)

    def guided_rollout(self, context, times, actions, draws, generator, correct):
        guess = self.rollout(context, times, actions, draws, generator)
        if getattr(correct, "wants_covariance", False):
            return correct(guess, lambda w: w * torch.tensor([1.0, 4.0]).to(w))
        return correct(guess)


def held(*mechanisms: str, constraint: object = None, **settings: object) -> Use:
    return Use("line", constraint or OnLine(), Held(mechanisms, **settings))


def model(*uses: Use, data: Trajectory | None = None, scaling: str = "none") -> Wrapped:
    return Wrapped(Sampler, scaling, trajectories() if data is None else data, uses, dtype=torch.float64)


def rolled(*uses: Use, data: Trajectory | None = None, scaling: str = "none") -> Trajectory:
    data = trajectories() if data is None else data
    made = model(*uses, data=data, scaling=scaling)
    return made.rollout(data.span(0, 1), data.times, None, 1, torch.Generator().manual_seed(3))


def test_guidance_moves_each_number_as_freely_as_the_covariance_says():
    free, plain = rolled(), rolled(held("guidance"))
    metric = rolled(held("guidance", covariance="posterior"))
    lack = 1 - free.states.sum(-1, keepdim=True)
    for found, share in ((plain, (0.5, 0.5)), (metric, (0.2, 0.8))):
        expected = free.states + lack * torch.tensor(share, dtype=torch.float64)
        assert torch.allclose(found.states[:, :, 1:], expected[:, :, 1:], atol=1e-6)
        assert torch.equal(found.states[:, :, 0], free.states[:, :, 0])


@pytest.mark.parametrize("mechanism", ["guidance", "projection"])
@pytest.mark.parametrize("structured", [False, True])
def test_what_varies_by_much_is_moved_by_much(mechanism: str, structured: bool):
    """In the units of the states, a number that hardly varies would be moved as far as any other."""
    unit = torch.tensor([1.0, 100.0], dtype=torch.float64)
    data = trajectories(64)
    data = data.replace(states=data.states / data.states.std((0, 1, 2), correction=0) * unit)
    around = [held("structure", constraint=Loose())] if structured else []
    free, found = (
        rolled(*uses, data=data, scaling="component") for uses in (around, [*around, held(mechanism)])
    )
    moved = (found.states - free.states)[:, :, 1:]
    lack = OnLine().residual(free)[:, :, 1:, None]
    assert torch.allclose(moved, -lack * unit**2 / unit.square().sum(), atol=1e-4 * float(lack.abs().max()))


def test_guidance_with_noise_leaves_its_share_of_the_residual():
    free, soft = rolled(), rolled(held("guidance", noise=1.0))
    ratio = OnLine().residual(soft)[:, :, 1:] / OnLine().residual(free)[:, :, 1:]
    assert torch.allclose(ratio, torch.full_like(ratio, 1 / 3), atol=1e-6)  # R / (J J^T + R), J J^T = 2


def test_a_model_under_a_structure_sees_and_makes_what_is_free_and_obeys():
    use = held("structure", constraint=Along())
    found = model(use)
    assert found.inner.seen == (1,)
    out = rolled(use)
    assert out.states.shape == (6, 1, 4, 2)
    assert OnLine().residual(out).abs().max() == 0
    assert out.labels == {"component": ("a", "b")}


def test_two_structures_cannot_be_had_at_once():
    with pytest.raises(ValueError, match="free under one constraint, not under several"):
        model(held("structure", constraint=Along()), held("structure", constraint=Along()))


def test_a_covariance_is_not_known_through_a_structure():
    uses = [held("structure", constraint=Along()), held("guidance", covariance="posterior")]
    with pytest.raises(ValueError, match="leave out the structure"):
        Corrected(model(*uses), uses[1:], trajectories().span(0, 1), trajectories().times)


class Unreachable(OnLine):
    """|x|^2 + 1 = 0: nothing obeys."""

    def residual(self, trajectory):
        found = trajectory.states.double().square().sum(-1) + 1
        return torch.cat([torch.zeros_like(found[:, :, :1]), found[:, :, 1:]], 2)


def test_what_cannot_be_reached_is_flagged_with_its_reason_and_kept():
    data = trajectories()
    data.states[2, 0, 1] = torch.nan
    out = projected(data, held("projection", constraint=Unreachable()), torch.ones(2))
    assert out.states.shape == data.states.shape
    assert bool((out.observables["projected_line"] == 0).all())
    status = out.observables["projection_status_line"][:, 0, 0]
    assert status[2] == 2
    assert bool((status[[0, 1, 3, 4, 5]] == 1).all())


def test_a_penalty_does_not_undo_what_the_model_learns():
    weight = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    ours, theirs = weight @ torch.tensor([1.0, 0.0]).double(), weight @ torch.tensor([-5.0, 1.0]).double()
    joined = conflict_free(ours, theirs, [weight])
    assert torch.allclose(joined, ours + theirs)
    (gradient,) = torch.autograd.grad(joined, weight, retain_graph=True)
    both = [torch.autograd.grad(each, weight, retain_graph=True)[0] for each in (ours, theirs)]
    assert all(float(gradient @ each) > 0 for each in both)
    assert float((both[0] + both[1]) @ both[0]) < 0, "their sum does"
    angles = [float(gradient @ each / gradient.norm() / each.norm()) for each in both]
    assert angles[0] == pytest.approx(angles[1]), "it is as near to one as to the other"


def test_opposite_gradients_are_added():
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    joined = conflict_free(weight.sum(), -3 * weight.sum(), [weight])
    assert torch.equal(torch.autograd.grad(joined, weight)[0], torch.full((2,), -2.0).double())


def test_the_loss_of_a_penalised_model_is_the_same_either_way():
    data = trajectories()
    losses = [
        model(held("penalty", weight=0.5, gradients=way)).loss(data) for way in ("conflict_free", "sum")
    ]
    assert torch.allclose(*losses)
    assert float(losses[0].detach()) > 9


def test_each_way_says_which_law_is_sampled():
    assert Held(("penalty",)).measure == "learned"
    assert Held(("projection",)).measure == Held(("guidance", "projection")).measure == "projected"
    assert Held(("guidance",), covariance="posterior").measure == "conditional"
    assert Held(("structure",)).measure == "structural"
    assert Held(MECHANISMS[1:3]).word == "guided-projected"


def test_what_cannot_be_is_said_in_words():
    class Shapes(OnLine):
        parameters: ClassVar = {"causal": True}

    class Judges(Shapes):
        def model_residual(self, truth, model, generator):
            return truth.states

    class Plain:
        pass

    assert missing_mechanisms(Sampler, MECHANISMS) == []
    assert len(missing_mechanisms(Plain, MECHANISMS)) == 2
    assert "no map is known" in undefined(OnLine(), Held(("structure",)), Plain, ())
    assert undefined(Along(), Held(("structure",)), Plain, ()) == ""
    assert "cannot be built with causal" in undefined(Shapes(), Held(("structure",)), Plain, ("width",))
    assert undefined(Shapes(), Held(("structure",)), Plain, ("width", "causal")) == ""
    always = type("Always", (), {"causal": True})
    assert undefined(Shapes(), Held(("structure",)), always, ()) == ""
    assert "no single trajectory" in undefined(Judges(), Held(("projection",)), Plain, ("causal",))
