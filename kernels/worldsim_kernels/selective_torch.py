"""The selective scan in tensor operations: blocks of tokens, each one affine scan over all its states."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldsim_kernels.affine import scan_in_chunks


class Arguments(NamedTuple):
    """Of ``selective_scan``, in one dtype, with B and C [B, T, G, N] and A finite."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    softplus: bool


def _blocks(call: Arguments) -> list[slice]:
    """So many tokens at once that their states fill a few megabytes."""
    batch, length, channels = call.u.shape
    size = max(16, 2**18 // max(1, batch * channels * call.A.shape[1]))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class _Block(NamedTuple):
    """What forward and backward need of some tokens; per state [B, t, G, D / G, N]."""

    u: Tensor
    raw: Tensor
    step: Tensor
    decay: Tensor
    states: Tensor
    y: Tensor


def _block(call: Arguments, tokens: slice, state: Tensor) -> _Block:
    u, raw = call.u[:, tokens], call.delta[:, tokens]
    raw = raw if call.delta_bias is None else raw + call.delta_bias
    step = F.softplus(raw) if call.softplus else raw
    decay = _split(call, (step[..., None] * call.A).exp(), 2)
    written = _split(call, step * u, 2)[..., None] * call.B[:, tokens, :, None]
    states = scan_in_chunks(decay.flatten(2), written.flatten(2), state.flatten(1))[0].view(decay.shape)
    y = (states @ call.C[:, tokens, ..., None]).flatten(2)
    return _Block(u, raw, step, decay, states, y if call.D is None else y + call.D * u)


def _split(call: Arguments, x: Tensor, axis: int) -> Tensor:
    """The channel axis as [G, D / G]."""
    groups = call.B.shape[2]
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _start(call: Arguments) -> Tensor:
    batch, _, channels = call.u.shape
    if call.initial_state is None:
        return call.u.new_zeros(batch, channels, call.A.shape[1])
    return call.initial_state


def forward(call: Arguments) -> tuple[Tensor, Tensor]:
    state, output = _start(call).clone(), torch.empty(call.u.shape, dtype=call.u.dtype, device=call.u.device)
    for tokens in _blocks(call):
        block = _block(call, tokens, state)
        output[:, tokens] = block.y if call.z is None else block.y * F.silu(call.z[:, tokens])
        state = block.states[:, -1].flatten(1, 2)
    return output, state.clone()


def backward(call: Arguments, grad: Tensor | None, grad_state: Tensor | None) -> list[Tensor]:
    """Gradients in the order of the arguments; those of absent ones mean nothing."""
    blocks, starts = _blocks(call), [_start(call)]
    for tokens in blocks[:-1]:
        starts.append(_block(call, tokens, starts[-1]).states[:, -1].flatten(1, 2))
    grad = torch.zeros_like(call.u) if grad is None else grad
    carried = torch.zeros_like(starts[0]) if grad_state is None else grad_state
    du, ddelta, dz = (torch.empty_like(call.u) for _ in range(3))
    db, dc = torch.empty_like(call.B), torch.empty_like(call.C)
    da, dd, dbias = (
        torch.zeros_like(call.A),
        call.u.new_zeros(call.u.shape[2]),
        call.u.new_zeros(call.u.shape[2]),
    )
    for tokens, start in zip(reversed(blocks), reversed(starts)):
        block, into = _block(call, tokens, start), grad[:, tokens]
        if call.z is not None:
            z, gate = call.z[:, tokens], call.z[:, tokens].sigmoid()
            dz[:, tokens] = into * block.y * gate * (1 + z * (1 - gate))
            into = into * z * gate
        split, c = _split(call, into, 2), call.C[:, tokens]
        # The multipliers lambda_t = C_t g_t + a_{t+1} lambda_{t+1}; what is carried is already a lambda.
        pushed = (split[..., None] * c[:, :, :, None]).flip(1).flatten(2)
        following = torch.cat([torch.ones_like(block.decay[:, :1]), block.decay.flip(1)[:, :-1]], 1).flatten(
            2
        )
        lam = scan_in_chunks(following, pushed, carried.flatten(1))[0].view(block.decay.shape).flip(1)
        before = torch.cat([_split(call, start, 1)[:, None], block.states[:, :-1]], 1)
        carried = (block.decay[:, 0] * lam[:, 0]).flatten(1, 2)
        product = (lam * block.decay * before).flatten(2, 3)
        by_b = (lam @ call.B[:, tokens, ..., None]).flatten(2)
        raw = (product * call.A).sum(-1) + block.u * by_b
        raw = raw * block.raw.sigmoid() if call.softplus else raw
        skip = 0 if call.D is None else into * call.D
        du[:, tokens], ddelta[:, tokens] = skip + block.step * by_b, raw
        db[:, tokens] = (_split(call, block.step * block.u, 2)[..., None, :] @ lam).squeeze(-2)
        dc[:, tokens] = (split[..., None, :] @ block.states).squeeze(-2)
        da += (product * block.step[..., None]).sum((0, 1))
        dd += (into * block.u).sum((0, 1))
        dbias += raw.sum((0, 1))
    return [du, ddelta, da, db, dc, dd, dz, dbias, carried]
