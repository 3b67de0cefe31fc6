"""Automata whose classes are known: a lattice, cities and routes, a seating puzzle, hidden bits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import permutations

Transitions = Mapping[str, Mapping[str, str]]
GRID_MOVES = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}


def lattice(states: int) -> dict[str, dict[str, str]]:
    """Positions 0 .. states - 1; L is illegal at the left end, R at the right end, 0 stays."""
    moves = {"L": -1, "0": 0, "R": 1}
    return {
        str(x): {token: str(x + dx) for token, dx in moves.items() if 0 <= x + dx < states}
        for x in range(states)
    }


def hidden_xor() -> dict[str, dict[str, str]]:
    """Two fair bits, then their exclusive or, again and again: five states, of which the last two say which
    bit must come."""
    return {
        "new": {"0": "after 0", "1": "after 1"},
        "after 0": {"0": "0 due", "1": "1 due"},
        "after 1": {"0": "1 due", "1": "0 due"},
        "0 due": {"0": "new"},
        "1 due": {"1": "new"},
    }


def grid_city(rows: int, columns: int, closed: float, one_way: float, seed: int) -> dict[str, dict[str, str]]:
    """Crossings "row,column" and moves N, E, S, W; some streets closed, some open in one direction only.

    Streets are visited in an order drawn from ``seed``; a change that would leave a crossing without a way to
    every other one is not made, so the city has no dead end.
    """
    city = {
        f"{r},{c}": {
            token: f"{r + dr},{c + dc}"
            for token, (dr, dc) in GRID_MOVES.items()
            if 0 <= r + dr < rows and 0 <= c + dc < columns
        }
        for r in range(rows)
        for c in range(columns)
    }
    streets = [(here, token) for here, ways in city.items() for token in ways if token in "ES"]
    order = random.Random(seed)
    order.shuffle(streets)
    closures = round(closed * len(streets))
    for index, (here, token) in enumerate(streets[: closures + round(one_way * len(streets))]):
        back = (city[here][token], {"E": "W", "S": "N"}[token])
        removed = [(here, token), back] if index < closures else [order.choice([(here, token), back])]
        _remove_if_connected(city, removed)
    return city


def _remove_if_connected(city: dict[str, dict[str, str]], ways: list[tuple[str, str]]) -> None:
    taken = [(here, token, city[here].pop(token)) for here, token in ways]
    backward: dict[str, dict[str, str]] = {state: {} for state in city}
    for here, out in city.items():
        for there in out.values():
            backward[there][here] = here
    start = next(iter(city))
    if not len(reachable(city, start)) == len(reachable(backward, start)) == len(city):
        for here, token, there in taken:
            city[here][token] = there


def reachable(transitions: Transitions, initial: str) -> set[str]:
    """The states that some word leads to from ``initial``."""
    found, frontier = {initial}, [initial]
    while frontier:
        for there in transitions[frontier.pop()].values():
            if there not in found:
                found.add(there)
                frontier.append(there)
    return found


def routes(city: Transitions) -> dict[str, dict[str, str]]:
    """Routes through a ``city`` as words: the crossing to start from, the crossing to go to, then moves, and
    "end", which is legal at the goal alone and for ever after it.

    Moves are legal wherever there is a street, towards the goal or not, and at the goal too. Once the first
    two tokens are given the state is where one is and where one goes.
    """
    table: dict[str, dict[str, str]] = {"start": {f"@{here}": f"from {here}" for here in city}}
    for here in city:
        table[f"from {here}"] = {f"@{goal}": f"{here} to {goal}" for goal in city}
    for goal in city:
        for here, ways in city.items():
            table[f"{here} to {goal}"] = {token: f"{there} to {goal}" for token, there in ways.items()}
        table[f"{goal} to {goal}"]["end"] = "done"
    return {**table, "done": {"end": "done"}}


def seating(people: int) -> dict[str, dict[str, str]]:
    """Which arrangements of people on as many seats are left after statements "p sits in seat s" and "p sits
    d seats from q" (d > 0); a statement is legal while some arrangement is left that it is true of.

    n = 2, 3, 4 people have 3, 19 and 221 states, each told from every other by one statement of 6, 21 and 52.
    """
    everyone = range(people)
    arrangements = list(permutations(everyone))
    true_of = {
        f"{p} in {s}": frozenset(a for a in arrangements if a[p] == s) for p in everyone for s in everyone
    } | {
        f"{p} {d} from {q}": frozenset(a for a in arrangements if abs(a[p] - a[q]) == d)
        for p in everyone
        for q in everyone
        for d in range(1, people)
        if p != q
    }
    names = {frozenset(arrangements): "all"}
    table: dict[str, dict[str, str]] = {}
    queue = list(names)
    for left in queue:
        ways = {}
        for statement, holds in true_of.items():
            rest = left & holds
            if rest and rest not in names:
                names[rest] = " or ".join("".join(map(str, a)) for a in sorted(rest))
                queue.append(rest)
            if rest:
                ways[statement] = names[rest]
        table[names[left]] = ways
    return table
