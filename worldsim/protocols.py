"""The nouns of worldsim: structural protocols, and the one data type that passes between rooms.

An author inherits nothing from here: a class that has the methods is the thing. Shapes are written
``[trajectory, draw, time, *state]``; ``draw`` is 1 for the truth. Physical time is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

Start: TypeAlias = Any
"""Where a system begins: opaque to everyone but the system (a state, an epoch, a seed and an action log)."""


@dataclass(frozen=True)
class Trajectory:
    """Trajectories of one system on one time grid. Frozen; every method returns a new one.

    states       ``[trajectory, draw, time, *state]``, what models see (int64 for tokens)
    times        ``[time]``, float64, in ``units["time"]``
    actions      ``[trajectory, time, *action]`` or None; ``actions[:, i]`` holds from ``times[i]`` on
    observables  name -> ``[trajectory, draw, time, ...]``: what models do not see
    length       ``[trajectory, draw]`` int64 number of valid times, or None when all are valid
    axes         names of the state axes, e.g. ``("body", "component")``; the last one is "component"
    labels       axis name -> labels along it, e.g. ``{"component": ("q", "p")}``
    units        UDUNITS by component label, by observable, and for ``"time"``
    """

    states: Tensor
    times: Tensor
    actions: Tensor | None = None
    observables: Mapping[str, Tensor] = field(default_factory=dict)
    length: Tensor | None = None
    axes: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.states.shape[0])

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state: what follows ``[trajectory, draw, time]``."""
        return tuple(self.states.shape[3:])

    def replace(self, **changes: Any) -> Trajectory:
        """The same trajectories with these fields changed."""
        return replace(self, **changes)

    def rows(self, index: Any) -> Trajectory:
        """The trajectories picked by ``index`` (a slice, or a LongTensor ``[n]``)."""
        return replace(
            self,
            states=self.states[index],
            actions=None if self.actions is None else self.actions[index],
            observables={name: value[index] for name, value in self.observables.items()},
            length=None if self.length is None else self.length[index],
        )

    def span(self, start: int | None, stop: int | None = None) -> Trajectory:
        """The frames ``start:stop``, times unchanged."""
        at = slice(start, stop)
        first = at.indices(len(self.times))[0]
        count = len(self.times[at])
        return replace(
            self,
            states=self.states[:, :, at],
            times=self.times[at],
            actions=None if self.actions is None else self.actions[:, at],
            observables={name: value[:, :, at] for name, value in self.observables.items()},
            length=None if self.length is None else (self.length - first).clamp(0, count),
        )

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Trajectory:
        """Float tensors cast to ``dtype``, everything moved to ``device``; times stay float64."""

        def move(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return replace(
            self,
            states=move(self.states),
            times=self.times.to(device=device),
            actions=None if self.actions is None else move(self.actions),
            observables={name: move(value) for name, value in self.observables.items()},
            length=None if self.length is None else self.length.to(device=device),
        )


@dataclass(frozen=True)
class Score:
    """One named score: a number or an array, never without what is needed to read it.

    value     a float, or an array with ``dims``
    dims      names of the axes of ``value``; ``()`` for a number
    better    "lower", "higher", or "" for a description that ranks nothing
    units     UDUNITS, "1" when dimensionless
    floor     what the truth itself scores against an independent sample of itself (0 when exact)
    interval  95 % interval of ``value`` (numbers only)
    n         how many independent things were averaged
    failed    how many of them could not be evaluated (must be 0 for a headline)
    reason    why the score is *not measurable*; then ``value`` is NaN and is never averaged
    coords    labels for ``dims``, e.g. {"planet": ["mercury", ...]}
    met_by    who scores like the truth without following it, and why, e.g. "a forecast that never changes,
              which keeps what it is given"; "" when nobody does. Such a score is no headline
    """

    value: float | np.ndarray
    dims: tuple[str, ...] = ()
    better: Literal["lower", "higher", ""] = "lower"
    units: str = "1"
    floor: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 1
    failed: int = 0
    reason: str = ""
    coords: Mapping[str, Any] = field(default_factory=dict)
    met_by: str = ""


class System(Protocol):
    """The true world."""

    def sample(self, n: int, generator: torch.Generator) -> Start:
        """``n`` starting points, drawn from this system's law of starts."""

    def simulate(
        self, start: Start, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """The truth at ``times`` ``[time]``, draw = 1, states in float64 (or int64 tokens).

        ``start`` holds at ``times[0]``; a system whose law changes with time should not offer ``restart``.
        """


class Model(Protocol):
    """Anything that can be rolled out; therefore anything that can be scored."""

    def loss(self, truth: Trajectory) -> Tensor:
        """A scalar to minimise. Random numbers come from torch's default generator, which ``fit`` forks and
        seeds from (seed, step), so they are reproducible and the caller's generator is untouched."""

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` futures of each context: ``[trajectory, draw, time, *state]`` at ``times``.

        The context ends at ``times[0]``; the rollout returns ``times[0]`` and after; metrics leave out
        ``times[0]``. ``actions`` is ``[trajectory, time, *action]`` on the same grid.
        """


class Dynamics(Model, Protocol):
    """A model that is a vector field. One integrator serves ODE, SDE and Hamiltonian."""

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[trajectory, *state]``; an optional ``diffusion(t, x, u)`` makes it an SDE.

        ``t`` has no axes, or is ``[trajectory]`` where a solver gives every trajectory its own steps.
        """


class Generator(Model, Protocol):
    """A model that transports noise (s = 0) to trajectories (s = 1)."""

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds at generator time ``s``."""


class Constraint(Protocol):
    """What a trajectory must obey.

    A ``local_in_time`` attribute that is True says ``residual[:, :, i]`` depends on frame i alone (the first
    frame taken as a constant), which makes projection cheap. An ``equality`` attribute that is False says the
    residual is relu(-g) of an inequality g >= 0: it is 0 on a whole region, and projection stops at its edge.
    What else a constraint can offer: ``Anchored``, ``HasRetraction``, ``HasParametrisation``,
    ``ShapesModels``, ``JudgesModels``.
    """

    def residual(self, trajectory: Trajectory) -> Tensor:
        """``[trajectory, draw, ...]``, unreduced, divided by a declared scale, zero when obeyed and
        differentiable there."""


class Metric(Protocol):
    """One family of scores.

    A ``met_by`` attribute, pattern of names -> sentence, says of some of them who meets them without
    understanding (``Score.met_by``). A ``reusable`` attribute that is True says that an instance may score
    more models of the same world, and what it then knows of the truth changes no bit of a score.
    """

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Named scores of a prediction on the same times as the truth (frame 0 is the given context)."""


class Solver(Protocol):
    """Integrates a vector field; named in YAML inside the model that uses it."""

    order: int
    symplectic: bool

    def solve(
        self,
        dynamics: Dynamics,
        state: Tensor,
        times: Tensor,
        actions: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """From ``state`` ``[trajectory, *state]`` at ``times[0]`` to ``[trajectory, time, *state]``."""


class Backbone(Protocol):
    """What carries information along a sequence; named in YAML inside the generator that uses it."""

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        """A network from features ``[batch, token, width]`` to the same shape.

        causal  position t of the output depends on positions up to t alone; else on all of them
        given   size of a conditioning vector: ``network(x, c)`` with c ``[batch, given]`` or
                ``[batch, token, given]``; 0 for ``network(x)``
        grid    what the tokens are: () for a sequence of any length, else the sizes of the axes they are
                flattened from, the last one fastest, such as (frame,), (row, column) or (frame, row, column)

        Its weights come from torch's default generator, which the caller seeds. Raises ValueError where
        it cannot have this width, cannot be causal, cannot look both ways, or takes nothing beside.
        A causal network may also read a sequence piece by piece: it then is ``Streams``.
        """


# Capabilities: what a component can do beyond its noun. A component says what it needs, and
# `worldsim validate` refuses a scenario that does not give it before anything is computed.


@runtime_checkable
class Streams(Protocol):
    """Causal layers that need not see the past again: what they need of it is a state."""

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        """Features of the tokens x ``[batch, token, width]``, and the state after them.

        state  what was returned with the tokens before these; None before the first. It is made of nested
               tuples of tensors whose first axis is the batch, so that rows can be picked or repeated
        c      ``[batch, given]``, or ``[batch, token, given]`` of these tokens

        In pieces of any lengths, down to single tokens, a sequence has the features that it has as a whole.
        Raises ValueError for layers that look both ways.
        """


@runtime_checkable
class Restartable(Protocol):
    """A system that can start from any given state."""

    def restart(self, states: Tensor) -> Start:
        """The start whose first state is ``states`` ``[trajectory, *state]``."""


@runtime_checkable
class HasObservables(Protocol):
    """A system whose observables are functions of its state."""

    conserved: tuple[str, ...]

    def observe(self, states: Tensor) -> Mapping[str, Tensor]:
        """Name -> ``[..., extra]`` for states ``[..., *state]``; the ``conserved`` ones are invariants."""


@runtime_checkable
class HasEnergy(Protocol):
    """A system with a known energy function."""

    def energy(self, states: Tensor) -> Tensor:
        """H, ``[...]`` for states ``[..., *state]``; differentiable."""


@runtime_checkable
class HasDrift(Protocol):
    """A system that is an ordinary differential equation."""

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., *state]``; ``t`` has no axes, or is ``[trajectory]`` beside ``x``
        ``[trajectory, *state]``."""


@runtime_checkable
class Separable(Protocol):
    """Dynamics with H = T(p) + V(q); the last state axis is (q, p), half and half."""

    def velocity_of(self, p: Tensor) -> Tensor:
        """dT/dp, ``[..., d]``."""

    def force_of(self, q: Tensor) -> Tensor:
        """-dV/dq, ``[..., d]``."""


@runtime_checkable
class HasGrid(Protocol):
    """A system of fields on a periodic grid, states ``[..., *grid, component]``: ``dims`` axes of ``points``
    points each, over ``length``."""

    dims: int
    points: int
    length: float


@runtime_checkable
class HasBodies(Protocol):
    """A system of point masses that act on one another, and on which nothing else acts."""

    masses: Tensor
    """``[body]``."""

    def places_and_momenta(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Both ``[..., body, dim]``, of states ``[..., *state]``."""

    def of_places_and_momenta(self, places: Tensor, momenta: Tensor) -> Tensor:
        """The inverse of ``places_and_momenta``."""


@runtime_checkable
class HasBounds(Protocol):
    """A system whose states stay within walls."""

    def margin(self, states: Tensor) -> Tensor:
        """How far states ``[..., *state]`` are from the walls, ``[..., wall]``, negative beyond a wall;
        differentiable."""

    def within(self, states: Tensor) -> Tensor:
        """The nearest states within the walls; those that are within stay as they are, to the bit."""


@runtime_checkable
class HasUnseenStart(Protocol):
    """A system whose frame 0 is blank: a whole trajectory, its start included, is on frames 1 and after."""

    inner: System
    """The system that is seen from frame 1 on."""


@runtime_checkable
class HasCamera(Protocol):
    """A system that is seen by a camera whose motion is known."""

    intrinsics: Tensor
    """K ``[3, 3]``, pixels."""

    def camera_motion(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """R ``[..., 3, 3]`` and t ``[..., 3]`` of x' = R x + t: the camera's coordinates of a point at rest,
        ``seconds [...]`` later."""


@runtime_checkable
class HasActions(Protocol):
    """A system that is driven."""

    def sample_actions(self, n: int, times: Tensor, generator: torch.Generator) -> Tensor:
        """``[n, time, *action]``."""


@runtime_checkable
class HasAutomaton(Protocol):
    """A system over tokens whose truth is a deterministic finite automaton with a prefix-closed language.

    Its trajectories carry the observable ``automaton_state`` ``[trajectory, 1, time]``, the state after each
    token, where token scores start from.
    """

    alphabet: tuple[str, ...]
    initial: int

    def transitions(self) -> Tensor:
        """``[state, token]`` int64; -1 where the token is illegal."""


@runtime_checkable
class HasNextToken(Protocol):
    """A model over tokens that gives the law of the next one."""

    def next_token(self, tokens: Tensor) -> Tensor:
        """Float64 probabilities ``[n, token]`` after the prefixes ``tokens`` ``[n, length]``, length >= 0."""


@runtime_checkable
class HasTokenLaws(Protocol):
    """A model over tokens that gives the laws along a word in one pass, as networks can."""

    def token_laws(self, tokens: Tensor) -> Tensor:
        """Float64 ``[n, length + 1, token]``: entry i is ``next_token(tokens[:, :i])``."""


@runtime_checkable
class HasDifferentiableRollout(Protocol):
    """A model whose forecast remembers what it came from, as far as the model itself lets it."""

    def differentiable_rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """As ``rollout``, with the graph to ``context.states`` and ``actions`` where grad mode is on."""


@runtime_checkable
class HasLatent(Protocol):
    """A model that keeps what it read of a context in numbers of its own."""

    def latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        """What it has kept at the end of ``context``, ``[trajectory, latent]``; a draw where it is drawn."""


@runtime_checkable
class HasLegality(Protocol):
    """A model over tokens that says which are possible, apart from how likely it is to choose them."""

    def legality(self, tokens: Tensor) -> Tensor:
        """Float64 ``[n, token]``, the probability that each token is possible after ``tokens``
        ``[n, length]``."""


@dataclass(frozen=True)
class HistoryPairs:
    """``n`` pairs of histories that the world cannot tell apart from their last frame on.

    first, second  ``[trajectory, 1, time, *state]``; row i of both is one pair. The two may differ in
                   length (window shift); both end at the same physical time.
    align          maps futures ``[..., *state]`` of ``second`` into the frame of ``first``: the identity
                   when both end in the same state, the inverse group action for symmetry images.
    """

    first: Trajectory
    second: Trajectory
    align: Callable[[Tensor], Tensor]


@runtime_checkable
class HasEquivalentHistories(Protocol):
    """A system that can build, exactly, different histories with the same future."""

    history_kinds: tuple[str, ...]

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``n`` pairs whose longer histories live on ``times`` ``[time]``, for a ``kind`` of
        ``history_kinds``."""


@dataclass(frozen=True)
class GroundTruth:
    """A number that is known exactly, and what a metric makes of it.

    what    in a few words
    found   computed here and now
    right   what it must be
    within  largest |found - right|: rounding, or three standard errors of a sampled number
    source  who derived ``right``
    """

    what: str
    found: float
    right: float
    within: float
    source: str

    @property
    def holds(self) -> bool:
        return abs(self.found - self.right) <= self.within


@runtime_checkable
class HasGroundTruths(Protocol):
    """A metric's builder that can be held to numbers known exactly, in seconds (``worldsim score
    --selftest``)."""

    def ground_truths(self) -> Sequence[GroundTruth]:
        """Computed anew at each call; a static or a class method, since no system is given."""


@runtime_checkable
class HasExplanation(Protocol):
    """A metric's builder that says in words what its scores tell of one model; the report prints it."""

    def explain(self, scores: Mapping[str, float], truth: Mapping[str, float]) -> Sequence[str]:
        """Sentences about a model, from the means over seeds of the ``scores`` that could be measured and of
        the ``truth``'s own; a static method."""


@runtime_checkable
class HasAlikeHistories(Protocol):
    """A system that can build histories which end alike in what is seen and yet have different futures."""

    alike_kinds: tuple[str, ...]

    def alike_histories(self, kind: str, n: int, times: Tensor, generator: torch.Generator) -> HistoryPairs:
        """``n`` pairs of *distinct* histories on ``times`` ``[time]``, for a ``kind`` of ``alike_kinds``."""


@runtime_checkable
class HasForecast(Protocol):
    """A system whose last given frame is not all of its state, but that knows the law of what follows."""

    def forecast(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` true futures of each context, as a model's ``rollout`` gives them."""


@runtime_checkable
class Estimates(Protocol):
    """A model whose loss comes with a differentiable prediction that a training penalty can act on."""

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and predicted trajectories whose frame 0 is the given one."""


@runtime_checkable
class Paced(Protocol):
    """A model whose loss changes in the course of a fit. What it keeps of that is in its state dict."""

    def pace(self, done: float) -> None:
        """Called before each step of a fit, with the share of the steps that are taken, in [0, 1)."""


@runtime_checkable
class Anchored(Protocol):
    """A constraint that compares each frame with one of them, so that its Gram matrix has a structure.

        residual[:, :, t] = (value(x_t) - value(x_anchor)) / scale,   0 before the anchor

    ``anchor`` is 0 where the given frame is held, a constant, or 1 where the first generated frame is
    compared with and moves as the others do: in a world whose frame 0 tells nothing.
    """

    anchor: int
    scale: float

    def value(self, states: Tensor) -> Tensor:
        """``[..., k]`` float64 for states ``[..., *state]``; differentiable."""


@runtime_checkable
class HasRetraction(Protocol):
    """A constraint whose nearest obeying trajectory is known in closed form."""

    def retract(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory moved onto the constraint, frame 0 held, float64; in the place of Gauss-Newton."""


@runtime_checkable
class HasParametrisation(Protocol):
    """A constraint that a model can obey by what it generates: x = ``obeying(y)``, whatever y is.

    ``obeying(free(x), x.times)`` is x, to rounding, for an x that obeys.
    """

    def free(self, trajectory: Trajectory) -> Trajectory:
        """What a model sees and generates in the place of ``trajectory``: y, with a state shape of its own,
        on the first frames of its times (all, or fewer). A context of one frame has a y of one frame."""

    def obeying(self, free: Trajectory, times: Tensor) -> Trajectory:
        """The trajectory at ``times`` ``[time]``, frame 0 that of ``free``: the residual is 0 to rounding for
        every y. Float64; axes, labels and units are those of x."""


@runtime_checkable
class ShapesModels(Protocol):
    """A constraint that a model obeys by how it is built, where its builder has these parameters."""

    parameters: Mapping[str, Any]
    """Keyword of the builder -> the value it must have, e.g. ``{"causal": True}``."""


@runtime_checkable
class JudgesModels(Protocol):
    """A constraint that no single trajectory can show: a model is asked again, and its answers compared. Its
    ``residual`` raises NotMeasurable."""

    def model_residual(self, truth: Trajectory, model: Model, generator: torch.Generator) -> Tensor:
        """``[trajectory, draw, time, ...]``, as ``Constraint.residual``, of ``model`` on ``truth``, whose
        frame 0 is what the model is given."""


Correction: TypeAlias = Callable[..., Trajectory]
"""estimate -> a better estimate. One with an attribute ``wants_covariance`` that is True is called with the
covariance of the estimate's error too, which maps w to C w for tensors shaped as the estimate's states."""


@runtime_checkable
class Guidable(Protocol):
    """A generator whose clean estimate can be corrected while it samples."""

    def guided_rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
        correct: Correction,
    ) -> Trajectory:
        """As ``rollout``; ``correct`` maps the current estimate of the rollout to a better one."""
