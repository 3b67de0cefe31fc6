"""A picture is where its rays end: exact depths, matches, and gradients where a body stays in sight."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from worldsim_kernels.multiview import pixel_grid, reprojected
from worldsim_kernels.rendering import Bodies, Texture, brightness, sight

torch.set_num_threads(1)
F64 = torch.float64
SIZE = 24
K = torch.tensor([[24.0, 0.0, 11.5], [0.0, 24.0, 11.5], [0.0, 0.0, 1.0]], dtype=F64)
STILL = torch.eye(3, dtype=F64), torch.zeros(3, dtype=F64)
MIDDLE = torch.tensor([[11.5, 11.5]], dtype=F64)


def exp(vector):
    a, b, c = vector.unbind(-1)
    zero = torch.zeros_like(a)
    skew = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).reshape(*a.shape, 3, 3)
    return torch.linalg.matrix_exp(skew)


def scene(centre, turn=None):
    """A sphere, a box and an ellipsoid at ``centre [..., 3, 3]`` in a room."""
    turn = (
        torch.tensor([[0.1, 0.2, 0.3], [0.5, -0.4, 0.2], [0.3, 0.9, -0.2]], dtype=F64)
        if turn is None
        else turn
    )
    lead = centre.shape[:-2]
    room = torch.zeros(*lead, 1, 3, dtype=F64), torch.eye(3, dtype=F64).expand(*lead, 1, 3, 3)
    half = torch.tensor([[0.8] * 3, [0.6, 0.7, 0.8], [0.5, 0.9, 0.7], [9.0] * 3], dtype=F64)
    return Bodies(
        torch.cat([centre, room[0]], -2),
        torch.cat([exp(turn).expand(*lead, 3, 3, 3), room[1]], -3),
        half,
        torch.tensor([False, True, False, True]),
        torch.tensor([False, False, False, True]),
    )


CENTRES = torch.tensor([[-1.2, -0.3, 4.0], [1.1, 0.2, 5.0], [0.1, 1.0, 4.5]], dtype=F64)
WAVES = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
LOOK = Texture(WAVES, torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64))


def test_a_ray_through_the_middle_meets_each_shape_at_its_side():
    for number, side in enumerate((0.8, 0.8, 0.7)):
        far = torch.full((3, 3), -50.0, dtype=F64)  # behind
        far[number] = torch.tensor([0.0, 0.0, 5.0])
        seen = sight(MIDDLE, K, *STILL, scene(far, torch.zeros(3, 3, dtype=F64)))
        assert int(seen.body) == number
        assert float(seen.depth) == pytest.approx(5 - side, abs=1e-14)
        torch.testing.assert_close(seen.place, torch.tensor([[0.0, 0.0, -side]], dtype=F64))
    nothing = scene(far + 50 * torch.tensor([0.0, 0.0, -2.0], dtype=F64))
    assert float(sight(MIDDLE, K, *STILL, nothing).depth) == 9.0  # the wall


def test_depth_is_along_the_axis_and_places_lie_on_their_body():
    bodies = scene(CENTRES)
    seen = sight(pixel_grid(SIZE, SIZE), K, *STILL, bodies)
    assert set(seen.body.tolist()) == {0, 1, 2, 3}
    scaled = seen.place / bodies.half[seen.body]
    box = bodies.box[seen.body]
    size = torch.where(box, scaled.abs().amax(-1), scaled.norm(dim=-1))
    assert float((size - 1).abs().max()) < 1e-13
    world = (bodies.rotation[seen.body] @ seen.place[..., None])[..., 0] + bodies.centre[seen.body]
    torch.testing.assert_close(world[:, 2], seen.depth)
    torch.testing.assert_close((world @ K.mT)[:, :2] / world[:, 2:], pixel_grid(SIZE, SIZE))


def test_what_is_seen_from_two_places_is_the_same_to_rounding():
    """No sampling between pixels: the second view is asked exactly where the first one's points fall."""
    bodies = scene(CENTRES)
    first = sight(pixel_grid(SIZE, SIZE), K, *STILL, bodies)
    turn, shift = exp(torch.tensor([0.05, -0.2, 0.1], dtype=F64)), torch.tensor([0.7, 0.1, -0.2], dtype=F64)
    at, z = reprojected(pixel_grid(SIZE, SIZE), first.depth, K, turn, shift)
    second = sight(at, K, turn, shift, bodies)
    hidden = second.depth < z * (1 - 1e-9)
    assert 0.01 < float(hidden.double().mean()) < 0.5
    assert torch.equal(second.body[~hidden], first.body[~hidden])
    assert float((second.depth / z - 1)[~hidden].abs().max()) < 1e-12
    apart = brightness(second, LOOK) - brightness(first, LOOK)
    assert float(apart[~hidden].abs().max()) < 1e-12
    assert float(apart[hidden].abs().max()) > 0.1


def test_a_batch_of_cameras_and_worlds_is_each_of_them():
    centres = torch.stack([CENTRES, CENTRES + 0.2])
    turn = exp(torch.tensor([[0.0, 0.1, 0.0], [0.2, 0.0, 0.1]], dtype=F64))
    shift = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.3, 0.1]], dtype=F64)
    pixels = pixel_grid(SIZE, SIZE)
    both = brightness(sight(pixels, K, turn, shift, scene(centres)), LOOK)
    assert both.shape == (2, SIZE**2, 2)
    for i in range(2):
        torch.testing.assert_close(
            both[i], brightness(sight(pixels, K, turn[i], shift[i], scene(centres[i])), LOOK)
        )


def rendered(pose, shift, centre, turn):
    """Depth and brightness where each body is well inside its silhouette, and on the wall."""
    pixels = torch.cat([CENTRES, torch.tensor([[4.0, -4.0, 9.0]], dtype=F64)]) @ K.mT
    seen = sight(pixels[:, :2] / pixels[:, 2:], K, exp(pose), shift, scene(centre, turn))
    assert seen.body.tolist() == [0, 1, 2, 3]
    return seen.depth, brightness(seen, LOOK)


def test_gradients_in_pose_places_and_turns_of_bodies():
    generator = torch.Generator().manual_seed(2)

    def near(value):
        return (value + 0.01 * torch.randn(value.shape, generator=generator, dtype=F64)).requires_grad_()

    turn = torch.tensor([[0.1, 0.2, 0.3], [0.5, -0.4, 0.2], [0.3, 0.9, -0.2]], dtype=F64)
    inputs = near(torch.zeros(3, dtype=F64)), near(torch.zeros(3, dtype=F64)), near(CENTRES), near(turn)
    assert gradcheck(rendered, inputs, atol=1e-7)
    assert all(
        float(g.abs().max()) > 0 for g in torch.autograd.grad(sum(x.sum() for x in rendered(*inputs)), inputs)
    )


def test_a_pose_is_found_by_descent_on_brightness():
    """What differentiability is for: from 0.02 rad off, Gauss-Newton on the wall and the bodies' insides."""
    pixels = pixel_grid(SIZE, SIZE)
    true = torch.tensor([0.03, -0.02, 0.01, 0.05, -0.03, 0.04], dtype=F64)

    def picture(x):
        return brightness(sight(pixels, K, exp(x[:3]), x[3:], scene(CENTRES)), LOOK).flatten()

    target, x = picture(true), torch.zeros(6, dtype=F64)
    for _ in range(12):
        jacobian = torch.autograd.functional.jacobian(picture, x, vectorize=True)
        off = picture(x) - target
        weight = (off.abs() < 2 * off.abs().median() + 1e-12).double()  # silhouettes jump
        x = x - torch.linalg.lstsq(weight[:, None] * jacobian, weight * off).solution
    assert float((x - true).abs().max()) < 1e-9


def test_gradients_are_finite_everywhere_even_where_rays_miss():
    centre = CENTRES.clone().requires_grad_()
    vector = torch.zeros(3, dtype=F64, requires_grad=True)
    seen = sight(pixel_grid(SIZE, SIZE), K, exp(vector), torch.zeros(3, dtype=F64), scene(centre))
    (seen.depth.sum() + brightness(seen, LOOK).sum()).backward()
    assert bool(centre.grad.isfinite().all())
    assert bool(vector.grad.isfinite().all())


def test_beside_all_bodies_there_is_nothing():
    centre, rotation, half, box, hollow = scene(CENTRES)
    alone = Bodies(centre[:3], rotation[:3], half[:3], box[:3], hollow[:3])
    seen = sight(torch.tensor([[-500.0, -500.0]], dtype=F64), K, *STILL, alone)
    assert math.isinf(float(seen.depth))
    assert int(seen.body) == -1
    assert brightness(seen, LOOK).tolist() == [[0.0, 0.0]]
