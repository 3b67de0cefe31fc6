"""A random walk on a deterministic finite automaton whose language is prefix-closed.

    q_{t} = delta(q_{t-1}, a_t),   a_t uniform among the tokens that are legal at q_{t-1}

What a model sees is the tokens; the state is hidden. Presets (``known_automata``, ``games``): the lattice of
Vafa, Chang, Rambachan and Mullainathan (2025), a walker on a segment who may step left, stay or step right;
after Vafa, Chen, Rambachan, Kleinberg and Mullainathan (2024) a city of streets on a grid, the routes through
it from one crossing to another, and statements about who sits where; Othello on a small board (after Li et
al. 2023); and the random-random-XOR process (Crutchfield and Feldman 2003).

On routes the walk may go somewhere: with the probability ``noise`` a token is uniform as above, and otherwise
one that ``policy`` chooses.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim_kernels.shortest_ways import ways_to_end
from worldsim_plugins.systems.games import othello
from worldsim_plugins.systems.known_automata import (
    GRID_MOVES,
    Transitions,
    grid_city,
    hidden_xor,
    lattice,
    reachable,
    routes,
    seating,
)

PRESETS = ("lattice", "grid_city", "routes", "seating", "othello", "hidden_xor")


def check_transitions(transitions: Transitions, initial: str) -> None:
    """Raises ValueError on an unknown initial state or target, a dead state or an unreachable one."""
    known = ", ".join(transitions)
    if initial not in transitions:
        raise ValueError(f"initial: {initial!r} is not a state; the states are {known}")
    for here, ways in transitions.items():
        if not ways:
            raise ValueError(
                f"transitions: state {here!r} is dead: give it at least one token, or leave it out"
            )
        for token, there in ways.items():
            if there not in transitions:
                raise ValueError(
                    f"transitions: {here!r} --{token}--> {there!r} is not a state; allowed: {known}"
                )
    reached = reachable(transitions, initial)
    lost = [state for state in transitions if state not in reached]
    if lost:
        raise ValueError(f"transitions: unreachable from {initial!r}: {', '.join(lost)}; leave them out")


class Automaton:
    """A walk on a finite automaton: tokens ``[trajectory, 1, time]`` int64, one a step, times 0, 1, 2, ...

    The observable ``automaton_state`` ``[trajectory, 1, time]`` int64 is the state after each token. Raises
    ValueError when not exactly one of ``transitions`` and ``preset`` is given, and where the automaton has an
    unknown target, a dead state or an unreachable one.
    """

    def __init__(
        self,
        *,
        transitions: Annotated[
            dict[str, dict[str, str]] | None,
            Field(description="state -> token -> next state; a token left out is illegal"),
        ] = None,
        initial: Annotated[
            str | None, Field(description="state before the first token; the first state when left out")
        ] = None,
        preset: Annotated[
            Literal["lattice", "grid_city", "routes", "seating", "othello", "hidden_xor"] | None,
            Field(description="a known automaton instead of transitions"),
        ] = None,
        states: Annotated[int, Field(ge=2, le=1000, description="positions of the lattice")] = 5,
        people: Annotated[int, Field(ge=2, le=4, description="people, and seats, of the seating puzzle")] = 3,
        board: Annotated[Literal[4], Field(description="squares along a side of the Othello board")] = 4,
        rows: Annotated[int, Field(ge=2, le=30, description="rows of crossings in the city")] = 5,
        columns: Annotated[int, Field(ge=2, le=30, description="columns of crossings in the city")] = 5,
        closed: Annotated[
            float, Field(ge=0, le=0.5, description="share of the city's streets tried as closures")
        ] = 0.1,
        one_way: Annotated[
            float, Field(ge=0, le=0.5, description="share of the city's streets tried as one-way streets")
        ] = 0.2,
        seed: Annotated[
            int, Field(ge=0, description="which city: draws the closures and one-way streets")
        ] = 0,
        policy: Annotated[
            Literal["uniform", "shortest_path", "shortest_paths"],
            Field(
                description="how the walk picks a token: uniformly among the legal ones; on routes also the "
                "first of those on a shortest path to the goal, or any of them"
            ),
        ] = "uniform",
        noise: Annotated[
            float, Field(ge=0, le=1, description="share of tokens picked uniformly, whatever the policy")
        ] = 0.0,
    ) -> None:
        if (transitions is None) == (preset is None):
            raise ValueError(f"automaton: give exactly one of transitions and preset ({', '.join(PRESETS)})")
        if preset == "lattice":
            transitions = lattice(states)
        elif preset == "seating":
            transitions = seating(people)
        elif preset == "othello":
            transitions = othello(board)
        elif preset == "hidden_xor":
            transitions = hidden_xor()
        elif preset is not None:
            city = grid_city(rows, columns, closed, one_way, seed)
            transitions = city if preset == "grid_city" else routes(city)
        if not transitions:
            raise ValueError("transitions: empty; give at least one state with one token")
        start = next(iter(transitions)) if initial is None else initial
        check_transitions(transitions, start)
        if policy != "uniform" and preset != "routes":
            raise ValueError(f"policy: {policy} goes to a goal, and only preset: routes has one")
        self.state_names = tuple(transitions)
        self.alphabet = _alphabet(transitions, preset)
        self.initial = self.state_names.index(start)
        self._table = _table(transitions, self.state_names, self.alphabet)
        self._law = _uniform(self._table >= 0)
        if policy != "uniform":
            chosen = ways_to_end(self._table, self.alphabet.index("end"), policy == "shortest_path")
            self._law = noise * self._law + (1 - noise) * _uniform(chosen)

    def transitions(self) -> Tensor:
        """``[state, token]`` int64; -1 where the token is illegal."""
        return self._table.clone()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Seeds ``[trajectory]`` int64, one walk each; every walk begins in the initial state."""
        return torch.randint(2**62, (n,), generator=generator)

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """The walks of ``start``; the token at time t is the same whatever other times are asked for.

        Raises ValueError when ``times`` are not increasing whole numbers from 0 on.
        """
        steps = _steps(times)
        chances = torch.stack([_uniform_numbers(int(seed), int(steps[-1]) + 1) for seed in start])
        below = self._law.cumsum(1)
        last = self._law.shape[1] - 1 - (self._law > 0).flip(1).int().argmax(1)
        state = torch.full((len(start),), self.initial)
        tokens, states = [], []
        for chance in chances.T:
            token = torch.minimum((chance[:, None] >= below[state]).sum(1), last[state])
            state = self._table[state, token]
            tokens.append(token)
            states.append(state)
        walk, hidden = torch.stack(tokens, 1)[:, None, steps], torch.stack(states, 1)[:, None, steps]
        units = {"time": "1", "automaton_state": "1"}
        return Trajectory(states=walk, times=times, observables={"automaton_state": hidden}, units=units)

    def state_after(self, tokens: Tensor) -> Tensor:
        """The state ``[trajectory]`` after ``tokens`` ``[trajectory, length]``; -1 after an illegal token."""
        return self._states_along(tokens)[:, -1]

    def _states_along(self, tokens: Tensor) -> Tensor:
        """The same after the first 0, 1, ... of ``tokens``, ``[trajectory, length + 1]``."""
        states = [torch.full((len(tokens),), self.initial)]
        for token in tokens.T:
            here = states[-1]
            states.append(torch.where(here < 0, here, self._table[here.clamp(min=0), token]))
        return torch.stack(states, 1)

    def next_token(self, tokens: Tensor) -> Tensor:
        """The true law ``[trajectory, token]`` float64 of the next token.

        All zeros after a prefix that is itself illegal.
        """
        return self._law_at(self.state_after(tokens))

    def token_laws(self, tokens: Tensor) -> Tensor:
        """The same after the first 0, 1, ... of ``tokens [n, length]``, ``[n, length + 1, token]``."""
        return self._law_at(self._states_along(tokens))

    def _law_at(self, state: Tensor) -> Tensor:
        return self._law[state.clamp(min=0)] * (state >= 0)[..., None]


def _uniform(allowed: Tensor) -> Tensor:
    """Each ``allowed [state, token]`` token as likely, float64."""
    return allowed.double() / allowed.sum(1, keepdim=True)


def _alphabet(transitions: Transitions, preset: str | None) -> tuple[str, ...]:
    if preset == "lattice":
        return ("L", "0", "R")
    if preset == "grid_city":
        return tuple(GRID_MOVES)
    if preset == "routes":
        return (*GRID_MOVES, "end", *transitions["start"])
    if preset == "othello":
        squares = {token for ways in transitions.values() for token in ways} - {"pass", "end"}
        return (*sorted(squares), "pass", "end")
    return tuple(dict.fromkeys(token for ways in transitions.values() for token in ways))


def _table(transitions: Transitions, states: tuple[str, ...], alphabet: tuple[str, ...]) -> Tensor:
    number = {state: i for i, state in enumerate(states)}
    rows = [[number[ways[a]] if a in ways else -1 for a in alphabet] for ways in transitions.values()]
    return torch.tensor(rows)


def _uniform_numbers(seed: int, count: int) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _steps(times: Tensor) -> Tensor:
    steps = times.round().long()
    increasing = bool((steps[1:] > steps[:-1]).all())
    if len(times) == 0 or not torch.equal(steps.double(), times.double()) or steps[0] < 0 or not increasing:
        raise ValueError(
            f"an automaton emits one token a step: times must be increasing whole numbers from 0 on, "
            f"found {times[:4].tolist()}...; set data.step to 1"
        )
    return steps


@hookimpl
def worldsim_systems():
    return {"automaton": Automaton}
