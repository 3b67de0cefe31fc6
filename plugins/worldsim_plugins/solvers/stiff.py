"""Adaptive implicit methods for stiff models: every trajectory has its own steps and its own Jacobian.

A model is stiff where a fast decay that has long died away still bounds the step of an explicit method. These
methods take steps as long as the solution itself allows, each at the price of the Jacobian of the drift, had
by automatic differentiation, and of linear equations in the size of the state: for states of up to a few
hundred numbers.

Saved times, actions, failures and tolerances are as with the explicit adaptive methods.
"""

from __future__ import annotations

from collections.abc import Callable

from worldsim import hookimpl
from worldsim.protocols import Solver
from worldsim_plugins.solvers.adaptive import (
    AbsoluteTolerance,
    Adaptive,
    Longest,
    MostSteps,
    RelativeTolerance,
)


def rosenbrock23(
    *,
    rtol: RelativeTolerance = 1e-8,
    atol: AbsoluteTolerance = 1e-8,
    step: Longest = None,
    max_steps: MostSteps = 100_000,
) -> Solver:
    """Shampine and Reichelt 1997, order 2, L-stable: for stiff models that are rough or only roughly known.
    Its error is that of many steps of order 2, hence the smaller tolerances."""
    return Adaptive("rosenbrock23", rtol, atol, step, max_steps)


def _builder(name: str, says: str) -> Callable[..., Solver]:
    def build(
        *,
        rtol: RelativeTolerance = 1e-6,
        atol: AbsoluteTolerance = 1e-6,
        step: Longest = None,
        max_steps: MostSteps = 100_000,
    ) -> Solver:
        return Adaptive(name, rtol, atol, step, max_steps)

    build.__name__, build.__doc__ = name, says
    return build


METHODS = {
    "rodas5p": "Steinebach 2023, order 5, L-stable: for stiff models, the first to try.",
    "kvaerno5": "Kvaerno 2004, order 5, L-stable, by Newton's method: for stiff models; longer steps than "
    "rodas5p, each of which costs more.",
    "auto": "Tsit5 where a trajectory is not stiff and Rodas5P where it is, decided for every trajectory and "
    "every step.",
}


@hookimpl
def worldsim_solvers() -> dict[str, Callable[..., Solver]]:
    others = {name: _builder(name, says) for name, says in METHODS.items()}
    return {"rosenbrock23": rosenbrock23, **others}
