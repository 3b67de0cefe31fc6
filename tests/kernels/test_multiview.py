import math

import pytest
import torch

from worldsim_kernels.multiview import (
    epipolar_distance,
    fitted_scale,
    fundamental,
    loop_closure,
    moved,
    reprojected,
    reprojection_error,
    rotation_error,
    sampson_distance,
    translation_error,
    view_agreement,
)

torch.set_num_threads(1)
F64 = torch.float64
K = torch.tensor([[60.0, 0.0, 32.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]], dtype=F64)


def about(axis, degrees):
    axis = torch.tensor(axis, dtype=F64)
    a, b, c = (axis / axis.norm()).tolist()
    skew = torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=F64)
    return torch.linalg.matrix_exp(math.radians(degrees) * skew)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 10.0, 90.0, 179.999999, 180.0])
def test_a_rotation_has_its_angle(degrees):
    base = about((1.0, 2.0, 3.0), 40.0)
    found = rotation_error(about((0.3, -1.0, 0.5), degrees) @ base, base)
    assert float(found) == pytest.approx(degrees, abs=1e-9)


def test_positions_are_compared_after_their_scale_is_fitted():
    true = normal(7, 3)
    assert float(fitted_scale(true / 4, true)) == pytest.approx(4)
    assert float(translation_error(3 * true + 5, true)) == pytest.approx(0, abs=1e-14)
    assert float(translation_error(normal(7, 3, seed=1), true)) > 0.3
    assert translation_error(true, torch.ones(7, 3, dtype=F64)).isnan()


TURN, SHIFT = about((0.2, 1.0, 0.1), 8.0), torch.tensor([0.5, -0.1, 0.2], dtype=F64)
PIXELS, DEPTH = (
    64 * torch.rand(50, 2, generator=torch.Generator().manual_seed(2), dtype=F64),
    4 + normal(50).abs(),
)
MATCHES = reprojected(PIXELS, DEPTH, K, TURN, SHIFT)[0]


def test_true_geometry_has_no_distance():
    matrix = fundamental(K, TURN, SHIFT)
    assert float(sampson_distance(matrix, PIXELS, MATCHES).max()) < 1e-12
    assert float(epipolar_distance(matrix, PIXELS, MATCHES).max()) < 1e-12
    assert float(reprojection_error(PIXELS, MATCHES, DEPTH, K, TURN, SHIFT).max()) == 0


def test_a_match_off_its_line_is_off_by_that_and_along_it_by_nothing():
    matrix = fundamental(K, TURN, SHIFT)
    line = torch.cat([PIXELS, torch.ones(50, 1, dtype=F64)], -1) @ matrix.mT
    across = line[:, :2] / line[:, :2].norm(dim=-1, keepdim=True)
    along = torch.stack([-across[:, 1], across[:, 0]], -1)
    assert float(sampson_distance(matrix, PIXELS, MATCHES + 9 * along).max()) < 1e-11
    assert float(epipolar_distance(matrix, PIXELS, MATCHES + 9 * along).max()) < 1e-11
    torch.testing.assert_close(
        reprojection_error(PIXELS, MATCHES + 9 * along, DEPTH, K, TURN, SHIFT),
        torch.full((50,), 9.0, dtype=F64),
    )


def test_two_pixels_off_the_line_are_two_pixels():
    """A camera that slides along x: all lines are rows. Sampson splits the 2 px evenly between the two
    images, so that its usual square is 2^2 / 2 = 2.000."""
    matrix = fundamental(K, torch.eye(3, dtype=F64), torch.tensor([1.0, 0.0, 0.0], dtype=F64))
    first = PIXELS
    second = first + torch.tensor([-7.0, 2.0], dtype=F64)
    torch.testing.assert_close(epipolar_distance(matrix, first, second), torch.full((50,), 2.0, dtype=F64))
    split = sampson_distance(matrix, first, second)
    torch.testing.assert_close(split, torch.full((50,), 2 / math.sqrt(2), dtype=F64))
    torch.testing.assert_close(split.square(), torch.full((50,), 2.0, dtype=F64))


def test_a_loop_closes_and_one_turned_by_ten_degrees_does_not():
    turns = torch.stack([about((0.0, 0.0, 1.0), 60.0)] * 6)
    steps = torch.tensor([1.0, 0.0, 0.0], dtype=F64).expand(6, 3)
    angle, gap = loop_closure(turns, steps)
    assert float(angle) == pytest.approx(0, abs=1e-9)
    assert float(gap) == pytest.approx(0, abs=1e-14)
    off = turns.clone()
    off[2] = about((0.0, 0.0, 1.0), 70.0)
    angle, gap = loop_closure(off, steps)
    assert float(angle) == pytest.approx(10, abs=1e-9)
    assert float(gap) > 0.01
    assert loop_closure(turns, 0 * steps)[1].isnan()


def test_a_still_clip_does_not_pass_the_gate():
    assert not moved(PIXELS, PIXELS, 0.5)
    assert moved(PIXELS, MATCHES, 0.5)


def wall(shift=1):
    """A wall at depth 3, and the same seen by a camera that slid so that it moves ``shift`` pixels left."""
    image = torch.rand(2, 8, 10 + shift, generator=torch.Generator().manual_seed(3), dtype=F64)
    slide = torch.tensor([-shift * 3 / 60, 0.0, 0.0], dtype=F64)
    depth = torch.full((2, 8, 10), 3.0, dtype=F64)
    return (image[..., :10], image[..., shift:]), (depth, depth.clone()), K, torch.eye(3, dtype=F64), slide


def test_a_wall_that_slides_by_a_pixel_agrees_but_for_the_column_that_leaves():
    found = view_agreement(*wall())
    assert found.visible.shape == (2,)
    torch.testing.assert_close(found.visible, torch.full((2,), 0.9, dtype=F64))
    assert float(found.photometric.max()) < 1e-12
    assert float(found.depth.max()) < 1e-12
    inner = torch.ones(2, 8, 10, dtype=torch.bool)
    inner[..., 0] = False
    torch.testing.assert_close(view_agreement(*wall(), counted=inner).visible, torch.ones(2, dtype=F64))


def test_depths_that_disagree_are_off_by_a_share_of_the_carried_one_whatever_their_sign():
    images, (first, second), *camera = wall()
    for factor in (0.8, 1.25, 0.0, -1.0):
        found = view_agreement(images, (first, factor * second), *camera)
        torch.testing.assert_close(found.depth, torch.full((2,), abs(1 - factor), dtype=F64))
        assert not found.visible.any()
        assert bool(found.photometric.isnan().all())
