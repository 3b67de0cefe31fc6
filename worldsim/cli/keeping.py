"""``verify``, ``compact`` and ``export``: what is kept is whole, in one piece, and for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from worldsim.cli.terminal import fail, opened, plugin_files, plural, results_folder


@click.command()
@results_folder
@click.option("--delete", is_flag=True, help="Move damaged files aside, into RESULTS/damaged.")
def verify(results: Path, delete: bool) -> None:
    """Read every kept file, and name those that are damaged or not what their name says.

    With --delete they are moved aside, and run computes them again.
    """
    from worldsim.cli import SOME_FAILED
    from worldsim.verifying import move_aside
    from worldsim.verifying import verify as look

    found = look(results)
    for damage in found.damaged:
        click.echo(f"damaged: {damage.path}: {damage.reason}")
    said = f"{plural(len(found.damaged), 'damaged file')} of {found.files}"
    if found.unsealed:
        said += f"; {found.unsealed} of earlier versions have no checksum of their own"
    if found.parts:
        said += f"; {plural(len(found.parts), 'unfinished write')}, which the next run deletes"
    click.echo(said)
    if not found.damaged:
        return
    if not delete:
        fail("with --delete they are moved aside, and run computes them again", SOME_FAILED)
    for path in move_aside(results, found.damaged):
        click.echo(f"moved to {path}")
    click.echo("run the scenarios again to compute what is missing now")


@click.command()
@results_folder
def compact(results: Path) -> None:
    """Write all rollouts and scores into one Zarr store, RESULTS/dataset.zarr, that opens at once.

    The files stay the truth. Where nothing has changed since the last time, nothing is done.
    """
    from worldsim.compacting import compact as write

    path, written = write(opened(results))
    click.echo(f"{path}: " + ("written" if written else "nothing to do, it holds all that is kept"))


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["netcdf", "zarr", "well", "minari"]),
    help="The format.",
)
@click.option(
    "--scenario", "scenarios", multiple=True, metavar="NAME", help="Only this scenario; repeatable."
)
@plugin_files
def export(
    results: Path, out: Path, form: str, scenarios: tuple[str, ...], plugins: tuple[Path, ...]
) -> None:
    """Write results for other programs: netCDF-4, Zarr, The Well's HDF5, or a Minari dataset.

    The first two hold everything; The Well takes fields on a grid, and Minari systems with actions.
    """
    from worldsim.export import write

    for path in write(opened(results), form, out, scenarios, plugins):
        click.echo(f"written: {path}")
