"""How a model is held to a constraint: by what it is trained on, corrected with, projected to, or made of.

    penalty     the loss grows with the residual of the model's estimate
    guidance    the estimate is corrected while it is sampled
    projection  the finished rollout is moved to the nearest one that obeys
    structure   the model generates what can only obey, or is built so that it does

Only the last two keep a promise, and none gives the law of the data conditioned on the constraint by itself:
which law comes out is said by ``Held.measure``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worldsim.protocols import Constraint, HasParametrisation, JudgesModels, ShapesModels

MECHANISMS = ("penalty", "guidance", "projection", "structure")
ADJECTIVES = {
    "penalty": "trained",
    "guidance": "guided",
    "projection": "projected",
    "structure": "structural",
}
COVARIANCES = ("identity", "posterior")
GRADIENTS = ("conflict_free", "sum")


@dataclass(frozen=True)
class Held:
    """In which ways, and how strongly.

    weight      of the penalty
    gradients   how a penalty's gradient joins the model's own: "conflict_free", along the direction that
                lowers both (ConFIG, Liu, Chu and Thuerey 2024), or "sum"
    noise       R of guidance, in units of the residual: a standard deviation; 0 solves the linearised
                constraint exactly
    covariance  metric of guidance: "identity", of states in the model's scaling, or "posterior", the
                covariance of the estimate's error
    """

    mechanisms: tuple[str, ...] = ("projection",)
    weight: float = 1.0
    gradients: str = "conflict_free"
    noise: float = 0.0
    covariance: str = "identity"

    @property
    def word(self) -> str:
        """For a label: "guided-projected"."""
        return "-".join(ADJECTIVES[name] for name in self.mechanisms)

    @property
    def is_nearest(self) -> bool:
        """Whether guidance asks for the nearest point, wholly and by the usual distance."""
        return self.noise == 0 and self.covariance == "identity"

    @property
    def measure(self) -> str:
        """Which law is sampled.

        structural   the one that was learned over what is free: exact, and of that parametrisation
        projected    the image of the learned law under a nearest-point map
        conditional  the learned law given the constraint, exactly where the law is normal and the constraint
                     linear (with noise: given an observation of it)
        learned      whatever was learned: nothing holds a sample to the constraint
        """
        if "structure" in self.mechanisms:
            return "structural"
        if "guidance" in self.mechanisms and self.covariance == "posterior":
            return "conditional"
        if "projection" in self.mechanisms or "guidance" in self.mechanisms:
            return "projected"
        return "learned"


@dataclass(frozen=True)
class Use:
    """How a model is held to a constraint."""

    name: str
    constraint: Constraint
    held: Held = Held()

    def by(self, mechanism: str) -> bool:
        return mechanism in self.held.mechanisms


def missing_mechanisms(model: Any, mechanisms: Sequence[str]) -> list[str]:
    """Which of the mechanisms a model, or the class of one, cannot offer, in words."""
    lacks = []
    if "penalty" in mechanisms and not hasattr(model, "loss_and_estimate"):
        lacks.append("penalty (the model gives no differentiable estimate)")
    if "guidance" in mechanisms and not hasattr(model, "guided_rollout"):
        lacks.append("guidance (the model cannot be corrected while it samples)")
    return lacks


def undefined(constraint: Any, held: Held, builder: Any, parameters: Sequence[str]) -> str:
    """Why a constraint cannot hold a model so whose ``builder`` has these ``parameters``; "" when it can.

    What a constraint wants a model to be built with may also be an attribute of a builder that knows no other
    way: an autoregressive model is ``causal``.
    """
    shapes = isinstance(constraint, ShapesModels)
    if "structure" in held.mechanisms and not shapes and not isinstance(constraint, HasParametrisation):
        return "structure (no map is known whose image is what obeys)"
    if "structure" in held.mechanisms and shapes:
        wanted = constraint.parameters.items()
        lacks = [k for k, value in wanted if k not in parameters and getattr(builder, k, None) != value]
        if lacks:
            return f"structure (the model cannot be built with {', '.join(lacks)})"
    others = [name for name in held.mechanisms if name != "structure"]
    if others and isinstance(constraint, JudgesModels):
        return f"{', '.join(others)} (no single trajectory shows whether it obeys)"
    return ""
