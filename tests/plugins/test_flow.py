"""Flow matching: exact identities, bits, guidance, and a law known in closed form."""

from __future__ import annotations

import pytest
import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.protocols import Estimates, Guidable
from worldsim.scenario import FitSettings
from worldsim_plugins.backbones.linear_dit import LinearDiT
from worldsim_plugins.backbones.recurrent import Recurrent
from worldsim_plugins.generators.couplings import paired, transport_plan
from worldsim_plugins.generators.flow import Flow, straightness, worldsim_generators

torch.set_num_threads(1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(frames: int, step: float = 0.5) -> torch.Tensor:
    return step * torch.arange(frames, dtype=torch.float64)


def windows(n: int = 8, frames: int = 5, action: int = 0, seed: int = 0) -> Trajectory:
    actions = torch.randn(n, frames, action, generator=rng(seed + 1)) if action else None
    states = torch.randn(n, 1, frames, 2, generator=rng(seed))
    return Trajectory(states, grid(frames), actions, labels={"component": ("q", "p")})


def small(truth: Trajectory, **settings) -> Flow:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Flow(truth, **{"width": 16, "depth": 2, "steps": 4, "method": "euler", **settings})


def gaussian(monkeypatch, flow: Flow, mean: float = 0.4, deviation: float = 0.5) -> None:
    """Give the flow the exact velocity E[x_1 - z | x_s] of x_1 ~ N(mean, deviation^2), in float64."""

    def velocity(x, s, context):
        variance = (1 - s) ** 2 + (s * deviation) ** 2
        return mean + (s * deviation**2 - (1 - s)) / variance * (x - s * mean)

    flow.double()
    monkeypatch.setattr(flow, "velocity", velocity)


def test_it_is_a_generator_that_can_be_penalised_and_guided() -> None:
    flow = small(windows())
    assert isinstance(flow, Estimates)
    assert isinstance(flow, Guidable)
    assert (flow.window, flow.time_step, flow.scaling, flow.whole_window) == (5, 0.5, "component", True)


def test_linear_dit_is_a_flow_over_that_backbone() -> None:
    truth = windows(action=1)
    named, spelt = (
        build(truth, width=16, **settings)
        for build, settings in (
            (worldsim_generators()["linear_dit"], {}),
            (worldsim_generators()["flow"], {"backbone": LinearDiT()}),
        )
    )
    named.load_state_dict(spelt.state_dict())
    arguments = (truth.span(0, 1), grid(5), torch.randn(8, 5, 1, generator=rng()), 2)
    assert torch.equal(named.rollout(*arguments, rng()).states, spelt.rollout(*arguments, rng()).states)
    other = worldsim_generators()["linear_dit"](truth, width=16, backbone=Recurrent())
    assert any("cell" in name for name in other.state_dict())


def test_the_true_velocity_of_a_pair_has_no_loss_and_estimates_its_end(monkeypatch) -> None:
    truth = windows(32)
    flow = small(truth)
    data = truth.states[:, 0, 1:]

    def velocity(x, s, context):  # x_s = (1 - s) z + s x_1, hence x_1 - z = (x_1 - x_s) / (1 - s)
        return (data - x) / (1 - s)[:, None, None]

    monkeypatch.setattr(flow, "velocity", velocity)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss, estimate = flow.loss_and_estimate(truth)
    assert loss < 1e-8
    assert 0 < len(estimate) < 32  # the late half
    distance = (estimate.states[:, None] - truth.states[None]).abs().amax((2, 3, 4)).amin(1)
    assert distance.max() < 1e-5


def test_the_loss_of_no_velocity_is_the_variance_of_data_and_noise(monkeypatch) -> None:
    truth = windows(4000)
    flow = small(truth)
    monkeypatch.setattr(flow, "velocity", lambda x, s, context: torch.zeros_like(x))
    assert float(flow.loss(truth)) == pytest.approx(2.0, abs=0.05)


def test_a_lone_row_still_gives_an_estimate_that_trains() -> None:
    flow = small(windows(1))
    for seed in range(5):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            loss, estimate = flow.loss_and_estimate(windows(1))
        assert estimate.states.shape == (1, 1, 5, 2)
        assert torch.equal(estimate.states[:, :, 0], windows(1).states[:, :, 0])
        flow.zero_grad()
        (loss + estimate.states.square().mean()).backward()
        assert all(p.grad.isfinite().all() for p in flow.parameters())


@pytest.mark.parametrize(
    ("method", "order", "near"), [("euler", 1, 0.1), ("midpoint", 2, 1e-3), ("heun", 2, 2e-3)]
)
def test_sampling_converges_to_the_exact_map_at_its_order(monkeypatch, method, order, near) -> None:
    """Between Gaussians the flow is z -> mean + deviation z."""
    flow = small(windows(frames=2), method=method)
    gaussian(monkeypatch, flow)
    z = torch.randn(200, 1, 2, dtype=torch.float64, generator=rng(3))
    error = []
    for flow.steps in (40, 80):
        error.append(float((flow.transport(z, None) - (0.4 + 0.5 * z)).abs().max()))
    assert error[0] < near
    assert error[0] / error[1] > 0.85 * 2**order


def test_a_short_training_learns_a_conditional_gaussian() -> None:
    """x_1 = 0.8 c + 0.6 n with c, n normal: mean 0.8 c and deviation 0.6 for every c."""

    def batch(n: int, seed: int) -> Trajectory:
        c, noise = torch.randn(2, n, 1, generator=rng(seed))
        return Trajectory(torch.stack([c, 0.8 * c + 0.6 * noise], 1)[:, None], grid(2))

    flow = small(batch(8, 0), width=32, steps=20, method="midpoint")
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(600):
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * (1 - step / 600)
            optimiser.zero_grad()
            flow.loss(batch(256, step)).backward()
            optimiser.step()
    c = torch.tensor([-1.5, 0.0, 1.5])
    context = Trajectory(c[:, None, None, None], grid(1))
    with torch.no_grad():
        futures = flow.rollout(context, grid(2), None, 4000, rng(1)).states[:, :, 1, 0]
    torch.testing.assert_close(futures.mean(1), 0.8 * c, rtol=0, atol=0.08)
    torch.testing.assert_close(futures.std(1), torch.full((3,), 0.6), rtol=0, atol=0.06)


@pytest.mark.parametrize("frames", [1, 3, 5, 9, 12])
def test_any_horizon_is_chained_from_windows_and_cropped(frames: int) -> None:
    truth = windows()
    flow = small(truth)
    context = truth.span(None, 2)
    guess = flow.rollout(context, grid(frames) + 0.5, None, 3, rng())
    assert guess.states.shape == (8, 3, frames, 2)
    assert guess.states.dtype == torch.float32
    assert guess.labels == truth.labels
    assert torch.equal(guess.times, grid(frames) + 0.5)
    assert torch.equal(guess.states[:, :, 0], truth.states[:, :, 1].expand(-1, 3, -1))
    longest = flow.rollout(context, grid(13) + 0.5, None, 3, rng())
    assert torch.equal(longest.states[:, :, :frames], guess.states)


def test_the_seed_is_the_generator_and_nothing_else() -> None:
    truth = windows()
    flow = small(truth)
    before = torch.get_rng_state()
    one, two, other = (
        flow.rollout(truth.span(0, 1), grid(7), None, 2, rng(seed)).states for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two)
    assert (one - other)[:, :, 1:].abs().min() > 0
    assert (one[:, 0] - one[:, 1])[:, 1:].abs().min() > 0
    assert not one.requires_grad


def test_guidance_that_corrects_nothing_changes_no_bit() -> None:
    truth = windows(action=1)
    actions = torch.randn(8, 12, 1, generator=rng(9))
    for method in ("euler", "midpoint", "heun"):
        flow = small(truth, method=method, guide_from=0.0)
        plain = flow.rollout(truth.span(0, 1), grid(12), actions, 2, rng())
        guided = flow.guided_rollout(truth.span(0, 1), grid(12), actions, 2, rng(), lambda estimate: estimate)
        assert torch.equal(plain.states, guided.states)


def test_guidance_sees_the_rollout_so_far_and_only_late() -> None:
    truth = windows()
    flow = small(truth, steps=4, guide_from=0.5)
    seen = []

    def watch(estimate: Trajectory) -> Trajectory:
        seen.append(estimate)
        return estimate

    flow.guided_rollout(truth.span(0, 1), grid(7), None, 2, rng(), watch)
    assert [len(estimate.times) for estimate in seen] == [5, 5, 7, 7]  # s = 0.5 and 0.75 of two windows
    assert all(estimate.states.shape == (8, 2, len(estimate.times), 2) for estimate in seen)
    assert all(torch.equal(e.states[:, :, 0], truth.states[:, :, 0].expand(-1, 2, -1)) for e in seen)


def test_few_midpoint_steps_keep_a_spread_that_euler_shrinks(monkeypatch) -> None:
    z = torch.randn(50, 1, 2, dtype=torch.float64, generator=rng())
    kept = []
    for method, steps in (("euler", 50), ("midpoint", 25)):
        flow = small(windows(frames=2), method=method, steps=steps)
        gaussian(monkeypatch, flow, mean=0.0, deviation=0.1)
        kept.append(float((flow.transport(z, None) / (0.1 * z)).mean()))
    assert kept == pytest.approx([0.914, 0.999], abs=1e-3)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_last_step_lands_on_the_corrected_estimate(method: str) -> None:
    truth = windows()
    flow = small(truth, method=method)

    def to_unit_circle(estimate: Trajectory) -> Trajectory:
        return estimate.replace(states=estimate.states / estimate.states.norm(dim=-1, keepdim=True))

    guess = flow.guided_rollout(truth.span(0, 1), grid(7), None, 2, rng(), to_unit_circle)
    radius = guess.states[:, :, 1:].norm(dim=-1)
    torch.testing.assert_close(radius, torch.ones_like(radius), rtol=0, atol=1e-5)


def test_a_gaussian_guided_onto_a_line_keeps_its_spread_along_it(monkeypatch) -> None:
    """Orthogonal correction onto q + p = 1: the sum is exact, the difference keeps its own law."""
    truth = windows(frames=2)
    flow = small(truth, steps=50)
    gaussian(monkeypatch, flow, mean=0.0, deviation=1.0)

    def onto_line(estimate: Trajectory) -> Trajectory:
        excess = (estimate.states.sum(-1, keepdim=True) - 1) / 2
        return estimate.replace(states=estimate.states - excess)

    end = flow.guided_rollout(truth.span(0, 1), grid(2), None, 500, rng(), onto_line).states[:, :, 1]
    free = flow.rollout(truth.span(0, 1), grid(2), None, 500, rng()).states[:, :, 1]
    assert (end.sum(-1) - 1).abs().max() < 1e-12
    torch.testing.assert_close(end.diff(dim=-1), free.diff(dim=-1), rtol=0, atol=1e-12)


def test_a_law_guided_orthogonally_all_the_way_is_not_the_conditional_one(monkeypatch) -> None:
    """N(0, diag(1, 4)) guided onto q + p = 1 from the start: mean (0.387, 0.613) and variance 1.05 for small
    steps, between the image under projection, (1/2, 1/2) and 5/4, and the conditional law, (1/5, 4/5), 4/5.
    The recursion of mean and variance over 200 steps of Euler has 0.38756 and 1.03778."""
    truth = windows(frames=2)
    flow = small(truth, steps=200, guide_from=0.0)
    gaussian(monkeypatch, flow, mean=0.0, deviation=torch.tensor([1.0, 2.0], dtype=torch.float64))

    def onto_line(estimate: Trajectory) -> Trajectory:
        return estimate.replace(states=estimate.states - (estimate.states.sum(-1, keepdim=True) - 1) / 2)

    end = flow.guided_rollout(truth.span(0, 1), grid(2), None, 2000, rng(), onto_line).states[:, :, 1]
    q, error = end[..., 0].flatten(), 16_000**-0.5
    assert (end.sum(-1) - 1).abs().max() < 1e-12
    assert abs(float(q.mean()) - 0.38756) < 3 * error
    assert abs(float(q.var()) - 1.03778) < 3 * error * 2**0.5


def test_actions_move_the_future_and_the_last_one_is_held() -> None:
    truth = windows(action=1)
    flow = small(truth)
    context, actions = truth.span(0, 1), torch.randn(8, 7, 1, generator=rng(2))
    guess = flow.rollout(context, grid(7), actions, 1, rng())
    assert torch.equal(guess.actions, actions)
    assert not torch.equal(guess.states, flow.rollout(context, grid(7), actions + 1, 1, rng()).states)
    held = torch.cat([actions, actions[:, -1:].expand(-1, 2, -1)], 1)
    assert torch.equal(flow.rollout(context, grid(9), held, 1, rng()).states[:, :, :7], guess.states)
    with pytest.raises(ValueError, match="numbers of context"):
        flow.rollout(context, grid(7), None, 1, rng())


def test_transport_pairs_one_to_one_at_lower_cost_and_within_contexts() -> None:
    noise, data, context = torch.randn(3, 40, 2, generator=rng())
    free = transport_plan(noise, data, context, 1e-9)
    assert free.sort().values.tolist() == list(range(40))
    assert (noise[free] - data).square().sum() < 0.5 * (noise - data).square().sum()
    assert transport_plan(noise, data, context, 1e6).tolist() == list(range(40))
    same = context[:2].repeat(20, 1)  # two contexts: noise is exchanged within each only
    assert ((transport_plan(noise, data, same, 1e6) - torch.arange(40)) % 2 == 0).all()


def test_guidance_by_the_context_goes_beyond_what_the_context_tells() -> None:
    truth = windows(64)
    flow = small(truth, context_dropout=0.5)
    for weight in flow.field.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    _, x, context = flow.windows.split(truth)
    s = torch.full((64,), 0.3)
    told = flow.velocity(x, s, context)
    flow.guidance = 0.0
    untold = flow.velocity(x, s, context)
    assert torch.equal(untold, flow.velocity(x, s, context + 1))
    flow.guidance = 3.0
    torch.testing.assert_close(flow.velocity(x, s, context), untold + 3 * (told - untold))
    flow.loss(truth).backward()
    with pytest.raises(ValueError, match="set context_dropout"):
        small(truth, context_guidance=2.0)


def test_training_hides_the_context_as_often_as_it_says(monkeypatch) -> None:
    truth = windows(4000)
    flow, seen = small(truth, context_dropout=0.2), []

    def field(x, s, context, beside):
        seen.append((context, beside))
        return torch.zeros_like(x)

    monkeypatch.setattr(flow, "field", torch.nn.Identity())
    monkeypatch.setattr(flow.field, "forward", field)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow.loss(truth)
    context, dropped = seen[0]
    assert dropped.mean().item() == pytest.approx(0.2, abs=0.02)
    assert torch.equal((context == 0).all(1), dropped[:, 0] == 1)


def test_minibatch_transport_trains() -> None:
    truth = windows(16)
    flow = small(truth, context_weight=1.0)
    loss = {}
    for flow.coupling in ("independent", "conditional_ot", "minibatch_ot"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss[flow.coupling] = flow.loss(truth)
    assert loss["minibatch_ot"] < loss["conditional_ot"] < loss["independent"]  # ever shorter pairs
    loss["conditional_ot"].backward()


def test_transport_blind_to_contexts_gives_each_the_wrong_noise() -> None:
    """Data that are their context: noise goes to the context that it is near to, and is normal no more, save
    where the plan pays for it."""
    context = torch.tensor([[-1.0], [1.0]]).repeat(100, 1)
    noise = torch.randn(200, 1, generator=rng())
    mean = {
        coupling: paired(noise, context, context, coupling, 100.0)[context > 0].mean().item()
        for coupling in ("independent", "conditional_ot", "minibatch_ot")
    }
    assert abs(mean["independent"]) < 0.2
    assert mean["conditional_ot"] == pytest.approx(mean["independent"], abs=1e-6)
    assert mean["minibatch_ot"] > 0.7  # E |n| = 0.80


def test_logit_normal_times_have_more_of_the_middle() -> None:
    flow = small(windows(), training_times="logit_normal")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        s = flow._training_times(torch.zeros(4000))
    # P(1/4 < s < 3/4) = P(|n| < ln 3) = 0.728
    assert ((s - 0.5).abs() < 0.25).double().mean().item() == pytest.approx(0.728, abs=0.02)


def test_an_unrolled_estimate_is_a_sample_and_not_a_mean(monkeypatch) -> None:
    """x_1 = +1 or -1: v = (tanh(s x / (1 - s)^2) - x) / (1 - s); of the mean, 1 - x_1^2 is the posterior's
    variance, of a sample it is nothing."""
    truth = windows(200, frames=2)
    truth = truth.replace(states=truth.states.sign().double())
    gap = {}
    for unroll in (1, 40):
        flow = small(truth, unroll=unroll)

        def velocity(x, s, context):
            s = torch.as_tensor(s).reshape(-1, 1, 1)
            return (torch.tanh(s * x / (1 - s) ** 2) - x) / (1 - s)

        monkeypatch.setattr(flow, "velocity", velocity)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            estimate = flow.loss_and_estimate(truth)[1]
        gap[unroll] = float((1 - estimate.states[:, 0, 1].square()).abs().mean())
    assert gap[1] > 0.03
    assert gap[40] < 0.1 * gap[1]


def test_reflow_learns_where_the_earlier_flow_goes(monkeypatch) -> None:
    """The pairs of the second round are noise and what the frozen flow makes of it: the straight velocity
    between the two has no loss, whatever the data."""
    truth = windows(32)
    flow = small(truth, reflow=1, steps=8)
    for weight in flow.field.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    flow.pace(0.4)
    assert not flow.round
    flow.pace(0.5)
    flow.pace(0.6)
    assert flow.round == 1
    assert not any(weight.requires_grad for weight in flow.earlier.parameters())
    context = flow.windows.split(truth)[2]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        noise = torch.randn(32, 4, 2)
    ends = flow.transport(noise, context)
    for weight in flow.field.parameters():
        torch.nn.init.zeros_(weight)  # what is trained on no longer is what is learned
    monkeypatch.setattr(flow, "velocity", lambda x, s, context: (ends - x) / (1 - s)[:, None, None])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert flow.loss(truth) < 1e-8
        flow.round.zero_()
        assert flow.loss(truth) > 0.1


def test_a_fit_of_two_rounds_resumes_to_the_same_bits() -> None:
    truth = windows(32)
    settings = FitSettings(steps=12, batch=8, checkpoint_every=8, ema=0.5)
    kept = []
    whole = small(truth, reflow=2)
    fit(whole, truth, None, settings, 0, save=kept.append)
    again = small(truth, reflow=2)
    fit(again, truth, None, settings, 0, saved=kept[0])
    assert whole.round == again.round == 2
    states = whole.state_dict(), again.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["field.body.0.weight"], states[0]["earlier.body.0.weight"])


def test_straightness_tells_a_straight_flow_from_a_bent_one(monkeypatch) -> None:
    flow = small(windows(frames=2))
    z = torch.randn(300, 1, 2, dtype=torch.float64, generator=rng())
    monkeypatch.setattr(flow, "velocity", lambda x, s, context: torch.ones_like(x))
    assert straightness(flow, z, None) < 1e-20
    monkeypatch.setattr(flow, "velocity", lambda x, s, context: torch.full_like(x, 2 * s))
    # speeds 2 s about a chord of 1: the integral of (2 s - 1)^2 is 1/3
    assert straightness(flow, z, None, steps=1000) == pytest.approx(1 / 3, rel=0.01)


def test_bad_input_is_refused_in_words() -> None:
    truth = windows()
    flow = small(truth)
    with pytest.raises(ValueError, match="at least 2 frames"):
        Flow(truth.span(0, 1))
    with pytest.raises(ValueError, match="real numbers"):
        Flow(truth.replace(states=truth.states.long()))
    with pytest.raises(ValueError, match="one time step"):
        Flow(truth.replace(times=truth.times**2))
    with pytest.raises(ValueError, match=r"one time step, 0\.5"):
        flow.rollout(truth.span(0, 1), grid(5, 0.25), None, 1, rng())
    with pytest.raises(ValueError, match="windows of 5 frames"):
        flow.loss(truth.span(0, 4))
    with pytest.raises(ValueError, match="ragged"):
        flow.loss(truth.replace(length=torch.full((8, 1), 3)))
