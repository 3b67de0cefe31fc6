"""Softmax attention: how its operations grow with the number of tokens.

Counted by torch's operation counter (with a formula for the fused operator, which has none of its own on a
CPU) at n = 1,024 to 8,192 and width 64, without computing anything; the exponent is the slope in logarithms.
"""

import math

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import worldsim_kernels.cost  # noqa: F401
from worldsim_kernels import attend

SEEDS = (0,)
CLAIM = "operations grow as n^2.00 +- 0.01, fused, tiled or written out"
LENGTHS = (1024, 2048, 4096, 8192)


def fused(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def tiled(q, k, v):
    return attend(*(x.transpose(1, 2) for x in (q, k, v))).output


def written_out(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def operations(run, length, width=64):
    """Of one head; nothing is computed."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        run(*(torch.empty(1, 1, length, width) for _ in range(3)))
    return counter.get_total_flops()


def exponent(run):
    few, many = (operations(run, n) for n in (LENGTHS[0], LENGTHS[-1]))
    return math.log(many / few) / math.log(LENGTHS[-1] / LENGTHS[0])


def run(seed=0):
    return {f"exponent {run.__name__}": exponent(run) for run in (fused, tiled, written_out)}


def check(figures):
    for name in ("fused", "tiled", "written_out"):
        assert abs(figures[f"exponent {name}"] - 2) < 0.01
