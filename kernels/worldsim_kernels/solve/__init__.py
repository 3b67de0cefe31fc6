"""Solvers of differential equations that are right for every row of a batch.

``solve(term, y0, t0, t1, *, stepper, controller, save, events, gradient)``: the right-hand side, the method,
the choice of steps, what is kept and how gradients are had are separate small objects. ``odeint`` is
torchdiffeq's surface over it.
"""

from worldsim_kernels.solve.adjoint import ContinuousAdjoint
from worldsim_kernels.solve.api import Save, solve
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.control import PID, Constant
from worldsim_kernels.solve.events import Event
from worldsim_kernels.solve.gradients import Replay, Reversible, ThroughSteps
from worldsim_kernels.solve.odeint import odeint, odeint_adjoint, odeint_dense, odeint_event
from worldsim_kernels.solve.solution import ADVICE, EventLog, Solution, SolveFailed, Stats, Status, Steps
from worldsim_kernels.solve.stepper import Properties, Step, Stepper
from worldsim_kernels.solve.steppers import stepper_of
from worldsim_kernels.solve.terms import ODE, SDE, Hamiltonian, Separable

__all__ = [
    "ADVICE",
    "ODE",
    "PID",
    "SDE",
    "Brownian",
    "Constant",
    "ContinuousAdjoint",
    "Event",
    "EventLog",
    "Hamiltonian",
    "Properties",
    "Replay",
    "Reversible",
    "Save",
    "Separable",
    "Solution",
    "SolveFailed",
    "Stats",
    "Status",
    "Step",
    "Stepper",
    "Steps",
    "ThroughSteps",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "solve",
    "stepper_of",
]
