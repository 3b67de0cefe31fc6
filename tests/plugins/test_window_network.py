"""The network of generators over windows: shapes, patches, causality in frames, noise and actions."""

import pytest
import torch

from worldsim import Trajectory
from worldsim_plugins.backbones.diffussm import DiffuSSM
from worldsim_plugins.backbones.early_exit import EarlyExit
from worldsim_plugins.backbones.hybrid import Hybrid
from worldsim_plugins.backbones.linear_attention import LinearAttention
from worldsim_plugins.backbones.linear_dit import LinearDiT
from worldsim_plugins.backbones.recurrent import Recurrent
from worldsim_plugins.backbones.retention import Retention
from worldsim_plugins.backbones.rwkv7 import RWKV7
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.patches import Patches
from worldsim_plugins.generators.window_network import WindowNetwork
from worldsim_plugins.generators.windows import Windows

BACKBONES = [
    Transformer(depth=1),
    LinearAttention(depth=1),
    LinearAttention(depth=1, gated=True),
    LinearDiT(depth=1),
    SSM(depth=1),
    SSM(depth=1, version="mamba2"),
    Retention(depth=1),
    RWKV7(depth=1),
    Hybrid(layers="ssm attention"),
    Transformer(depth=1, conditioning="tmsa"),
    Recurrent(),
]
OF_PICTURES = [*BACKBONES, DiffuSSM(depth=1), EarlyExit(), Hybrid(layers="mambavision attention")]


def windows(state_shape, frames=5, actions=0):
    times = torch.arange(frames, dtype=torch.float64)
    states = torch.zeros(2, 1, frames, *state_shape)
    return Windows(Trajectory(states, times, torch.zeros(2, frames, actions) if actions else None))


def built(windows, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WindowNetwork(windows, width=16, depth=1, **settings).double()
        torch.nn.init.normal_(network.body.out.weight)
        for name, weight in network.named_parameters():
            if "modulation" in name:
                torch.nn.init.normal_(weight)
    return network


def inputs(windows, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(3, windows.frames - 1, *windows.state_shape, dtype=torch.float64, generator=rng)
    return x, torch.randn(3, windows.features, dtype=torch.float64, generator=rng)


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_network_does_not_look_ahead_and_another_does(backbone, causal):
    over = windows((2,), actions=1)
    network = built(over, backbone=backbone, causal=causal)
    x, context = inputs(over)
    s = torch.full((3, 4), 0.3, dtype=torch.float64)
    leaves = [value.clone().requires_grad_() for value in (x, s, context)]
    gradients = torch.autograd.grad(network(*leaves)[:, 1].square().sum(), leaves)
    of_actions = gradients[2][:, 2:]
    for gradient in (gradients[0], gradients[1], of_actions):
        assert bool((gradient[:, 1] != 0).any())
        assert bool((gradient[:, 2:] == 0).all()) is causal


@pytest.mark.parametrize(
    ("shape", "patch"), [((8, 8), (4, 2)), ((6, 4, 2), (3, 2)), ((12, 1), (4,)), ((5,), ())]
)
def test_patches_tile_a_frame_and_are_put_back(shape, patch):
    over = windows(shape)
    patches = Patches(shape, patch)
    x, context = inputs(over)
    assert torch.equal(patches.frames(patches.tokens(x)), x)
    network = built(over, backbone=Transformer(depth=1), patch=patch)
    assert network(x, torch.full((3,), 0.5, dtype=torch.float64), context).shape == x.shape


@pytest.mark.parametrize("backbone", OF_PICTURES, ids=lambda b: type(b).__name__)
def test_every_backbone_reads_films_whose_frames_are_unlike_in_noise(backbone):
    over = windows((4, 4, 1), frames=4)
    network = built(over, backbone=backbone, patch=(2, 2)).eval()
    x, context = inputs(over)
    x.requires_grad_()
    s = torch.linspace(0.1, 0.9, 3, dtype=torch.float64).expand(3, 3)
    made = network(x, s, context)
    assert made.shape == x.shape
    (gradient,) = torch.autograd.grad(made[:, 1, 0, 0].sum(), x)
    assert bool((gradient != 0).flatten(1).any(1).all())
    assert bool((gradient[:, 2] != 0).any())  # of a later frame


def test_a_patch_holds_neighbours():
    patches = Patches((4, 4), (2, 2))
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    assert patches.tokens(picture)[0, 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="causal needs a backbone"):
        WindowNetwork(windows((2,)), width=8, depth=1, causal=True)
    with pytest.raises(ValueError, match="patches of \\[3\\] do not tile a state of shape \\[8, 8\\]"):
        WindowNetwork(windows((8, 8)), width=8, depth=1, backbone=Transformer(), patch=(3,))
    with pytest.raises(ValueError, match="no order in time"):
        WindowNetwork(windows((8, 8)), width=8, depth=1, backbone=Transformer(), patch=(4,), causal=True)
