"""Checks of a backbone: shapes, causality, and gradients that reach the past."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim.protocols import Backbone
from worldsim.testing.checks import Checks, finite, seeded

WIDTH, LENGTH, AT = 32, 9, 4


def check_backbone(checks: Checks, build: Callable[[], Backbone]) -> None:
    backbone = build()
    checks.that(isinstance(backbone.causal, bool), "causal to be true or false", backbone.causal)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = backbone.layers(WIDTH).double()
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, generator=seeded(1))
    with checks.leaving_random_state("layers(width)(features)"):
        y = network(x)
    shape = [3, LENGTH, WIDTH]
    checks.that(list(y.shape) == shape, f"[batch, time, width] = {shape}", list(y.shape))
    checks.that(finite(y), "finite features")
    checks.that(list(network(x[:, :1]).shape) == [3, 1, WIDTH], "features of a single frame")
    gradient = _gradient(network, x)
    checks.that(bool((gradient[:, 0] != 0).any()), f"position {AT} to depend on the first frame")
    if backbone.causal:
        ahead = float(gradient[:, AT + 1 :].abs().max())
        checks.that(ahead == 0, "a causal backbone that does not look ahead", f"a gradient of {ahead:.3g}")


def _gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the features at AT to all frames before and after, ``[batch, time, width]``."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf)[:, AT].square().sum(), leaf)
    return gradient
