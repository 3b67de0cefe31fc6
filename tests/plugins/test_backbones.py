"""Backbones: a sequence in pieces, what they are at first, who sees whom, gradients, refusals."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from worldsim.protocols import Streams
from worldsim_plugins.backbones.blocks import Positions
from worldsim_plugins.backbones.diffussm import DiffuSSM
from worldsim_plugins.backbones.early_exit import EarlyExit, until
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
BOTH_WAYS = {
    **CAUSAL,
    "diffussm": DiffuSSM(states=4),
    "early_exit": EarlyExit(tolerance=0),
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


def numbers(network, length):
    """How many the state has of one sample after so many tokens."""
    with torch.no_grad():
        state = network.advance(features(1, length, WIDTH))[1]
    return sum(each.numel() for each in tree_leaves(state))


@pytest.mark.parametrize("name", [name for name in CAUSAL if "tmsa" not in name])
def test_the_state_has_one_size_but_for_the_keys_and_values_of_attention(name):
    network = built(CAUSAL[name])
    layers = 1 if name == "hybrid" else 2 if "transformer" in name else 0
    assert numbers(network, 50) - numbers(network, 3) == layers * 2 * 47 * WIDTH


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (Transformer(depth=1), 2 * 9 * 16),
        (LinearAttention(depth=1), (16 + 4) * 16 // 4 + 1),  # and how many tokens there were
        (LinearAttention(depth=1, gated=True), 16**2 // 4 + 1),
        (Retention(depth=1), 2 * 16**2 // 4 + 1),
        (RWKV7(depth=1), 16**2 // 4 + 2 * 16),
        (SSM(depth=1, states=5), 2 * 16 * 5 + 3 * 32),
        (SSM(depth=1, states=5, version="mamba2"), 2 * 16 * 5 + 3 * (32 + 2 * 5)),
        (Recurrent(), 16),
        (Recurrent(cell="lstm"), 2 * 16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_size_of_a_state_is_the_one_written_down(backbone, expected):
    assert numbers(built(backbone), 9) == expected


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
    network = network.stack if name == "early_exit" else network
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
    with pytest.raises(ValueError, match=r"attn, conv in layers 'attn ssm conv\+experts'; allowed are at"):
        Hybrid(layers="attn ssm conv+experts")
    with pytest.raises(ValueError, match="mambavision looks at the next token"):
        Hybrid(layers="ssm mambavision").layers(WIDTH)
    with pytest.raises(ValueError, match="early_exit: later tokens"):
        EarlyExit().layers(WIDTH)
    with pytest.raises(ValueError, match="Recurrent is no stack of blocks"):
        EarlyExit(backbone=Recurrent()).layers(WIDTH, causal=False)
    with pytest.raises(ValueError, match="3 heads of a width of 16"):
        RWKV7(heads=3).layers(WIDTH)


def test_samples_leave_when_each_of_them_is_done():
    layers = [torch.nn.Linear(2, 2, dtype=F64) for _ in range(3)]
    x = features(3, 1, 2)
    leaves = torch.tensor([1, 0, 2])  # the layer after which each leaves
    seen, calls = [x], []
    for layer in layers:
        seen.append(layer(seen[-1]))

    def done(number, before, after):
        calls.append(len(after))
        rows = [
            int(n)
            for n in range(3)
            if any(torch.equal(after[i], seen[number + 1][n]) for i in range(len(after)))
        ]
        return leaves[rows] == number

    found, depth = until(done, layers, x)
    assert depth.tolist() == [2, 1, 3]
    assert calls == [3, 2, 1]
    for n in range(3):
        torch.testing.assert_close(found[n], seen[depth[n]][n], rtol=0, atol=1e-14)


def test_the_tolerance_says_how_far_samples_go():
    x = features(5, 9, WIDTH)

    def of(tolerance, patience=2):
        backbone = EarlyExit(backbone=Transformer(depth=4), tolerance=tolerance, patience=patience)
        network = built(backbone, causal=False)
        return network(x), network.depths(x)[1]

    whole, depth = of(0.0)
    assert torch.equal(whole, built(Transformer(depth=4), causal=False)(x))
    assert depth.tolist() == [8] * 5
    assert of(1e9)[1].tolist() == [2] * 5
    assert of(1e9, patience=3)[1].tolist() == [3] * 5
    some, depth = of(0.4)
    assert 2 <= depth.min() < 8
    network = built(EarlyExit(backbone=Transformer(depth=4), tolerance=0.4), causal=False)
    for n in range(5):
        torch.testing.assert_close(some[n], network(x[n : n + 1])[0], rtol=0, atol=1e-12)


def test_training_leaves_after_every_layer_now_and_then():
    network = built(EarlyExit(backbone=Transformer(depth=2)), causal=False).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        depth = network.depths(features(400, 3, WIDTH))[1]
    count = depth.bincount(minlength=5)[1:] / 400
    assert (count[:3] - 1 / 8).abs().max() < 0.05
    assert abs(count[3] - 5 / 8) < 0.08
