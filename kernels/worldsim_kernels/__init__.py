"""Shared kernels: sequence mixers, attention, routing, row operations, transport and integrators.

They know nothing of worldsim and import torch alone; Triton is loaded when a GPU first needs it, and C is
compiled at first use. ``from worldsim_kernels import state_scan`` loads that kernel's module only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldsim_kernels.affine import affine_scan as affine_scan
    from worldsim_kernels.attention import attend as attend
    from worldsim_kernels.attention import merge as merge
    from worldsim_kernels.backends import explain as explain
    from worldsim_kernels.backends import use as use
    from worldsim_kernels.distances import pairwise as pairwise
    from worldsim_kernels.experts import grouped_matmul as grouped_matmul
    from worldsim_kernels.experts import route as route
    from worldsim_kernels.masks import distance_bias as distance_bias
    from worldsim_kernels.masks import gaussian_bias as gaussian_bias
    from worldsim_kernels.masks import light_cone as light_cone
    from worldsim_kernels.masks import physical_attention as physical_attention
    from worldsim_kernels.mixers import delta_rule as delta_rule
    from worldsim_kernels.mixers import gated_delta_rule as gated_delta_rule
    from worldsim_kernels.mixers import gla as gla
    from worldsim_kernels.mixers import kda as kda
    from worldsim_kernels.mixers import lightning as lightning
    from worldsim_kernels.mixers import linear_attention as linear_attention
    from worldsim_kernels.mixers import retention as retention
    from worldsim_kernels.mixers import rwkv7 as rwkv7
    from worldsim_kernels.mixers import ssd as ssd
    from worldsim_kernels.paged import PagedCache as PagedCache
    from worldsim_kernels.rows import modulate as modulate
    from worldsim_kernels.rows import rms_norm as rms_norm
    from worldsim_kernels.rows import rotary as rotary
    from worldsim_kernels.rows import swiglu as swiglu
    from worldsim_kernels.rows import token_shift as token_shift
    from worldsim_kernels.rows import xpos as xpos
    from worldsim_kernels.scan import state_scan as state_scan
    from worldsim_kernels.selective import selective_scan as selective_scan
    from worldsim_kernels.transport import sinkhorn as sinkhorn

_HOME = {
    "affine": "affine_scan",
    "attention": "attend merge",
    "backends": "explain use",
    "distances": "pairwise",
    "experts": "grouped_matmul route",
    "masks": "distance_bias gaussian_bias light_cone physical_attention",
    "mixers": "delta_rule gated_delta_rule gla kda lightning linear_attention retention rwkv7 ssd",
    "paged": "PagedCache",
    "rows": "modulate rms_norm rotary swiglu token_shift xpos",
    "scan": "state_scan",
    "selective": "selective_scan",
    "transport": "sinkhorn",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
