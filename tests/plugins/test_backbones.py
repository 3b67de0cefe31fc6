"""Backbones: a sequence in pieces, what they are at first, who sees whom, equality with definitions."""

import pytest
import torch

from worldsim.protocols import Streams
from worldsim_plugins.backbones.linear_attention import LinearAttention
from worldsim_plugins.backbones.recurrent import Recurrent
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.backbones.transformer import Transformer

F64 = torch.float64
WIDTH, GIVEN = 16, 6
CAUSAL = {
    "transformer": Transformer(),
    "linear_attention": LinearAttention(),
    "linear_attention gated": LinearAttention(gated=True),
    "recurrent gru": Recurrent(depth=2),
    "recurrent lstm": Recurrent(cell="lstm", depth=2),
    "ssm": SSM(states=4),
}


def built(backbone, width=WIDTH, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = backbone.layers(width, **settings).double()
        for weight in network.parameters():  # so that what is zero to begin with does something
            weight.data += 0.1 * torch.randn(weight.shape, dtype=F64)
    return network.eval()


def features(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CAUSAL)
def test_steps_equal_the_whole(name):
    network = built(CAUSAL[name], given=GIVEN)
    assert isinstance(network, Streams)
    x, c = features(3, 40, WIDTH), features(3, 40, GIVEN, seed=1)
    with torch.no_grad():
        whole, state, pieces = network(x, c), None, []
        for t in range(40):
            y, state = network.advance(x[:, t : t + 1], state, c[:, t : t + 1])
            pieces.append(y)
        read, state = network.advance(x[:, :25], None, c[:, :25])
        rest, _ = network.advance(x[:, 25:], state, c[:, 25:])
    assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-10
    assert (torch.cat([read, rest], 1) - whole).abs().max() < 1e-10


@pytest.mark.parametrize("name", [name for name in CAUSAL if "transformer" not in name])
def test_the_state_of_all_but_attention_has_one_size(name):
    network = built(CAUSAL[name])
    with torch.no_grad():
        sizes = {
            sum(each.numel() for each in torch.utils._pytree.tree_leaves(network.advance(x)[1]))
            for x in (features(1, 3, WIDTH), features(1, 50, WIDTH))
        }
    assert len(sizes) == 1


@pytest.mark.parametrize("backbone", [Transformer(), LinearAttention(), SSM()])
def test_layers_that_look_both_ways_are_not_advanced(backbone):
    network = built(backbone, causal=False)
    with pytest.raises(ValueError, match="both ways"):
        network.advance(features(1, 3, WIDTH))
