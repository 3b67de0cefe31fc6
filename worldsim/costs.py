"""What a sequence layer costs, measured: operations, seconds, state and memory, and how each grows.

Operations are counted by torch's own counter, not timed; seconds are the least of several rounds in which
the layers take turns; the state is what a stream must carry from one token to the next; the kept bytes are
those that autograd holds between forward and backward, each storage once. A growth is the exponent p of
cost ~ length^p by least squares of the logarithms, with its 95 % t-interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import worldsim_kernels
import worldsim_kernels.cost
from worldsim.errors import ComponentNotFound, PluginError, did_you_mean

Layer = Callable[[Tensor, Tensor, Tensor], Any]
"""(q, k, v), each ``[1, time, head, width]``, to an output, or to (output, state)."""

MEASURES = ("operations", "seconds", "state_bytes", "kept_bytes")


@dataclass(frozen=True)
class Growth:
    """cost ~ length^exponent, and the half-width of its 95 % interval (NaN from two lengths)."""

    exponent: float
    margin: float


@dataclass(frozen=True)
class Cost:
    """A layer's costs: for each of ``MEASURES`` its value at every length, and how it grows."""

    layer: str
    lengths: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]

    def growth(self, measure: str) -> Growth:
        """How ``measure`` grows with length."""
        return growth(self.lengths, self.values[measure])


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Exact causal attention; its state is the cache of all keys and values so far."""
    output = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    )
    return output.transpose(1, 2), torch.stack([k, v])


def selective(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """The selective scan with as many channels as the heads are wide, and 16 states in each."""
    u, delta = q.flatten(2), k.flatten(2)
    rate = -torch.arange(1.0, 17.0).expand(u.shape[-1], 16)
    return worldsim_kernels.selective_scan(u, delta, rate, q[:, :, 0, :16], v[:, :, 0, :16])


def delta(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """The delta rule with unit keys and a learning rate of a half."""
    return worldsim_kernels.delta_rule(q, F.normalize(k, dim=-1), v, torch.full(q.shape[:-1], 0.5))


def gated(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """Gated linear attention, its gates made from the keys."""
    return worldsim_kernels.gla(q, k, v, F.logsigmoid(k) / 16)


LAYERS: Mapping[str, Layer] = {
    "softmax_attention": softmax_attention,
    "linear_attention": lambda q, k, v: worldsim_kernels.linear_attention(q, k, v),
    "retention": lambda q, k, v: worldsim_kernels.retention(q, k, v),
    "gla": gated,
    "delta_rule": delta,
    "selective_scan": selective,
}


def layer(name: str) -> Layer:
    """One of ``LAYERS``, or any function of yours as ``package.module:function``.

    Raises ComponentNotFound when there is no such name, PluginError when yours cannot be imported.
    """
    if name in LAYERS:
        return LAYERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        hint = did_you_mean(name, LAYERS)
        raise ComponentNotFound(
            f"there is no layer {name!r}; {hint}; one of yours is package.module:function"
        )
    try:
        found: Layer = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"layer {name!r} could not be loaded: {error}") from error
    return found


def profile(
    names: Sequence[str], lengths: Sequence[int], heads: int = 4, width: int = 64, rounds: int = 3
) -> list[Cost]:
    """The costs of each layer at each length, for one sequence of ``heads`` heads of ``width``, float32.

    Raises ComponentNotFound for an unknown layer, PluginError when one fails on its inputs.
    """
    layers = {name: layer(name) for name in names}
    found: dict[str, dict[str, list[float]]] = {name: {each: [] for each in MEASURES} for name in layers}
    for length in lengths:
        rng = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, length, heads, width, generator=rng) for _ in range(3))
        for name, run in layers.items():
            for measure, value in _counted(name, run, q, k, v).items():
                found[name][measure].append(value)
        least = dict.fromkeys(layers, math.inf)
        for _ in range(rounds):
            for name, run in layers.items():
                least[name] = min(least[name], _seconds(run, q, k, v))
        for name in layers:
            found[name]["seconds"].append(least[name])
    return [
        Cost(name, tuple(lengths), {measure: tuple(values) for measure, values in each.items()})
        for name, each in found.items()
    ]


def _counted(name: str, run: Layer, q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            made = run(q, k, v)
        kept = _kept(run, q, k, v)
    except Exception as error:
        shape = list(q.shape)
        raise PluginError(f"layer {name!r} failed on q, k, v of shape {shape}: {error}") from error
    state = made[1] if isinstance(made, tuple) else None
    return {
        "operations": float(counter.get_total_flops()),
        "state_bytes": float(state.nbytes) if isinstance(state, Tensor) else math.nan,
        "kept_bytes": float(kept),
    }


def _kept(run: Layer, *inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward, each storage counted once, the inputs among them."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaves = [each.detach().requires_grad_() for each in inputs]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = run(leaves[0], leaves[1], leaves[2])
        del made
    return sum(storages.values())


def _seconds(run: Layer, q: Tensor, k: Tensor, v: Tensor) -> float:
    with torch.no_grad():
        begun = time.perf_counter()
        run(q, k, v)
        return time.perf_counter() - begun


def growth(lengths: Sequence[int], values: Sequence[float]) -> Growth:
    """The exponent of ``values`` against ``lengths``; NaN when they are no positive numbers."""
    from scipy.stats import linregress, t

    if len(lengths) < 2 or not all(value > 0 for value in values):
        return Growth(math.nan, math.nan)
    line = linregress([math.log(each) for each in lengths], [math.log(each) for each in values])
    if len(lengths) < 3:
        return Growth(float(line.slope), math.nan)
    return Growth(float(line.slope), float(t.ppf(0.975, len(lengths) - 2) * line.stderr))
