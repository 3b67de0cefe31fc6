"""The RWKV-7 block against its equations written out token by token, its streaming and its causality."""

import math
import pickle

import pytest
import torch

from worldsim_kernels.rwkv7_block import RWKV7ChannelMix, RWKV7TimeMix, TimeMixState

torch.set_num_threads(1)
B, T, D, H = 2, 7, 12, 3


def normal(seed, *size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(module, seed=0):
    """In float64, every parameter moved, so that nothing is hidden by a start at zero."""
    draw = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return module


def later_layer(**options):
    return stirred(RWKV7TimeMix(D, H, layer=1, layers=3, ranks=(4, 5, 6, 7), **options))


def written_out(m, x, v_first, a_max):
    """One token and head at a time, the state V x K as published."""
    p = dict(m.named_parameters())
    before, states, outputs = torch.zeros(B, D).double(), torch.zeros(B, H, D // H, D // H).double(), []
    for t in range(T):
        xr, xw, xk, xv, xa, xg = (x[:, t] + mu * (before - x[:, t]) for mu in p["mu"])
        before = x[:, t]
        r, k, v = xr @ p["receptance.weight"].T, xk @ p["key.weight"].T, xv @ p["value.weight"].T
        w = (-math.exp(-0.5) * (p["w.start"] + torch.tanh(xw @ p["w.down"]) @ p["w.up"]).sigmoid()).exp()
        a = a_max * (p["a.start"] + xa @ p["a.down"] @ p["a.up"]).sigmoid()
        gate = (xg @ p["g.down"]).sigmoid() @ p["g.up"]
        v = v + (v_first[:, t] - v) * (p["v.start"] + xv @ p["v.down"] @ p["v.up"]).sigmoid()
        kappa, written = k * p["xi"], k * (1 + (a - 1) * p["alpha"])
        rows = []
        for n in range(B):
            heads = []
            for h in range(H):
                one = slice(h * D // H, (h + 1) * D // H)
                unit = kappa[n, one] / kappa[n, one].norm()
                change = w[n, one].diag() - torch.outer(unit, a[n, one] * unit)
                state = states[n, h] @ change + torch.outer(v[n, one], written[n, one])
                states[n, h] = state
                y = state @ r[n, one]
                y = (y - y.mean()) / (y.var(correction=0) + 64e-5).sqrt()
                y = y * p["norm.weight"][one] + p["norm.bias"][one]
                heads.append(y + (r[n, one] * written[n, one] * p["rho"][h]).sum() * v[n, one])
            rows.append(torch.cat(heads))
        outputs.append((torch.stack(rows) * gate) @ p["output.weight"].T)
    return torch.stack(outputs, 1), states.mT


@pytest.mark.parametrize("a_max", [1.0, 2.0])
def test_time_mixing_is_its_equations(a_max):
    block, x, v_first = later_layer(a_max=a_max), normal(1, B, T, D), normal(2, B, T, D)
    with torch.no_grad():
        found = block(x, v_first)
        output, memory = written_out(block, x, v_first, a_max)
    torch.testing.assert_close(found.output, output)
    torch.testing.assert_close(found.state.memory, memory)
    assert found.v_first is v_first


def test_channel_mixing_is_its_equation():
    block, x = stirred(RWKV7ChannelMix(D, layer=1, layers=3)), normal(1, B, T, D)
    before = torch.cat([torch.zeros(B, 1, D).double(), x[:, :-1]], 1)
    inside = ((x + block.mu * (before - x)) @ block.key.weight.T).relu() ** 2
    torch.testing.assert_close(block(x).output, inside @ block.value.weight.T)


def test_steps_are_the_whole():
    first, later = stirred(RWKV7TimeMix(D, H, ranks=(4, 5, 6, 7))), later_layer()
    channel, x = stirred(RWKV7ChannelMix(D)), normal(1, B, T, D)
    values = first(x).v_first
    whole = [first(x).output, later(x, values).output, channel(x).output]
    ends = [None] * 3
    for t in range(T):
        output, value, ends[0] = first.step(x[:, t], None, ends[0])
        torch.testing.assert_close(output, whole[0][:, t])
        output, _, ends[1] = later.step(x[:, t], value, ends[1])
        torch.testing.assert_close(output, whole[1][:, t])
        output, ends[2] = channel.step(x[:, t], ends[2])
        torch.testing.assert_close(output, whole[2][:, t])
    torch.testing.assert_close(ends[0], first(x).state)
    torch.testing.assert_close(ends[1], later(x, values).state)
    assert ends[0].memory.shape == (B, H, D // H, D // H)


def test_pieces_of_any_length_are_the_whole():
    block, x, v_first = later_layer(), normal(1, B, T, D), normal(2, B, T, D)
    whole, state, outputs = block(x, v_first), None, []
    for begin, end in ((0, 3), (3, 3), (3, T)):
        output, _, state = block(x[:, begin:end], v_first[:, begin:end], state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), whole.output)
    torch.testing.assert_close(state, whole.state)


def test_no_token_hears_of_a_later_one():
    block, channel, v_first = later_layer(), stirred(RWKV7ChannelMix(D)), normal(2, 1, T, D)

    def heard(run):
        """[to, from]: the largest entry of each pair of tokens' Jacobian."""
        return torch.autograd.functional.jacobian(run, normal(1, 1, T, D)).abs().amax((0, 2, 3, 5)) > 0

    past = torch.ones(T, T, dtype=torch.bool).tril()
    assert heard(lambda x: block(x, v_first).output).equal(past)
    assert heard(lambda x: channel(x).output).equal(past.triu(-1))


def test_every_parameter_learns_and_the_backends_agree():
    torch.manual_seed(0)
    first, later = RWKV7TimeMix(D, H), RWKV7TimeMix(D, H, layer=1, layers=2)
    x, found = normal(1, B, T, D).float(), {}
    parameters = [*stirred(first).float().parameters(), *stirred(later).float().parameters()]
    for backend in ("reference", "torch", None):
        output, v_first, _ = first(x, backend=backend)
        loss = later(output, v_first, backend=backend).output.square().sum()
        found[backend] = torch.autograd.grad(loss, parameters)
    for one, torch_form, chosen in zip(*found.values(), strict=True):
        assert one.any()
        size = one.square().mean().sqrt()
        assert (torch_form - one).square().mean().sqrt() < 2e-5 * size
        assert (chosen - one).square().mean().sqrt() < 2e-5 * size


def test_autocast_keeps_the_state_and_the_decays_in_float32():
    torch.manual_seed(0)
    first, later = stirred(RWKV7TimeMix(D, H)).float(), later_layer().float()
    x = normal(1, B, T, D).float()
    expected = later(first(x).output, first(x).v_first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, v_first, _ = first(x)
        found = later(output, v_first)
    assert found.state.memory.dtype == torch.float32
    assert found.output.dtype == torch.bfloat16
    assert (found.output - expected.output).square().mean() < 0.05**2 * expected.output.square().mean()


def test_a_new_block_decays_within_its_range():
    block = RWKV7TimeMix(64, 4, layer=2, layers=4)
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(block.w(normal(1, 5, 64).float())))
    assert 0.89 < decay.min() < 0.9
    assert 0.999 < decay.max() < 1


def test_wrong_arguments_are_named():
    first, later, x = RWKV7TimeMix(D, H), RWKV7TimeMix(D, H, layer=1, layers=2), torch.zeros(B, T, D)
    with pytest.raises(ValueError, match=r"heads is 5.*width=12"):
        RWKV7TimeMix(D, 5)
    with pytest.raises(ValueError, match="v_first is missing"):
        later(x)
    with pytest.raises(ValueError, match="v_first is given"):
        first(x, x)
    with pytest.raises(ValueError, match="v_first has shape"):
        later(x, x[:, :2])
    with pytest.raises(ValueError, match=r"x has shape \[2, 7, 11\]; expected \[B, T, D=12\]"):
        first(x[..., :11])
    with pytest.raises(ValueError, match=r"state\.last has shape"):
        first(x, None, TimeMixState(x[:1, 0], torch.zeros(B, H, 4, 4)))
    with pytest.raises(ValueError, match=r"state\.memory has shape"):
        first(x, None, TimeMixState(x[:, 0], torch.zeros(B, H, 4, 5)))
    with pytest.raises(ValueError, match="x has shape"):
        RWKV7ChannelMix(D)(x[0])
    with pytest.raises(ValueError, match="last has shape"):
        RWKV7ChannelMix(D)(x, x[:1, 0])
    with pytest.raises(ValueError, match="x has shape"):
        first.step(x)


def test_a_pickled_block_is_the_same():
    block, x = later_layer(), normal(1, B, T, D)
    copy = pickle.loads(pickle.dumps(block))
    assert torch.equal(copy(x, x).output, block(x, x).output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"heads": H, "layers": 0}, "layer is 0; expected 0 to layers - 1, layers being 0"),
        ({"heads": H, "layer": 2, "layers": 2}, "layer is 2"),
    ],
)
def test_a_block_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RWKV7TimeMix(D, **arguments)


def test_a_state_or_value_of_another_type_is_named():
    block, x = RWKV7TimeMix(D, H), torch.zeros(B, T, D)
    last, memory = torch.zeros(B, D), torch.zeros(B, H, D // H, D // H)
    with pytest.raises(TypeError, match="state must be a TimeMixState, not tuple"):
        block(x, state=(last, memory))
    with pytest.raises(TypeError, match="v_first must be a tensor, not int"):
        later_layer().step(last, 3)
