"""What the kernels are compared with: torch's attention, plain loops in torch, flash-linear-attention.

flash-linear-attention (Songlin Yang, Yu Zhang and others, MIT) is used from its own package where that is
installed (``pip install --no-deps fla-core einops``). Its reference files are loaded by their path, because
the package itself needs Triton, transformers and a GPU to be imported.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softplus

INSTALL = "not installed: pip install --no-deps fla-core einops"


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention of [B, H, T, D] by torch."""
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def selective_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan of Mamba (Gu and Dao, 2023), one step after another: u, delta [B, T, D], A [D, N].

    It keeps one state, never [B, T, D, N], and takes four operations a step.
    """
    delta = softplus(delta)
    weighted = (delta * u).unsqueeze(-1)
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t].unsqueeze(-1) * A)
        state = torch.addcmul(decay * state, weighted[:, t], B[:, t].unsqueeze(1))
        outputs.append((state @ C[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1) + D * u


def affine_loop(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t over axis 1, one step after another."""
    h = torch.zeros_like(b[:, 0])
    found = []
    for t in range(b.shape[1]):
        h = torch.addcmul(b[:, t], a[:, t], h)
        found.append(h)
    return torch.stack(found, 1)


@cache
def naive(operation: str) -> Any:
    """flash-linear-attention's plain torch file of this operation ("gla", ...); None when it is not there."""
    package = importlib.util.find_spec("fla")
    if package is None or importlib.util.find_spec("einops") is None:
        return None
    for root in package.submodule_search_locations or ():
        path = Path(root) / "ops" / operation / "naive.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location(f"fla_{operation.replace('/', '_')}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


def fla(operation: str, function: str) -> Any:
    """One of their functions on [B, T, H, D] (or, for DPLR, [B, H, T, D]); None when it is not installed.

    They scale the query by K^-1/2; where they return (output, state), this gives the output.
    """
    module = naive(operation)
    if module is None:
        return None
    call = getattr(module, function)

    def run(*tensors: Tensor) -> Tensor:
        found = call(*tensors)
        return found[0] if isinstance(found, tuple) else found

    return run
