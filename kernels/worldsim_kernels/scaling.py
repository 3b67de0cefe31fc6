"""Sinkhorn's iterations for one pair of clouds: annealed, over-relaxed, stopped by a certified gap.

With F_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon), every (f, g) bounds the optimum from below by the dual

    D = <f, a> + <g, b> + epsilon (1 - sum F),

and F rounded to a plan P with the right marginals bounds it from above by <C, P> + epsilon KL(P | a b). The
rounding is that of Altschuler, Weed and Rigollet 2017: rows and columns with too much are scaled down, and
the mass that is then missing, r and c, is added as r c' / sum r. Since KL is convex, its value at the sum of
the two parts is at most that of each part in proportion, and both are known in closed form.

Epsilon falls to its value by halves from a tenth of the mean cost. In a stage the potentials are absorbed
into a kernel (Schmitzer 2019), and the iterations on it are over-relaxed (Thibault, Chizat, Dossal and
Papadakis 2021), with the parameter that the observed rate of convergence says is best (Young 1954). A step
that could lower the dual value is not relaxed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

STAGE = 3
BLOCK = 20
FASTEST, FASTEST_STAGE = 1.98, 1.8
CHUNK_NUMBERS = 2**22


class Clouds(NamedTuple):
    """``x`` ``[n, d]``, ``y`` ``[m, d]`` and their weights, positive with sum 1; float64, of mean cost 1."""

    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor


class Solution(NamedTuple):
    """The dual value, the potentials, the cost of the rounded plan, and the gap between the two bounds."""

    value: float
    f: Tensor
    g: Tensor
    cost: float
    gap: float
    iterations: int
    converged: bool
    epsilon: float


class Bounds(NamedTuple):
    """``f`` is the best for the ``g`` given; ``error`` is sum_j |sum_i F_ij - b_j|."""

    lower: float
    upper: float
    cost: float
    f: Tensor
    error: float


class Iteration(Protocol):
    """What an implementation does: fast iterations of any precision, and float64 for what is certified."""

    def sweeps(
        self, g: Tensor, epsilon: float, relaxation: float, count: int
    ) -> tuple[Tensor, Tensor, list[float]]:
        """A half-step for f, then one for g, then at most ``count`` relaxed iterations.

        Returns f, g and the errors of the column sums before each step of g; with a count of 0 f is the
        half-step from the ``g`` given.
        """

    def half(
        self, g: Tensor, epsilon: float, f: Tensor | None = None, relaxation: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """f = -epsilon ln sum_j b_j exp((g_j - C_ij) / epsilon), or the relaxed step there from ``f``; and
        the column sums of F."""

    def kept(self, f: Tensor, g: Tensor, epsilon: float, share: Tensor) -> tuple[Tensor, float]:
        """The row sums of F diag(share), and its cost."""


def solve(
    clouds: Clouds,
    iteration: Iteration,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
    start: Tensor | None = None,
) -> Solution:
    """The potentials of ``clouds`` to a gap of ``tolerance`` times the upper bound.

    start  potentials g that may already be good enough
    """
    if start is not None:
        bounds = certify(clouds, iteration, start, epsilon)
        if bounds.upper - bounds.lower <= allowed(bounds, tolerance, epsilon):
            return _solution(bounds, start, 0, True, epsilon)
    g, relaxation, done = torch.zeros_like(clouds.b), 1.7, 0
    for temperature in annealing(epsilon):
        _, g, errors = iteration.sweeps(g, temperature, relaxation, min(STAGE, max_iterations - done))
        done, relaxation = done + len(errors) - 1, tuned(relaxation, errors)
    error, due, exact = errors[-1], tolerance, False
    while True:
        if error <= due or done >= max_iterations:
            bounds = certify(clouds, iteration, g, epsilon)
            gap, goal = bounds.upper - bounds.lower, allowed(bounds, tolerance, epsilon)
            if gap <= goal or done >= max_iterations:
                return _solution(bounds, g, done, gap <= goal, epsilon)
            due = error * min(0.7, max(0.1, 0.7 * goal / gap))
            # Float32 has nothing more to give where its errors are small and the true ones are not.
            exact = exact or bounds.error > 4 * error
        count = min(BLOCK, max_iterations - done)
        if exact:
            g, errors = exact_sweeps(clouds, iteration, g, epsilon, relaxation, count)
        else:
            _, g, errors = iteration.sweeps(g, epsilon, relaxation, count)
            exact = errors[-1] < 1e-5 or 0.9 * error < errors[-1] < 1e-3
        done, relaxation = done + max(1, len(errors) - 1), tuned(relaxation, errors)
        error = errors[-1]


def exact_sweeps(
    clouds: Clouds, iteration: Iteration, g: Tensor, epsilon: float, relaxation: float, count: int
) -> tuple[Tensor, list[float]]:
    """``Iteration.sweeps`` in float64."""
    f, errors = None, []
    for _ in range(count + 1):
        f, columns = iteration.half(g, epsilon, f, relaxation)
        errors.append(float((columns - clouds.b).abs().sum()))
        g = g - epsilon * relaxed_log((columns / clouds.b).clamp(min=1e-300).log(), relaxation)
    return g, errors


def solve_own(
    clouds: Clouds, iteration: Iteration, epsilon: float, tolerance: float, max_iterations: int
) -> Solution:
    """The one potential of a cloud with itself: f <- (f + T f) / 2, whose error halves every time, for any
    epsilon, since T has a slope in [-1, 0] (Feydy et al. 2019)."""
    f, due, exact = torch.zeros_like(clouds.a), min(1e-5, tolerance), False
    for done in range(max_iterations + 1):
        half = iteration.half(f, epsilon)[0] if exact else iteration.sweeps(f, epsilon, 1.0, 0)[0]
        error = float((clouds.a * (half - f).abs()).sum()) / epsilon
        if error <= due or done == max_iterations:
            bounds = certify(clouds, iteration, f, epsilon)
            gap, goal = bounds.upper - bounds.lower, allowed(bounds, tolerance, epsilon)
            if gap <= goal or done == max_iterations:
                average = (f + bounds.f) / 2
                return _solution(bounds._replace(f=average), average, done, gap <= goal, epsilon)
            due = error * min(0.5, max(0.05, 0.5 * goal / gap))
        exact = exact or error < 1e-5
        f = (f + half) / 2
    raise AssertionError("the last pass returns")


def _solution(bounds: Bounds, g: Tensor, iterations: int, converged: bool, epsilon: float) -> Solution:
    gap = max(bounds.upper - bounds.lower, 0.0)
    return Solution(bounds.lower, bounds.f, g, bounds.cost, gap, iterations, converged, epsilon)


def annealing(epsilon: float) -> list[float]:
    """Falling temperatures, the last of which is ``epsilon``."""
    count = max(0, math.ceil(math.log2(0.1 / epsilon)))
    return [epsilon * 2.0**k for k in range(count, -1, -1)]


def tuned(relaxation: float, errors: list[float]) -> float:
    """The best relaxation for the rate at which the second half of ``errors`` fell.

    A rate r under relaxation w comes from an eigenvalue s = (r + w - 1)^2 / (r w^2) of two plain half-steps,
    for which 2 / (1 + sqrt(1 - s)) is the best (Young 1954). It never falls: from the best one on r is w - 1,
    whatever s is. A short stage may not be over it.
    """
    late = errors[len(errors) // 2 :]
    if len(late) < 2 or not 0 < late[-1] < late[0]:
        return relaxation
    rate = (late[-1] / late[0]) ** (1 / (len(late) - 1))
    square = (rate + relaxation - 1) ** 2 / (rate * relaxation**2)
    best = 2 / (1 + math.sqrt(max(0.0, 1 - square)))
    return max(relaxation, min(FASTEST if len(errors) > STAGE + 1 else FASTEST_STAGE, best))


def relaxed(ratio: Tensor, relaxation: float) -> Tensor:
    """What a scaling is divided by when its marginal is ``ratio`` times what it should be: to first order
    ratio^relaxation, and the ratio itself where that could lower the dual value."""
    return torch.where(ratio > 0.85, 1 + relaxation * (ratio - 1), ratio.clamp(min=1e-20))


def relaxed_log(log_ratio: Tensor, relaxation: float) -> Tensor:
    """The same for logarithms."""
    step = torch.log1p(relaxation * torch.expm1(log_ratio.clamp(-0.16, 50)))
    return torch.where((log_ratio > -0.16) & (log_ratio < 50), step, log_ratio)


def allowed(bounds: Bounds, tolerance: float, epsilon: float) -> float:
    """The largest gap; the mean cost is 1, so that the last term is rounding."""
    return tolerance * abs(bounds.upper) + 1e-14 * (1 + epsilon)


def certify(clouds: Clouds, iteration: Iteration, g: Tensor, epsilon: float) -> Bounds:
    """Both bounds at ``g`` and the best f for it."""
    x, y, a, b = clouds
    f, columns = iteration.half(g, epsilon)
    share = (b / columns).clamp(max=1)
    rows, cost = iteration.kept(f, g, epsilon, share)
    lower = float(f @ a + g @ b) + epsilon * (1 - float(columns.sum()))
    upper = float(f @ rows + (g + epsilon * share.log()) @ (columns * share))
    r, c = (a - rows).clamp(min=0), (b - columns * share).clamp(min=0)
    missing = float(r.sum() + c.sum()) / 2
    if missing > 1e-15:
        added = float(r @ x.square().sum(1) + c @ y.square().sum(1) - 2 * (r @ x) @ (c @ y) / missing)
        entropy = float(torch.xlogy(r, r / (missing * a)).sum() + torch.xlogy(c, c / (missing * b)).sum())
        rest = max(1 - missing, 1e-300)
        upper += added + epsilon * (entropy - rest * math.log(rest))
        cost += added
    return Bounds(lower, upper, cost, f, float((columns - b).abs().sum()))


class Chunked:
    """The float64 part in tensor operations, in chunks of rows that keep its memory O(n + m)."""

    def __init__(self, clouds: Clouds) -> None:
        self.x, self.y, self.a, self.b = clouds
        self.rows = max(1, CHUNK_NUMBERS // len(self.y))

    def chunks(self) -> list[slice]:
        return [slice(i, i + self.rows) for i in range(0, len(self.x), self.rows)]

    def costs(self, rows: slice) -> Tensor:
        x, y = self.x[rows], self.y
        squares = x.square().sum(1)[:, None] + y.square().sum(1)
        return torch.addmm(squares, x, y.mT, alpha=-2).clamp_(min=0)

    def half(
        self, g: Tensor, epsilon: float, f: Tensor | None = None, relaxation: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        score, found, columns = g / epsilon + self.b.log(), [], torch.zeros_like(self.b)
        for rows in self.chunks():
            t = score - self.costs(rows) / epsilon
            logs = t.logsumexp(1)
            if f is not None:
                old = -f[rows] / epsilon
                logs = old + relaxed_log(logs - old, relaxation)
            columns += self.a[rows] @ t.sub_(logs[:, None]).exp_()
            found.append(logs)
        return -epsilon * torch.cat(found), columns

    def kept(self, f: Tensor, g: Tensor, epsilon: float, share: Tensor) -> tuple[Tensor, float]:
        score, found, cost = g / epsilon + self.b.log(), [], 0.0
        for rows in self.chunks():
            costs = self.costs(rows)
            plan = (score + f[rows, None] / epsilon - costs / epsilon).exp_() * self.a[rows, None]
            found.append(plan @ share)
            cost += float((costs.mul_(plan) @ share).sum())
        return torch.cat(found), cost


class Stored(Chunked):
    """Iterations on a float32 kernel that is kept, two products with it each."""

    def __init__(self, clouds: Clouds) -> None:
        super().__init__(clouds)
        self.cost = torch.cat([self.costs(rows).float() for rows in self.chunks()])

    def sweeps(
        self, g: Tensor, epsilon: float, relaxation: float, count: int
    ) -> tuple[Tensor, Tensor, list[float]]:
        score = (g / epsilon + self.b.log()).float()
        kernel = score - self.cost / epsilon
        logs = kernel.logsumexp(1)
        kernel.sub_(logs[:, None]).exp_()
        a, b, u, errors = self.a.float(), self.b.float(), torch.ones_like(logs), []
        masses = a @ kernel
        errors.append(float((masses - b).abs().sum()))
        self._lift(masses < 1e-12 * b, kernel, masses, score, logs, epsilon)
        v = b / masses
        for _ in range(count):
            u = u / relaxed(u * (kernel @ v), relaxation)
            ratio = v * ((a * u) @ kernel) / b
            errors.append(float((b * (ratio - 1).abs()).sum()))
            v = v / relaxed(ratio, relaxation)
            if not (_moderate(u) and _moderate(v)):
                break
        f = epsilon * (u.double().log() - logs.double())
        return f, epsilon * (score.double() - self.b.log() + v.double().log()), errors

    def _lift(
        self, low: Tensor, kernel: Tensor, masses: Tensor, score: Tensor, logs: Tensor, epsilon: float
    ) -> None:
        """Sets the scores of columns that no row reaches in the log domain, so that they get their mass."""
        if low.any():
            rows = -logs[:, None] - self.cost[:, low] / epsilon
            score[low] = (self.b[low].log() - (rows + self.a.log()[:, None]).logsumexp(0)).float()
            kernel[:, low] = (score[low] + rows).exp()
            masses[low] = self.b[low].float()


def _moderate(scaling: Tensor) -> bool:
    return bool(((scaling > 1e-12) & (scaling < 1e12)).all())


Softmin = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(x [n, d], y [m, d], score [m], rate) -> ln sum_j exp(score_j - rate |x_i - y_j|^2), all float32."""


class Streamed(Chunked):
    """Iterations in the log domain that keep no matrix: for many points, and for GPUs."""

    def __init__(self, clouds: Clouds, softmin: Softmin) -> None:
        super().__init__(clouds)
        self.softmin = softmin
        self.x32, self.y32 = self.x.float(), self.y.float()

    def sweeps(
        self, g: Tensor, epsilon: float, relaxation: float, count: int
    ) -> tuple[Tensor, Tensor, list[float]]:
        errors = []
        f = self._half(g, epsilon, True)
        for k in range(count + 1):
            if k:
                f = self._step(f, self._half(g, epsilon, True), epsilon, relaxation)
            best = self._half(f, epsilon, False)
            errors.append(float((self.b * torch.expm1(((g - best) / epsilon).clamp(max=50)).abs()).sum()))
            g = self._step(g, best, epsilon, relaxation) if k else best
        return f, g, errors

    def _half(self, potential: Tensor, epsilon: float, of_x: bool) -> Tensor:
        to, on, weights = (self.x32, self.y32, self.b) if of_x else (self.y32, self.x32, self.a)
        score = potential / epsilon + weights.log()
        # Scores may be large and all alike: float32 is for their differences.
        middle = score.mean()
        return -epsilon * (self.softmin(to, on, (score - middle).float(), 1 / epsilon).double() + middle)

    @staticmethod
    def _step(old: Tensor, best: Tensor, epsilon: float, relaxation: float) -> Tensor:
        return old - epsilon * relaxed_log((old - best) / epsilon, relaxation)


def softmin_chunked(x: Tensor, y: Tensor, score: Tensor, rate: float) -> Tensor:
    """``Softmin`` in tensor operations, in chunks of rows."""
    rows, found = max(1, CHUNK_NUMBERS // len(y)), []
    for i in range(0, len(x), rows):
        part = x[i : i + rows]
        squares = part.square().sum(1)[:, None] + y.square().sum(1)
        costs = torch.addmm(squares, part, y.mT, alpha=-2).clamp_(min=0)
        found.append((score - rate * costs).logsumexp(1))
    return torch.cat(found)
