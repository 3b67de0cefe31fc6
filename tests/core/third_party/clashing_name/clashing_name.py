"""Broken: the name is taken."""

from worldsim import hookimpl


class Pendulum:
    """Another pendulum."""


@hookimpl
def worldsim_systems():
    return {"pendulum": Pendulum}
