"""What ``worldsim score --selftest`` holds metrics of fields and of shapes to: waves of one wavenumber, and
points on a circle."""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch

from worldsim.protocols import GroundTruth
from worldsim_kernels.spectra import band_power, crmse, fourier_rmse, vrmse
from worldsim_plugins.metrics.persistence import alpha_diagrams, betti, rips_diagrams

EDGES = (4, 12)


def of_spectra() -> list[GroundTruth]:
    """A sin(8 x) on 64 points, and fields of which all is known but their values."""
    amplitude = 3.0
    wave = amplitude * torch.sin(2 * math.pi * 8 * torch.arange(64, dtype=torch.float64) / 64)
    low, mid, high = fourier_rmse(wave[None], EDGES).tolist()
    field = torch.randn(200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, power = field.mean().expand_as(field), float(band_power(field, EDGES, dims=2).sum())
    parts, off = power / float(field.square().mean()), float(crmse(field + 0.7, field, dims=2))
    takamoto, ohana = "Takamoto et al. 2022", "Ohana et al. 2024"
    return [
        GroundTruth("fRMSE of 3 sin(8 x), bands beside its own", max(low, high), 0.0, 1e-12, takamoto),
        GroundTruth("the same, its own band", mid, amplitude / 16, 1e-12, takamoto),
        GroundTruth("its power", float(band_power(wave, EDGES)[1]), amplitude**2 / 2, 1e-12, "mean of sin^2"),
        GroundTruth("bands of a field over its mean square", parts, 1.0, 1e-12, "Parseval"),
        GroundTruth("VRMSE of the mean", float(vrmse(mean, field, dims=2, epsilon=0)), 1.0, 1e-12, ohana),
        GroundTruth("cRMSE of a field 0.7 too large", off, 0.7, 1e-12, takamoto),
    ]


def of_topology() -> list[GroundTruth]:
    """A regular polygon of 60 corners: one piece, one loop. Nothing where gudhi is not installed."""
    if find_spec("gudhi") is None:
        return []
    angle = torch.arange(60, dtype=torch.float64) * 2 * math.pi / 60
    polygon = torch.stack([angle.cos(), angle.sin()], 1)
    side, source = 2 * math.sin(math.pi / 60), "Adamaszek and Adams 2017"
    (pieces, loops), (_, discs) = rips_diagrams(polygon, 1), alpha_diagrams(polygon, 1)
    return [
        GroundTruth("pieces of a polygon", float(betti(pieces, side * 1.01)), 1.0, 0.0, source),
        GroundTruth("its loops", float(betti(loops, 0.1)), 1.0, 0.0, source),
        GroundTruth("birth of the loop, balls of diameter r", float(loops[0, 0]), side, 1e-9, "its side"),
        GroundTruth("death of the loop, balls of diameter r", float(loops[0, 1]), math.sqrt(3), 1e-9, source),
        GroundTruth("birth of the loop, balls of radius r", float(discs[0, 0]), side / 2, 1e-9, "half of it"),
        GroundTruth(
            "death of the loop, balls of radius r", float(discs[0, 1]), 1.0, 1e-9, "the circle's radius"
        ),
    ]
