"""Every stepper by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType

from worldsim_kernels.solve.stepper import Stepper

HOME: Mapping[str, str] = MappingProxyType(
    {
        "euler": "explicit:ExplicitRungeKutta",
        "midpoint": "explicit:ExplicitRungeKutta",
        "heun": "explicit:ExplicitRungeKutta",
        "fehlberg2": "explicit:ExplicitRungeKutta",
        "ralston": "explicit:ExplicitRungeKutta",
        "heun3": "explicit:ExplicitRungeKutta",
        "bosh3": "explicit:ExplicitRungeKutta",
        "rk4": "explicit:ExplicitRungeKutta",
        "three_eighths": "explicit:ExplicitRungeKutta",
        "dopri5": "explicit:ExplicitRungeKutta",
        "tsit5": "explicit:ExplicitRungeKutta",
        "dopri8": "explicit:ExplicitRungeKutta",
        "symplectic_euler": "splitting:Splitting",
        "leapfrog": "splitting:Splitting",
        "yoshida4": "splitting:Splitting",
        "yoshida6": "splitting:Splitting",
        "yoshida8": "splitting:Splitting",
        "implicit_midpoint": "gauss:GaussLegendre",
        "gauss4": "gauss:GaussLegendre",
        "gauss6": "implicit:ImplicitRungeKutta",
        "implicit_euler": "implicit:ImplicitRungeKutta",
        "trapezoid": "implicit:ImplicitRungeKutta",
        "sdirk2": "implicit:ImplicitRungeKutta",
        "trbdf2": "implicit:ImplicitRungeKutta",
        "radau3": "implicit:ImplicitRungeKutta",
        "radau5": "implicit:ImplicitRungeKutta",
        "discrete_gradient": "discrete_gradient:DiscreteGradient",
        "tao": "extended:Tao",
        "adaptive_leapfrog": "time_transformed:TimeTransformedLeapfrog",
        "rosenbrock23": "rosenbrock:Rosenbrock",
        "rodas5p": "rosenbrock:Rosenbrock",
        "kvaerno5": "kvaerno:Kvaerno5",
        "auto": "switching:Switching",
    }
)
"""Name -> module and class or function, which is called with the name."""


def stepper_of(name: str) -> Stepper:
    """A new stepper. Raises ValueError for an unknown name."""
    if name not in HOME:
        raise ValueError(f"there is no stepper {name!r}; there are {', '.join(sorted(HOME))}")
    module, maker = HOME[name].split(":")
    make: Callable[[str], Stepper] = getattr(import_module(f"worldsim_kernels.solve.{module}"), maker)
    return make(name)
