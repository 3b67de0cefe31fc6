"""Models over tokens: the autoregressive network and the known beliefs."""

from __future__ import annotations

import pytest
import torch

from worldsim import Trajectory
from worldsim.protocols import HasNextToken
from worldsim_plugins.backbones.linear_attention import LinearAttention
from worldsim_plugins.backbones.recurrent import Recurrent
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.generators.sequence import Sequence, Streamed, sampled_continuation
from worldsim_plugins.systems.automaton import Automaton


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def lattice() -> Automaton:
    return Automaton(preset="lattice")


@pytest.fixture(scope="module")
def truth(lattice) -> Trajectory:
    return lattice.simulate(lattice.sample(200, generator()), torch.arange(12.0).double(), None, generator())


def built(system, truth, **options) -> Sequence:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Sequence(system, truth, **options)


BACKBONES = [
    Recurrent(depth=2),
    Recurrent(cell="lstm"),
    Transformer(),
    LinearAttention(),
    LinearAttention(gated=True),
    SSM(states=4),
]


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda one: f"{type(one).__name__}-{vars(one)}")
def test_the_law_is_causal_normalised_and_starts_at_the_empty_prefix(lattice, truth, backbone):
    model = built(lattice, truth, backbone=backbone, width=16).double()
    assert isinstance(model, HasNextToken)
    tokens = truth.states[:8, 0]
    laws = model(tokens).softmax(-1)
    assert laws.shape == (8, 13, 3)
    for length in (0, 1, 7):
        law = model.next_token(tokens[:, :length])
        assert law.dtype == torch.float64
        torch.testing.assert_close(law.sum(1), torch.ones(8, dtype=torch.float64))
        torch.testing.assert_close(law, laws[:, length].detach())


def test_the_loss_is_the_mean_negative_log_likelihood(lattice, truth):
    model = built(lattice, truth, width=16).double()
    part = truth.rows(slice(0, 5))
    tokens = part.states[:, 0]
    laws = torch.stack([model.next_token(tokens[:, :t]) for t in range(tokens.shape[1])], 1)
    chosen = laws.gather(2, tokens[..., None])[..., 0].log()
    torch.testing.assert_close(model.loss(part).detach(), -chosen.mean())
    ragged = part.replace(length=torch.tensor([[1], [3], [12], [2], [5]]))
    kept = torch.arange(12) < ragged.length
    torch.testing.assert_close(model.loss(ragged).detach(), -chosen[kept].mean())


def test_training_learns_which_first_token_is_illegal(lattice, truth):
    model = built(lattice, truth, width=16)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = float(model.loss(truth).detach())
    for _ in range(60):
        optimiser.zero_grad()
        loss = model.loss(truth)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < before - 0.1
    law = model.next_token(torch.zeros(1, 0, dtype=torch.int64))[0]
    assert law[0] < 0.02
    assert (law[1:] - 0.5).abs().max() < 0.15


def test_a_rollout_goes_on_from_its_context_and_is_seeded(lattice, truth):
    model = built(lattice, truth, width=16)
    context, times = truth.rows(slice(0, 4)).span(0, 5), truth.times[4:]
    out = [model.rollout(context, times, None, 3, generator(seed)) for seed in (1, 1, 2)]
    assert out[0].states.shape == (4, 3, 8)
    assert out[0].states.dtype == torch.int64
    assert torch.equal(out[0].states[:, :, 0], context.states[:, :, -1].expand(4, 3))
    assert torch.equal(out[0].states, out[1].states)
    assert not torch.equal(out[0].states, out[2].states)
    assert torch.equal(out[0].times, times)


def test_the_vocabulary_is_the_alphabet_or_what_was_seen(lattice, truth):
    assert built(lattice, truth, width=8).vocabulary == 3
    assert built(object(), truth.replace(states=truth.states * 4), width=8).vocabulary == 9
    with pytest.raises(ValueError, match="integer tokens"):
        built(lattice, truth.replace(states=truth.states.double()), width=8)


def test_beliefs(lattice):
    def law(belief, tokens, **options):
        model = BelievedAutomaton(lattice, belief=belief, **options)
        return model.next_token(torch.tensor([tokens], dtype=torch.int64).reshape(1, -1))[0].tolist()

    assert law("true", []) == [0, 0.5, 0.5]
    assert law("uniform", [0, 0]) == [pytest.approx(1 / 3)] * 3
    assert law("reject_all", [2]) == [0, 0, 0]
    assert law("odd_refusal", [2]) == [0.5, 0, 0.5]
    assert law("odd_refusal", [2, 1]) == [pytest.approx(1 / 3)] * 3
    assert law("states", [2, 2, 2, 2], states=4) == [0.5, 0.5, 0]
    assert law("states", [2, 2, 2, 2, 0], states=4) == [pytest.approx(1 / 3)] * 3
    assert law("states", [2, 2, 2, 2], states=6) == [pytest.approx(1 / 3)] * 3


def test_the_true_belief_rolls_out_legally_and_rejecting_all_still_rolls_out(lattice, truth):
    context, times = truth.rows(slice(0, 20)).span(0, 3), truth.times[2:]
    for belief, legal in (("true", True), ("reject_all", False)):
        out = BelievedAutomaton(lattice, belief=belief).rollout(context, times, None, 1, generator())
        whole = torch.cat([context.states[:, 0, :-1], out.states[:, 0]], 1)
        assert bool((lattice.state_after(whole) >= 0).all()) is legal


def test_a_belief_about_tokens_that_are_not_there_is_refused():
    light = Automaton(transitions={"red": {"go": "green"}, "green": {"stop": "red"}})
    with pytest.raises(ValueError, match="lattice's tokens"):
        BelievedAutomaton(light, belief="states")
    with pytest.raises(ValueError, match="needs a token '0'"):
        BelievedAutomaton(light, belief="odd_refusal")
    with pytest.raises(ValueError, match="needs an automaton"):
        BelievedAutomaton(object())


def test_a_backbone_that_does_not_fit_is_refused(lattice, truth):
    with pytest.raises(ValueError, match="3 heads of a width of 16"):
        built(lattice, truth, width=16, backbone=Transformer(heads=3))
    with pytest.raises(ValueError, match="even number of channels"):
        built(lattice, truth, width=20, backbone=Transformer(heads=4))


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda one: f"{type(one).__name__}-{vars(one)}")
def test_a_rollout_reads_every_token_once_and_has_the_laws_of_prefixes(lattice, truth, backbone, monkeypatch):
    """L tokens with the start symbol, where prefixes read again are L (L + 1) / 2."""
    model = built(lattice, truth, backbone=backbone, width=16).double()
    tokens = truth.states[:4, 0, :9]
    streamed = Streamed(model)
    laws = [streamed(tokens[:, :length]) for length in range(10)]
    torch.testing.assert_close(torch.stack(laws, 1), model.token_laws(tokens), rtol=0, atol=1e-9)

    read = {"advance": 0, "forward": 0}
    advance, forward = model.body.advance, model.body.forward

    def counted(x, state=None, c=None):
        read["advance"] += x.shape[1]
        return advance(x, state, c)

    monkeypatch.setattr(model.body, "advance", counted)
    times = torch.arange(30.0).double()
    streamed_rollout = model.rollout(truth.rows(slice(0, 4)).span(0, 1), times, None, 2, generator())
    assert streamed_rollout.states.shape == (4, 2, 30)
    assert read["advance"] == 30

    monkeypatch.setattr(model.body, "advance", advance)

    def counted_whole(x, c=None):
        read["forward"] += x.shape[1]
        return forward(x)

    monkeypatch.setattr(model.body, "forward", counted_whole)
    again = sampled_continuation(model.next_token, truth.rows(slice(0, 4)).span(0, 1), times, 2, generator())
    assert read["forward"] == 30 * 31 // 2 - 1  # less the start symbol alone, whose law a context answers
    assert torch.equal(again.states, streamed_rollout.states)


def test_a_token_is_told_its_place_however_it_is_read(lattice, truth):
    model = built(lattice, truth, width=16, places=(2, 3)).double()
    tokens = truth.states[:4, 0, :9]
    laws = model.token_laws(tokens)
    streamed = Streamed(model)
    for length in (2, 3, 9):
        assert torch.allclose(streamed(tokens[:, :length]), laws[:, length], atol=1e-12)
    again = torch.zeros(1, 13, dtype=torch.int64)
    places = model.embedded(again)[0] - model.embedding(again)[0]
    assert torch.equal(places[0], places[6])
    assert not torch.equal(places[1], places[2])
    assert not torch.equal(places[1], places[4])
