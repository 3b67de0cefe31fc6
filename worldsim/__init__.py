"""worldsim: find out whether a learned model understands a physical world or merely fits it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("worldsim")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from worldsim.batch import run as run
    from worldsim.comparing import compare as compare
    from worldsim.errors import NotMeasurable as NotMeasurable
    from worldsim.errors import WorldsimError as WorldsimError
    from worldsim.hookspecs import hookimpl as hookimpl
    from worldsim.protocols import Score as Score
    from worldsim.protocols import Trajectory as Trajectory
    from worldsim.reading import load as load
    from worldsim.reading import load_all as load_all
    from worldsim.rescoring import rescore as rescore
    from worldsim.results import load_model as load_model
    from worldsim.results import open_results as open_results
    from worldsim.scenario import Case as Case
    from worldsim.scenario import Scenario as Scenario

# Public name -> module. Resolved on first use, so that `import worldsim` and `worldsim --help` import
# neither torch, xarray, scipy nor pydantic.
_PUBLIC = {
    "compare": "comparing",
    "NotMeasurable": "errors",
    "WorldsimError": "errors",
    "hookimpl": "hookspecs",
    "Score": "protocols",
    "Trajectory": "protocols",
    "rescore": "rescoring",
    "load_model": "results",
    "open_results": "results",
    "run": "batch",
    "Case": "scenario",
    "Scenario": "scenario",
    "load": "reading",
    "load_all": "reading",
}
__all__ = ["__version__", *_PUBLIC]


class _Package(ModuleType):
    """Keeps ``worldsim.run`` the function: importing the module ``worldsim.run`` would put itself there."""

    @property
    def run(self) -> Any:
        return __getattr__("run")

    @run.setter
    def run(self, module: ModuleType) -> None:
        """The module stays reachable by import statements, which look in ``sys.modules``."""


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"worldsim.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'worldsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
