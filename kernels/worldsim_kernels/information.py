"""Mutual information of two continuous vectors, from samples of both. All in nats.

    I(X; Y) = E ln p(x, y) / (p(x) p(y))

Three estimators that err in different ways. ``nearest_neighbours`` (Kraskov, Stoegbauer and Grassberger 2004)
assumes nothing, and fails without a word in more than a few dimensions, so it is refused there.
``gaussian_copula`` (Ince, Giordano, Kayser, Rousselet, Gross and Schyns 2017) works in any dimension and sees
what a Gaussian copula can: a lower bound where x or y is one number, since then

    h(X | Y) <= h(X - E[X | Y] by the best linear rule) <= ln(2 pi e s^2) / 2

``info_nce`` (van den Oord, Li and Vinyals 2018) is a lower bound by a trained critic that can never exceed
ln K, K the size of its batches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST_DIMENSIONS = 4
"""Of x and y together: with ten, 3,000 samples of 5.1 nats come out as 2.2."""
CHUNK = 2**18
PARTITIONS = 6
NEAR_CAP = 0.9


class Information(NamedTuple):
    """An estimate in nats, its standard error for independent samples, and how many samples there were."""

    value: float
    standard_error: float
    n: int


class Bound(NamedTuple):
    """A lower bound in nats, its standard error, and the most that it could have been, ln K."""

    value: float
    standard_error: float
    n: int
    cap: float

    @property
    def capped(self) -> bool:
        """Whether the value is so near the cap that it tells of the batch and not of the data."""
        return self.value > NEAR_CAP * self.cap


def gaussian_information(covariance: Tensor, first: int) -> float:
    """I(X; Y) = ln(|A| |B| / |C|) / 2 of Gaussians whose joint covariance ``[d, d]`` is C, with A that of the
    ``first`` numbers and B that of the rest. Raises ValueError when one of them determines another."""
    c = covariance.double()
    parts = (c[:first, :first], c[first:, first:], c)
    signs, logs = zip(*(torch.linalg.slogdet(part) for part in parts), strict=True)
    if any(float(sign) <= 0 for sign in signs) or not all(bool(log.isfinite()) for log in logs):
        raise ValueError("a covariance must be positive definite: one of these numbers determines another")
    return float(logs[0] + logs[1] - logs[2]) / 2


def nearest_neighbours(
    x: Tensor, y: Tensor, *, neighbours: int = 4, generator: torch.Generator | None = None
) -> Information:
    """Algorithm 1 of Kraskov et al. (2004), with the maximum norm, of ``x`` ``[n, d]`` and ``y`` ``[n, e]``:

        psi(k) + psi(n) - < psi(n_x + 1) + psi(n_y + 1) >

    n_x, n_y  other points strictly nearer in x alone, in y alone, than the k-th neighbour in both together

    Every column is standardised first. Time n^2. The standard error comes from quarters of the samples,
    drawn by ``generator`` (Holmes and Nemenman 2019); without one it is NaN. (The terms of the mean are not
    independent: theirs would be a fifth too small.) Raises ValueError for more than four dimensions together,
    for fewer than four times k + 2 samples, and for values that repeat, which have no density.
    """
    x, y = _samples(x, y)
    n, together = len(x), x.shape[1] + y.shape[1]
    if together > MOST_DIMENSIONS:
        raise ValueError(
            f"nearest neighbours underestimate information in {together} dimensions together, by far and "
            f"without a sign of it; at most {MOST_DIMENSIONS} are allowed: pick components, or take a bound"
        )
    if neighbours < 1 or n < 4 * (neighbours + 2):
        raise ValueError(
            f"{neighbours} neighbours of {n} samples: give at least {4 * (neighbours + 2)} samples"
        )
    spread = math.nan if generator is None else 0.0
    for _ in range(PARTITIONS if generator is not None else 0):
        quarters = torch.randperm(n, generator=generator).chunk(4)
        values = torch.tensor([_kraskov(x[rows], y[rows], neighbours) for rows in quarters])
        spread += float(values.var()) / 4 / PARTITIONS
    return Information(_kraskov(x, y, neighbours), math.sqrt(spread), n)


def _kraskov(x: Tensor, y: Tensor, neighbours: int) -> float:
    n = len(x)
    blocks = torch.split(torch.arange(n), max(1, CHUNK // n))
    local = torch.cat([_local(x, y, rows, neighbours) for rows in blocks]).mean()
    return float(local + torch.digamma(torch.tensor([neighbours, n], dtype=torch.float64)).sum())


def _local(x: Tensor, y: Tensor, rows: Tensor, neighbours: int) -> Tensor:
    """- psi(n_x + 1) - psi(n_y + 1) of each of ``rows``."""
    apart = [_largest_difference(z[rows], z) for z in (x, y)]
    joint = torch.maximum(*apart)
    radius = joint.topk(neighbours + 1, dim=1, largest=False).values[:, -1:]  # itself is the first
    if not bool((radius > 0).all()):
        raise ValueError("some samples repeat: nearest neighbours need numbers that have a density")
    # A point is nearer than the radius to itself, so the counts are n_x + 1 and n_y + 1.
    return -sum(torch.digamma((each < radius).sum(1).double()) for each in apart)  # type: ignore[return-value]


def _largest_difference(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([(a[:, None, k] - b[None, :, k]).abs() for k in range(a.shape[1])]).amax(0)


def gaussian_copula(x: Tensor, y: Tensor) -> Information:
    """Information of the Gaussian copula of ``x`` ``[n, d]`` and ``y`` ``[n, e]``: every column is replaced
    by the normal score of its rank, and what ``gaussian_information`` gives is corrected for the bias of n.

    Raises ValueError when there are too few samples, or when one column determines another.
    """
    x, y = _samples(x, y)
    n, d = len(x), x.shape[1] + y.shape[1]
    if n < d + 2:
        raise ValueError(f"{n} samples give no covariance of {d} numbers: at least {d + 2} are needed")
    scores = torch.cat([_normal_scores(x), _normal_scores(y)], 1)
    c = scores.mT @ scores / (n - 1)
    value = gaussian_information(c, x.shape[1])
    value -= sum(_bias(m, n) for m in (x.shape[1], y.shape[1])) - _bias(d, n)
    parts = ((scores[:, : x.shape[1]], 1), (scores[:, x.shape[1] :], 1), (scores, -1))
    local = sum(sign * _half_mahalanobis(part) for part, sign in parts)
    # At independence the first order vanishes, and 2 n I is chi square with d e degrees (Wilks 1938).
    second_order = x.shape[1] * y.shape[1] / (2 * n**2)
    return Information(value, math.sqrt(float(torch.as_tensor(local).var()) / n + second_order), n)


def _normal_scores(z: Tensor) -> Tensor:
    rank = z.argsort(0).argsort(0).double() + 1
    found: Tensor = torch.special.ndtri(rank / (len(z) + 1))
    return found - found.mean(0)


def _bias(d: int, n: int) -> float:
    """Of the entropy of d Gaussian numbers, ln|C| / 2, when C is the covariance of n samples."""
    half = (n - torch.arange(1, d + 1, dtype=torch.float64)) / 2
    return float((torch.digamma(half) - math.log((n - 1) / 2)).sum()) / 2


def _half_mahalanobis(z: Tensor) -> Tensor:
    found: Tensor = (z @ torch.linalg.inv(torch.cov(z.mT).reshape(z.shape[1], -1)) * z).sum(1) / 2
    return found


def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    batch: int = 64,
    steps: int = 400,
    width: int = 64,
    learning_rate: float = 3e-3,
    generator: torch.Generator,
) -> Bound:
    """The contrastive bound of ``x`` ``[n, d]`` and ``y`` ``[n, e]``, on samples that chose nothing:

        ln K - < -ln softmax_j f(x_i, y_j) at j = i >

    over batches of K pairs. The critic f(x, y) = g(x) . h(y) + v(y) is trained on one half of the samples; a
    quarter picks the best of ten moments of its training, and the last quarter is scored. Every column is
    standardised first. Raises ValueError for fewer than 8 K samples.
    """
    x, y = _samples(x, y)
    n, half = len(x), len(x) // 2
    if n < 8 * batch:
        raise ValueError(f"{n} samples make no two batches of {batch} in a quarter: give {8 * batch}")
    order = torch.randperm(n, generator=generator)
    x, y = x[order].float(), y[order].float()
    picking, scoring = (
        [rows for rows in torch.split(quarter, batch) if len(rows) == batch]
        for quarter in (torch.arange(half, half + n // 4), torch.arange(half + n // 4, n))
    )
    critic, best, at_best = _Critic(x.shape[1], y.shape[1], width, generator), math.inf, []
    optimiser = torch.optim.Adam(critic.parameters, lr=learning_rate)
    for step in range(steps):
        with torch.enable_grad():
            rows = torch.randint(half, (batch,), generator=generator)
            optimiser.zero_grad()
            critic.surprise(x[rows], y[rows]).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        if (step + 1) % max(1, steps // 10) == 0:
            loss = float(_surprises(critic, x, y, picking).mean())
            if loss < best:
                best, at_best = loss, [weight.detach().clone() for weight in critic.parameters]
    with torch.no_grad():
        for weight, kept in zip(critic.parameters, at_best, strict=True):
            weight.copy_(kept)
    each = math.log(batch) - _surprises(critic, x, y, scoring)
    error = float(each.std()) / math.sqrt(len(each))
    return Bound(float(each.mean()), error, len(each) * batch, math.log(batch))


@torch.no_grad()
def _surprises(critic: _Critic, x: Tensor, y: Tensor, batches: list[Tensor]) -> Tensor:
    """Mean surprise of each batch, float64."""
    return torch.stack([critic.surprise(x[rows], y[rows]).mean() for rows in batches]).double()


class _Critic:
    """Two perceptrons beside two linear maps; its weights come from ``generator``."""

    def __init__(self, d: int, e: int, width: int, generator: torch.Generator) -> None:
        self.left, self.right = (self._layers(size, width, generator) for size in (d, e))
        self.parameters = [weight.requires_grad_() for weight in (*self.left, *self.right)]

    @staticmethod
    def _layers(size: int, width: int, generator: torch.Generator) -> list[Tensor]:
        shapes = ((size, width), (width, width), (width, width), (size, width))
        weights = [torch.randn(*s, generator=generator) * math.sqrt(1 / s[0]) for s in shapes]
        return [*weights, torch.zeros(width), torch.zeros(width)]

    @staticmethod
    def _features(z: Tensor, layers: list[Tensor]) -> Tensor:
        first, second, last, skip, shift, again = layers
        hidden = torch.relu(torch.relu(z @ first + shift) @ second + again)
        return hidden @ last + z @ skip

    def surprise(self, x: Tensor, y: Tensor) -> Tensor:
        """- ln of the softmax over the batch at the true partner, ``[batch]``."""
        g, h = self._features(x, self.left), self._features(y, self.right)
        # The last feature of y stands alone, so that f may hold what depends on y only.
        scores = g[:, :-1] @ h[:, :-1].mT / math.sqrt(g.shape[1]) + h[:, -1]
        return -scores.log_softmax(1).diagonal()


def _samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, every column standardised. Raises ValueError."""
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(f"samples {list(x.shape)} and {list(y.shape)}: give [n, d] and [n, e], n >= 2")
    x, y = x.double(), y.double()
    for name, z in (("x", x), ("y", y)):
        if not bool(z.isfinite().all()):
            raise ValueError(f"{name} is not finite")
        if bool((z.std(0, correction=0) <= 1e-12 * z.abs().amax(0)).any()):
            raise ValueError(f"{name} has a column that never varies")
    return tuple((z - z.mean(0)) / z.std(0, correction=0) for z in (x, y))  # type: ignore[return-value]
