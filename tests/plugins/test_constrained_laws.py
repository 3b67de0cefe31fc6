"""Which law a constrained generator samples, where it can be known: a normal law and a linear constraint.

x ~ N(0, diag(1, 4)) with x_1 + x_2 = 1. The law given the constraint has mean (1/5, 4/5) and variances 4/5;
the image under the nearest-point map (1/2, 1/2) and 5/4. With the exact velocity every step of sampling is an
affine map of the noise, so the law is had without sampling: from the images of 0 and of the unit vectors.
"""

from __future__ import annotations

import pytest
import torch

from worldsim import Trajectory
from worldsim.mechanisms import Held, Use
from worldsim.wrapped import Wrapped
from worldsim_plugins.generators.flow import Flow

VARIANCES = torch.tensor([1.0, 4.0], dtype=torch.float64)
DEVIATIONS = VARIANCES.sqrt()


class OnLine:
    """x_1 + x_2 = 1 in every generated frame."""

    local_in_time = True

    def residual(self, trajectory):
        found = trajectory.states.double().sum(-1) - 1
        return torch.cat([torch.zeros_like(found[:, :, :1]), found[:, :, 1:]], 2)


class ExactFlow(Flow):
    """With the velocity E[x_1 - z | x_s] of x_1 ~ N(0, diag(VARIANCES)); noise is what the test gives."""

    noise: torch.Tensor

    def velocity(self, x, s, context):
        return (s * VARIANCES - (1 - s)) / ((1 - s) ** 2 + s**2 * VARIANCES) * x

    def transport(self, x, context, mend=None):
        return super().transport(self.noise[: len(x), None].to(x), context, mend)


def law(held: Held | None, steps: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean ``[2]`` and covariance ``[2, 2]`` of frame 1."""
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    data = Trajectory(torch.zeros(3, 1, 2, 2, dtype=torch.float64), times)
    uses = [] if held is None else [Use("line", OnLine(), held)]

    def build(truth):
        with torch.random.fork_rng():
            flow = ExactFlow(truth, width=8, depth=1, steps=steps, method="euler", guide_from=0.0).double()
        flow.noise = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        return flow

    model = Wrapped(build, "component", data, uses, dtype=torch.float64, block=3)
    out = model.rollout(data.span(0, 1), times, None, 1, torch.Generator().manual_seed(0))
    mean = out.states[0, 0, 1]
    columns = (out.states[1:, 0, 1] - mean).T
    return mean, columns @ columns.T


def test_the_sampler_is_right_without_a_constraint():
    mean, covariance = law(None)
    assert torch.allclose(mean, torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(covariance, torch.diag(VARIANCES), rtol=0.01, atol=1e-12)


def test_guidance_in_the_posterior_covariance_gives_the_conditional_law():
    held = Held(("guidance",), covariance="posterior")
    assert held.measure == "conditional"
    mean, covariance = law(held)
    assert torch.allclose(mean, torch.tensor([0.2, 0.8]).double(), atol=0.01)
    assert float(covariance[0, 0]) == pytest.approx(0.8, rel=0.01)
    assert float((mean.sum() - 1).abs()) < 1e-9
    assert float(covariance.sum().abs()) < 1e-9, "nothing is left across the line"


def test_projection_gives_the_projected_law():
    held = Held(("projection",))
    assert held.measure == "projected"
    mean, covariance = law(held)
    assert torch.allclose(mean, torch.tensor([0.5, 0.5]).double(), atol=0.01)
    assert float(covariance[0, 0]) == pytest.approx(1.25, rel=0.01)


def test_guidance_in_the_identity_gives_neither():
    mean, covariance = law(Held(("guidance", "projection")))
    assert 0.3 < float(mean[0]) < 0.45
    assert 0.9 < float(covariance[0, 0]) < 1.2
    assert float((mean.sum() - 1).abs()) < 1e-9
