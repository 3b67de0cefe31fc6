"""What ``worldsim score --selftest`` holds metrics to: values with a closed form, computed here and now."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldsim.protocols import GroundTruth
from worldsim_kernels import laws
from worldsim_kernels.block_entropy import conditional_information
from worldsim_kernels.hidden_markov import entropy_rate, exact_block_entropies, statistical_complexity
from worldsim_kernels.information import nearest_neighbours
from worldsim_plugins.metrics.exact_transport import wasserstein1, wasserstein2
from worldsim_plugins.metrics.law_distances import DISTANCES, Setting


def of_transport() -> list[GroundTruth]:
    """Distances of laws that are known, or of samples that are moved."""
    x = _normal(200, 2)
    moved = x + torch.tensor([0.3, 0.4], dtype=torch.float64)
    a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    b, m = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), torch.tensor([1.0, -1.0])
    c, d = (torch.tensor(m, dtype=torch.float64) for m in ([[2, 0.5], [0.5, 1]], [[1, -0.3], [-0.3, 1.5]]))
    sinkhorn = DISTANCES["sinkhorn"].measure(x, moved, Setting(x, False, 0.1, 1.0, 1, 0, 0))
    line = (torch.arange(400, dtype=torch.float64)[:, None] + 0.5) / 400
    point = torch.full((400, 1), 0.5, dtype=torch.float64)
    unit = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    exact, middle = wasserstein2(x, moved).W2_squared, wasserstein1(line, point).value
    straight, shift = float(laws.signature_kernel(unit, unit)), "a shift by m costs |m|^2"
    return [
        GroundTruth("W2 squared of a sample moved by (0.3, 0.4)", exact, 0.25, 1e-9, shift),
        GroundTruth("the same, debiased Sinkhorn divergence", sinkhorn.value, 0.25, 1e-6, shift),
        GroundTruth("W1 of a uniform law from its middle", middle, 0.25, 1e-9, "E|U - 1/2| = 1/4"),
        GroundTruth(
            "W2 squared of two normal laws", laws.bures(torch.zeros(2), a, m, b), 2.5166852265, 1e-9,
            "Olkin and Pukelsheim 1982",
        ),
        GroundTruth(
            "the same, of one mean", laws.bures(torch.zeros(2), c, torch.zeros(2), d), 0.4634711896, 1e-9,
            "Olkin and Pukelsheim 1982",
        ),
        GroundTruth("signature kernel of straight paths", straight, 2.2795853023, 1e-9, "I0(2)"),
    ]  # fmt: skip


def of_forecast() -> list[GroundTruth]:
    """The score of a normal law, by its quantiles."""
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    draws, source = torch.special.ndtri(grid)[None], "Gneiting and Raftery 2007"
    return [
        GroundTruth(f"CRPS of a normal law at {at:g}", _crps(draws, at), right, 1e-6, source)
        for at, right in ((0.0, (math.sqrt(2) - 1) / math.sqrt(math.pi)), (1.0, 0.6024413576))
    ]


def of_information() -> list[GroundTruth]:
    """The golden mean process, and the mutual information of normal numbers."""
    golden = torch.tensor([[[0.0, 0.5], [0.0, 0.0]], [[0.5, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    blocks = exact_block_entropies(golden, 4)
    excess = float(blocks[3] - 4 * (blocks[3] - blocks[2]))
    shown = torch.full((3, 3), 0.075, dtype=torch.float64).fill_diagonal_(0.85)
    moved = torch.full((3, 3), 0.05, dtype=torch.float64).fill_diagonal_(0.9)
    mess3 = float(exact_block_entropies(moved[None] * shown.T[:, None, :], 4)[3])
    flips = torch.full((2, 2, 2), 0.025, dtype=torch.float64)  # [y_t+1, x_t, y_t]
    flips[0, 0], flips[1, 1] = 0.225, 0.225
    sent, mixture = conditional_information(flips), "Marzen and Crutchfield 2017"
    z, rho = _normal(3000, 2), 0.75
    x, y = z[:, :1], rho * z[:, :1] + math.sqrt(1 - rho**2) * z[:, 1:]
    source = "Crutchfield and Feldman 2003"
    found = nearest_neighbours(x, y, generator=torch.Generator().manual_seed(0))
    return [
        GroundTruth("entropy rate of the golden mean, bits", entropy_rate(golden), 2 / 3, 1e-9, source),
        GroundTruth("its statistical complexity", statistical_complexity(golden), 0.9182958341, 1e-9, source),
        GroundTruth("its excess entropy", excess, 0.2516291674, 1e-9, source),
        GroundTruth("entropy of four symbols of Mess3 (0.85, 0.05)", mess3, 5.147254, 5e-7, mixture),
        GroundTruth("transfer entropy of a channel that flips a tenth", sent, 0.531004, 5e-7, "1 - H(0.1)"),
        GroundTruth(
            "mutual information at correlation 0.75, nats (3,000 samples)",
            float(found.value), -math.log(1 - rho**2) / 2, 3 * float(found.standard_error),
            "Kraskov, Stoegbauer and Grassberger 2004",
        ),
    ]  # fmt: skip


def _normal(n: int, d: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _crps(draws: Tensor, at: float) -> float:
    return float(laws.crps(draws, torch.tensor([at], dtype=torch.float64), fair=False))
