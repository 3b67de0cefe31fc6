"""Broken: a hook returns a mapping."""

from worldsim import hookimpl


@hookimpl
def worldsim_metrics():
    return ["accuracy"]
