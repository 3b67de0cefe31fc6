"""Which law a projection samples, on two worlds where every law is known.

A line: N(0, diag(1, 4)) and x1 + x2 = 1. The moments are propagated through the affine map of each step,
without sampling. An ellipse: x1^2 / 4 + x2^2 = 1 and N(0, 1), by quadrature.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worldsim_kernels.project import gauss_newton_step, log_coarea, project

torch.set_num_threads(1)

PRIOR = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
ONE = torch.eye(2, dtype=torch.float64)


def on_line(x: Tensor) -> Tensor:
    return x.sum((1, 2)) - 1


def projected(x: Tensor, metric: Tensor | None) -> Tensor:
    return gauss_newton_step(on_line, x[:, None], metric=metric)[:, 0]


def pushed(step, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The moments after an affine ``step``, which is known from three of its values."""
    values = step(torch.cat([torch.zeros(1, 2, dtype=torch.float64), ONE]))
    linear = (values[1:] - values[0]).T
    return linear @ mean + values[0], linear @ covariance @ linear.T


def flowed(posterior_metric: bool, steps: int, midpoint: bool) -> tuple[Tensor, Tensor]:
    """The exact rectified flow from N(0, 1) to the prior, its clean estimate projected at every step:
    v' = (P E[x_1 | x_s] - x) / (1 - s), with the metric 1 or Cov[x_1 | x_s]."""

    def velocity(s: float):
        gain = s * PRIOR @ torch.linalg.inv(s**2 * PRIOR + (1 - s) ** 2 * ONE)
        metric = PRIOR - s * gain @ PRIOR if posterior_metric else None
        return lambda x: (projected(x @ gain.T, metric) - x) / (1 - s)

    mean, covariance, h = torch.zeros(2, dtype=torch.float64), ONE, 1 / steps
    for i in range(steps):

        def step(x: Tensor, s: float = i * h) -> Tensor:
            there = x + h / 2 * velocity(s)(x) if midpoint else x
            return x + h * velocity(s + h / 2 if midpoint else s)(there)

        mean, covariance = pushed(step, mean, covariance)
    return mean, covariance


@pytest.mark.parametrize(
    ("metric", "mean", "variance"), [(None, (0.5, 0.5), 1.25), (PRIOR, (0.2, 0.8), 0.8)], ids=["one", "prior"]
)
def test_one_projection_at_the_end(metric, mean, variance) -> None:
    found, covariance = pushed(lambda x: projected(x, metric), torch.zeros(2, dtype=torch.float64), PRIOR)
    torch.testing.assert_close(found, torch.tensor(mean, dtype=torch.float64), rtol=0, atol=1e-14)
    assert float(covariance[0, 0]) == pytest.approx(variance, abs=1e-14)


def test_the_posterior_covariance_at_every_step_gives_the_conditional_law() -> None:
    """In 50 midpoint steps, and in 400 of Euler's, which make every law too narrow: 0.759 in 50."""
    for steps, midpoint, bias in ((50, True, 1e-3), (400, False, 1e-2)):
        mean, covariance = flowed(True, steps, midpoint)
        torch.testing.assert_close(mean, torch.tensor([0.2, 0.8], dtype=torch.float64), rtol=0, atol=1e-12)
        assert float(covariance[0, 0]) == pytest.approx(0.8, rel=bias)
        assert float(covariance.sum()) == pytest.approx(0, abs=1e-13)
    assert float(flowed(True, 50, False)[1][0, 0]) == pytest.approx(0.759, abs=1e-3)


def test_the_shortest_way_at_every_step_gives_another_law() -> None:
    """Neither the conditional law nor that of one projection at the end."""
    for steps, midpoint, variance in ((50, True, 1.051), (400, False, 1.044)):
        mean, covariance = flowed(False, steps, midpoint)
        torch.testing.assert_close(mean, torch.tensor([0.387, 0.613], dtype=torch.float64), rtol=0, atol=1e-3)
        assert float(covariance[0, 0]) == pytest.approx(variance, abs=1e-3)
        assert float(mean.sum()) == pytest.approx(1, abs=1e-13)


# The ellipse.


def off_ellipse(x: Tensor) -> Tensor:
    return x[:, 0, 0].square() / 4 + x[:, 0, 1].square() - 1


def ellipse(count: int) -> tuple[Tensor, Tensor]:
    """Points ``[count, 2]`` equally spaced in angle, and p ds of each."""
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    x = torch.stack([2 * angle.cos(), angle.sin()], -1)
    length = (4 * angle.sin().square() + angle.cos().square()).sqrt()
    return x, length * torch.exp(-x.square().sum(-1) / 2)


def test_the_coarea_factor_turns_the_density_into_that_of_the_conditional_law() -> None:
    x, weight = ellipse(2000)
    coarea = log_coarea(off_ellipse, x[:, None])
    gradient = torch.stack([x[:, 0] / 2, 2 * x[:, 1]], -1).norm(dim=-1)
    torch.testing.assert_close(coarea, -gradient.log(), rtol=0, atol=1e-14)
    plain = (weight * x[:, 0].square()).sum() / weight.sum()
    weight = weight * coarea.exp()
    assert float(plain) == pytest.approx(1.069917, abs=1e-6)
    assert float((weight * x[:, 0].square()).sum() / weight.sum()) == pytest.approx(1.298226, abs=1e-6)


def test_weighting_samples_by_the_coarea_factor_gives_the_conditional_law() -> None:
    x, weight = ellipse(20_000)
    picked = torch.multinomial(weight, 20_000, True, generator=torch.Generator().manual_seed(0))
    x = x[picked]
    square = x[:, 0].square()
    weight = log_coarea(off_ellipse, x[:, None]).exp()
    found = (weight * square).sum() / weight.sum()
    error = (weight * (square - found)).square().sum().sqrt() / weight.sum()
    assert abs(float(found) - 1.298226) < 3 * float(error)
    assert abs(float(square.mean()) - 1.298226) > 10 * float(error)


def test_a_small_residual_conditions_as_the_coarea_factor_says() -> None:
    """The law of x given |h| < 0.01, by quadrature over the plane."""
    middles = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x1, x2 = 2.2 * middles[:, None], 1.2 * middles
    near = (x1.square() / 4 + x2.square() - 1).abs() < 0.01
    weight = torch.exp(-(x1.square() + x2.square()) / 2) * near
    assert float((weight * x1.square()).sum() / weight.sum()) == pytest.approx(1.2982, abs=2e-3)


def test_moving_points_onto_the_ellipse_gives_other_laws() -> None:
    """The nearest point, radially, and Gauss-Newton, which is nearest to first order only."""
    radius = (-2 * torch.log1p(-(torch.arange(150, dtype=torch.float64) + 0.5) / 150)).sqrt()
    angle = 2 * math.pi * (torch.arange(120, dtype=torch.float64) + 0.5) / 120
    x = torch.stack([radius[:, None] * angle.cos(), radius[:, None] * angle.sin()], -1).reshape(-1, 2)
    curve, _ = ellipse(4000)
    nearest = curve[torch.cdist(x, curve).argmin(1)]
    radial = x / (x[:, :1].square() / 4 + x[:, 1:].square()).sqrt()
    found = project(off_ellipse, x[:, None])
    assert found.converged.all()
    assert float(nearest[:, 0].square().mean()) == pytest.approx(0.922, abs=2e-3)
    assert float(radial[:, 0].square().mean()) == pytest.approx(4 / 3, abs=1e-3)
    assert float(found.x[:, 0, 0].square().mean()) == pytest.approx(1.187, abs=3e-3)
