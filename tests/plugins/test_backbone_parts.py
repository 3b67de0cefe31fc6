"""The parts of backbones against their equations, token by token, in float64."""

import pytest
import torch
import torch.nn.functional as F

from worldsim_kernels.experts import load, route
from worldsim_plugins.backbones.blocks import Residual
from worldsim_plugins.backbones.diffussm import S4D, Hourglass
from worldsim_plugins.backbones.linear_attention import Ungated
from worldsim_plugins.backbones.mamba import Mamba, Mamba2, MambaVision
from worldsim_plugins.backbones.mlps import Experts, MixFFN
from worldsim_plugins.backbones.retention import MultiScaleRetention
from worldsim_plugins.backbones.rwkv7 import RWKV7
from worldsim_plugins.backbones.transformer import RelativeBias, TimedAttention, Transformer

F64 = torch.float64
WIDTH, LENGTH = 8, 6


def made(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()


def features(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


X = features(2, LENGTH, WIDTH)


@pytest.mark.parametrize("causal", [True, False])
def test_relu_attention_is_a_weighted_mean(causal):
    mixer = made(lambda: Ungated(WIDTH, 2, causal, "relu"))
    q, k, v = mixer.qkv(X).unflatten(-1, (3, 2, -1)).unbind(2)
    expected = torch.zeros_like(v)
    for n in range(2):
        for h in range(2):
            for i in range(LENGTH):
                seen = range(i + 1) if causal else range(LENGTH)
                weight = [torch.relu(q[n, i, h]) @ torch.relu(k[n, j, h]) for j in seen]
                total = sum(w * v[n, j, h] for w, j in zip(weight, seen))
                expected[n, i, h] = total / (sum(weight) + 1e-10)
    same(mixer(X), mixer.out(expected.flatten(2)))


def test_time_dependent_attention_reads_what_is_given():
    grid, given = (2, 3), 5
    mixer = made(lambda: TimedAttention(WIDTH, 2, False, given, grid))
    c = features(2, given, seed=1)
    W, U = mixer.qkv.weight.view(3, 2, -1, WIDTH), mixer.time.weight.view(3, 2, -1, given)
    q, k, v = (
        torch.einsum("hvd,ntd->nhtv", W[i], X) + torch.einsum("hvd,nd->nhv", U[i], c)[:, :, None]
        for i in range(3)
    )
    places = [(row, column) for row in range(2) for column in range(3)]
    bias = torch.zeros(2, LENGTH, LENGTH, dtype=F64)
    for i, (row, column) in enumerate(places):
        for j, (above, left) in enumerate(places):
            bias[:, i, j] = mixer.bias.table[:, (row - above + 1) * 5 + column - left + 2]
    weights = (q @ k.mT / 2 + bias).softmax(-1)
    same(mixer(X, c), mixer.out((weights @ v).transpose(1, 2).flatten(2)))


def test_the_bias_of_a_sequence_of_any_length_ends_at_its_reach():
    bias = made(lambda: RelativeBias(1, ()))(200, 200)[0]
    assert bias[150, 0] == bias[199, 0] == bias[63, 0] != bias[62, 0]
    assert bias[0, 63] == bias[0, 199]
    assert bias[10, 8] == bias[100, 98]


def near(h, weight, bias, grid, causal):
    """The sum over neighbours on the grid, one by one; a first axis of three is frames."""
    whole = h.view(2, *grid, h.shape[2])
    out = torch.zeros_like(whole)
    reach = (0,) if len(grid) == 3 else ()
    for at in torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, len(grid)).tolist():
        out[(slice(None), *at)] = bias
        for tap in torch.cartesian_prod(*[torch.arange(3)] * (len(grid) - len(reach))).tolist():
            tap = tap if isinstance(tap, list) else [tap]
            back = 2 if causal else 1
            there = [a + d for a, d in zip(at, [*reach, *(t - back for t in tap)])]
            if all(0 <= a < n for a, n in zip(there, grid)):
                out[(slice(None), *at)] += weight[(slice(None), 0, *tap)] * whole[(slice(None), *there)]
    return out.view(h.shape)


@pytest.mark.parametrize("grid", [(6,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_mix_ffn_sees_the_neighbours_on_the_grid(grid, causal):
    if causal and len(grid) > 1:
        return
    mlp, x = made(lambda: MixFFN(WIDTH, causal, grid)), features(2, torch.Size(grid).numel(), WIDTH)
    h = near(F.silu(mlp.up(x)), mlp.near.weight, mlp.near.bias, grid, causal)
    value, gate = h.chunk(2, -1)
    same(mlp(x), mlp.down(F.silu(gate) * value))


def convolved(convolution, u):
    """silu of the sum over a token and the three before it."""
    before = torch.cat([u.new_zeros(len(u), 3, u.shape[2]), u], 1)
    taps = convolution.taps
    each = [(before[:, t : t + 4] * taps.weight[:, 0].T).sum(1) + taps.bias for t in range(u.shape[1])]
    return F.silu(torch.stack(each, 1))


def scanned(scan, u):
    """The selective recurrence, token by token."""
    channels, states = scan.A_log.shape
    h, found = u.new_zeros(len(u), channels, states), []
    for t in range(u.shape[1]):
        raw, B, C = scan.read(u[:, t]).split([scan.rank, states, states], -1)
        delta = F.softplus(scan.step(raw) + scan.step_bias)
        h = torch.exp(delta[..., None] * -scan.A_log.exp()) * h + (delta * u[:, t])[..., None] * B[:, None]
        found.append((h * C[:, None]).sum(-1) + scan.D * u[:, t])
    return torch.stack(found, 1)


@pytest.mark.parametrize("causal", [True, False])
def test_mamba_scans_from_one_end_or_from_both(causal):
    mixer = made(lambda: Mamba(WIDTH, 3, causal))
    u, z = mixer.into(X).chunk(2, -1)
    y = scanned(mixer.ways[0].scan, convolved(mixer.ways[0].convolution, u))
    if not causal:
        back = mixer.ways[1]
        y = y + scanned(back.scan, convolved(back.convolution, u.flip(1))).flip(1)
    same(mixer(X), mixer.out(y * F.silu(z)))


@pytest.mark.parametrize("causal", [True, False])
def test_mamba2_has_one_rate_for_each_head(causal):
    heads, states, inner = 4, 3, 2 * WIDTH
    mixer = made(lambda: Mamba2(WIDTH, states, heads, causal))
    z, read, dt = mixer.into(X).split(mixer.sizes, -1)
    y = 0
    for way, turn in zip(mixer.ways, (lambda x: x, lambda x: x.flip(1))):
        u, B, C = convolved(way.convolution, turn(read)).split([inner, states, states], -1)
        u, delta = u.unflatten(-1, (heads, -1)), F.softplus(turn(dt) + way.step_bias)
        S, found = torch.zeros(2, heads, states, inner // heads, dtype=F64), []
        for t in range(LENGTH):
            decay = torch.exp(-delta[:, t] * way.A_log.exp())[..., None, None]
            S = decay * S + torch.einsum("nh,ns,nhp->nhsp", delta[:, t], B[:, t], u[:, t])
            found.append(torch.einsum("nhsp,ns->nhp", S, C[:, t]) + way.D[:, None] * u[:, t])
        y = y + turn(torch.stack(found, 1).flatten(2))
    gated = y * F.silu(z)
    same(mixer(X), mixer.out(gated / (gated.square().mean(-1, keepdim=True) + 1e-6).sqrt()))


def test_the_mixer_of_mambavision_sees_both_neighbours():
    mixer = made(lambda: MambaVision(WIDTH, 3))
    h = F.silu(near(mixer.into(X), mixer.near.weight, mixer.near.bias, (LENGTH,), False))
    one, two = h.chunk(2, -1)
    same(mixer(X), mixer.out(torch.cat([scanned(mixer.scan, one), two], -1)))


def test_retention_is_attention_that_falls_with_distance():
    heads = 2
    mixer = made(lambda: MultiScaleRetention(WIDTH, heads))
    q, k, v, gate = mixer.into(X).split([WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH], -1)
    q, k, v = (each.unflatten(-1, (heads, -1)) for each in (q, k, v))
    mixed = torch.zeros_like(v)
    for h in range(heads):
        gamma = 1 - 2.0 ** (-5 - h)
        for i in range(LENGTH):
            for j in range(i + 1):
                # Pairs of channels as complex numbers, turned by their distance: rates 1 and 1e-4.
                turn = torch.exp(1j * (i - j) * torch.tensor([1.0, 1e-4], dtype=F64))
                one, two = (torch.view_as_complex(x[:, t, h].unflatten(-1, (2, 2)).contiguous())
                            for x, t in ((q, i), (k, j)))  # fmt: skip
                weight = (one * turn * two.conj()).real.sum(-1) / 2 * gamma ** (i - j)
                mixed[:, i, h] += weight[:, None] * v[:, j, h]
    mixed = mixed - mixed.mean(-1, keepdim=True)
    mixed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    same(mixer(X), mixer.out(F.silu(gate) * mixed.flatten(2)))


def test_rwkv7_layers_are_those_of_the_kernel():
    network = made(lambda: RWKV7(depth=2, heads=2).layers(WIDTH))
    x, first = X, None
    for time, channel in (network.layers[:2], network.layers[2:]):
        mixed = time.part.ways[0](time.norm(x), first, backend="reference")
        x, first = x + mixed.output, mixed.v_first
        x = x + channel.part.mix(channel.norm(x), backend="reference").output
    same(network(X), network.norm(x))
    assert network.layers[0].part.ways[0].v is None
    assert network.layers[2].part.ways[0].v is not None


def test_s4d_is_two_recurrences():
    core = made(lambda: S4D(WIDTH, 3))
    A = torch.complex(-core.decay_log.exp(), core.frequency)
    decay = torch.exp(A * core.step_log.exp())
    enters, C = (decay - 1) / A, torch.view_as_complex(core.C)
    expected = core.D * X
    for way, (x, late) in enumerate(((X, 0), (X.flip(1), 1))):
        h, found = torch.zeros(2, WIDTH, 3, dtype=torch.complex128), []
        for t in range(LENGTH):
            now = 2 * (C[way] * h).sum(-1).real  # of the tokens before this one
            h = decay[way] * h + enters[way] * x[:, t, :, None]
            found.append(now if late else 2 * (C[way] * h).sum(-1).real)
        expected = expected + (torch.stack(found, 1).flip(1) if late else torch.stack(found, 1))
    same(core(X), expected)


@pytest.mark.parametrize("length", [6, 7])
def test_an_hourglass_reads_neighbours_at_once(length):
    part, x = made(lambda: Hourglass(WIDTH, 3)), features(1, length, WIDTH)
    padded = torch.cat([x, x.new_zeros(1, -length % 3, WIDTH)], 1)
    groups = [part.mlp(padded[:, i : i + 3].reshape(1, -1)).view(1, 3, WIDTH) for i in range(0, length, 3)]
    same(part(x), torch.cat(groups, 1)[:, :length])


def test_experts_are_a_weighted_sum_of_the_chosen():
    part = made(lambda: Experts(WIDTH, 5))
    expected = torch.zeros_like(X)
    for n in range(2):
        for t in range(LENGTH):
            logits = part.router(X[n, t])
            best = logits.topk(2).indices
            for weight, e in zip(logits[best].softmax(0), best):
                hidden = F.silu(X[n, t] @ part.gate[e]) * (X[n, t] @ part.value[e])
                expected[n, t] += weight * hidden @ part.out[e]
    same(part(X), expected)


def test_training_evens_out_the_load_and_nothing_else_moves():
    part, x = made(lambda: Experts(WIDTH, 4)).train(), features(1, 400, WIDTH) + 1.0
    before = load(route(part.router(x), 2))
    for _ in range(300):
        part(x)
    after = load(route(part.router(x), 2, bias=part.bias))
    assert (before - 1 / 4).abs().max() > 0.1 > 0.02 > (after - 1 / 4).abs().max()
    kept = part.bias.clone()
    part.eval()(x)
    assert torch.equal(part.bias, kept)


def test_what_conditioning_costs():
    """Per block at width d with as wide a vector: adaLN-Zero 6 d^2 + 6 d, TMSA 3 d^2 and its bias."""
    d, heads, grid = 64, 4, (4, 4)

    def of_blocks(**settings):
        settings = {"given": 0, **settings}
        kind = settings.pop("conditioning", "adaln_zero")
        network = Transformer(depth=1, heads=heads, conditioning=kind).layers(
            d, causal=False, grid=grid, **settings
        )
        return sum(p.numel() for layer in network.layers for p in layer.parameters())

    plain = of_blocks()
    assert of_blocks(given=d) - plain == 6 * d**2 + 6 * d == 24_960
    assert of_blocks(given=d, conditioning="tmsa") - plain == 3 * d**2 + heads * 7 * 7 == 12_288 + 196


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_conditioned_layer_scales_shifts_and_gates(norm):
    layer = made(lambda: Residual(WIDTH, torch.nn.Linear(WIDTH, WIDTH), 3, norm))
    layer.modulation.linear.weight.data = features(3 * WIDTH, 3)
    c = features(2, 3, seed=1)
    scale, shift, gate = (F.silu(c) @ layer.modulation.linear.weight.T)[:, None].chunk(3, -1)
    centred = X - X.mean(-1, keepdim=True) if norm == "layer" else X
    read = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    same(layer(X, c), X + gate * layer.part(read * (1 + scale) + shift))
