"""Backbones: a sequence in pieces, what they are at first, who sees whom, gradients, refusals."""

import pytest
import torch

from worldsim.protocols import Streams
from worldsim_plugins.backbones.blocks import Positions
from worldsim_plugins.backbones.diffussm import DiffuSSM
from worldsim_plugins.backbones.hybrid import Hybrid
from worldsim_plugins.backbones.linear_attention import LinearAttention
from worldsim_plugins.backbones.linear_dit import LinearDiT
from worldsim_plugins.backbones.recurrent import Recurrent
from worldsim_plugins.backbones.retention import Retention
from worldsim_plugins.backbones.rwkv7 import RWKV7
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.backbones.transformer import Transformer

F64 = torch.float64
WIDTH, GIVEN = 16, 6
CAUSAL = {
    "transformer": Transformer(),
    "transformer tmsa": Transformer(conditioning="tmsa"),
    "transformer mix": Transformer(mlp="mix", norm="layer"),
    "transformer experts": Transformer(experts=4),
    "linear_attention": LinearAttention(mlp="gelu"),
    "linear_attention gated": LinearAttention(gated=True),
    "linear_dit": LinearDiT(),
    "recurrent gru": Recurrent(depth=2),
    "recurrent lstm": Recurrent(cell="lstm", depth=2),
    "ssm": SSM(states=4),
    "ssm mamba2": SSM(version="mamba2", states=4),
    "retention": Retention(),
    "rwkv7": RWKV7(),
    "rwkv7 negative": RWKV7(negative=True),
    "hybrid": Hybrid(layers="ssm mamba2+experts retention attention", states=4),
    "hybrid others": Hybrid(layers="gru linear rwkv7 gated", mlp="mix"),
}
ATTENDING = [name for name in CAUSAL if "transformer" in name or name == "hybrid"]
BOTH_WAYS = {
    **CAUSAL,
    "diffussm": DiffuSSM(states=4),
    "hybrid vision": Hybrid(layers="mambavision mambavision attention", states=4),
}


def built(backbone, width=WIDTH, *, stirred=0.1, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = backbone.layers(width, **settings).double()
        for weight in network.parameters():  # so that what is zero to begin with does something
            weight.data += stirred * torch.randn(weight.shape, dtype=F64)
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


@pytest.mark.parametrize("name", [name for name in CAUSAL if name not in ATTENDING])
def test_the_state_of_all_but_attention_has_one_size(name):
    network = built(CAUSAL[name])
    with torch.no_grad():
        sizes = {
            sum(each.numel() for each in torch.utils._pytree.tree_leaves(network.advance(x)[1]))
            for x in (features(1, 3, WIDTH), features(1, 50, WIDTH))
        }
    assert len(sizes) == 1


@pytest.mark.parametrize("backbone", [Transformer(), LinearAttention(), LinearDiT(), SSM()])
def test_layers_that_look_both_ways_are_not_advanced(backbone):
    network = built(backbone, causal=False)
    with pytest.raises(ValueError, match="both ways"):
        network.advance(features(1, 3, WIDTH))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", [n for n in BOTH_WAYS if "recurrent" not in n and "tmsa" not in n])
def test_conditioned_layers_are_the_identity_to_begin_with(name, causal):
    if causal and name not in CAUSAL:
        return
    network = built(BOTH_WAYS[name], stirred=0, given=GIVEN, causal=causal)
    x, c = features(2, 12, WIDTH), features(2, GIVEN, seed=1)
    entering = network.layers[0](x) if isinstance(network.layers[0], Positions) else x
    assert torch.equal(network(x, c), network.last(entering, c))


def filled(network, length=12):
    """Where the features of a token depend on a token, ``[token, token]``."""
    c, along = features(1, GIVEN, seed=1), features(WIDTH, seed=2)
    x = features(1, length, WIDTH)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, c)[0] @ along, x)
    return jacobian[:, 0].abs().amax(-1) > 0


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_causal_network_fills_half_of_its_jacobian_and_another_one_all(name):
    if name in CAUSAL:
        found = filled(built(CAUSAL[name], given=GIVEN))
        assert torch.equal(found, torch.ones(12, 12, dtype=torch.bool).tril())
        assert found.double().mean() == 13 / 24
    assert filled(built(BOTH_WAYS[name], given=GIVEN, causal=False)).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_gradients_are_those_of_differences(name, causal):
    if causal and name not in CAUSAL:
        return
    network = built(BOTH_WAYS[name], given=GIVEN, causal=causal)
    x, c = features(2, 9, WIDTH).requires_grad_(), features(2, GIVEN, seed=1).requires_grad_()
    weights = [x, c, *network.parameters()]
    toward = features(2, 9, WIDTH, seed=2)

    def value():
        return (network(x, c) * toward).sum()

    gradients = torch.autograd.grad(value(), weights)
    assert all(bool((each != 0).any()) for each in gradients)
    way = [features(*each.shape, seed=3) for each in weights]
    slope = sum((g * w).sum() for g, w in zip(gradients, way))
    with torch.no_grad():
        ends = []
        for step in (1e-6, -2e-6):
            for each, w in zip(weights, way):
                each += step * w
            ends.append(value())
    assert torch.isclose((ends[0] - ends[1]) / 2e-6, slope, rtol=1e-5)


def test_what_a_backbone_cannot_be_it_refuses():
    with pytest.raises(ValueError, match="looks both ways and cannot be causal"):
        DiffuSSM().layers(WIDTH, causal=True)
    with pytest.raises(ValueError, match=r"causal, of \[4, 4\]"):
        LinearDiT().layers(WIDTH, causal=True, grid=(4, 4))
    with pytest.raises(ValueError, match="nothing is given"):
        Transformer(conditioning="tmsa").layers(WIDTH)
    with pytest.raises(ValueError, match="experts: 1 of mlp 'swiglu'"):
        Transformer(experts=1).layers(WIDTH)
    with pytest.raises(ValueError, match="experts: 4 of mlp 'gelu'"):
        LinearAttention(experts=4, mlp="gelu").layers(WIDTH)
    with pytest.raises(ValueError, match=r"attn, conv in 'attn ssm conv\+experts'; allowed are attention, "):
        Hybrid(layers="attn ssm conv+experts")
    with pytest.raises(ValueError, match="mambavision looks at the next token"):
        Hybrid(layers="ssm mambavision").layers(WIDTH)
    with pytest.raises(ValueError, match="3 heads of a width of 16"):
        RWKV7(heads=3).layers(WIDTH)
