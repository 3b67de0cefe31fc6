"""Which map does a model walk on? The one that its walks draw, beside the true one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, Metric, Model, System
from worldsim_plugins.metrics import graph_scores
from worldsim_plugins.metrics.comparison import within
from worldsim_plugins.metrics.reconstructed_map import UNKNOWN, ReconstructedMap, Streets

COPIES = 20
"""Corrupted copies of the true walks."""


class MapReconstruction:
    """Of the walks that a model rolls out, the first draw of each trajectory:

    error_rate         share of steps along ways that there are not, or given up
    walks_failed       share that could not be followed to their end with ways of at most ``reach`` hops
    edges_new          ways that had to be added; ranks nothing, since who repeats one step needs few
    edges_used         true ways that were walked on, and edges_unused
    new_hops           mean hops between the ends of the new ways, along true ones
    edges_new_control  and walks_failed_control, means over 20 copies of the true walks in which each step is
                       replaced, with the probability error_rate, by the name of a way that there is not: what
                       a right map needs when it is told carelessly; edges_new_control_q95, the 95 % quantile

    What a walk goes on to do decides where a way that it needs leads, and the first walk that needs it
    decides for all: a map is not independent of their order. The control is drawn in the same order.

    States are one crossing where the same ``moves`` are possible: in a city of routes, wherever they go. The
    map is kept as ``map_true``, ``map_right`` (used), ``map_wrong`` (new) and ``map_missing`` (unused)
    ``[edge, end]``.

    Raises ValueError for a system that is no automaton, or has no such moves; NotMeasurable for words without
    the state in which they begin.
    """

    met_by: Mapping[str, str] = {
        "error_rate": "shuffled, true walks of other starts",
        "walks_failed": "every baseline: with new ways nearly any walk can be followed",
    }

    def __init__(
        self,
        system: System,
        *,
        moves: Annotated[
            list[str] | None, Field(min_length=1, description="tokens that lead from crossing to crossing")
        ] = None,
        end: Annotated[str, Field(description="token that ends a walk, where the automaton has it")] = "end",
        reach: Annotated[int, Field(ge=1, le=1000, description="most hops that a new way may span")] = 3,
        degree: Annotated[int, Field(ge=1, le=1000, description="most ways out of a crossing")] = 4,
        seed: Annotated[int, Field(ge=0, description="draws the corruptions")] = 0,
    ) -> None:
        if not isinstance(system, HasAutomaton):
            raise ValueError(f"map_reconstruction needs an automaton, {type(system).__name__} is none")
        self.alphabet = tuple(system.alphabet)
        compass = [token for token in ("N", "E", "S", "W") if token in self.alphabet]
        named = moves or compass or list(self.alphabet)
        unknown = [token for token in named if token not in self.alphabet]
        if unknown:
            raise ValueError(f"moves: no token {', '.join(unknown)}; there are {', '.join(self.alphabet)}")
        self.end = self.alphabet.index(end) if end in self.alphabet else None
        table = system.transitions()
        self.streets = Streets(table, [self.alphabet.index(token) for token in named if token != end])
        names = getattr(system, "state_names", None) or tuple(map(str, range(len(table))))
        self.names = crossing_names(names, self.streets.crossing)
        self.reach, self.degree, self.seed = reach, degree, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above, of ``prediction [trajectory, draw, time]``; frame 0 is given."""
        states = truth.observables.get("automaton_state")
        if states is None:
            raise NotMeasurable(
                "the truth does not carry its states (automaton_state): no walk has a beginning"
            )
        if len(truth.times) < 2:
            raise NotMeasurable("no token is left after the given context: ask for a longer horizon")
        if not within(truth).all():
            raise NotMeasurable("sequences of different lengths have no common map")
        starts, walks = states[:, 0, 0].tolist(), prediction.states[:, 0, 1:]
        found = self.drawn(starts, walks.tolist())
        rate = found.illegal / found.steps if found.steps else 1.0
        copies = self.copies(starts, truth.states[:, 0, 1:], rate)
        new, n = len(found.new), len(walks)
        hops = [found.hops[here, there] for (here, _), there in found.new.items()]
        control = np.array([len(copy.new) for copy in copies])
        failures = [copy.failed / n for copy in copies]
        scores = {
            "error_rate": Score(rate, floor=0.0, n=found.steps),
            "walks_failed": Score(found.failed / n, floor=0.0, n=n),
            "edges_new": Score(float(new), better="", n=n),
            "edges_used": Score(float(len(found.used)), better="", n=n),
            "edges_unused": Score(float(len(self.streets.edges) - len(found.used)), better="", n=n),
            "edges_new_control": Score(float(control.mean()), better="", n=COPIES),
            "edges_new_control_q95": Score(float(np.quantile(control, 0.95)), better="", n=COPIES),
            "walks_failed_control": Score(float(np.mean(failures)), better="", n=COPIES),
            "new_hops": Score(
                float(np.mean(hops)) if hops else float("nan"), better="", n=new,
                reason="" if hops else "no way had to be added",
            ),
        }  # fmt: skip
        return scores | self.graph(found)

    def drawn(self, starts: list[int], walks: list[list[int]]) -> ReconstructedMap:
        """The map of ``walks``, one after the other."""
        found = ReconstructedMap(self.streets, self.reach, self.degree, self.end)
        for state, tokens in zip(starts, walks):
            found.add(state, tokens)
        return found

    def copies(self, starts: list[int], walks: Tensor, rate: float) -> list[ReconstructedMap]:
        """Maps of corrupted true ``walks [walk, time]``."""
        generator = torch.Generator().manual_seed(self.seed)
        maps = []
        for _ in range(COPIES):
            chance = torch.rand(walks.shape, generator=generator, dtype=torch.float64).tolist()
            pick = torch.rand(walks.shape, generator=generator, dtype=torch.float64).tolist()
            copy = [
                self.corrupted(state, tokens, [p if c < rate else None for c, p in zip(*luck)])
                for state, tokens, *luck in zip(starts, walks.tolist(), chance, pick)
            ]
            maps.append(self.drawn(starts, copy))
        return maps

    def corrupted(self, state: int, tokens: list[int], luck: list[float | None]) -> list[int]:
        """A true walk with another name for the steps that have ``luck``; it goes on where it went."""
        streets, copy = self.streets, list(tokens)
        for at, (token, part) in enumerate(zip(tokens, luck)):
            here = streets.crossing[state]
            if token in streets.moves and part is not None:
                none = [move for move in sorted(streets.moves) if streets.ways[here][move] == UNKNOWN]
                copy[at] = none[int(part * len(none))] if none else token
            state = streets.transitions[state][token]
        return copy

    def graph(self, found: ReconstructedMap) -> dict[str, Score]:
        true = self.streets.edges
        parts = {
            "true": true,
            "right": [edge for edge in true if edge[:2] in found.used],
            "wrong": [(here, token, there) for (here, token), there in found.new.items()],
            "missing": [edge for edge in true if edge[:2] not in found.used],
        }
        same = graph_scores.states(np.eye(len(self.names)), [""] * len(self.names), self.names)
        scores = {f"map_{kind}": graph_scores.edges(edges, self.alphabet) for kind, edges in parts.items()}
        return {**scores, "map_states": same}


def crossing_names(states: tuple[str, ...], crossing: list[int]) -> list[str]:
    """Of each crossing: its state, or the first word of all its states where they have one in common."""
    names = []
    for number in range(max(crossing) + 1):
        members = [name for name, its in zip(states, crossing) if its == number]
        words = {name.split(" ")[0] for name in members}
        names.append(members[0] if len(members) == 1 else words.pop() if len(words) == 1 else str(number))
    return names


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"map_reconstruction": MapReconstruction}
