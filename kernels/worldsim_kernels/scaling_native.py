"""Sinkhorn's iterations in C: ``csrc/sinkhorn.c`` for one pair of clouds."""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from worldsim_kernels import native
from worldsim_kernels.scaling import Clouds

ROWS, COLUMNS = 8, 16
_SIZE, _ADDRESS, _REAL, _SINGLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double, ctypes.c_float


@cache
def _library() -> ctypes.CDLL:
    found = native.library("sinkhorn")
    shape = (_SIZE, _SIZE, _SIZE)
    ends = (_ADDRESS, _ADDRESS, ctypes.c_int)
    found.sinkhorn_cost.argtypes = (*shape, _SIZE, _ADDRESS, *ends)
    found.sinkhorn_half.argtypes = (*shape, *(_ADDRESS,) * 4, _REAL, _REAL, *ends)
    found.sinkhorn_kept.argtypes = (*shape, *(_ADDRESS,) * 4, _REAL, _ADDRESS, _ADDRESS, *ends)
    found.sinkhorn_sweeps.argtypes = (
        *shape,
        *(_ADDRESS,) * 5,
        *(_SINGLE, _SINGLE, _SIZE),
        *(_ADDRESS,) * 4,
        ctypes.c_int,
    )
    found.sinkhorn_sweeps.restype = _SIZE
    return found


def _aligned(*shape: int, dtype: torch.dtype) -> Tensor:
    """An empty tensor whose address is a multiple of 64, as C's vectors need."""
    count, item = math.prod(shape), dtype.itemsize
    whole = torch.empty(count + 64 // item, dtype=dtype)
    first = -whole.data_ptr() % 64 // item
    return whole[first : first + count].view(shape)


class Native:
    """The ``Iteration`` in C, which pads the rows to eights and the columns to sixteens.

    Raises MemoryError when C has no memory for its sums.
    """

    def __init__(self, clouds: Clouds) -> None:
        x, y, a, b = clouds
        self.n, self.m, self.d = len(x), len(y), x.shape[1]
        self.rows, self.columns = (-(-self.n // ROWS) * ROWS, -(-self.m // COLUMNS) * COLUMNS)
        self.threads = native.threads(4.0 * self.rows * self.columns)
        self.library, self.b, self.log_b = _library(), b, b.log()
        self.x = self._padded(x.flatten(), self.rows * self.d)
        self.y = _aligned(self.columns * self.d, dtype=torch.float64)
        whole = pad(y, (0, 0, 0, self.columns - self.m))
        self.y.copy_(whole.view(self.columns // COLUMNS, COLUMNS, self.d).mT.flatten())
        self.a, self.a32 = self._padded(a, self.rows), self._padded(a.float(), self.rows)
        self.b32 = self._padded(b.float(), self.columns)
        self.logs = torch.zeros(self.rows, dtype=torch.float64)
        self.u, self.v = (_aligned(k, dtype=torch.float32) for k in (self.rows, self.columns))
        shape = (self.rows, self.columns)
        self.cost, self.kernel = (_aligned(*shape, dtype=torch.float32) for _ in "CK")
        failed = self.library.sinkhorn_cost(
            *(*shape, self.m, self.d),
            *map(native.pointer, (self.x, self.y, self.cost)),
            self.threads,
        )
        _enough(failed)

    @staticmethod
    def _padded(values: Tensor, count: int, value: float = 0.0) -> Tensor:
        found = _aligned(count, dtype=values.dtype)
        found[: len(values)], found[len(values) :] = values, value
        return found

    def _score(self, g: Tensor, epsilon: float, dtype: torch.dtype = torch.float64) -> Tensor:
        return self._padded((g / epsilon + self.log_b).to(dtype), self.columns, -math.inf)

    def sweeps(
        self, g: Tensor, epsilon: float, relaxation: float, count: int
    ) -> tuple[Tensor, Tensor, list[float]]:
        score, errors = self._score(g, epsilon, torch.float32), torch.empty(count + 1, dtype=torch.float64)
        done = self.library.sinkhorn_sweeps(
            *(self.rows, self.columns, self.m),
            *map(native.pointer, (self.cost, self.kernel, self.a32, self.b32, score)),
            *(1 / epsilon, relaxation, count),
            *map(native.pointer, (self.logs, self.u, self.v, errors)),
            self.threads,
        )
        _enough(done < 0)
        f = epsilon * (self.u[: self.n].double().log() - self.logs[: self.n])
        v = self.v[: self.m].double().log()
        return f, epsilon * (score[: self.m].double() - self.log_b + v), errors[: done + 1].tolist()

    def half(
        self, g: Tensor, epsilon: float, f: Tensor | None = None, relaxation: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        if f is not None:
            self.logs[: self.n] = -f / epsilon
        sums, score = _aligned(self.columns, dtype=torch.float64), self._score(g, epsilon)
        failed = self.library.sinkhorn_half(
            *(self.rows, self.columns, self.d),
            *map(native.pointer, (self.x, self.y, self.a, score)),
            *(1 / epsilon, 1.0 if f is None else relaxation),
            *map(native.pointer, (self.logs, sums)),
            self.threads,
        )
        _enough(failed)
        return -epsilon * self.logs[: self.n], sums[: self.m]

    def kept(self, f: Tensor, g: Tensor, epsilon: float, share: Tensor) -> tuple[Tensor, float]:
        self.logs[: self.n] = -f / epsilon
        mass, cost = torch.empty(2, self.rows, dtype=torch.float64)
        score, keep = self._score(g, epsilon), self._padded(share, self.columns)
        failed = self.library.sinkhorn_kept(
            *(self.rows, self.columns, self.d),
            *map(native.pointer, (self.x, self.y, self.a, score)),
            1 / epsilon,
            *map(native.pointer, (self.logs, keep, mass, cost)),
            self.threads,
        )
        _enough(failed)
        return mass[: self.n], float(cost.sum())


def _enough(failed: object) -> None:
    if failed:
        raise MemoryError("sinkhorn: no memory for the sums over columns")
