"""Scaling, blocks and constraints around a model."""

import pytest
import torch
from torch import nn

from worldsim.mechanisms import Held, Use
from worldsim.protocols import HasLatent, HasNextToken, Trajectory
from worldsim.wrapped import Wrapped, scaling_of


class Grow(nn.Module):
    """Multiplies by e^{rate t} in its own units; records what it was shown."""

    scaling = "component"

    def __init__(self, truth):
        super().__init__()
        self.net = nn.Linear(2, 2, bias=False)
        self.seen = []

    def loss(self, truth):
        self.seen.append(truth)
        return truth.states.square().mean()

    def rollout(self, context, times, actions, draws, generator):
        start = context.states[:, :, -1:]
        steps = self.net(start) * (times - times[0])[None, None, :, None].to(start.dtype)
        return context.replace(states=(start + steps).expand(-1, draws, -1, -1), times=times)


class OnCircle:
    """|x|^2 is what it was at the first frame."""

    local_in_time = True

    def residual(self, trajectory):
        square = trajectory.states.square().sum(-1)
        return square - square[:, :, :1].detach()


def truth(n=7, frames=5):
    rng = torch.Generator().manual_seed(0)
    states = 3 + 10 * torch.randn(n, 1, frames, 2, dtype=torch.float64, generator=rng)
    times = torch.arange(frames, dtype=torch.float64)
    observables = {"derivative": states * 2}
    return Trajectory(states, times, observables=observables, axes=("component",), units={"x": "m"})


def wrapped(data, **options):
    torch.manual_seed(0)
    return Wrapped(Grow, "component", data, **options)


def test_a_model_sees_standardised_float32():
    data = truth()
    model = wrapped(data)
    model.loss(data)
    seen = model.inner.seen[0]
    assert seen.states.dtype == torch.float32
    assert torch.allclose(seen.states.mean((0, 1, 2)), torch.zeros(2), atol=1e-6)
    assert torch.allclose(seen.states.std((0, 1, 2), correction=0), torch.ones(2), atol=1e-6)
    ratio = seen.observables["derivative"].double() * model.scale / data.observables["derivative"]
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-6)


def test_the_scaling_is_part_of_the_checkpoint():
    assert {"shift", "scale", "spread", "inner.net.weight"} == set(wrapped(truth()).state_dict())


def test_canonical_scaling_has_one_scale_for_positions_and_one_for_momenta():
    data = truth().replace(states=torch.randn(9, 1, 5, 4, dtype=torch.float64))
    _, scale = scaling_of(data, "canonical")
    assert scale[0] == scale[1]
    assert scale[2] == scale[3]


def test_rollouts_are_physical_and_start_where_the_context_ends():
    data = truth()
    context = data.span(0, 2)
    guess = wrapped(data).rollout(context, data.times[1:], None, 3, torch.Generator())
    assert guess.states.shape == (7, 3, 4, 2)
    assert guess.states.dtype == torch.float64
    assert torch.allclose(guess.states[:, :, 0], context.states[:, :, 1].expand(-1, 3, -1), atol=1e-4)
    assert guess.units == data.units


def test_actions_that_do_not_go_with_the_times_are_refused():
    data = truth()
    context, generator = data.span(0, 2), torch.Generator()
    for shape in ((7, 3, 1), (6, 4, 1)):
        with pytest.raises(ValueError, match=r"must be \[trajectory, time, \*action\] = \[7, 4, '...'\]"):
            wrapped(data).rollout(context, data.times[1:], torch.zeros(shape), 1, generator)


def test_a_row_does_not_depend_on_how_many_more_there_are():
    data = truth()
    model = wrapped(data, block=4)
    whole = model.rollout(data.span(0, 1), data.times, None, 1, torch.Generator())
    part = model.rollout(data.rows(slice(0, 5)).span(0, 1), data.times, None, 1, torch.Generator())
    assert torch.equal(whole.states[:5], part.states)


def test_projection_obeys_the_constraint_and_holds_the_given_frame():
    data = truth()
    use = Use("circle", OnCircle(), Held(("projection",)))
    free = wrapped(data).rollout(data.span(0, 1), data.times, None, 1, torch.Generator())
    held = wrapped(data, uses=[use]).rollout(data.span(0, 1), data.times, None, 1, torch.Generator())
    assert OnCircle().residual(free).abs().max() > 1
    assert OnCircle().residual(held).abs().max() < 1e-9
    assert torch.equal(held.states[:, :, 0], free.states[:, :, 0])
    assert bool((held.observables["projected_circle"] == 1).all())


@pytest.mark.trial(8)
def test_a_wrong_rollout_is_refused_with_expected_and_found():
    class Short(Grow):
        def rollout(self, context, times, actions, draws, generator):
            return super().rollout(context, times[1:], actions, draws, generator)

    data = truth()
    model = Wrapped(Short, "component", data)
    with pytest.raises(ValueError, match=r"Short.rollout: states must be .* found"):
        model.rollout(data.span(0, 1), data.times, None, 1, torch.Generator())


def test_tokens_are_passed_as_they_are():
    tokens = Trajectory(torch.zeros(3, 1, 4, dtype=torch.int64), torch.arange(4, dtype=torch.float64))
    model = wrapped(tokens)
    assert model.inward(tokens) is tokens


def test_a_latent_is_read_of_what_the_model_sees_and_only_where_it_is_offered():
    class Kept(Grow):
        def latent_of(self, context, generator):
            assert not context.observables
            return context.states[:, 0, -1]

    data = truth()
    model = Wrapped(Kept, "component", data)
    shift, scale = scaling_of(data, "component")
    found = model.latent_of(data.replace(observables={"energy": data.states[..., 0]}), torch.Generator())
    torch.testing.assert_close(found.double(), (data.states[:, 0, -1] - shift) / scale, atol=1e-6, rtol=1e-5)
    assert isinstance(model, HasLatent)
    assert not isinstance(Wrapped(Grow, "component", data), HasLatent)


def test_a_law_of_tokens_is_offered_only_where_the_model_inside_has_one():
    """A property would be found on the class, whatever the model inside, from Python 3.12 on."""

    class Even(Grow):
        def next_token(self, tokens):
            return torch.full((len(tokens), 2), 0.5, dtype=torch.float64)

    tokens = Trajectory(torch.zeros(3, 1, 4, 2, dtype=torch.int64), torch.arange(4, dtype=torch.float64))
    model = Wrapped(Even, "component", tokens)
    assert isinstance(model, HasNextToken)
    assert torch.equal(model.next_token(torch.zeros(1, 0)), torch.full((1, 2), 0.5, dtype=torch.float64))
    without = Wrapped(Grow, "component", tokens)
    assert not isinstance(without, HasNextToken)
    assert not hasattr(type(without), "next_token")
