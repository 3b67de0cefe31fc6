"""Solvers of stochastic differential equations, in steps of constant length.

The dynamics have ``drift(t, x, u)`` and ``diffusion(t, x, u)``, both of the shape of the state, and say with
the attribute ``calculus`` ("ito" when absent, or "stratonovich") how the equation is meant, and with
``noise`` ("diagonal" when absent, "additive", "scalar" or "general") how many Brownian motions there are.
Without a diffusion the noise is zero, and what is left is the deterministic method.

One number of the generator is the seed of all Brownian motions of a call, and a trajectory's place in the
batch says which are its own (see ``worldsim_kernels.solve.brownian``): draws of one start are rows of their
own. A trajectory that is not finite is NaN from there on, and no other one notices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_kernels.solve import SDE, Constant, Save
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.gradients import Reversible
from worldsim_kernels.solve.grid import substeps
from worldsim_kernels.solve.sde import SCHEMES, as_ito, as_stratonovich, diffusion
from worldsim_kernels.solve.sde_solve import solve_sde

Longest = Annotated[
    float | None,
    Field(gt=0, description="longest step, in the units of time; null for one step between saved times"),
]
Convert = Annotated[
    bool,
    Field(
        description="solve an equation that is meant in the other calculus, after converting its drift; "
        "false refuses it"
    ),
]
Backend = Annotated[
    Literal["torch", "native"],
    Field(
        description="what runs the steps: torch; native, for many trajectories of few operations wherever no "
        "gradient is recorded: drift and diffusion traced and printed as C"
    ),
]


class Stochastic:
    """One scheme."""

    symplectic = False

    def __init__(
        self, name: str, step: float | None, convert: bool, backend: str, adjoint: bool = False
    ) -> None:
        self.scheme = SCHEMES[name]
        self.order = int(self.scheme.weak)
        self.step, self.convert, self.adjoint, self.backend = step, convert, adjoint, backend

    def solve(
        self,
        dynamics: Dynamics,
        state: Tensor,
        times: Tensor,
        actions: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """``[trajectory, time, *state]`` from ``state`` ``[trajectory, *state]`` at ``times[0]``.

        The dynamics are asked with ``t`` ``[row]``; ``actions[:, i]`` holds from ``times[i]`` to
        ``times[i + 1]``. The seed is drawn from ``generator``, None for torch's default one.
        Raises ValueError for an equation in the other calculus (unless ``convert``) or with noise that the
        scheme is not for, and for times that do not rise.
        """
        if any(step < 0 for step, _ in substeps(times)):
            raise ValueError(f"{self.scheme.name}: times must rise, a stochastic equation has a direction")
        if len(times) == 1:
            return state.unsqueeze(1)
        term = self._term(dynamics, actions)
        noise = self._noise(dynamics, term, state, times, actions, generator)
        if actions is None:
            return self._solve(term, state, times, noise[0])
        frames = [state]
        for i in range(len(times) - 1):
            part = SDE(term.drift, term.diffusion, (actions[:, i],), term.noise, term.calculus)
            frames.append(self._solve(part, frames[-1], times[i : i + 2], noise[i])[:, 1])
        return torch.stack(frames, 1)

    def _term(self, dynamics: Any, actions: Tensor | None) -> SDE:
        noisy = getattr(dynamics, "diffusion", None)
        kind = getattr(dynamics, "noise", "diagonal") if noisy is not None else "additive"

        def drift(t: Tensor, x: Tensor, *u: Tensor) -> Tensor:
            return dynamics.drift(t, x, u[0] if u else None)

        def spread(t: Tensor, x: Tensor, *u: Tensor) -> Tensor:
            return torch.zeros_like(x) if noisy is None else noisy(t, x, u[0] if u else None)

        given = () if actions is None else (actions[:, 0],)
        term = SDE(drift, spread, given, kind, getattr(dynamics, "calculus", "ito"))
        if self.convert and self.scheme.refusal(term) is not None:
            term = as_stratonovich(term) if self.scheme.calculus == ("stratonovich",) else as_ito(term)
        refusal = self.scheme.refusal(term)
        if refusal is not None:
            hint = " (the key convert: true does that)" if term.calculus not in self.scheme.calculus else ""
            raise ValueError(f"{type(dynamics).__name__}: {refusal}{hint}")
        return term

    def _noise(
        self,
        dynamics: Any,
        term: SDE,
        state: Tensor,
        times: Tensor,
        actions: Tensor | None,
        generator: torch.Generator | None,
    ) -> list[Brownian]:
        """One motion for the whole solve, or for each interval of an action."""
        count = 1 if actions is None else len(times) - 1
        if getattr(dynamics, "diffusion", None) is None:
            seeds = [0] * count  # nothing is drawn for a noise of zero
        else:
            seeds = torch.randint(2**63 - 1, (count,), generator=generator).tolist()
        motions = 1 if term.noise == "scalar" else math.prod(state.shape[1:])
        if term.noise == "general":
            t = times[0].to(state).expand(len(state))
            motions = diffusion(term, t, state).shape[-1]
        rows = torch.arange(len(state), device=state.device)
        return [Brownian(seed, rows, motions) for seed in seeds]

    def _solve(self, term: SDE, state: Tensor, times: Tensor, noise: Brownian) -> Tensor:
        recorded = torch.is_grad_enabled()
        longest = float(times.double().diff().abs().max()) if self.step is None else self.step
        solution = solve_sde(
            term,
            state,
            times[0],
            times[-1],
            stepper=self.scheme,
            controller=Constant(longest),
            noise=noise,
            save=Save(times),
            gradient=Reversible() if self.adjoint and recorded else None,
            backend="torch" if recorded else self.backend,
            max_steps=10_000_000,
        )
        assert solution.saved is not None
        return solution.saved


def euler_maruyama(*, step: Longest = None, convert: Convert = False, backend: Backend = "torch") -> Solver:
    """Euler-Maruyama, for Ito equations: strong order 1/2 (1 for additive noise), weak order 1."""
    return Stochastic("euler_maruyama", step, convert, backend)


def milstein(*, step: Longest = None, convert: Convert = False, backend: Backend = "torch") -> Solver:
    """Milstein 1974, either calculus: strong order 1 for diagonal noise whose components each depend on their
    own component of the state alone, and for scalar noise."""
    return Stochastic("milstein", step, convert, backend)


def stochastic_heun(*, step: Longest = None, convert: Convert = False, backend: Backend = "torch") -> Solver:
    """Heun's method for Stratonovich equations (Ruemelin 1982): strong order 1 as Milstein's, with no
    derivatives; 1/2 for other noise."""
    return Stochastic("stochastic_heun", step, convert, backend)


def reversible_heun(
    *,
    step: Longest = None,
    convert: Convert = False,
    backend: Backend = "torch",
    adjoint: Annotated[
        bool, Field(description="gradients by going the steps back, with memory for the end alone")
    ] = True,
) -> Solver:
    """Kidger et al. 2021, for Stratonovich equations: one evaluation a step, and exact gradients whose memory
    does not grow with the number of steps."""
    return Stochastic("reversible_heun", step, convert, backend, adjoint)


def sra1(*, step: Longest = None, backend: Backend = "torch") -> Solver:
    """Roessler 2010, for noise that does not depend on the state: strong order 3/2, weak order 2."""
    return Stochastic("sra1", step, False, backend)


@hookimpl
def worldsim_solvers() -> dict[str, Callable[..., Solver]]:
    return {
        "euler_maruyama": euler_maruyama,
        "milstein": milstein,
        "stochastic_heun": stochastic_heun,
        "reversible_heun": reversible_heun,
        "sra1": sra1,
    }
