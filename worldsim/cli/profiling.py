"""``profile``: what sequence layers cost on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from worldsim.cli.terminal import console, plural

if TYPE_CHECKING:
    from worldsim.costs import Cost, Growth

LENGTHS = "1024,2048,4096,8192"


def whole_numbers(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    """``1024,2048`` as rising numbers."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of whole numbers, such as {LENGTHS}") from None
    if len(found) < 2 or found != sorted(set(found)) or found[0] < 1:
        raise click.BadParameter("give at least two lengths, rising from 1 or more")
    return found


@click.command()
@click.argument("layers", nargs=-1, metavar="[LAYER]...")
@click.option("--lengths", default=LENGTHS, show_default=True, callback=whole_numbers, help="Tokens.")
@click.option("--heads", default=4, show_default=True, type=click.IntRange(1), help="Heads of the layer.")
@click.option("--width", default=64, show_default=True, type=click.IntRange(16), help="Width of a head.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of torch.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the value at every length.")
def profile(
    layers: Sequence[str], lengths: list[int], heads: int, width: int, threads: int, as_json: bool
) -> None:
    """Measure what sequence layers cost, and how the cost grows with length.

    LAYER is the name of one of ours, or package.module:function for one of yours: a function of q, k and v,
    each [1, time, head, width], that returns an output or (output, state). Without names, all of ours.
    """
    import torch

    from worldsim import costs

    torch.set_num_threads(threads)
    found = costs.profile(layers or tuple(costs.LAYERS), lengths, heads, width)
    if as_json:
        click.echo(json.dumps([as_data(each) for each in found], indent=1))
        return
    where = f"{plural(heads, 'head')} of width {width}, float32, {plural(threads, 'thread')}"
    click.echo(f"one sequence of {lengths[0]} to {lengths[-1]} tokens, {where}; values at {lengths[-1]}")
    print_costs(found)


def as_data(cost: Cost) -> dict[str, Any]:
    """A cost as plain data; what could not be measured is null."""
    growths = {name: asdict(cost.growth(name)) for name in cost.values}
    data = {"layer": cost.layer, "lengths": cost.lengths, "values": cost.values, "growth": growths}
    whole: dict[str, Any] = json.loads(json.dumps(data), parse_constant=lambda _: None)
    return whole


def print_costs(found: Sequence[Cost]) -> None:
    from rich.table import Table

    table = Table(
        "layer", "GFLOP", "growth", "ms", "growth", "state kB", "growth", "kept for backward MB", "growth"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    scales = {"operations": 1e-9, "seconds": 1e3, "state_bytes": 1e-3, "kept_bytes": 1e-6}
    for cost in found:
        cells = [cost.layer]
        for measure, scale in scales.items():
            value = cost.values[measure][-1]
            known = value == value and value > 0
            cells += [figure(scale * value) if known else "–", shown(cost.growth(measure))]
        table.add_row(*cells)
    console().print(table)
    click.echo("growth: p of cost ~ length^p, with the half-width of its 95 % interval")


def figure(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shown(growth: Growth) -> str:
    if growth.exponent != growth.exponent:
        return "–"
    margin = "" if growth.margin != growth.margin else f" ± {growth.margin:.2f}"
    return f"{growth.exponent:.2f}{margin}"
