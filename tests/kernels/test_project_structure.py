"""The structure of a residual changes what a projection costs and nothing else; each end has its reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldsim_kernels.project import Anchor, Status, gauss_newton_step, log_coarea, project, reasons

torch.set_num_threads(1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def energy(x: Tensor) -> Tensor:
    return x[..., 1] ** 2 / 2 + 1 - x[..., 0].cos()


def energy_and_product(x: Tensor) -> Tensor:
    return torch.stack([energy(x), x[..., 0] * x[..., 1]], -1)


def anchored(anchor: Anchor):
    """The residual that an anchor describes, in the way a constraint writes it."""

    def residual(x: Tensor) -> Tensor:
        value = anchor.value(x)
        change = (value - value[:, anchor.frame : anchor.frame + 1]) / anchor.scale
        before = torch.zeros_like(change[:, : anchor.frame])
        return torch.cat([before, change[:, anchor.frame :]], 1)

    return residual


@pytest.mark.parametrize("value", [energy, energy_and_product])
@pytest.mark.parametrize(("frame", "frozen"), [(1, 0), (0, None), (2, slice(0, 2))])
def test_an_anchor_gives_the_dense_step(value, frame: int, frozen) -> None:
    # Where the two gradients are far from parallel: else both steps are large and inexact.
    x, anchor = torch.tensor([1.2, 0.4]) + 0.2 * draw(6, 7, 2), Anchor(value, frame, 0.7)
    variances = 0.5 + draw(7, 2, seed=3).abs()
    for damping in (0.0, 0.3):
        for metric in (None, variances):
            settings = {"damping": damping, "frozen": frozen, "metric": metric}
            dense = gauss_newton_step(anchored(anchor), x, **settings)
            quick = gauss_newton_step(anchored(anchor), x, anchor=anchor, **settings)
            torch.testing.assert_close(quick, dense, rtol=0, atol=1e-12)
            assert not torch.equal(quick, x)


def test_an_anchor_that_is_held_leaves_blocks_alone() -> None:
    x, anchor = draw(4, 6, 2), Anchor(energy)
    held = gauss_newton_step(anchored(anchor), x, anchor=anchor, frozen=0)
    target = energy(x[:, :1])
    local = gauss_newton_step(lambda y: energy(y) - target, x, local=True, frozen=0)
    torch.testing.assert_close(held, local, rtol=0, atol=1e-13)


def test_an_anchored_projection_arrives_and_moves_the_anchor() -> None:
    x, anchor = 1 + 0.3 * draw(32, 12, 2), Anchor(energy, 1)
    found = project(anchored(anchor), x, anchor=anchor, frozen=0)
    assert found.converged.all()
    assert (energy(found.x[:, 1:]) - energy(found.x[:, 1:2])).abs().max() < 1e-10
    assert torch.equal(found.x[:, 0], x[:, 0])
    assert (found.x[:, 1] != x[:, 1]).any(-1).all()
    dense = project(anchored(anchor), x, frozen=0)
    torch.testing.assert_close(found.x, dense.x, rtol=0, atol=1e-9)


def test_an_anchored_sample_that_is_not_finite_harms_nobody() -> None:
    x, anchor = 1 + 0.3 * draw(5, 6, 2), Anchor(energy, 1)
    bad = x.clone()
    bad[2, 3] = torch.nan
    found = project(anchored(anchor), bad, anchor=anchor, frozen=0)
    keep = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found.x[keep], project(anchored(anchor), x[keep], anchor=anchor, frozen=0).x)
    assert found.status.tolist() == [0, 0, Status.NOT_FINITE, 0, 0]


def test_a_covariance_a_function_and_variances_are_one_metric() -> None:
    x, variances = draw(4, 3, 2), 0.5 + draw(3, 2, seed=1).abs()

    def residual(y: Tensor) -> Tensor:
        return energy_and_product(y)[:, 1:] - 0.2

    by_variances = gauss_newton_step(residual, x, metric=variances, frozen=0)
    for metric in (variances.flatten().diag(), lambda rows: rows * variances):
        torch.testing.assert_close(
            gauss_newton_step(residual, x, metric=metric, frozen=0), by_variances, rtol=0, atol=1e-13
        )
    local = gauss_newton_step(
        lambda y: energy_and_product(y) - 0.2, x, metric=variances, frozen=0, local=True
    )
    torch.testing.assert_close(local, by_variances, rtol=0, atol=1e-13)


def test_a_metric_of_each_sample_is_conditioning_on_a_noisy_observation() -> None:
    """N(x, C) seen through a.x = 1 with noise R: x - C a (a.x - 1) / (a.C a + R)."""
    a, x, noise = draw(4, seed=2), draw(6, 1, 4), 0.7
    root = draw(6, 4, 4, seed=5)
    covariance = root @ root.mT
    moved = gauss_newton_step(lambda y: y @ a - 1, x, damping=noise, metric=covariance)
    toward = covariance @ a
    expected = x[:, 0] - toward * ((x[:, 0] @ a - 1) / (toward @ a + noise))[:, None]
    torch.testing.assert_close(moved[:, 0], expected, rtol=0, atol=1e-12)


def test_the_coarea_factor_is_that_of_the_whole_matrix() -> None:
    x, anchor = draw(3, 5, 2), Anchor(energy_and_product, 1, 0.3)
    residual = anchored(anchor)
    leaf = x.requires_grad_()
    rows = torch.stack(
        [torch.autograd.grad(h.sum(), leaf, retain_graph=True)[0] for h in residual(leaf)[:, 2:].flatten(1).T]
    )
    rows = rows.transpose(0, 1).flatten(2)
    expected = -0.5 * torch.logdet(rows @ rows.mT)
    torch.testing.assert_close(log_coarea(residual, x, anchor=anchor), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(log_coarea(residual, x), expected, rtol=1e-12, atol=0)
    own = log_coarea(lambda y: energy(y) - 1, x, local=True, frozen=0)
    gradient = torch.stack([x[..., 0].sin(), x[..., 1]], -1)[:, 1:].norm(dim=-1)
    torch.testing.assert_close(own, -gradient.log().sum(1), rtol=1e-12, atol=0)


def test_every_sample_says_how_it_ended() -> None:
    target = torch.tensor([1.0, -0.5, 1.0, 1.0], dtype=torch.float64)
    x = 1 + 0.2 * draw(4, 3, 2)
    x[2, 1] = torch.nan
    found = project(lambda y: energy(y) - target[:, None], x, local=True)
    expected = [Status.CONVERGED, Status.UNREACHABLE, Status.NOT_FINITE, Status.CONVERGED]
    assert found.status.tolist() == expected
    assert torch.equal(found.converged, found.status == Status.CONVERGED)
    assert reasons(found.status).count("1 of 4") == 2
    assert reasons(found.status[:1]) == ""
    hurried = project(lambda y: energy(y) - 1, 1.5 + x[:1], local=True, max_iterations=1)
    assert hurried.status.tolist() == [Status.ITERATIONS]
    assert "allow more" in reasons(hurried.status)


@pytest.mark.parametrize("local", [True, False])
def test_a_held_frame_that_breaks_the_constraint_is_unreachable(local: bool) -> None:
    found = project(lambda y: energy(y) - 1.1, 1 + 0.2 * draw(3, 4, 2), local=local, frozen=0)
    assert found.status.tolist() == [Status.UNREACHABLE] * 3


@pytest.mark.parametrize("local", [True, False])
def test_a_linear_inequality_is_met_on_its_edge_in_one_step(local: bool) -> None:
    x, normal = draw(20, 5, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = project(lambda y: (1 - y @ normal).clamp(min=0), x, local=local)
    assert found.converged.all()
    assert found.iterations == 1
    beyond = x @ normal < 1
    assert beyond.any()
    assert (~beyond).any()
    assert torch.equal(found.x[~beyond], x[~beyond])
    assert (found.x[beyond] @ normal - 1).abs().max() < 1e-13


def test_what_does_not_go_together_is_refused() -> None:
    x, anchor = draw(2, 4, 2), Anchor(energy, 1)
    residual = anchored(anchor)
    with pytest.raises(ValueError, match="not both"):
        project(residual, x, local=True, anchor=anchor)
    with pytest.raises(ValueError, match="cannot be frozen"):
        project(residual, x, anchor=anchor, frozen=[0, 2])
    with pytest.raises(ValueError, match="frame 9"):
        project(residual, x, anchor=Anchor(energy, 9))
    with pytest.raises(ValueError, match="leaves no structure"):
        project(residual, x, anchor=anchor, metric=torch.eye(8, dtype=torch.float64))
    with pytest.raises(ValueError, match="numbers in each"):
        gauss_newton_step(residual, x, anchor=Anchor(energy_and_product, 1))
