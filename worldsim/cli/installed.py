"""``plugins``, ``schema`` and ``doctor``: what is installed here, and whether it works."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worldsim.cli.terminal import console, fail, out_folder, plugin_files, plural

if TYPE_CHECKING:
    from worldsim.plugins import Registry

EXTRAS = {
    "report": ("jinja2", "plotly"),
    "mujoco": ("mujoco",),
    "topology": ("gudhi",),
    "data": ("sklearn",),
    "vision": ("cv2",),
    "export": ("h5netcdf", "h5py"),
    "docs": ("sphinx", "myst_parser", "furo"),
    "test": ("pytest", "hypothesis"),
    "lint": ("ruff", "mypy"),
}
"""Extra -> the modules it brings."""


def listing(plugins: Registry) -> dict[str, Any]:
    """What was found, as plain data."""
    components: dict[str, dict[str, list[str]]] = {}
    for noun, table in plugins.tables.items():
        for name, offers in table.items():
            for _, provider in offers:
                components.setdefault(str(provider), {}).setdefault(noun, []).append(name)
    folders = plugins.scenario_folders()
    return {
        "plugins": [
            {
                "name": provider.name,
                "distribution": provider.distribution,
                "version": provider.version,
                "module": provider.module,
                "file": provider.file,
                "components": components.get(str(provider), {}),
            }
            for provider in plugins.providers
        ],
        "suites": {name: str(folder) for name, folder in folders.items()},
        "broken": [
            {"plugin": str(b.provider), "reason": b.reason, "detail": b.detail} for b in plugins.broken
        ],
        "clashes": [
            {"noun": noun, "name": name, "plugins": list(map(str, offers))}
            for noun, name, offers in plugins.clashes
        ],
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the traceback of what broke.")
@click.option("--check", "name", metavar="NAME", help="Put one plugin through the conformance kit.")
@plugin_files
def plugins(as_json: bool, name: str | None, plugins: Sequence[Path]) -> None:
    """List what plugins provide, what broke and why."""
    from worldsim.plugins import registry

    found = registry(tuple(plugins))
    if name:
        check(found, name)
        return
    listed = listing(found)
    click.echo(json.dumps(listed, indent=1)) if as_json else print_listing(listed)


def print_listing(listed: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("plugin", "from", "provides")
    for plugin in listed["plugins"]:
        provides = "; ".join(f"{noun}: {', '.join(names)}" for noun, names in plugin["components"].items())
        table.add_row(plugin["name"], f"{plugin['distribution']} {plugin['version']}", provides or "–")
    console().print(table)
    if listed["suites"]:
        click.echo(f"suites: {', '.join(listed['suites'])}")
    for clash in listed["clashes"]:
        owners = " and ".join(clash["plugins"])
        name = clash["name"]
        click.echo(f"clash: {clash['noun']} {name!r} is provided by {owners}; write PLUGIN/{name}")
    for broken in listed["broken"]:
        click.echo(f"broken: {broken['plugin']}: {broken['reason']}")
    if listed["broken"]:
        click.echo("worldsim plugins --json gives the tracebacks")


def check(found: Registry, name: str) -> None:
    """Run the conformance kit on one plugin; exit 1 when a check fails."""
    from worldsim.cli import SOME_FAILED
    from worldsim.testing import run_checks

    try:
        count = run_checks(found, name)
    except AssertionError as error:
        fail(f"{name}: {error}", SOME_FAILED)
    else:
        click.echo(f"{name}: {plural(count, 'check')} passed")


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file.")
@plugin_files
def schema(output: Path | None, plugins: Sequence[Path]) -> None:
    """Print the JSON Schema of scenario files, for editors.

    It is made from the plugins that are installed (draft 7).
    """
    from worldsim.cli.terminal import known_plugins
    from worldsim.schema import scenario_schema
    from worldsim.store import write_text

    text = json.dumps(scenario_schema(known_plugins(plugins)), indent=1)
    if output is None:
        click.echo(text)
    else:
        write_text(output, text + "\n")
        click.echo(f"schema: {output}")


@click.command()
@out_folder
def doctor(out: Path) -> None:
    """Check versions, devices, plugins, extras and disk.

    Exit code 3 when something is wrong.
    """
    from worldsim.cli import ENVIRONMENT

    checks: dict[str, Callable[[], str]] = {
        "python": platform.python_version,
        "worldsim": lambda: version("worldsim"),
        "torch": _torch,
        "device": _device,
        "threads": _threads,
        "kernels": _kernels,
        "plugins": _plugins,
        "extras": _extras,
        "disk": lambda: _disk(out),
    }
    wrong = 0
    for name, look in checks.items():
        try:
            click.echo(f"{name:9} {look()}")
        except (click.ClickException, OSError, ImportError, PackageNotFoundError) as error:
            wrong += 1
            click.echo(f"{name:9} WRONG: {error}")
    if wrong:
        fail(f"{plural(wrong, 'thing')} to mend", ENVIRONMENT)


def _torch() -> str:
    import torch

    return str(torch.__version__)


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu (no CUDA device)"
    return ", ".join(["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))])


def _threads() -> str:
    from worldsim.cli.placing import cores

    limit = os.environ.get("OMP_NUM_THREADS")
    return plural(cores(), "core") + (f", OMP_NUM_THREADS={limit}" if limit else "")


def _kernels() -> str:
    """Which implementation of each kernel runs on this CPU, and why not a faster one."""
    from worldsim_kernels import native
    from worldsim_kernels.backends import KERNELS, backends_of, explain, missing_triton

    chosen: dict[str, list[str]] = {}
    for name in KERNELS:
        chosen.setdefault(explain(name).chosen, []).append(name)
    lines = [f"{backend}: {', '.join(names)}" for backend, names in chosen.items()]
    in_c = [each for each in map(backends_of, KERNELS) if each.source is not None]
    lines += sorted({f"not native: {why}" for each in in_c if (why := each.missing_native()) is not None})
    lines.append(f"compiler: {native.compiler() or 'none'}, libraries in {native.cache_folder()}")
    lines.append(f"triton: {missing_triton() or 'installed, for a GPU'}")
    return ("\n" + " " * 10).join(lines)


def _plugins() -> str:
    from worldsim.plugins import registry

    found = registry()
    listed = listing(found)
    if listed["broken"]:
        raise click.ClickException("; ".join(map(str, found.broken)))
    return f"{plural(len(found.providers), 'plugin')}, {plural(len(listed['clashes']), 'clash', 'clashes')}"


def _extras() -> str:
    have = {name: all(map(find_spec, modules)) for name, modules in EXTRAS.items()}
    return ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in have.items())


def _disk(out: Path) -> str:
    from shutil import disk_usage

    from worldsim.files import refuse_unwritable

    existed = out.is_dir()
    refuse_unwritable(out)
    free = disk_usage(out).free / 2**30
    if not existed:
        out.rmdir()
    return f"{out} is writable, {free:.0f} GiB free"
