"""The accurate flow of stiff systems: Rodas5P (Steinebach 2023), every trajectory in steps of its own.

Each interval between two frames is a solve by itself, so a trajectory that is continued from a frame has the
same bits, and no trajectory sees another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim_kernels.solve import ODE, PID, solve

RTOL = 1e-10


def flow(
    field: Callable[..., Tensor], state: Tensor, times: Tensor, args: tuple[Tensor, ...], atol: float
) -> Tensor:
    """``[trajectory, time, *state]`` of dx/dt = field(t, x, *args) from ``state`` ``[trajectory, *state]``,
    the same at all times t; ``args`` are ``[trajectory]``.

    Raises ValueError where the solution cannot be followed.
    """
    frames = [state]
    for length in times.diff().tolist():
        with torch.no_grad():
            solution = solve(
                ODE(field, args), frames[-1], 0.0, length, stepper="rodas5p", controller=PID(RTOL, atol)
            )
        if bool(solution.failed.any()):
            raise ValueError(f"the true trajectory cannot be followed: {solution.complaint()}")
        frames.append(solution.y)
    return torch.stack(frames, dim=1)
