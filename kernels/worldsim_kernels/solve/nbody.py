"""Newtonian gravity of all pairs of bodies, softened (Plummer 1911), by one pass over the pairs.

    d_ij = x_j - x_i,    s_ij = |d_ij|^2 + softening^2,    over all j but i:
    a_i   =  G sum_j m_j d_ij / s_ij^(3/2)
    phi_i = -G sum_j m_j / s_ij^(1/2),         potential energy  sum_i m_i phi_i / 2

The gradients of a loss with da_i = dL/da_i and dphi_i, with b_ij = m_i da_j - m_j da_i:

    dL/dx_i =  G sum_j (b_ij - (3 b_ij . d_ij / s_ij + m_j dphi_i + m_i dphi_j) d_ij) / s_ij^(3/2)
    dL/dm_i = -G sum_j (da_j . d_ij / s_ij^(3/2) + dphi_j / s_ij^(1/2))

In C and in Triton a tile of bodies stays in registers while all others pass, and nothing of the size of the
pairs is ever stored; the torch form stores them for some bodies at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect, number, same_dtype
from worldsim_kernels.backends import Backends, requested
from worldsim_kernels.operators import Operator
from worldsim_kernels.solve.sums import added

REALS = (torch.float32, torch.float64)
FEW = 8
"""Bodies from which the C form is faster than the torch form in large batches too."""
CHUNK = 2**22
"""Numbers of the pairs' differences that the torch form holds at a time."""


def nbody_forces(
    positions: Tensor,
    masses: Tensor,
    gravity: float = 1.0,
    softening: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Accelerations ``[row, body, dim]`` of bodies at ``positions`` ``[row, body, dim]``.

    masses     ``[body]`` or ``[row, body]``
    gravity    G, in length^3 mass^-1 time^-2
    softening  a length; without it, bodies at one place have NaN

    float32 or float64, with gradients to positions and masses. Every row has the same bits in every batch and
    for any number of threads. Raises TypeError and ValueError for arguments that do not fit.
    """
    return _both(positions, masses, gravity, softening, backend)[0]


def nbody_potential(
    positions: Tensor,
    masses: Tensor,
    gravity: float = 1.0,
    softening: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """The potential energy ``[row]`` of all pairs; arguments and errors as in ``nbody_forces``."""
    potential = _both(positions, masses, gravity, softening, backend)[1]
    return added(masses.expand(potential.shape) * potential, 1) / 2


def nbody_reference(
    positions: Tensor, masses: Tensor, gravity: float, softening: float
) -> tuple[Tensor, Tensor]:
    """The definition, differentiable to any order: accelerations ``[row, body, dim]``, potentials phi
    ``[row, body]``."""
    apart = positions.unsqueeze(1) - positions.unsqueeze(2)
    itself = torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
    square = apart.square().sum(-1) + softening**2
    inverse = square.masked_fill(itself, 1.0).rsqrt().masked_fill(itself, 0.0)
    pull = masses.expand(positions.shape[:2]).unsqueeze(1) * inverse
    acceleration = ((pull * inverse * inverse).unsqueeze(-1) * apart).sum(2)
    return gravity * acceleration, -gravity * pull.sum(2)


def _both(
    positions: Tensor, masses: Tensor, gravity: float, softening: float, backend: str | None
) -> tuple[Tensor, Tensor]:
    name = "nbody"
    expect(name, "positions", positions, [("row", None), ("body", None), ("dim", None)], dtypes=REALS)
    rows, bodies = positions.shape[:2]
    shared = isinstance(masses, Tensor) and masses.dim() == 1
    axes = [("row", rows), ("body", bodies)][shared:]
    expect(name, "masses", masses, axes, like=positions, dtypes=REALS)
    same_dtype(name, "masses", masses, positions, "positions")
    gravity, softening = number(name, "gravity", gravity), number(name, "softening", softening)
    if not softening >= 0:
        raise ValueError(f"nbody: softening must not be negative, it is {softening}")
    wanted = requested(backend)
    if wanted == "reference":
        return nbody_reference(positions, masses, gravity, softening)
    acceleration, potential = _NBODY(positions, masses.expand(rows, bodies), gravity, softening, wanted)
    return acceleration, potential


# The torch form.


def forward(x: Tensor, m: Tensor, gravity: float, softening: float) -> tuple[Tensor, Tensor]:
    """Accelerations and potentials."""
    found = []
    for part in _parts(x):
        apart, inverse = _pairs(x, part, softening)
        pull = m.unsqueeze(1) * inverse
        cubed = (pull * inverse * inverse).unsqueeze(-1)
        found.append((gravity * added(cubed * apart, 2), -gravity * added(pull, 2)))
    return torch.cat([each[0] for each in found], 1), torch.cat([each[1] for each in found], 1)


def backward(
    x: Tensor, m: Tensor, gravity: float, softening: float, da: Tensor, dp: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of positions and masses."""
    found = []
    for part in _parts(x):
        apart, inverse = _pairs(x, part, softening)
        square = inverse * inverse
        cubed = square * inverse
        own, other = m[:, part].unsqueeze(2), m.unsqueeze(1)
        pushed = own.unsqueeze(-1) * da.unsqueeze(1) - other.unsqueeze(-1) * da[:, part].unsqueeze(2)
        bend = 3 * square * added(pushed * apart, 3)
        bend = bend + other * dp[:, part].unsqueeze(2) + own * dp.unsqueeze(1)
        places = cubed.unsqueeze(-1) * (pushed - bend.unsqueeze(-1) * apart)
        weights = cubed * added(da.unsqueeze(1) * apart, 3) + inverse * dp.unsqueeze(1)
        found.append((gravity * added(places, 2), -gravity * added(weights, 2)))
    return torch.cat([each[0] for each in found], 1), torch.cat([each[1] for each in found], 1)


def _parts(x: Tensor) -> list[slice]:
    rows, bodies, dim = x.shape
    size = max(1, CHUNK // max(1, rows * bodies * dim))
    return [slice(i, min(i + size, bodies)) for i in range(0, max(bodies, 1), size)]


def _pairs(x: Tensor, part: slice, softening: float) -> tuple[Tensor, Tensor]:
    """d_ij ``[row, i, j, dim]`` and s_ij^(-1/2) ``[row, i, j]``, 0 for i = j; i are the bodies ``part``."""
    apart = x.unsqueeze(1) - x[:, part].unsqueeze(2)
    square = added(apart * apart, 3) + softening * softening
    place = torch.arange(x.shape[1], device=x.device)
    itself = place == place[part].unsqueeze(1)
    return apart, (1 / square.sqrt()).masked_fill(itself, 0.0)


# Choice and registration.

MODULES = {
    "torch": "worldsim_kernels.solve.nbody",
    "native": "worldsim_kernels.solve.nbody_native",
    "triton": "worldsim_kernels.gpu.nbody",
}


def _form(backend: str, name: str, x: Tensor, m: Tensor) -> Callable[..., Any]:
    chosen = BACKENDS["nbody"].choose(backend, positions=x, masses=m)
    found: Callable[..., Any] = getattr(import_module(MODULES[chosen]), name)
    return found


def _forward(x: Tensor, m: Tensor, gravity: float, softening: float, backend: str) -> tuple[Tensor, ...]:
    found: tuple[Tensor, Tensor] = _form(backend, "forward", x, m)(x, m, gravity, softening)
    return found


def _fake(x: Tensor, m: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:2])


def _backward(
    grads: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    needed: Sequence[bool],
    x: Tensor,
    m: Tensor,
    gravity: float,
    softening: float,
    backend: str,
) -> Sequence[Tensor | None]:
    da, dp = grads
    da = torch.zeros_like(x) if da is None else da
    dp = x.new_zeros(x.shape[:2]) if dp is None else dp
    found: tuple[Tensor, Tensor] = _form(backend, "backward", x, m)(x, m, gravity, softening, da, dp)
    return found


def _few_axes(**arguments: Any) -> str | None:
    """Components of a vector are held in registers."""
    x = arguments.get("positions")
    if isinstance(x, Tensor) and not 1 <= x.shape[-1] <= 3:
        return f"positions have {x.shape[-1]} components; this form takes 1 to 3"
    return None


def _enough_bodies(**arguments: Any) -> str | None:
    """The number of bodies decides, and never that of rows: a row has the same bits in every batch."""
    x = arguments.get("positions")
    if isinstance(x, Tensor) and x.shape[-2] < FEW:
        return f"{x.shape[-2]} bodies fill no register; this form takes {FEW} or more"
    return _few_axes(**arguments)


_NBODY = Operator(
    "nbody",
    "Tensor positions, Tensor masses, float gravity, float softening, str backend",
    2,
    _forward,
    _fake,
    _backward,
    batched=("positions", "masses"),
)
BACKENDS: Mapping[str, Backends] = {
    "nbody": Backends("nbody", "nbody", {"native": _enough_bodies, "triton": _few_axes})
}
