"""Find plugins, load them in isolation, and look components up by name.

pluggy's own entry-point loader lets one broken import end the program, and a second entry point of the
same name replace the first without a word. This one sorts, imports each in a ``try``, and keeps what
broke with its reason, so that a message about a missing name can say so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from worldsim import hookspecs
from worldsim.errors import ComponentNotFound, PluginError, did_you_mean

HOOKS = {
    "system": "worldsim_systems",
    "dynamics": "worldsim_dynamics",
    "generator": "worldsim_generators",
    "constraint": "worldsim_constraints",
    "metric": "worldsim_metrics",
    "solver": "worldsim_solvers",
    "backbone": "worldsim_backbones",
}
"""Noun -> the hook that gives it."""

NOUNS = {**{noun: (noun,) for noun in HOOKS}, "model": ("dynamics", "generator")}
"""What a name may be looked up as; a model is a dynamics or a generator."""


@dataclass(frozen=True)
class Provider:
    """A plugin: where a component comes from."""

    name: str
    distribution: str
    version: str
    module: str
    file: str = ""
    cache_version: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Broken:
    """A plugin, or one hook of it, that does not work; the rest does."""

    provider: Provider
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.provider}: {self.reason}"


@dataclass
class Registry:
    """What the loaded plugins provide."""

    providers: list[Provider] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    only: str | None = None
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("worldsim"))
    shelf: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Built components that let themselves be used again, from case to case of one process."""

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)

    def add(self, provider: Provider, load: Callable[[], ModuleType]) -> None:
        """Import and register one plugin; whatever goes wrong is kept, not raised."""
        try:
            module = load()
            self._register(module, str(provider))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit at import
            self.broken.append(Broken(provider, _reason(error), traceback.format_exc()))
            return
        self.providers.append(
            Provider(
                provider.name,
                provider.distribution,
                provider.version,
                module.__name__,
                getattr(module, "__file__", "") or "",
                str(getattr(module, "cache_version", "")) + _source_hash(provider, module),
            )
        )

    def _register(self, module: ModuleType, name: str) -> None:
        """All of a module's hooks, or none of them; another plugin of the same name stays as it is."""
        if self.manager.has_plugin(name):
            raise PluginError("a plugin of the same name is loaded already; rename one of them")
        try:
            self.manager.register(module, name=name)
            self.manager.check_pending()
        except BaseException:
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            raise

    @cached_property
    def tables(self) -> dict[str, dict[str, list[tuple[Callable[..., Any], Provider]]]]:
        """Noun -> component name -> every (builder, provider) that offers it."""
        found: dict[str, dict[str, list[tuple[Callable[..., Any], Provider]]]] = {}
        for noun, hook in HOOKS.items():
            table = found.setdefault(noun, {})
            for provider, given in self._ask(hook):
                for name, builder in self._checked(provider, hook, given).items():
                    table.setdefault(name, []).append((builder, provider))
        return found

    def _ask(self, hook: str) -> list[tuple[Provider, Any]]:
        answers = []
        by_name = {str(provider): provider for provider in self.providers}
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            provider = by_name[implementation.plugin_name]
            try:
                answers.append((provider, implementation.function()))
            except Exception as error:
                self.broken.append(
                    Broken(provider, f"{hook} raised {_reason(error)}", traceback.format_exc())
                )
        return answers

    def _checked(self, provider: Provider, hook: str, given: Any) -> Mapping[str, Callable[..., Any]]:
        if not isinstance(given, Mapping):
            reason = f"{hook} must return a mapping of names to builders, it returned {type(given).__name__}"
            self.broken.append(Broken(provider, reason))
            return {}
        good = {}
        for name, builder in given.items():
            if not isinstance(name, str) or not callable(builder):
                reason = f"{hook}: {name!r} -> {builder!r} is not a name and a builder (a class or function)"
                self.broken.append(Broken(provider, reason))
            else:
                good[name] = builder
        return good

    @property
    def clashes(self) -> list[tuple[str, str, list[Provider]]]:
        """(noun, name, providers) for every name that more than one plugin offers."""
        return [
            (noun, name, [provider for _, provider in offers])
            for noun, table in self.tables.items()
            for name, offers in table.items()
            if len(offers) > 1
        ]

    def names(self, noun: str) -> list[str]:
        """Every component name of a noun, sorted."""
        return sorted({name for part in NOUNS[noun] for name in self.tables[part]})

    def find(self, noun: str, name: str) -> tuple[str, Callable[..., Any], Provider]:
        """(noun, builder, provider) of ``name``, ``plugin/name`` or ``distribution:plugin/name``.

        Raises ComponentNotFound when no plugin, or more than one, answers to the name.
        """
        plugin, _, bare = name.rpartition("/")
        offers = [
            (part, builder, provider)
            for part in NOUNS[noun]
            for builder, provider in self.tables[part].get(bare, [])
            if plugin in ("", provider.name, f"{provider.distribution}:{provider.name}")
        ]
        if not offers:
            raise ComponentNotFound(f"there is no {noun} {name!r}; {self.why_missing(noun, name)}")
        if len(offers) > 1:
            full = [f"{p.name}/{bare}" for _, _, p in offers]
            if len(set(full)) < len(full):
                full = [f"{p.distribution}:{p.name}/{bare}" for _, _, p in offers]
            owners = " and ".join(str(provider) for _, _, provider in offers)
            raise ComponentNotFound(
                f"{noun} {name!r} is provided by {owners}; write {' or '.join(map(repr, full))}"
            )
        return offers[0]

    def builder(self, noun: str, name: str) -> Callable[..., Any]:
        return self.find(noun, name)[1]

    def provider(self, noun: str, name: str) -> Provider:
        return self.find(noun, name)[2]

    def why_missing(self, noun: str, name: str) -> str:
        """Near names, and the plugins that failed to load and might have had it."""
        hint = did_you_mean(name.rpartition("/")[2], self.names(noun))
        if self.only is not None:
            hint += f"; WORLDSIM_PLUGINS={self.only} leaves out the other plugins"
        if self.broken:
            hint += "; plugins that failed to load: " + "; ".join(map(str, self.broken))
        return hint

    def scenario_folders(self) -> dict[str, Path]:
        """Suite name -> folder, over every plugin that brings scenarios."""
        return dict(self._folders)

    @cached_property
    def _folders(self) -> dict[str, Path]:
        folders: dict[str, Path] = {}
        for provider, given in self._ask("worldsim_scenarios"):
            if not isinstance(given, str | os.PathLike) or not Path(given).is_dir():
                reason = f"worldsim_scenarios must return a folder that is there, it returned {given!r}"
                self.broken.append(Broken(provider, reason))
                continue
            for folder in sorted(path for path in Path(given).iterdir() if path.is_dir()):
                folders.setdefault(folder.name, folder)
        return folders

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call an observer hook; an observer that raises is warned about and harms nothing."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                warnings.warn(f"{implementation.plugin_name}: {hook} raised {_reason(error)}", stacklevel=2)


def _reason(error: BaseException) -> str:
    if isinstance(error, pluggy.PluginValidationError) and "unknown hook" in str(error):
        word = str(error).split("'")[1]
        known = [name for name in vars(hookspecs) if name.startswith("worldsim_")]
        return f"unknown hook {word!r}; {did_you_mean(word, known)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _source_hash(provider: Provider, module: ModuleType) -> str:
    """Hash of the sources of an editable or unpackaged plugin, whose version does not move with its code."""
    file = getattr(module, "__file__", None)
    if file is None or not (provider.distribution == "file" or _editable(provider.distribution)):
        return ""
    if provider.distribution == "file":
        return _digest((Path(file),))
    return _folder_digest(
        Path(getattr(sys.modules[module.__name__.partition(".")[0]], "__file__", file)).parent
    )


@cache
def _editable(distribution: str) -> bool:
    from importlib.metadata import distribution as find

    try:
        url = json.loads(find(distribution).read_text("direct_url.json") or "{}")
    except (ModuleNotFoundError, ValueError):
        return False
    return bool(url.get("dir_info", {}).get("editable", False))


@cache
def _folder_digest(folder: Path) -> str:
    return _digest(tuple(sorted(folder.rglob("*.py"))))


def _digest(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return "+" + digest.hexdigest()[:12]


def _entry_point_provider(point: EntryPoint) -> Provider:
    distribution = point.dist.name if point.dist else "unknown"
    version = point.dist.version if point.dist else "0"
    return Provider(point.name, distribution, version, point.value)


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise PluginError(f"{file} is not a file")
    name = f"worldsim_file_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _allowed(name: str, setting: str | None) -> bool:
    return setting is None or name in {word.strip() for word in setting.split(",")}


@cache
def load_plugins(files: tuple[Path, ...] = (), only: str | None = None) -> Registry:
    """The registry of this process: every entry point of the group, then ``files``; loaded once.

    ``only`` is the value of ``WORLDSIM_PLUGINS``: None for all, "none", or names with commas between.
    """
    registry = Registry(only=only)
    points = entry_points(group=hookspecs.ENTRY_POINT_GROUP)
    for point in sorted(points, key=lambda p: (p.name, p.dist.name if p.dist else "")):
        if _allowed(point.name, only):
            registry.add(_entry_point_provider(point), point.load)
    for file in files:
        provider = Provider(file.stem, "file", "0", str(file), str(file))
        registry.add(provider, lambda file=file: _import_file(file))  # type: ignore[misc]
    return registry


def registry(files: tuple[Path, ...] = ()) -> Registry:
    """The plugins of this process, as ``WORLDSIM_PLUGINS`` restricts them."""
    found = tuple(dict.fromkeys(Path(file).resolve() for file in files))
    return load_plugins(found, os.environ.get("WORLDSIM_PLUGINS"))
