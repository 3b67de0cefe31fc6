"""The conformance kit catches what breaks a protocol, and says what was expected."""

from typing import Annotated

import pytest
import torch
from pydantic import Field
from torch import nn

from worldsim.hookspecs import hookimpl
from worldsim.plugins import Provider, Registry
from worldsim.protocols import Score
from worldsim.testing import conformance, run_checks
from worldsim.testing.worlds import Oscillator


class World(Oscillator):
    """The oscillator, as a plugin would bring it."""

    def __init__(self, *, speed: Annotated[float, Field(gt=0, description="of time")] = 1.0) -> None:
        self.speed = speed


class Model(nn.Module):
    """Learns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def loss(self, truth):
        return (truth.states * self.weight).square().mean()

    def rollout(self, context, times, actions, draws, generator):
        last = context.states[:, :, -1:]
        states = last.expand(-1, draws, len(times), -1)
        return context.replace(states=states, times=times, observables={}, length=None)


class Energy:
    """(H(x_t) - H(x_0)) of the oscillator."""

    def __init__(self, system) -> None:
        self.system = system

    def residual(self, trajectory):
        energy = self.system.energy(trajectory.states.double())
        return energy - energy[:, :, :1]


class Error:
    """The largest error."""

    def __init__(self, system) -> None:
        if isinstance(system, Oscillator):
            return
        raise ValueError("numbers only")

    def score(self, truth, prediction, model):
        return {"error": Score(float((prediction.states - truth.states).abs().max()), n=len(truth))}


class Leapfrog:
    """Kick, drift, kick."""

    order = 2
    symplectic = True

    def solve(self, dynamics, state, times, actions, generator):
        states, x = [state], state
        for h in times.diff():
            x = self.step(dynamics, x, h)
            states.append(x)
        return torch.stack(states, 1)

    def step(self, dynamics, x, h):
        q, p = x.chunk(2, -1)
        p = p + h / 2 * dynamics.force_of(q)
        q = q + h * dynamics.velocity_of(p)
        return torch.cat([q, p + h / 2 * dynamics.force_of(q)], -1)


class Averages:
    """The mean of the frames so far."""

    def layers(self, width, *, causal=True, given=0, grid=()):
        if not causal or given:
            raise ValueError("it looks back, and takes nothing beside")
        return Mean()


class Mean(torch.nn.Module):
    """Of features [batch, time, width] up to each frame."""

    def forward(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]


GOOD = {
    "system": World,
    "dynamics": Model,
    "constraint": Energy,
    "metric": Error,
    "solver": Leapfrog,
    "backbone": Averages,
}
HOOKS = {noun: f"worldsim_{noun}{'' if noun == 'dynamics' else 's'}" for noun in GOOD}


def plugins_with(noun, builder):
    """A registry with one plugin that provides one component."""

    class Plugin:
        pass

    def hook():
        return {"part": builder}

    hook.__name__ = HOOKS[noun]
    setattr(Plugin, HOOKS[noun], staticmethod(hookimpl(hook)))
    Plugin.__name__ = "mine"
    plugins = Registry()
    plugins.add(Provider("mine", "my-package", "1.0", "mine"), lambda: Plugin)
    assert plugins.broken == []
    return plugins


@pytest.mark.parametrize("noun", GOOD)
def test_a_good_component_passes(noun):
    assert run_checks(plugins_with(noun, GOOD[noun]), "mine") > 5


class TouchesGlobalRandomness(World):
    def sample(self, n, generator):
        return torch.randn(n, 2, dtype=torch.float64)


class Forgets(World):
    def sample(self, n, generator):
        own = torch.Generator()
        own.seed()
        return torch.randn(n, 2, dtype=torch.float64, generator=own)


class SinglePrecision(World):
    def simulate(self, start, times, actions, generator):
        return super().simulate(start, times, actions, generator).to(dtype=torch.float32)


class LosesEnergy(World):
    def simulate(self, start, times, actions, generator):
        truth = super().simulate(start, times, actions, generator)
        return truth.replace(states=truth.states * (-0.1 * times)[:, None].exp(), observables={})


class ForgetsGradient(World):
    def energy(self, states):
        return super().energy(states.detach()) + 0 * states.sum()


class RestartsElsewhere(World):
    def restart(self, states):
        return states + 1


class WrongMirror(World):
    def equivalent_histories(self, kind, n, times, generator):
        pairs = super().equivalent_histories(kind, n, times, generator)
        return type(pairs)(pairs.first, pairs.second, align=lambda states: states)


class WrongDerivative(World):
    def drift(self, t, x, u):
        return -super().drift(t, x, u)

    def simulate(self, start, times, actions, generator):
        truth = super().simulate(start, times, actions, generator)
        return truth.replace(observables={"derivative": Oscillator.drift(self, times[0], truth.states, None)})


class WrongLabels(World):
    labels = {"component": ("q",)}  # noqa: RUF012


class NoTrajectory(World):
    def simulate(self, start, times, actions, generator):
        return start


class NoGradient(Model):
    def loss(self, truth):
        return (truth.states.square().mean() + 0 * self.weight).float()


class WrongShape(Model):
    def rollout(self, context, times, actions, draws, generator):
        return super().rollout(context, times[1:], actions, draws, generator)


class LosesTheContext(Model):
    def rollout(self, context, times, actions, draws, generator):
        guess = super().rollout(context, times, actions, draws, generator)
        return guess.replace(states=guess.states + 0.5)


class RollsGlobalDice(Model):
    def rollout(self, context, times, actions, draws, generator):
        guess = super().rollout(context, times, actions, draws, generator)
        noise = torch.randn(guess.states.shape)
        noise[:, :, 0] = 0
        return guess.replace(states=guess.states + noise)


class NeverZero(Energy):
    def residual(self, trajectory):
        return super().residual(trajectory) + 1


class AlwaysZero(Energy):
    def residual(self, trajectory):
        return 0 * super().residual(trajectory)


class RootAtZero(Energy):
    def residual(self, trajectory):
        return (
            super()
            .residual(trajectory)
            .abs()
            .clamp(min=0)
            .mul(0)
            .add(super().residual(trajectory) * 0)
            .sqrt()
        )


class UpsideDown(Error):
    def score(self, truth, prediction, model):
        (score,) = super().score(truth, prediction, model).values()
        return {"error": Score(score.value, better="higher", n=score.n)}


class ChangesTheTruth(Error):
    def score(self, truth, prediction, model):
        truth.states.add_(1.0)
        return super().score(truth, prediction, model)


class NotANumber(Error):
    def score(self, truth, prediction, model):
        return {"error": Score(float("nan"))}


class Euler(Leapfrog):
    symplectic = False

    def step(self, dynamics, x, h):
        return x + h * dynamics.drift(h, x, None)


class NotSymplectic(Euler):
    order = 1
    symplectic = True


class NoWords:
    def solve(self, dynamics, state, times, actions, generator): ...


class NoDescription(World):
    """A world whose key nobody explains."""

    def __init__(self, *, speed: float = 1.0) -> None:
        super().__init__(speed=speed)


NoWords.__doc__ = None


class LosesThePast(Averages):
    """Layers that begin again with each piece."""

    def layers(self, width, **settings):
        super().layers(width, **settings)
        return Piecewise()


class Piecewise(Mean):
    def advance(self, x, state=None, c=None):
        return self(x), ()


class LooksAhead(Averages):
    """The mean of all frames."""

    def layers(self, width, *, causal=True, given=0, grid=()):
        return Whole()


class Whole(torch.nn.Module):
    """Of features [batch, time, width], everywhere."""

    def forward(self, x):
        return x.mean(1, keepdim=True).expand_as(x)


class Forgetful(Averages):
    """Each frame by itself."""

    def layers(self, width, *, causal=True, given=0, grid=()):
        return torch.nn.Linear(width, width)


BAD = [
    ("system", TouchesGlobalRandomness, "never from a global one"),
    ("system", Forgets, "same states from the same generator"),
    ("system", SinglePrecision, "states in float64"),
    ("system", LosesEnergy, "'energy' conserved along the truth"),
    ("system", ForgetsGradient, "finite gradient that is not zero"),
    ("system", RestartsElsewhere, "to start where restart says"),
    ("system", WrongMirror, "mirror: equal futures after align"),
    ("system", WrongDerivative, "derivative to be the drift"),
    ("system", WrongLabels, "2 labels along 'component'"),
    ("system", NoTrajectory, "must return a Trajectory"),
    ("system", NoDescription, "a description of 'speed'"),
    ("dynamics", NoGradient, "a loss that some parameter changes"),
    ("dynamics", WrongShape, "states must be"),
    ("dynamics", LosesTheContext, "begin at the context's last frame"),
    ("dynamics", RollsGlobalDice, "never from a global one"),
    ("constraint", NeverZero, "zero on the truth"),
    ("constraint", AlwaysZero, "blown up"),
    ("constraint", RootAtZero, "differentiated where it is zero"),
    ("metric", UpsideDown, "not to be worse for the truth"),
    ("metric", ChangesTheTruth, "leave the trajectories"),
    ("metric", NotANumber, "a finite number, or a reason"),
    ("solver", Euler, "order 2 when the step is halved"),
    ("solver", NotSymplectic, "area kept by a symplectic method"),
    ("solver", NoWords, "a docstring"),
    ("backbone", LooksAhead, "does not look ahead"),
    ("backbone", Forgetful, "to depend on the first token"),
    ("backbone", LosesThePast, "pieces of a sequence"),
]


@pytest.mark.parametrize(
    ("noun", "builder", "expected"), BAD, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_component_is_caught(noun, builder, expected):
    with pytest.raises(AssertionError) as caught:
        run_checks(plugins_with(noun, builder), "mine")
    assert expected in str(caught.value)
    assert f"{noun} 'part'" in str(caught.value)


def test_a_plugin_without_anything_to_check_fails():
    plugins = Registry()
    plugins.add(Provider("empty", "my-package", "1.0", "mine"), lambda: type("Empty", (), {}))
    with pytest.raises(AssertionError, match="provides nothing that can be checked"):
        run_checks(plugins, "empty")


def test_a_plugin_that_is_not_there_fails():
    with pytest.raises(AssertionError, match="'nobody' is not installed; plugins here: "):
        conformance("nobody")()


def test_a_key_without_a_default_is_asked_for():
    class Needy(World):
        """Needs to be told its speed."""

        def __init__(self, *, speed: Annotated[float, Field(gt=0, description="of time")]) -> None:
            super().__init__(speed=speed)

    plugins = plugins_with("system", Needy)
    with pytest.raises(AssertionError, match="params="):
        run_checks(plugins, "mine")
    assert run_checks(plugins, "mine", params={"part": {"speed": 2.0}}) > 5
