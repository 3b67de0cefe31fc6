"""Early exit: each sample leaves a stack of layers when more of them would hardly change it.

Of the features x_l ``[batch, token, width]`` after layer l, a sample leaves after the first l at which

    |x_m - x_{m-1}| <= tolerance * |x_m|    for m = l and the ``patience`` - 1 layers before

norms over all of its tokens: saturation of the state as the sign to leave (CALM, Schuster et al. 2022), with
patience (Zhou et al. 2020). So that what leaves early can be read, in training a sample leaves after a layer
drawn at random, half of the time, and otherwise after the last (Teerapittayanon et al. 2016 give every exit a
loss instead). ``until`` is the same with any other sign, such as a classifier that is sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import hookimpl
from worldsim.protocols import Backbone
from worldsim_plugins.backbones.blocks import Stack
from worldsim_plugins.backbones.transformer import Transformer

Done = Callable[[int, Tensor, Tensor], Tensor]
"""(number of the layer, features before, features after) -> ``[batch]`` bool, for the samples still in."""


def until(
    done: Done, layers: Iterable[nn.Module], x: Tensor, c: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each sample goes through ``layers`` until it is ``done``: its features then, and how many layers that
    took ``[batch]`` int64. A layer computes the samples that are still in."""
    found, depth = x.clone(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    left = torch.arange(len(x), device=x.device)
    for number, layer in enumerate(layers):
        after = layer(x) if c is None else layer(x, c)
        found[left], depth[left] = after, number + 1
        stays = ~done(number, x, after)
        left, x = left[stays], after[stays]
        c = None if c is None else c[stays]
        if not len(left):
            break
    return found, depth


class EarlyExit:
    """A backbone of which each sample goes through as many layers as it needs. All tokens of a sample decide,
    so that it looks both ways.

    ``layers`` raises ValueError where it is to be causal, and for a backbone that is no stack of blocks.
    """

    def __init__(
        self,
        *,
        backbone: Annotated[
            Backbone | None, Field(description="a stack of blocks; six of the transformer when left out")
        ] = None,
        tolerance: Annotated[
            float, Field(ge=0, description="relative change below which a layer has done nothing")
        ] = 0.05,
        patience: Annotated[
            int, Field(ge=1, le=64, description="layers in a row that must have done nothing")
        ] = 2,
    ) -> None:
        self.backbone = backbone or Transformer(depth=6)
        self.tolerance, self.patience = tolerance, patience

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        if causal:
            raise ValueError("early_exit: later tokens too decide how far a sample goes; it cannot be causal")
        stack = self.backbone.layers(width, causal=False, given=given, grid=grid)
        if type(stack) is not Stack:
            raise ValueError(
                f"early_exit: {type(self.backbone).__name__} is no stack of blocks, each reading the one "
                "before; take transformer, linear_attention, linear_dit, ssm, retention, diffussm or hybrid"
            )
        return Exiting(stack, self.tolerance, self.patience)


class Exiting(nn.Module):
    """A stack, in training left at random, and else by the change of what it makes."""

    def __init__(self, stack: Stack, tolerance: float, patience: int) -> None:
        super().__init__()
        self.stack, self.tolerance, self.patience = stack, tolerance, patience

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.stack.last(self.depths(x, c)[0], c)

    def depths(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features before the last norm, and how many layers each sample went through."""
        sign = self.at_random if self.training else self.saturated
        return until(sign(x), self.stack.layers, x, c)

    def at_random(self, x: Tensor) -> Done:
        layers = len(self.stack.layers)
        whole = torch.rand(len(x), device=x.device) < 0.5
        last = torch.randint(layers, (len(x),), device=x.device).masked_fill(whole, layers - 1)

        def done(number: int, before: Tensor, after: Tensor) -> Tensor:
            nonlocal last
            leaves = last == number
            last = last[~leaves]
            return leaves

        return done

    def saturated(self, x: Tensor) -> Done:
        calm = torch.zeros(len(x), dtype=torch.int64, device=x.device)

        def done(number: int, before: Tensor, after: Tensor) -> Tensor:
            nonlocal calm
            change, size = (each.flatten(1).norm(dim=1) for each in (after - before, after))
            calm = torch.where(change <= self.tolerance * size, calm + 1, 0)
            leaves = calm >= self.patience
            calm = calm[~leaves]
            return leaves

        return done


@hookimpl
def worldsim_backbones():
    return {"early_exit": EarlyExit}
