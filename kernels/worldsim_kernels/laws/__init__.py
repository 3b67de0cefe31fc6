"""Distances between laws that are known by samples, and scores of an ensemble beside what came true.

All need torch alone, compute in float64 and take seeds as generators. A distance comes with the standard
error of its value over independent samples of the same sizes.
"""

from worldsim_kernels.laws.ensembles import (
    RankHistogram,
    average_ranks,
    crps,
    energy_score,
    rank_histogram,
    spread_skill,
)
from worldsim_kernels.laws.gaussian import bures, frechet
from worldsim_kernels.laws.signature import signature_gram, signature_kernel
from worldsim_kernels.laws.sliced import max_sliced_wasserstein, random_directions, sliced_wasserstein
from worldsim_kernels.laws.two_sample import (
    Estimate,
    TwoSample,
    energy_distance_squared,
    median_distance,
    mmd_squared,
    two_sample,
)

__all__ = [
    "Estimate",
    "RankHistogram",
    "TwoSample",
    "average_ranks",
    "bures",
    "crps",
    "energy_distance_squared",
    "energy_score",
    "frechet",
    "max_sliced_wasserstein",
    "median_distance",
    "mmd_squared",
    "random_directions",
    "rank_histogram",
    "signature_gram",
    "signature_kernel",
    "sliced_wasserstein",
    "spread_skill",
    "two_sample",
]
