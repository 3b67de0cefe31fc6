"""The exact gradient of a solve by reversible Heun, with memory for its end alone (Kidger et al. 2021).

A step (y, y^) -> (y', y^') is undone by

    y^ = 2 y' - y^' - f' h - g' W,   y = y' - (f + f') h / 2 - (g + g') W / 2

so that going back needs one evaluation with a graph in each step, the increments being drawn again. What
rounding does to the way back is the only difference from autograd through the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Save
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.first_only import first_only
from worldsim_kernels.solve.parameters import parameters_of
from worldsim_kernels.solve.sde import Scheme, excited, fields
from worldsim_kernels.solve.sde_grid import Grid
from worldsim_kernels.solve.sde_increments import Increments
from worldsim_kernels.solve.sde_moving import Eager, shape_of_noise
from worldsim_kernels.solve.sde_solve import walked
from worldsim_kernels.solve.solution import Solution
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import SDE, of_rows


@dataclass(frozen=True)
class Solve:
    """What goes back is what went there."""

    term: SDE
    scheme: Scheme
    grid: Grid
    noise: Brownian
    save: Save


def solve_reversibly(
    term: SDE, scheme: Scheme, y0: Tensor, grid: Grid, noise: Brownian, save: Save
) -> Solution:
    """``walked`` with that gradient, by y0, the term's args and the parameters of its functions.

    Raises ValueError for another scheme, grids that differ between rows, or steps to be kept.
    """
    if scheme.name != "reversible_heun":
        raise ValueError(f"gradient=Reversible() is for reversible_heun, not {scheme.name}")
    if not grid.shared:
        raise ValueError("gradient=Reversible() needs one t0, t1, step and set of saved times for all rows")
    if save.steps:
        raise ValueError("save.steps keeps what gradient=Reversible() is there not to keep; choose one")
    parameters = parameters_of(term, (), Probe(), grid.t[:, 0].expand(len(y0)), y0)
    inputs = [y0, *term.args, *parameters]
    if not torch.is_grad_enabled() or not any(each.requires_grad for each in inputs):
        return walked(term, scheme, y0, grid, noise, save)[0]
    bare = replace(term, args=tuple(each.detach() for each in term.args))
    kept: list[Solution] = []
    function: Callable[..., tuple[Tensor, Tensor]] = _Reversed.apply
    y, saved = function(Solve(bare, scheme, grid, noise, save), kept, len(parameters), *inputs)
    solution = kept[0]
    return replace(solution, y=y, saved=None if solution.saved is None else saved)


class Probe:
    """Evaluates both fields, so that what they depend on can be found."""

    name, properties = "probe", Properties(1)
    terms: Sequence[type] = (SDE,)

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def step(self, term: SDE, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """The sum of the two."""
        f, g = fields(term, t.to(y.dtype), y)
        return Step(f + (g.sum(-1) if term.noise == "general" else g))

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """The end."""
        return step.y


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, solve: Solve, kept: list[Solution], count: int, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        y0 = inputs[0].detach()
        solution, last = walked(solve.term, solve.scheme, y0, solve.grid, solve.noise, solve.save)
        kept.append(solution)
        ctx.solve, ctx.count = solve, count
        ctx.save_for_backward(last.index, last.y, last.carry[0], *inputs[1:])
        saved = y0.new_zeros(0) if solution.saved is None else solution.saved
        return solution.y.clone(), saved.clone()

    @staticmethod
    @first_only("use ThroughSteps()")
    def backward(ctx: Any, bar: Tensor, saved_bar: Tensor) -> tuple[Tensor | None, ...]:
        index, y, hat, *given = ctx.saved_tensors
        solve, split = ctx.solve, len(given) - ctx.count
        args = [each.detach()[index].requires_grad_(each.requires_grad) for each in given[:split]]
        wanted = [each for each in (*args, *given[split:]) if each.requires_grad]
        way = _Way(solve, index, args, wanted)
        start, sums = way.back(y, hat, bar[index], None if solve.save.times is None else saved_bar[index])
        found = {id(leaf): total for leaf, total in zip(wanted, sums)}
        grads: list[Tensor | None] = [bar.new_zeros(bar.shape).index_put((index,), start)]
        for whole, part in zip(given[:split], args):
            grad = found.get(id(part))
            grads.append(None if grad is None else torch.zeros_like(whole).index_put((index,), grad))
        return None, None, None, *grads, *(found.get(id(each)) for each in given[split:])


class _Way:
    """The way back of the rows ``index``, which reached the end."""

    def __init__(self, solve: Solve, index: Tensor, args: list[Tensor], wanted: Sequence[Tensor]) -> None:
        everyone = len(index) == len(solve.noise.rows)
        self.solve, self.wanted = solve, wanted
        self.term = replace(of_rows(solve.term, index), args=tuple(args))
        noise = solve.noise if everyone else solve.noise.of_rows(index)
        self.noise = noise
        self.sums: list[Tensor | None] = [None] * len(wanted)

    def evaluate(self, n: int, hat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y^ as a leaf, and f and g there at the start of step n, with a graph."""
        with torch.enable_grad():
            leaf = hat.detach().requires_grad_()
            t = self.solve.grid.t[0, n].to(hat.dtype).expand(len(hat))
            return leaf, *fields(self.term, t, leaf)

    def pulled(self, at: tuple[Tensor, Tensor, Tensor], bar_f: Tensor, bar_g: Tensor) -> Tensor:
        """The cotangent of y^; those of what was given are added to the sums."""
        leaf, *values = at
        pairs = [(value, bar) for value, bar in zip(values, (bar_f, bar_g)) if value.requires_grad]
        if not pairs:
            return torch.zeros_like(leaf)
        outputs, bars = zip(*pairs)
        # Parts of the graph may belong to the caller: a closed-over tensor that was computed before.
        first, *others = torch.autograd.grad(
            outputs, [leaf, *self.wanted], bars, allow_unused=True, retain_graph=True
        )
        for i, grad in enumerate(others):
            if grad is not None:
                total = self.sums[i]
                self.sums[i] = grad if total is None else total + grad
        return torch.zeros_like(leaf) if first is None else first

    def back(
        self, y: Tensor, hat: Tensor, bar: Tensor, saved: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The cotangent of y0 from those of the end and of the saved states, and the sums."""
        grid, term = self.solve.grid, self.term
        steps = grid.t[0].diff().tolist()
        draws = Increments(self.noise, grid, False, y.dtype)
        size = max(2, Eager.block // max(y[0].numel() * len(y), 1))
        bar_y, bar_hat = bar + self._saved(saved, len(steps), bar), torch.zeros_like(bar)
        at = self.evaluate(len(steps), hat)
        bar_f, bar_g = torch.zeros_like(bar), torch.zeros_like(at[2])
        for stop in range(len(steps), 0, -size):
            first = max(stop - size, 0)
            shape = shape_of_noise(term, y, self.noise.components)
            w = draws.draw(first, stop - first, None)[0].reshape(stop - first, len(y), *shape)
            for n in range(stop - 1, first - 1, -1):
                h, move = steps[n], w[n - first]
                half_f, half_g = 0.5 * h * bar_y, self._excited_bar(0.5 * bar_y, move)
                turn = bar_hat + self.pulled(at, bar_f + half_f, bar_g + half_g)
                ahead_f, ahead_g = at[1].detach(), at[2].detach()
                hat = 2 * y - hat - ahead_f * h - excited(term, ahead_g, move)
                at = self.evaluate(n, hat)
                f, g = at[1].detach(), at[2].detach()
                y = y - 0.5 * (f + ahead_f) * h - excited(term, 0.5 * (g + ahead_g), move)
                bar_f, bar_g = half_f + h * turn, half_g + self._excited_bar(turn, move)
                bar_y, bar_hat = bar_y + 2 * turn + self._saved(saved, n, bar), -turn
        return bar_y + bar_hat + self.pulled(at, bar_f, bar_g), self.sums

    def _excited_bar(self, bar: Tensor, w: Tensor) -> Tensor:
        """The cotangent of g in g W."""
        return bar.unsqueeze(-1) * w.unsqueeze(1) if self.term.noise == "general" else bar * w

    def _saved(self, saved: Tensor | None, n: int, like: Tensor) -> Tensor:
        """The cotangents of the states that were saved after ``n`` steps."""
        total = torch.zeros_like(like)
        if saved is not None:
            for column in (self.solve.grid.saved[0] == n).nonzero()[:, 0].tolist():
                total = total + saved[:, column]
        return total
