"""What ``worldsim score --selftest`` holds coherence to: automata whose scores can be counted.

The lattice, the seating puzzle and cumulative Connect-4 are those of Vafa, Chen, Rambachan, Kleinberg and
Mullainathan (2024) and of Vafa, Chang, Rambachan and Mullainathan (2025). The scores of wrong beliefs about
the lattice are population values: all pairs of prefixes of 6 tokens (and of 6 and 7), words of up to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim.protocols import GroundTruth, Metric, System
from worldsim_plugins.metrics.continuous_coherence import separation
from worldsim_plugins.metrics.minimisation import minimal_classes
from worldsim_plugins.metrics.myhill_nerode import boundary_sizes, nerode_classes, words

Builder = Callable[..., Metric]

COUNTED = {  # compression precision, distinction precision and recall at equal lengths, then at mixed ones
    "the truth": (1, 1, 1, 1, 1, 1),
    "four positions": (0.947179, 0.713636, 0.703254, 0.932965, 0.719187, 0.703254),
    "six positions": (1, 0.746338, 0.5, 1, 0.746338, 0.5),
    "every token": (1, 1, 0, 1, 1, 0),
    "no token": (1, 1, 0, 1, 1, 0),
    "no rest at odd times": (1, 1, 0.471714, 0, 0.325808, 0.471714),
}
PUBLISHED = ("compression_precision", "distinction_precision", "distinction_recall")
BOUNDARIES = [
    [0, 5, 12, 15, 5],
    [17, 0, 13, 20, 16],
    [17, 20, 0, 20, 17],
    [16, 20, 13, 0, 17],
    [5, 15, 12, 5, 0],
]
"""|MNB_5(i, j)| of the lattice of five positions."""
VAFA = "Vafa et al. 2024"


@dataclass(frozen=True)
class Automaton:
    """Any table ``[state, token]``, -1 where a token is illegal; begins in state 0."""

    table: Tensor
    alphabet: tuple[str, ...]
    initial: int = 0

    def transitions(self) -> Tensor:
        return self.table


@dataclass(frozen=True)
class Believed:
    """A next-token law: uniform over what a belief about the lattice allows, zeros where that is none."""

    belief: str

    def next_token(self, tokens: Tensor) -> Tensor:
        """``[n, token]``."""
        places = {"four positions": 4, "six positions": 6}.get(self.belief, 5)
        at = torch.zeros(len(tokens), dtype=torch.int64)
        for token in tokens.T:
            at = (at + token - 1).clamp(0, places - 1)
        allowed = torch.stack([at > 0, at >= 0, at < places - 1], 1)
        if self.belief in ("every token", "no token"):
            allowed = torch.full_like(allowed, self.belief == "every token")
        if self.belief == "no rest at odd times" and tokens.shape[1] % 2:
            allowed[:, 1] = False
        return allowed.double() / allowed.sum(1, keepdim=True).clamp(min=1)


def lattice(places: int = 5) -> Automaton:
    """Positions on a line; tokens L, 0 and R move by -1, 0 and 1."""
    there = torch.arange(places)[:, None] + torch.tensor([-1, 0, 1])
    return Automaton(torch.where((there < 0) | (there >= places), -1, there), ("L", "0", "R"))


def columns(rows: int, number: int) -> Automaton:
    """Cumulative Connect-4: a token is a column, legal until it holds ``rows`` pieces."""
    radix = rows + 1
    boards = words(radix, number)
    stride = radix ** torch.arange(number - 1, -1, -1)
    table = torch.where(boards < rows, (boards * stride).sum(1)[:, None] + stride, -1)
    return Automaton(table, tuple(map(str, range(number))))


def seating(people: int) -> Automaton:
    """Which arrangements on a row of seats are left after statements "p is in seat s" and "p is d from q"."""
    seats = torch.tensor(list(permutations(range(people))))
    apart = (seats[:, :, None] - seats[:, None, :]).abs()
    others = [(p, q) for p in range(people) for q in range(people) if p != q]
    holds = [seats[:, p] == s for p in range(people) for s in range(people)]
    holds += [apart[:, p, q] == d for p, q in others for d in range(1, people)]
    left, table = [torch.ones(len(seats), dtype=torch.bool)], []
    number = {tuple(left[0].tolist()): 0}
    for state in left:
        after = [state & statement for statement in holds]
        for each in after:
            if each.any() and tuple(each.tolist()) not in number:
                number[tuple(each.tolist())] = len(left)
                left.append(each)
        table.append([number.get(tuple(each.tolist()), -1) for each in after])
    return Automaton(torch.tensor(table), tuple(map(str, range(len(holds)))))


def of_coherence(metric: Builder) -> list[GroundTruth]:
    """Every score that can be counted, of the exact metric."""
    return [*_counted(metric), *_boundaries(), *_seats(), *_columns(metric), *_doubling()]


def of_sampled_coherence(metric: Builder) -> list[GroundTruth]:
    """What sampled words give without error."""
    settings = {"pairs": 40, "prefix_lengths": (4, 6), "suffixes": 8, "suffix_length": 6}
    truth, nothing = (_scored(metric, lattice(), Believed(belief), **settings) for belief in _EXTREMES)
    return [
        _exactly("AUC of the truth, by sampled words", truth["coherence_auc"].value, 1.0),
        _exactly("its compression, mixed lengths", truth["compression_both_mixed"].value, 1.0),
        _exactly("AUC of a uniform law, by sampled words", nothing["coherence_auc"].value, 0.5),
        _exactly("its distinction recall", nothing["distinction_recall"].value, 0.0),
    ]


_EXTREMES = ("the truth", "every token")


def _counted(metric: Builder) -> list[GroundTruth]:
    found = {belief: _scored(metric, lattice(), Believed(belief)) for belief in COUNTED}
    names = [*PUBLISHED, *(f"{name}_mixed" for name in PUBLISHED)]
    rows = [
        GroundTruth(f"lattice, {belief}: {name}", scores[name].value, float(right), 5e-7, "counted")
        for belief, scores in found.items()
        for name, right in zip(names, COUNTED[belief])
    ]
    for belief, right in zip(_EXTREMES, (1.0, 0.5)):
        rows += [
            _exactly(f"lattice, {belief}: {name}", found[belief][name].value, right)
            for name in ("coherence_auc", "coherence_auc_mixed")
        ]
    return rows


def _boundaries() -> list[GroundTruth]:
    sizes = boundary_sizes(lattice().table, 5).sum(0)
    off = float((sizes - torch.tensor(BOUNDARIES)).abs().max())
    depths = [int(nerode_classes(lattice(9).table, depth).max()) + 1 for depth in range(5)]
    return [
        _exactly("sizes of the boundaries |MNB_5| of the lattice, largest error", off, 0.0),
        *(
            _exactly(f"classes of nine positions by words of {depth}", float(count), 2.0 * depth + 1)
            for depth, count in enumerate(depths)
        ),
    ]


def _seats() -> list[GroundTruth]:
    return [
        _exactly(f"classes of the seating puzzle, {people}", float(_classes(seating(people))), float(states))
        for people, states in ((2, 3), (3, 19), (4, 221))
    ]


def _columns(metric: Builder) -> list[GroundTruth]:
    """Columns are independent of one another, so that the states of one of 1,000 rows are enough."""
    small, share = columns(3, 2), float((columns(1000, 1).table >= 0).double().mean())
    blind = _scored(metric, small, Uniform(2), prefix_length=3, horizon=4)
    return [
        GroundTruth("Connect-4, 1,000 rows: legal tokens", share, 0.9990010, 5e-8, VAFA),
        GroundTruth("the same, seven columns: states with none full", share**7, 0.9930279, 5e-8, VAFA),
        _exactly("Connect-4, 3 rows, 2 columns: classes", float(_classes(small)), 16.0),
        _exactly("the same, a uniform law: distinction recall", blind["distinction_recall"].value, 0.0),
        _exactly("its AUC", blind["coherence_auc"].value, 0.5),
    ]


@dataclass(frozen=True)
class Uniform:
    """Knows nothing of ``size`` tokens."""

    size: int

    def next_token(self, tokens: Tensor) -> Tensor:
        return torch.full((len(tokens), self.size), 1 / self.size, dtype=torch.float64)


def _doubling() -> list[GroundTruth]:
    """k = floor(log2(0.1 / delta)) + 1."""
    bits = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    first, _ = separation(2.0 ** (torch.arange(1, 40, dtype=torch.float64) - bits[:, None]), 0.1)
    return [
        GroundTruth(f"doublings that part 2^-{int(b)} to 0.1", float(k), right, 0.0, "floor(log2(0.1/d)) + 1")
        for b, k, right in zip(bits, first, (7.0, 17.0, 27.0))
    ]


def _classes(automaton: Automaton) -> int:
    return int(minimal_classes(automaton.table).max()) + 1


def _exactly(what: str, found: float, right: float) -> GroundTruth:
    return GroundTruth(what, found, right, 0.0, VAFA)


def _scored(metric: Builder, system: System | Automaton, model: object, **settings: object) -> dict:
    truth = Trajectory(torch.ones(2, 1, 3, dtype=torch.int64), torch.arange(3, dtype=torch.float64))
    return metric(system, **settings).score(truth, truth, model)
