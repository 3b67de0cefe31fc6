"""The distances between laws that a scenario can name, each as one function of two samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from worldsim import NotMeasurable
from worldsim_kernels import laws
from worldsim_kernels.transport import sinkhorn
from worldsim_plugins.metrics.exact_transport import (
    Certified,
    gromov_wasserstein,
    unbalanced,
    wasserstein1,
    wasserstein2,
)

PATH_LENGTH = 2.0
"""The median length of a true path, at which the first three levels of its signature weigh about alike."""
UNKNOWN = float("nan")


@dataclass(frozen=True)
class Setting:
    """What is the same for all models, so that they and the floor are measured alike.

    reference    a sample of the truth that is not scored, or the scored one where there is no other
    fresh        whether it is another one; the permutation tests are exact only then
    epsilon      of the Sinkhorn divergence, and
    reach        of unbalanced transport, both in units of the median of |x - x'|^2 over the reference
    projections  directions of the sliced distances
    permutations of the tests
    seed         of directions and permutations
    """

    reference: Tensor
    fresh: bool
    epsilon: float
    reach: float
    projections: int
    permutations: int
    seed: int

    @cached_property
    def median(self) -> float:
        """Of the distances between points of the reference. Raises NotMeasurable when it is 0."""
        found = float(laws.median_distance(self.reference))
        if not found > 0:
            raise NotMeasurable(
                "more than half of the truth's points coincide, so that distances have no unit"
            )
        return found

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def test(self) -> dict[str, object]:
        """Arguments of a two-sample test; row i of both samples is one trajectory."""
        return {"permutations": self.permutations, "generator": self.generator()}


class Found(NamedTuple):
    """A measured distance, the square of a rooted one; NaN where there is no such number."""

    value: float
    standard_error: float = UNKNOWN
    p_value: float = UNKNOWN
    epsilon: float = UNKNOWN
    gap: float = UNKNOWN
    plan: Tensor | None = None


@dataclass(frozen=True)
class Distance:
    """One kind of distance.

    name      of its score
    measure   of samples ``[n, d]`` and ``[m, d]``
    rooted    the measure is a square: its root is given under the name, and itself as ``<name>_squared``
    biased    between samples of one law it is above 0, the more so in high dimension
    tested    it comes with a permutation test
    """

    name: str
    measure: Callable[[Tensor, Tensor, Setting], Found]
    rooted: bool = False
    biased: bool = True
    tested: bool = False

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that rank models."""
        return (self.name, f"{self.name}_squared") if self.rooted else (self.name,)

    @property
    def need_fresh(self) -> tuple[str, ...]:
        """What cannot be had without another sample of the truth."""
        return ("ratio", "p_value") if self.tested else ("ratio",)


def _w2(x: Tensor, y: Tensor, setting: Setting) -> Found:
    found = wasserstein2(x, y)
    return Found(found.W2_squared, found.standard_error, plan=found.plan)


def _certified(found: Certified) -> Found:
    return Found(found.value, found.standard_error, gap=found.gap)


def _w1(x: Tensor, y: Tensor, setting: Setting) -> Found:
    return Found(*wasserstein1(x, y)[:2])


def _sliced(x: Tensor, y: Tensor, setting: Setting) -> Found:
    directions = laws.random_directions(setting.projections, x.shape[1], setting.generator())
    return Found(*map(float, laws.sliced_wasserstein(x, y, directions)))


def _max_sliced(x: Tensor, y: Tensor, setting: Setting) -> Found:
    directions = laws.random_directions(setting.projections, x.shape[1], setting.generator())
    return Found(*map(float, laws.max_sliced_wasserstein(x, y, directions)))


def _sinkhorn(x: Tensor, y: Tensor, setting: Setting) -> Found:
    epsilon = setting.epsilon * setting.median**2
    found = sinkhorn(x, y, epsilon=epsilon, debias=True, tolerance=1e-4)
    if not found.converged:
        raise NotMeasurable(
            f"Sinkhorn's iterations stopped at a gap of {float(found.gap):.2g}: raise epsilon"
        )
    # The divergence's derivatives by the two laws are its debiased potentials.
    variance = sum(float(f.var(correction=0)) / len(f) for f in (found.potential_x, found.potential_y))
    return Found(max(float(found.value), 0.0), variance**0.5, epsilon=epsilon, gap=float(found.gap))


def _bures(x: Tensor, y: Tensor, setting: Setting) -> Found:
    return Found(*map(float, laws.frechet(x, y)))


def _unbalanced(x: Tensor, y: Tensor, setting: Setting) -> Found:
    return _certified(unbalanced(x, y, setting.reach * setting.median**2))


def _gromov(x: Tensor, y: Tensor, setting: Setting) -> Found:
    return _certified(gromov_wasserstein(x, y))


def _mmd(x: Tensor, y: Tensor, setting: Setting) -> Found:
    return _tested(laws.mmd_squared(x, y, setting.median, paired=len(x) == len(y), **setting.test()), setting)


def _energy(x: Tensor, y: Tensor, setting: Setting) -> Found:
    return _tested(laws.energy_distance_squared(x, y, paired=len(x) == len(y), **setting.test()), setting)


def _signature_mmd(x: Tensor, y: Tensor, setting: Setting) -> Found:
    """Of paths ``[n, frame, component + 1]``, after Chevyrev and Oberhauser (2022): they begin at the truth's
    mean, which makes the start count, and have the time as a channel."""
    paths = torch.cat([_prepared(each, setting.reference) for each in (x, y)])
    gram = laws.signature_gram(paths, tolerance=1e-6)
    return _tested(laws.two_sample(gram, len(x), paired=len(x) == len(y), **setting.test()), setting)


def _prepared(paths: Tensor, reference: Tensor) -> Tensor:
    middle = reference[..., :-1].mean((0, 1))
    lengths = _rooted(reference, middle)[..., :-1].diff(dim=1).norm(dim=2).sum(1)
    unit = float(lengths.median()) or 1.0
    begun = _rooted(paths, middle)
    return torch.cat([begun[..., :-1] * (PATH_LENGTH / unit), begun[..., -1:]], 2)


def _rooted(paths: Tensor, middle: Tensor) -> Tensor:
    moved = torch.cat([paths[..., :-1] - middle, paths[..., -1:]], 2)
    return torch.nn.functional.pad(moved, (0, 0, 1, 0))


def _tested(found: laws.TwoSample, setting: Setting) -> Found:
    value, error, p_value = map(float, found)
    return Found(value, error, p_value if setting.fresh and setting.permutations else UNKNOWN)


DISTANCES: Mapping[str, Distance] = {
    "W2": Distance("W2", _w2, rooted=True),
    "W1": Distance("W1", _w1),
    "sliced": Distance("sliced_W2", _sliced, rooted=True),
    "max_sliced": Distance("max_sliced_W2", _max_sliced, rooted=True),
    "sinkhorn": Distance("sinkhorn_divergence", _sinkhorn),
    "bures": Distance("bures_W2", _bures, rooted=True),
    "unbalanced": Distance("unbalanced_transport", _unbalanced),
    "gromov": Distance("gromov_wasserstein", _gromov, rooted=True),
    "mmd": Distance("MMD_squared", _mmd, biased=False, tested=True),
    "energy": Distance("energy_distance_squared", _energy, biased=False, tested=True),
    "signature_mmd": Distance("signature_MMD_squared", _signature_mmd, biased=False, tested=True),
}
