"""Precision policy: decays and recurrent states in bfloat16 against the kernels, whose state is float32.

RetNet's decays 1 - 2^-5 ... 1 - 2^-12 are rounded; a state s = decay s + x is carried in bfloat16 over 20,000
steps of normal noise; and ``state_scan`` does the same under autocast, with q, k and v in bfloat16, its gates
(natural logarithms of the decays) in float32, in bfloat16, and as logarithms of bfloat16 decays. Errors are
relative to float64 on the same rounded noise, at the end, over 64 channels.
"""

import torch

from worldsim_kernels import state_scan
from worldsim_kernels.precision import collapsed, dtype_of

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "bfloat16: 4 of 8 decays collapse, states drift by > 0.005, 0.1, 2; kernels under autocast: < 1e-3"
EXPONENTS, STEPS = (5, 8, 11), 20_000
F64 = torch.float64


def decays_of(exponents):
    return torch.tensor([1 - 2.0**-i for i in exponents], dtype=F64)


def carried(noise, decays, dtype):
    """The state [head, channel] after noise [time, head, channel], every number in ``dtype``."""
    state, decays = torch.zeros(noise.shape[1:], dtype=dtype), decays.to(dtype)[:, None]
    for now in noise.to(dtype):
        state = decays * state + now
    return state


def scanned(noise, gates):
    """The same by the kernel, under autocast: one key, which is 1."""
    one = torch.ones(1, noise.shape[0], noise.shape[1], 1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        return state_scan(one, one, noise[None], gates).state[0, :, 0]


def errors(found, expected):
    """Relative error of each head."""
    return ((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).tolist()


def run(seed=0, steps=STEPS):
    retnet = decays_of(range(5, 13))
    figures = {
        f"collapsed {name}": int(collapsed(retnet, dtype).sum())
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
    }
    noise = torch.randn(steps, 3, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
    decays = decays_of(EXPONENTS)
    gates, expected = decays.log().float(), carried(noise, decays, F64)
    ways = {
        "bfloat16 state": carried(noise, decays, torch.bfloat16),
        "policy": scanned(noise, gates.to(dtype_of("decay", torch.bfloat16))),
        "bfloat16 gates": scanned(noise, gates.bfloat16()),
        "bfloat16 decays": scanned(noise, decays.bfloat16().double().log().float()),
    }
    for way, state in ways.items():
        for i, error in zip(EXPONENTS, errors(state, expected)):
            figures[f"{way} 2^-{i}"] = error
    return figures


def check(figures):
    assert figures["collapsed bfloat16"] == 4
    assert figures["collapsed float16"] == 1
    for i, least in zip(EXPONENTS, (0.005, 0.1, 2)):
        assert figures[f"bfloat16 state 2^-{i}"] > least
        assert figures[f"policy 2^-{i}"] < 1e-3
    assert figures["bfloat16 decays 2^-11"] > 1
