import math

import pytest
import torch

from worldsim_kernels.lyapunov import (
    NotDifferentiable,
    by_difference,
    by_gradient,
    kaplan_yorke,
    lyapunov_rates,
)

torch.set_num_threads(1)
SIGMA, RHO, BETA = 10.0, 28.0, 8 / 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lorenz(x):
    a, b, c = x.unbind(-1)
    return torch.stack([SIGMA * (b - a), a * (RHO - c) - b, a * b - BETA * c], -1)


def rk4(x, h):
    k1 = lorenz(x)
    k2 = lorenz(x + h / 2 * k1)
    k3 = lorenz(x + h / 2 * k2)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + lorenz(x + h * k3))


def logistic(x):
    return 4 * x * (1 - x)


@pytest.mark.parametrize("push", [by_gradient, by_difference(1e-7)], ids=["gradient", "difference"])
def test_the_logistic_map_doubles(push):
    start = torch.rand(64, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rates = lyapunov_rates(logistic, start, 400, exponents=1, push=push, transient=20)
    # The sum telescopes in the angle of the conjugate tent map: one row errs as 1 / steps.
    each = rates.mean(1)[:, 0]
    assert abs(float(each.mean()) - math.log(2)) < 3 * float(each.std()) / 8 + 1e-3
    assert float((each - math.log(2)).abs().max()) < 0.05


def on_the_attractor(rows):
    state = normal(rows, 3) * 10 + torch.tensor([0.0, 0.0, 27.0])
    for _ in range(1000):
        state = rk4(state, 0.01)
    return state


def test_the_spectrum_of_lorenz():
    rates = lyapunov_rates(
        lambda x: rk4(rk4(x, 0.01), 0.01),
        on_the_attractor(512),
        250,
        exponents=3,
        push=by_difference(1e-5),
        transient=500,  # the second vector turns as exp(-0.9 t)
        dt=0.02,
    )
    each = rates.mean(1)
    error = each.std(0) / len(each) ** 0.5
    # Viswanath (1998) and Sprott (2003): 0.9056, 0, -14.5723.
    known = torch.tensor([0.9056, 0.0, -14.5723], dtype=torch.float64)
    assert ((each.mean(0) - known).abs() < 3 * error).all()
    assert float(error[0]) < 0.03


def test_the_exponents_of_lorenz_add_up_to_its_divergence():
    def advance(x):
        return rk4(rk4(x, 0.005), 0.005)

    start = on_the_attractor(32)
    exact, other = (
        lyapunov_rates(advance, start, 20, exponents=3, push=push, dt=0.01)
        for push in (by_gradient, by_difference(1e-5))
    )
    torch.testing.assert_close(other, exact, rtol=0, atol=1e-6)
    assert float(exact.sum(-1).mean()) == pytest.approx(-13.6667, abs=5e-5)


def test_a_linear_map_has_the_logarithms_of_its_moduli_exactly():
    turn = torch.linalg.qr(normal(4, 4)).Q
    matrix = turn @ torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.125], dtype=torch.float64)) @ turn.mT
    rates = lyapunov_rates(
        lambda x: x @ matrix.mT, normal(3, 4), 5, exponents=4, push=by_gradient, transient=60
    )
    expected = torch.tensor([2.0, 1.0, 0.5, 0.125], dtype=torch.float64).log().expand(3, 5, 4)
    torch.testing.assert_close(rates, expected, rtol=0, atol=1e-12)


def test_the_time_of_a_step_divides():
    one, two = (
        lyapunov_rates(lambda x: 3 * x, normal(2, 1), 4, exponents=1, push=by_gradient, dt=dt)
        for dt in (1.0, 0.5)
    )
    torch.testing.assert_close(two, 2 * one)


def test_what_the_map_destroys_has_no_exponent():
    rates = lyapunov_rates(lambda x: x * 0 + 1, normal(2, 2), 3, exponents=2, push=by_gradient)
    assert torch.equal(rates, torch.full((2, 3, 2), -math.inf, dtype=torch.float64))


def test_a_row_that_is_lost_spoils_no_other():
    start = torch.tensor([[0.3], [math.inf]], dtype=torch.float64)
    rates = lyapunov_rates(logistic, start, 10, exponents=1, push=by_gradient)
    assert rates[0].isfinite().all()
    assert rates[1].isnan().all()


def test_a_broken_graph_is_told():
    with pytest.raises(NotDifferentiable):
        lyapunov_rates(lambda x: logistic(x.detach()), normal(2, 1), 3, exponents=1, push=by_gradient)
    with pytest.raises(ValueError, match="between 1 and the 1"):
        lyapunov_rates(logistic, normal(2, 1), 3, exponents=2, push=by_gradient)


def test_the_gradient_is_had_under_no_grad_too():
    with torch.no_grad():
        rates = lyapunov_rates(logistic, normal(2, 1).sigmoid(), 3, exponents=1, push=by_gradient)
    assert rates.isfinite().all()


def test_kaplan_and_yorke():
    lorenz63 = torch.tensor([0.9056, 0.0, -14.5723])
    assert kaplan_yorke(lorenz63) == pytest.approx(2 + 0.9056 / 14.5723, abs=1e-6)
    assert kaplan_yorke(torch.tensor([-1.0, -2.0])) == 0
    assert kaplan_yorke(torch.tensor([1.0, -0.5])) == 2
