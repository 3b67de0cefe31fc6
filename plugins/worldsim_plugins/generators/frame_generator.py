"""What generators of frames are asked for: futures, and futures that are corrected while they are made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldsim import Trajectory
from worldsim.protocols import Correction


@dataclass(frozen=True)
class Asked:
    """``draws`` futures of each context at ``times``; see ``worldsim.protocols.Model.rollout``. ``correct``
    puts right what is being made, if anything does."""

    context: Trajectory
    times: Tensor
    actions: Tensor | None
    draws: int
    generator: torch.Generator
    correct: Correction | None = None

    @property
    def wants_covariance(self) -> bool:
        """Whether the correction asks how wrong the estimate of a frame is."""
        return bool(getattr(self.correct, "wants_covariance", False))


class FrameGenerator(nn.Module):
    """Abstract: a generator of real numbers, standardised by component, whose ``rollout`` and
    ``guided_rollout`` are both ``roll``."""

    scaling = "component"

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` futures of each context at any number of ``times``, which must have the step of the fit
        (ValueError otherwise). Noise is drawn on the CPU in float64."""
        with torch.no_grad():
            return self.roll(Asked(context, times, actions, draws, generator))

    def guided_rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
        correct: Correction,
    ) -> Trajectory:
        """As ``rollout``, with each estimate of frames corrected while they are made, as the class says.

        ``correct`` sees the rollout up to the end of what is being made; what it does to frames that are
        already settled is ignored.
        """
        with torch.no_grad():
            return self.roll(Asked(context, times, actions, draws, generator, correct))

    def roll(self, asked: Asked) -> Trajectory:
        """What is asked for, made without a graph."""
        raise NotImplementedError
