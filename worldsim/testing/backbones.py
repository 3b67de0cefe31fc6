"""Checks of a backbone: shapes, causality, conditioning, gradients that reach the past, and pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from worldsim.protocols import Backbone, Streams
from worldsim.testing.checks import Checks, finite, seeded

WIDTH, LENGTH, AT, GIVEN = 32, 9, 4, 5


def check_backbone(checks: Checks, build: Callable[[], Backbone]) -> None:
    offered = [causal for causal in (True, False) if _offers(checks, build, causal)]
    checks.that(bool(offered), "layers that are causal, or that look both ways", "neither")
    for causal in offered:
        _check_layers(checks, build, causal)


def _offers(checks: Checks, build: Callable[[], Backbone], causal: bool) -> bool:
    try:
        _network(build, causal=causal)
    except ValueError as error:
        checks.that(bool(str(error)), "a ValueError that says why", error)
        return False
    return True


def _network(build: Callable[[], Backbone], **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().layers(WIDTH, **settings).double().eval()


def _check_layers(checks: Checks, build: Callable[[], Backbone], causal: bool) -> None:
    kind = "causal" if causal else "both ways"
    network = _network(build, causal=causal)
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, generator=seeded(1))
    with checks.leaving_random_state("layers(width)(features)"):
        y = network(x)
    shape = [3, LENGTH, WIDTH]
    checks.that(list(y.shape) == shape, f"{kind}: [batch, token, width] = {shape}", list(y.shape))
    checks.that(finite(y), f"{kind}: finite features")
    checks.that(list(network(x[:, :1]).shape) == [3, 1, WIDTH], f"{kind}: features of a single token")
    gradient = _gradient(network, x)
    checks.that(bool((gradient[:, 0] != 0).any()), f"{kind}: position {AT} to depend on the first token")
    ahead = float(gradient[:, AT + 1 :].abs().max())
    if causal:
        checks.that(ahead == 0, "a causal backbone that does not look ahead", f"a gradient of {ahead:.3g}")
        _check_pieces(checks, network, x)
    else:
        checks.that(ahead != 0, f"both ways: position {AT} to depend on later tokens", "no gradient")
    try:
        conditioned = _network(build, causal=causal, given=GIVEN)
    except ValueError as error:
        checks.that(bool(str(error)), "a ValueError that says why", error)
        return
    for c in (x[:, 0, :GIVEN], x[:, :, :GIVEN]):
        found = list(conditioned(x, c).shape)
        checks.that(found == shape, f"{kind}, given c {list(c.shape)}: {shape}", found)
        if causal:
            _check_pieces(checks, conditioned, x, c)


def _check_pieces(checks: Checks, network: Any, x: Tensor, c: Tensor | None = None) -> None:
    """Four tokens and then one at a time, with the rows of the state turned round on the way."""
    advances = isinstance(network, Streams)
    if not advances:
        return
    with torch.no_grad():
        whole, state, pieces = network(x) if c is None else network(x, c), None, []
        for first, last in ((0, AT), *((at, at + 1) for at in range(AT, LENGTH))):
            now = c[:, first:last] if c is not None and c.ndim == 3 else c
            piece, state = network.advance(x[:, first:last], state, now)
            pieces.append(piece)
            x, c = x.flip(0), None if c is None else c.flip(0)
            whole, state = whole.flip(0), tree_map(lambda each: each.flip(0), state)
            pieces = [each.flip(0) for each in pieces]
        apart = float((torch.cat(pieces, 1) - whole).abs().max())
    checks.that(apart < 1e-10, "pieces of a sequence to have the features of the whole", f"{apart:.3g} apart")


def _gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the features at AT to all tokens before and after, ``[batch, token, width]``."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf)[:, AT].square().sum(), leaf)
    return gradient
