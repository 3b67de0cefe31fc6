"""What systems that are stochastic differential equations share: paths that check their own error.

Stretch by stretch, a path is computed in steps of length h and h / 2 along one Brownian path; where the two
differ by more than is tolerated, h is halved, for that trajectory alone. The finer of the two is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim_kernels.solve import SDE, Constant
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.grid import substeps
from worldsim_kernels.solve.sde_solve import solve_sde
from worldsim_plugins.systems import integrated

FINEST = 16
"""Halvings of a stretch after which a path is given up."""


def path(
    term: SDE,
    scheme: str,
    start: Tensor,
    times: Tensor,
    generator: torch.Generator,
    *,
    stretch: float,
    longest: float,
    tolerance: float,
) -> Tensor:
    """``[trajectory, time, dim]`` from ``start`` ``[trajectory, dim]``, diagonal or additive noise.

    stretch    longest time from one comparison to the next; there is one at each frame
    longest    the first step that is tried
    tolerance  largest difference of any component after a stretch, in the units of the state
    Raises ValueError where even steps of 2^-16 of a stretch differ by more.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    if len(times) == 1:
        return start.unsqueeze(1)
    pieces = substeps(times, stretch)
    cell = max(h for h, _ in pieces)
    noise = Brownian(seed, torch.arange(len(start)), start.shape[1], cell, float(times[0]))
    level = 0
    while cell * 2.0**-level > longest:
        level += 1
    frames = [start]
    for (h, count), begin, end in zip(pieces, times[:-1].tolist(), times[1:].tolist()):
        x = frames[-1]
        for i in range(count):
            stop = end if i + 1 == count else begin + (i + 1) * h
            x = _next(term, scheme, x, begin + i * h, stop, noise, cell, level, tolerance)
        frames.append(x)
    return torch.stack(frames, 1)


def _next(
    term: SDE,
    scheme: str,
    x: Tensor,
    begin: float,
    end: float,
    noise: Brownian,
    cell: float,
    level: int,
    tolerance: float,
) -> Tensor:
    def solved(rows: Tensor, level: int) -> Tensor:
        step, own = Constant(cell * 2.0**-level), noise.of_rows(rows)
        return solve_sde(term, x[rows], begin, end, stepper=scheme, controller=step, noise=own).y

    result = torch.empty_like(x)
    rows = torch.arange(len(x))
    coarse = solved(rows, level)
    while len(rows):
        level += 1
        if level > FINEST:
            raise ValueError(
                f"the true path of {len(rows)} trajectories does not settle to {tolerance:g} between the "
                f"times {begin:g} and {end:g} even in steps of {cell * 2.0**-FINEST:.1e}: is its noise too "
                "large?"
            )
        fine = solved(rows, level)
        good = (fine - coarse).abs().amax(1) <= tolerance  # false for what is not finite
        result[rows[good]] = fine[good]
        rows, coarse = rows[~good], fine[~good]
    return result


def recorded(
    states: Tensor, times: Tensor, labels: Mapping[str, tuple[str, ...]], units: Mapping[str, str]
) -> Trajectory:
    """The trajectory of ``states`` ``[trajectory, time, dim]``."""
    return Trajectory(states.unsqueeze(1), times, axes=("component",), labels=labels, units=units)


def undriven(name: str, actions: Tensor | None, times: Tensor) -> Tensor:
    """``times``, checked. Raises ValueError for actions."""
    if actions is not None:
        raise ValueError(f"{name} is not driven: it takes no actions; leave them out")
    return integrated.ascending(times)
