"""Autoregression over real numbers: exact likelihoods, causality, one reading of each token, guidance."""

import math

import pytest
import torch

from worldsim import Trajectory
from worldsim.protocols import Estimates, Guidable, HasLatent
from worldsim_plugins.backbones.linear_attention import LinearAttention
from worldsim_plugins.backbones.recurrent import Recurrent
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.generators.autoregressive import Autoregressive
from worldsim_plugins.generators.token_laws import FlowLaw, MixtureLaw

torch.set_num_threads(1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(frames):
    return torch.arange(frames, dtype=torch.float64)


def walks(n=6, frames=7, shape=(2,), action=0, seed=0):
    actions = torch.randn(n, frames, action, generator=rng(seed + 1)) if action else None
    return Trajectory(torch.randn(n, 1, frames, *shape, generator=rng(seed)).cumsum(2), grid(frames), actions)


def small(truth, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoregressive(truth, **{"width": 16, "components": 3, **settings}).double()


KINDS = [
    {"shape": (2,)},
    {"shape": (2,), "action": 1},
    {"shape": (4, 4), "patch": (2, 2), "action": 1},
    {"shape": (6, 1), "patch": (3,), "law": "flow"},
]


def of_kind(shape, action=0, n=6, **settings):
    truth = walks(n, shape=shape, action=action).to(dtype=torch.float64)
    return truth, small(truth, **settings)


def test_it_is_a_generator_that_can_be_penalised_guided_and_looked_into():
    truth, model = of_kind((2,))
    assert all(isinstance(model, kind) for kind in (Estimates, Guidable, HasLatent))
    assert model.latent_of(truth, rng()).shape == (6, 16)
    loss, estimate = model.loss_and_estimate(truth)
    assert estimate.states.shape == truth.states.shape
    assert torch.equal(estimate.states[:, :, 0], truth.states[:, :, 0])
    (loss + estimate.states.square().mean()).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@torch.no_grad()
def test_a_mixture_is_a_density_and_is_sampled_as_it_says():
    law = MixtureLaw(4, 1, 3).double()
    for weight in law.parameters():
        torch.nn.init.normal_(weight, generator=rng())
    h = torch.ones(1, 4, dtype=torch.float64)
    x = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    density = law.log_prob(h.expand(len(x), -1), x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-6)
    mean = torch.trapezoid(density * x[:, 0], x[:, 0])
    variance = torch.trapezoid(density * (x[:, 0] - mean) ** 2, x[:, 0])
    assert float(law.variance(h)) == pytest.approx(float(variance), rel=1e-6)
    draws = law.sample(h.expand(20_000, -1), rng(1))
    assert float(draws.mean()) == pytest.approx(float(mean), abs=4 * float(variance / 20_000) ** 0.5)
    assert float(draws.var()) == pytest.approx(float(variance), rel=0.05)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_law_depends_on_what_comes_later(kind):
    truth, model = of_kind(**kind)
    place = model.patches.count
    states, actions = truth.states.clone().requires_grad_(), truth.actions
    leaves = [states] if actions is None else [states, actions := actions.clone().requires_grad_()]
    h, _ = model.teacher_forced(truth.replace(states=states, actions=actions))
    frame = 3  # of the tokens that are predicted: the first one of frame 4 of the window
    gradients = torch.autograd.grad(h[:, frame * place].square().sum(), leaves)
    assert (gradients[0][:, 0, :4] != 0).any()
    assert (gradients[0][:, 0, 4:] == 0).all()
    if actions is not None:
        assert (gradients[1][:, 3] != 0).any()
        assert (gradients[1][:, 4:] == 0).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("backbone", [SSM(states=4), Recurrent(), LinearAttention(gated=True)])
def test_a_rollout_has_the_laws_of_teacher_forcing(kind, backbone, monkeypatch):
    """With a draw that is a function of the features, token by token and whole are the same frames."""
    truth, model = of_kind(**kind, backbone=backbone)
    numbers = model.patches.numbers
    monkeypatch.setattr(model.law, "sample", lambda h, generator: h[:, :numbers].cos())
    context = truth.span(0, 3)
    actions = None if truth.actions is None else truth.actions[:, 2:]
    guess = model.rollout(context, truth.times[2:], actions, 2, rng()).states
    torch.testing.assert_close(guess[:, 0], guess[:, 1], rtol=0, atol=1e-9)
    whole = truth.replace(states=torch.cat([truth.states[:, :, :2], guess[:, :1]], 2))
    h, change = model.teacher_forced(whole)
    made = 2 * model.patches.count
    torch.testing.assert_close(change[:, made:], h[:, made:, :numbers].cos(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("patch", [(), (2, 2)])
def test_every_token_is_read_once(patch, guided, monkeypatch):
    """Of L tokens all but the last, where reading prefixes again would be L (L - 1) / 2; a corrected frame is
    read again as it was corrected."""
    truth, model = of_kind((4, 4), patch=patch)
    read, advance = [], model.body.advance

    def counted(x, state=None, c=None):
        read.append(x.shape[1])
        return advance(x, state, c)

    monkeypatch.setattr(model.body, "advance", counted)
    place = model.patches.count
    for frames in (5, 40):
        read.clear()
        arguments = (truth.span(0, 3), grid(frames) + 2, None, 1, rng())
        if guided:
            model.guided_rollout(*arguments, lambda estimate: estimate)
            assert sum(read) == 3 * place + (frames - 1) * (place - 1) + (frames - 2) * place
        else:
            model.rollout(*arguments)
            assert sum(read) == (3 + frames - 1) * place - 1


def test_the_state_does_not_grow():
    truth, model = of_kind((2,))
    sizes = []
    for frames in (3, 7):
        _, state = model._after(truth.states[:, 0, :frames], None, 0, None)
        sizes.append(sum(leaf.numel() for leaf in torch.utils._pytree.tree_leaves(state)))
    assert sizes[0] == sizes[1]


def test_the_likelihood_of_a_known_law_is_learned():
    """x_t = 0.8 x_{t-1} + 0.6 n: no model has a lower expected -log p than the entropy of 0.6 n."""
    noise = torch.randn(400, 20, generator=rng(2))
    x = torch.zeros(400, 20)
    x[:, 0] = noise[:, 0]
    for t in range(1, 20):
        x[:, t] = 0.8 * x[:, t - 1] + 0.6 * noise[:, t]
    truth = Trajectory(x[:, None, :, None].double(), grid(20))
    seen, unseen = truth.rows(slice(0, 150)), truth.rows(slice(150, 400))
    model = small(seen, components=1, width=8, backbone=Recurrent())
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(80):
        optimiser.zero_grad()
        model.loss(seen).backward()
        optimiser.step()
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.36)
    found = -model.log_likelihood(unseen).mean().item()
    assert entropy - 0.04 < found < entropy + 0.06
    start = Trajectory(torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64), grid(1))
    end = model.rollout(start, grid(2), None, 4000, rng()).states[0, :, 1, 0]
    assert float(end.mean()) == pytest.approx(1.6, abs=0.12)
    assert float(end.std()) == pytest.approx(0.6, abs=0.06)


def test_a_flow_law_learns_numbers_that_go_together():
    """Both numbers are +1 or both -1, which no product of laws of each has."""
    law = FlowLaw(8, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in law.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        optimiser = torch.optim.Adam(law.parameters(), 1e-2)
        for _ in range(300):
            sign = 2.0 * torch.randint(2, (256, 1)) - 1
            optimiser.zero_grad()
            law.loss(torch.zeros(256, 8), sign.expand(-1, 2)).mean().backward()
            optimiser.step()
        with torch.no_grad():
            made = law.sample(torch.zeros(500, 8), rng())
    assert ((made.sign()[:, 0] == made.sign()[:, 1]).double().mean()) > 0.97
    assert 0.4 < (made[:, 0] > 0).double().mean() < 0.6


def test_likelihoods_are_in_the_units_of_the_data():
    truth, model = of_kind((2,))
    wider = truth.replace(states=3 * truth.states)
    other = small(wider)
    other.load_state_dict({**model.state_dict(), "spread": other.spread})
    monkey = other.into.weight.data
    monkey[:, :4] /= 3  # it reads the same
    torch.testing.assert_close(
        other.log_likelihood(wider), model.log_likelihood(truth) - 2 * math.log(3), rtol=0, atol=1e-9
    )


def test_ragged_ends_are_left_out():
    truth, model = of_kind((2,))
    cut = truth.replace(length=torch.full((6, 1), 4))
    torch.testing.assert_close(model.loss(cut), model.loss(truth.span(0, 4)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_guidance_corrects_each_frame_before_the_next(kind):
    truth, model = of_kind(**kind)
    context, actions = truth.span(0, 2), None if truth.actions is None else truth.actions[:, 1:]
    plain = model.rollout(context, truth.times[1:], actions, 2, rng()).states
    same = model.guided_rollout(context, truth.times[1:], actions, 2, rng(), lambda estimate: estimate).states
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-9)
    seen = []

    def centred(estimate):
        seen.append(len(estimate.times))
        axes = tuple(range(3, estimate.states.ndim))
        return estimate.replace(states=estimate.states - estimate.states.mean(axes, keepdim=True))

    guided = model.guided_rollout(context, truth.times[1:], actions, 2, rng(), centred).states
    assert seen == [2, 3, 4, 5, 6]
    assert guided[:, :, 1:].flatten(3).mean(-1).abs().max() < 1e-12
    assert torch.equal(guided[:, :, 0], truth.states[:, :, 1].expand_as(guided[:, :, 0]))


def test_the_covariance_of_a_frame_is_that_of_its_law():
    truth, model = of_kind((2,))
    found = []

    def watch(estimate, covariance):
        found.append(covariance(torch.ones_like(estimate.states))[:, :, -1])
        return estimate

    watch.wants_covariance = True
    model.guided_rollout(truth.span(0, 1), grid(2), None, 1, rng(), watch)
    h, _ = model._after(truth.states[:, 0, :1], None, 0, None)
    torch.testing.assert_close(found[0][:, 0], model.law.variance(h) * model.spread[0].square())


def test_bad_input_is_refused_in_words():
    truth, model = of_kind((2,), action=1)
    with pytest.raises(ValueError, match="over tokens use"):
        Autoregressive(truth.replace(states=truth.states.long()))
    with pytest.raises(ValueError, match="actions of 1 numbers, found None"):
        model.rollout(truth.span(0, 1), grid(3), None, 1, rng())
    with pytest.raises(ValueError, match="one time step"):
        model.rollout(truth.span(0, 1), 2 * grid(3), truth.actions[:, :3], 1, rng())
    with pytest.raises(ValueError, match="do not tile"):
        Autoregressive(truth, patch=(3,))
    with pytest.raises(ValueError, match="density is not computed"):
        small(truth, law="flow").log_likelihood(truth)

    class Whole:
        def layers(self, width, **settings):
            return torch.nn.Identity()

    with pytest.raises(ValueError, match="Whole cannot read a sequence piece by piece"):
        Autoregressive(truth, backbone=Whole())
