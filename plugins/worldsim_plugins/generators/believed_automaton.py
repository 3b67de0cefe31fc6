"""Models that hold a stated belief about an automaton: known right and wrong answers for a coherence score.

Each accepts a set of next tokens after a prefix and gives all of them the same probability. None is fitted.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, System
from worldsim_kernels.shortest_ways import ways_to_end
from worldsim_plugins.generators.sequence import sampled_continuation

LATTICE = ("L", "0", "R")


class BelievedAutomaton:
    """A next-token law over an automaton's tokens that follows from ``belief``:

    true         the automaton itself
    states       a lattice believed to have ``states`` positions: true moves, clamped to the believed range
    uniform      every token, always
    reject_all   no token, ever: the law is all zeros, and a rollout draws uniformly since it cannot stop
    odd_refusal  the true state, but "0" is refused after an odd number of tokens
    shortest_path, shortest_paths
                 the true state and a policy: of the moves of a route, the first that brings its "end" nearer,
                 or every one that does

    Its ``legality`` says which tokens it takes to be possible, whatever its policy prefers.

    Raises ValueError when the system is not an automaton, or lacks the tokens that the belief is about.
    """

    trainable = False
    scaling = "none"

    def __init__(
        self,
        system: System,
        *,
        belief: Annotated[
            Literal[
                "true", "states", "uniform", "reject_all", "odd_refusal", "shortest_path", "shortest_paths"
            ],
            Field(description="what the model takes the world to be"),
        ] = "true",
        states: Annotated[
            int, Field(ge=1, le=1000, description="positions of the believed lattice (belief: states)")
        ] = 5,
    ) -> None:
        if not isinstance(system, HasAutomaton):
            raise ValueError(f"believed_automaton needs an automaton, not {type(system).__name__}")
        if belief == "states" and system.alphabet != LATTICE:
            raise ValueError(f"belief 'states' needs the lattice's tokens {LATTICE}, found {system.alphabet}")
        if belief == "odd_refusal" and "0" not in system.alphabet:
            raise ValueError(f"belief 'odd_refusal' needs a token '0', found {system.alphabet}")
        if belief.startswith("shortest") and "end" not in system.alphabet:
            raise ValueError(f"belief {belief!r} needs routes that have an 'end', found {system.alphabet}")
        self.alphabet = system.alphabet
        self.belief = belief
        self.initial = min(system.initial, states - 1) if belief == "states" else system.initial
        self.table = _clamped_lattice(states) if belief == "states" else system.transitions()
        self.legal = _legal_lattice(states) if belief == "states" else self.table >= 0
        self.chosen = self.legal
        if belief.startswith("shortest"):
            self.chosen = ways_to_end(self.table, self.alphabet.index("end"), belief == "shortest_path")

    def loss(self, truth: Trajectory) -> Tensor:
        """Zero: there is nothing to fit."""
        return torch.zeros((), dtype=torch.float64)

    def legality(self, tokens: Tensor) -> Tensor:
        """1 where the next token is believed to be possible, ``[n, token]`` float64, else 0."""
        return self._after(tokens, self.legal).double()

    def accepted(self, tokens: Tensor) -> Tensor:
        """Which next tokens are accepted, ``[n, token]`` bool, after prefixes ``[n, length]``."""
        return self._after(tokens, self.chosen)

    def _after(self, tokens: Tensor, allowed: Tensor) -> Tensor:
        if self.belief in ("uniform", "reject_all"):
            return torch.full((len(tokens), len(self.alphabet)), self.belief == "uniform")
        state = torch.full((len(tokens),), self.initial)
        for token in tokens.T:
            state = torch.where(state < 0, state, self.table[state.clamp(min=0), token])
        accepted = allowed[state.clamp(min=0)] & (state >= 0)[:, None]
        if self.belief == "odd_refusal" and tokens.shape[1] % 2:
            accepted[:, self.alphabet.index("0")] = False
        return accepted

    def next_token(self, tokens: Tensor) -> Tensor:
        """``[n, token]`` float64: uniform over the accepted tokens, all zeros where none is accepted."""
        accepted = self.accepted(tokens).double()
        return accepted / accepted.sum(1, keepdim=True).clamp(min=1)

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """Sampled continuations ``[trajectory, draw, time]``; frame 0 is the context's last token."""
        return sampled_continuation(self.next_token, context, times, draws, generator)


def _clamped_lattice(states: int) -> Tensor:
    return (torch.arange(states)[:, None] + torch.tensor([-1, 0, 1])).clamp(0, states - 1)


def _legal_lattice(states: int) -> Tensor:
    target = torch.arange(states)[:, None] + torch.tensor([-1, 0, 1])
    return (target >= 0) & (target < states)


@hookimpl
def worldsim_generators():
    return {"believed_automaton": BelievedAutomaton}
