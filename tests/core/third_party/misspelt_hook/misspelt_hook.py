"""Broken: the hook is called worldsim_systems."""

from worldsim import hookimpl


@hookimpl
def worldsim_system():
    return {}
