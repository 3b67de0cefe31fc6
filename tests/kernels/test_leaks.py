import pytest
import torch

from worldsim_kernels import linear_attention
from worldsim_kernels.causality import cells_from, cone_leak, temporal_leak
from worldsim_kernels.lyapunov import NotDifferentiable

torch.set_num_threads(1)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_running_sum_does_not_leak_and_the_removal_of_a_mean_does():
    x = normal(3, 16, 2)
    assert torch.equal(temporal_leak(lambda x: x.cumsum(1), x), torch.zeros(3, dtype=torch.float64))
    leak = temporal_leak(lambda x: x - x.mean(1, keepdim=True), x)
    torch.testing.assert_close(leak, torch.full((3,), 1 / 16, dtype=torch.float64))


def test_what_may_not_depend_on_its_own_frame():
    x = normal(2, 8, 1)
    assert float(temporal_leak(lambda x: x.cumsum(1), x, delay=0).max()) == 1
    shifted = temporal_leak(lambda x: torch.nn.functional.pad(x.cumsum(1), (0, 0, 1, 0))[:, :-1], x, delay=0)
    assert float(shifted.max()) == 0


def test_a_causal_layer_is_exactly_causal():
    def layer(x):
        return linear_attention(*(x[:, :, None].expand(-1, -1, 2, -1) for _ in range(3)))[0]

    assert (
        float(temporal_leak(layer, normal(2, 12, 4), generator=torch.Generator().manual_seed(1)).max()) == 0
    )


def test_the_smallest_leak_is_seen_in_one_random_combination():
    def nearly(x):
        return torch.stack([x.cumsum(1)[..., 0], x.cumsum(1)[..., 1] + 1e-9 * x.flip(1)[..., 0]], -1)

    leak = temporal_leak(nearly, normal(2, 8, 2), generator=torch.Generator().manual_seed(1))
    assert (leak > 1e-11).all()


def test_a_cut_graph_is_told_and_is_no_proof_of_causality():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    for cut in (lambda x: x.detach(), lambda x: weight * x.detach().flip(1)):
        with pytest.raises(NotDifferentiable):
            temporal_leak(cut, normal(1, 3, 1))


@pytest.mark.parametrize("courant", [1.0, 0.5])
def test_the_leapfrog_wave_stays_within_one_cell_a_step(courant):
    """u'' = c^2 d2u/dx2: k steps reach k cells, whatever the Courant number: for less than 1 the numerical
    cone is wider than the physical one, c t."""
    cells, steps = 64, 20
    before = torch.zeros(1, cells, dtype=torch.float64)
    before[0, 10] = 1.0
    here = before + courant**2 / 2 * (before.roll(1, 1) - 2 * before + before.roll(-1, 1))
    frames = [before, here]
    for _ in range(steps - 1):
        after = 2 * here - before + courant**2 * (here.roll(1, 1) - 2 * here + here.roll(-1, 1))
        before, here = here, after
        frames.append(here)
    response, distance = torch.stack(frames, 1)[..., None], cells_from((cells,), (10,))
    k = torch.arange(steps + 1, dtype=torch.float64)
    assert float(cone_leak(response, distance, k)) == 0
    assert float(cone_leak(response, distance, k - 1)) > 0
    physical = float(cone_leak(response, distance, courant * k))
    assert physical == 0 if courant == 1 else 0 < physical < 0.1


def test_distances_go_round_a_periodic_grid():
    found = cells_from((8, 6), (1, 5))
    assert found[1, 5] == 0
    assert found[7, 5] == 2
    assert found[1, 0] == 1
    assert found[2, 0] == pytest.approx(2**0.5)


def test_no_response_has_no_share():
    assert cone_leak(torch.zeros(1, 3, 8, 1), cells_from((8,), (0,)), torch.ones(3)).isnan().all()
