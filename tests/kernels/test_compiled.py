"""The compiled loop is the eager one: the same bits, statuses and counts, and clear refusals."""

import pytest
import torch

from worldsim_kernels.solve import ODE, PID, Constant, Event, Save, Status, solve

F64 = torch.float64


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack([v, mu * (1 - x * x) * v - x], -1)


def test_the_compiled_loop_gives_the_bits_of_the_eager_one():
    draws = torch.Generator().manual_seed(0)
    y0 = torch.randn(40, 2, dtype=F64, generator=draws)
    mu = 10 ** (1.5 * torch.rand(40, dtype=F64, generator=draws))
    y0[3], mu[5] = float("nan"), 1e300
    t1 = torch.where(torch.arange(40) % 2 == 0, 5.0, -1.0).double()
    t1[7] = 0.0
    rtol = torch.full((40,), 1e-6, dtype=F64)
    how = {"stepper": "dopri5", "controller": PID(rtol, 1e-7, proportional=0.1), "max_steps": 400}
    eager = solve(ODE(van_der_pol, (mu,)), y0, 0.0, t1, **how)
    made = solve(ODE(van_der_pol, (mu,)), y0, 0.0, t1, backend="compiled", **how)
    assert made.backend == "compiled"
    assert torch.equal(made.y.nan_to_num(7.0), eager.y.nan_to_num(7.0))
    for name in ("t", "status"):
        assert torch.equal(getattr(made, name), getattr(eager, name))
    for name in ("accepted", "rejected", "evaluations"):
        assert torch.equal(getattr(made.stats, name), getattr(eager.stats, name))
    assert set(made.status.tolist()) >= {Status.DONE, Status.NOT_FINITE, Status.MAX_STEPS}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"stepper": "rodas5p"}, "explicit Runge-Kutta methods"),
        ({"controller": Constant(0.1)}, "with a PID controller alone"),
        ({"save": Save(times=torch.tensor([0.5]))}, "no saved times"),
        ({"events": [Event(lambda t, y: y[:, 0])]}, "no events"),
    ],
)
def test_what_it_cannot_do_is_refused(more, words):
    with pytest.raises(ValueError, match=f"'compiled' cannot run this solve: .*{words}"):
        solve(ODE(lambda t, y: -y), torch.ones(2, 1, dtype=F64), 0.0, 1.0, backend="compiled", **more)
