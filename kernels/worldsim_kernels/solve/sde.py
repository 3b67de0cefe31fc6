"""One step of a stochastic differential equation, by the method of your choice.

dY = f(t, Y) dt + g(t, Y) dW over a step of length h, with W the increment and H the space-time Levy area of
its Brownian motions (see ``brownian``). f, g at the start of the step; g W is g_i W_i for diagonal noise.

Sources: Kloeden, Platen 1992, *Numerical Solution of Stochastic Differential Equations*; Ruemelin 1982;
Kidger, Foster, Li, Lyons 2021, *Efficient and accurate gradients for neural SDEs*; Roessler 2010,
*Runge-Kutta methods for the strong approximation of solutions of SDEs*; Foster, dos Reis, Strange 2023,
*High order splitting methods for SDEs satisfying a commutativity condition*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from worldsim_kernels.solve.terms import SDE, check_recordable, like_state

Length = float | Tensor
"""h: one number for all rows, or one of each with the axes of the state."""


@dataclass(slots=True)
class Stretch:
    """The step that is taken.

    t, later  ``[row]`` in the dtype of the state, its start and its end
    h         see ``Length``
    w         the increments, with the axes of the state (diagonal, additive), ``[row, 1, ...]`` (scalar) or
              ``[row, m]`` (general)
    area      the areas, as ``w``; None for methods that need none
    """

    t: Tensor
    later: Tensor
    h: Length
    w: Tensor
    area: Tensor | None = None


Carry = tuple[Tensor, ...]
Advance = Callable[[SDE, Stretch, Tensor, Carry], tuple[Tensor, Carry]]
Begin = Callable[[SDE, Tensor, Tensor], Carry]


@dataclass(frozen=True)
class Scheme:
    """A method and what is claimed of it; the tests hold it to every claim.

    strong    order of E|Y_h - Y| for scalar noise, and diagonal whose g_i depends on Y_i alone; for any other
              that depends on the state it is 1/2
    additive  the same where g does not depend on the state
    weak      order of |E p(Y_h) - E p(Y)| for polynomials p
    calculus  in which f and g are meant; additive noise is the same in both
    noises    kinds of ``SDE.noise``
    area      whether it needs H
    cost      evaluations of f in a step
    """

    name: str
    advance: Advance
    strong: float
    additive: float
    weak: float
    calculus: tuple[str, ...]
    noises: tuple[str, ...] = ("diagonal", "additive", "scalar", "general")
    area: bool = False
    cost: int = 1
    begin: Begin | None = None

    def refusal(self, term: SDE) -> str | None:
        """Why this method must not solve ``term``; None when it may."""
        if term.noise not in self.noises:
            return f"{self.name} is for {' or '.join(self.noises)} noise, not {term.noise}"
        if term.calculus not in self.calculus and term.noise != "additive":
            other = "as_ito" if term.calculus == "stratonovich" else "as_stratonovich"
            return (
                f"{self.name} solves {self.calculus[0]} equations, and this one is meant in the sense of "
                f"{term.calculus}: convert it by {other}(term), or use another method"
            )
        return None


def euler_maruyama(term: SDE, over: Stretch, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """y' = y + f h + g W (Maruyama 1955)."""
    f, g = fields(term, over.t, y)
    return moved(term, y, f, g, over), carry


def milstein(term: SDE, over: Stretch, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """y' = y + f h + g W + g g' (W^2 - h) / 2, and W^2 alone for Stratonovich (Milstein 1974).

    Exact to its order where g_i depends on y_i alone, or for scalar noise; ``begin`` looks whether it does.
    """
    f, (g, bend) = drift(term, over.t, y), own_slope(term, over.t, y)
    square = over.w * over.w
    square = square - over.h if term.calculus == "ito" else square
    return moved(term, y, f, g, over) + (0.5 * bend) * square, carry


def stochastic_heun(term: SDE, over: Stretch, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """y' = y + (f + f~) h / 2 + (g + g~) W / 2, f~ and g~ at y~ = y + f h + g W and t + h (Ruemelin 1982)."""
    f, g = fields(term, over.t, y)
    ahead_f, ahead_g = fields(term, over.later, moved(term, y, f, g, over))
    return moved(term, y, 0.5 * (f + ahead_f), 0.5 * (g + ahead_g), over), carry


def begin_reversible(term: SDE, t: Tensor, y: Tensor) -> Carry:
    """y^ = y, and f, g there."""
    return (y, *fields(term, t, y))


def reversible_heun(term: SDE, over: Stretch, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """y^' = 2 y - y^ + f h + g W, y' = y + (f + f') h / 2 + (g + g') W / 2, with f, g at y^ and f', g' at y^'
    (Kidger et al. 2021); ``undone`` gives y and y^ back."""
    hat, f, g = carry
    hat = moved(term, 2 * y - hat, f, g, over)
    ahead_f, ahead_g = fields(term, over.later, hat)
    y = moved(term, y, 0.5 * (f + ahead_f), 0.5 * (g + ahead_g), over)
    return y, (hat, ahead_f, ahead_g)


def sra1(term: SDE, over: Stretch, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """SRA1 for additive noise, with I = h (W / 2 + H): y' = y + (f + 2 f~) h / 3 + g' (W - I / h) + g I / h,
    f~ at y + 3/4 f h + 3/2 g' I / h and t + 3/4 h, g' at t + h (Roessler 2010, table 1)."""
    assert over.area is not None
    f, g = fields(term, over.t, y)
    later = diffusion(term, over.later, y)
    mean = 0.5 * over.w + over.area
    stage = y + 0.75 * (f * over.h) + 1.5 * (later * mean)
    ahead = drift(term, over.t + 0.75 * (over.later - over.t), stage)
    return y + (f / 3 + ahead * (2 / 3)) * over.h + later * (over.w - mean) + g * mean, carry


def begin_milstein(term: SDE, t: Tensor, y: Tensor) -> Carry:
    """Nothing; raises as ``check_slope``."""
    check_slope(term, t, y)
    return ()


EVERY = ("diagonal", "additive", "scalar")
BOTH = ("ito", "stratonovich")
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("euler_maruyama", euler_maruyama, 0.5, 1.0, 1.0, ("ito",)),
            Scheme("milstein", milstein, 1.0, 1.0, 1.0, BOTH, EVERY, begin=begin_milstein),
            Scheme("stochastic_heun", stochastic_heun, 1.0, 1.0, 1.0, ("stratonovich",), cost=2),
            Scheme(
                "reversible_heun", reversible_heun, 1.0, 1.0, 1.0, ("stratonovich",), begin=begin_reversible
            ),
            Scheme("sra1", sra1, 1.5, 1.5, 2.0, BOTH, ("additive",), area=True, cost=2),
        )
    }
)


def drift(term: SDE, t: Tensor, y: Tensor) -> Tensor:
    """f(t, y) ``[row, *state]``. Raises ValueError when it has another shape."""
    value = term.drift(t, y, *term.args)
    if value.shape != y.shape:
        raise ValueError(f"the drift gives {list(value.shape)} for a state {list(y.shape)}")
    return like_state("drift", value, y)


def diffusion(term: SDE, t: Tensor, y: Tensor) -> Tensor:
    """g(t, y), ``[row, *state]`` or, for general noise, ``[row, d, m]``. Raises ValueError when it is not."""
    value = term.diffusion(t, y, *term.args)
    right = value.shape[:-1] == y.shape if term.noise == "general" else value.shape == y.shape
    if not right or (term.noise == "general" and y.dim() != 2):
        wanted = "[row, d, m] for a state [row, d]" if term.noise == "general" else "the state's shape"
        raise ValueError(
            f"the diffusion gives {list(value.shape)} for a state {list(y.shape)}; {term.noise} noise needs "
            f"{wanted}"
        )
    return like_state("diffusion", value, y)


def fields(term: SDE, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """f and g."""
    return drift(term, t, y), diffusion(term, t, y)


def moved(term: SDE, y: Tensor, f: Tensor, g: Tensor, over: Stretch) -> Tensor:
    """y + f h + g W, added in that order; in two new tensors, where the memory for a third costs as much."""
    return (f * over.h).add_(y).add_(excited(term, g, over.w))


def excited(term: SDE, g: Tensor, w: Tensor) -> Tensor:
    """g W ``[row, *state]``; the motions of general noise are added one after another."""
    if term.noise != "general":
        return g * w
    total = g[..., 0] * w[:, :1]
    for j in range(1, g.shape[-1]):
        total = total + g[..., j] * w[:, j : j + 1]
    return total


def own_slope(term: SDE, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """g, and what Ito's correction is made of, both ``[row, *state]``: g_i dg_i/dy_i for diagonal noise,
    (dg/dy) g for scalar, zero for additive. Differentiable when the caller records a graph.

    Raises RuntimeError for diagonal noise in ``torch.inference_mode``.
    """
    if term.noise == "additive":
        g = diffusion(term, t, y)
        return g, torch.zeros_like(g)
    if term.noise == "scalar":
        g = diffusion(term, t, y)
        return g, _along(term, t, y, g)
    check_recordable("the diffusion")
    g = diffusion(term, t, y)
    # A graph only where one was there: through the state, or through what the diffusion closes over.
    recording = torch.is_grad_enabled() and g.requires_grad
    with torch.enable_grad():
        leaf = y if recording and y.requires_grad else y.detach().requires_grad_()
        value = g if leaf is y else diffusion(term, t, leaf)
        slope = _pulled(value, leaf, torch.ones_like(value), recording)
    return g, g * slope


def check_slope(term: SDE, t: Tensor, y: Tensor) -> None:
    """Raises ValueError where Ito's correction would be wrong at these states: the diffusion hides from torch
    that it depends on them, or the noise is called diagonal and g_i depends on other components than y_i."""
    if term.noise == "additive" or not len(y) or torch.is_inference_mode_enabled():
        return
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        g = diffusion(term, t, leaf)
        seen = None
        if g.requires_grad:
            (seen,) = torch.autograd.grad(g.sum(), leaf, retain_graph=True, allow_unused=True)
    if seen is None:
        _check_constant(term, t, y, g.detach())
    elif term.noise == "diagonal":
        _check_own(leaf, g)


def _check_constant(term: SDE, t: Tensor, y: Tensor, g: Tensor) -> None:
    with torch.no_grad():
        moved = diffusion(term, t, y * (1 + 1e-3) + 1e-3)
    if bool((moved != g)[moved.isfinite() & g.isfinite()].any()):
        raise ValueError(
            "the diffusion depends on its state but keeps no graph of it (no_grad, detach or numpy in it?): "
            "let it record one, or use a method that does not differentiate it"
        )


def _check_own(y: Tensor, g: Tensor) -> None:
    """Of ``g``, found at ``y``."""
    with torch.enable_grad():
        generator = torch.Generator().manual_seed(0)
        weight = 1 + torch.rand(y[:1].shape, generator=generator, dtype=torch.float64).to(y).expand_as(y)
        plain, tilted = (_pulled(g, y, each, True) for each in (torch.ones_like(g), weight))
    off = (tilted - weight * plain).abs()
    sound = off.isfinite() & (off > 1e-4 * plain.abs().amax().nan_to_num(1.0, 1.0).clamp(min=1e-6))
    if bool(sound.any()):
        raise ValueError(
            "a component of this diffusion depends on other components of the state: the correction for "
            'diagonal noise would be wrong; use euler_maruyama, or state the equation with noise="general"'
        )


def _pulled(value: Tensor, leaf: Tensor, cotangent: Tensor, recording: bool) -> Tensor:
    """cotangent . d value / d leaf, zero where it does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (slope,) = torch.autograd.grad(
        value, leaf, cotangent, create_graph=recording, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(leaf) if slope is None else slope


def _along(term: SDE, t: Tensor, y: Tensor, direction: Tensor, column: int | None = None) -> Tensor:
    """(dg/dy) direction, of one column of g for general noise."""

    def g(state: Tensor) -> Tensor:
        value = diffusion(term, t, state)
        return value if column is None else value[..., column]

    tangent: Tensor = torch.func.jvp(g, (y,), (direction,))[1]
    return tangent


def correction(term: SDE, t: Tensor, y: Tensor) -> Tensor:
    """(1/2) sum over j of (dg_j/dy) g_j ``[row, *state]``: Ito's drift less Stratonovich's."""
    if term.noise != "general":
        return 0.5 * own_slope(term, t, y)[1]
    g = diffusion(term, t, y)
    total = torch.zeros_like(y)
    for j in range(g.shape[-1]):
        total = total + _along(term, t, y, g[..., j], j)
    return 0.5 * total


class Corrected:
    """The drift of ``term`` in the other calculus. Its first call raises as ``check_slope``."""

    def __init__(self, term: SDE) -> None:
        self.term = term
        self.sign = 1.0 if term.calculus == "stratonovich" else -1.0
        self.sure = False

    def __call__(self, t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
        term = replace(self.term, args=args)
        if not self.sure and len(y):
            check_slope(term, t, y)
            self.sure = True
        return drift(term, t, y) + self.sign * correction(term, t, y)


def as_ito(term: SDE) -> SDE:
    """The same process as an Ito equation."""
    if term.calculus == "ito":
        return term
    return replace(term, drift=term.drift if term.noise == "additive" else Corrected(term), calculus="ito")


def as_stratonovich(term: SDE) -> SDE:
    """The same process as a Stratonovich equation."""
    if term.calculus == "stratonovich":
        return term
    changed = term.drift if term.noise == "additive" else Corrected(term)
    return replace(term, drift=changed, calculus="stratonovich")
