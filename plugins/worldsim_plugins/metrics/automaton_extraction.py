"""The automaton that a next-token model behaves as, learned by asking it, beside the true one.

L* (Angluin 1987): prefixes that no test tells apart are one state; whatever word shows the hypothesis wrong
adds its suffixes to the tests (Maler and Pnueli 1995). The teacher is the model, a token being accepted above
epsilon. It cannot say that a hypothesis is right, so that is tested: by every word of a few tokens after each
state, and by walks (the W method of Chow 1978, and sampling, which makes the answer right up to a share of
walks only).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_plugins.metrics.model_failure import blaming_the_model
from worldsim_plugins.metrics.myhill_nerode import NextToken, law_after, words

Word = tuple[int, ...]


class Teacher:
    """Which tokens a model accepts after a word, and whether it accepts a word; asked once for each word."""

    def __init__(self, next_token: NextToken, size: int, epsilon: float) -> None:
        self.next_token, self.size, self.epsilon = next_token, size, epsilon
        self.known: dict[Word, tuple[bool, ...]] = {}

    def ask(self, prefixes: set[Word]) -> None:
        """Ask for what is not known yet, words of one length together."""
        new = sorted(
            (word for word in prefixes if word not in self.known), key=lambda word: (len(word), word)
        )
        for length in sorted({len(word) for word in new}):
            batch = [word for word in new if len(word) == length]
            tokens = torch.tensor(batch, dtype=torch.int64).reshape(len(batch), length)
            with blaming_the_model():
                law = law_after(self.next_token, tokens, self.size)
            self.known |= {word: tuple(row) for word, row in zip(batch, (law > self.epsilon).tolist())}

    def accepts(self, asked: list[Word]) -> list[bool]:
        """Nothing is asked about words that go on after a token that is refused."""
        left = range(len(asked))
        for at in range(max(map(len, asked), default=0)):
            left = [i for i in left if len(asked[i]) > at]
            self.ask({asked[i][:at] for i in left})
            left = [i for i in left if self.known[asked[i][:at]][asked[i][at]]]
        return [self.said(word) for word in asked]

    def said(self, word: Word) -> bool:
        """Whether it accepts a word that has been asked for."""
        return all(self.known[word[:at]][token] for at, token in enumerate(word))


OPEN = -2
"""In place of a state that was not made, since there were ``most`` already."""


@dataclass(frozen=True)
class Learned:
    """``transitions [state, token]``, -1 where refused and OPEN where the search was cut off, from state 0;
    the ``access`` word of each state, who was asked, and whether learning came to an end."""

    transitions: Tensor
    access: tuple[Word, ...]
    teacher: Teacher
    finished: bool

    @property
    def asked(self) -> int:
        """How many words the model gave a law after."""
        return len(self.teacher.known)


def learn(
    next_token: NextToken,
    size: int,
    *,
    epsilon: float = 0.01,
    most: int = 200,
    questions: int = 1_000_000,
    extra: int = 1,
    walks: int = 300,
    length: int = 20,
    generator: torch.Generator,
) -> Learned:
    """Learn from a model over ``size`` tokens; ``extra`` more tokens than tell states apart are tested after
    each state, and ``walks`` walks of ``length``. It is cut off above ``most`` states, and there is no new
    round after ``questions`` words. Raises ModelFailed when the model does."""
    teacher = Teacher(next_token, size, epsilon)
    tests: list[Word] = [(a,) for a in range(size)]
    while True:
        table, access = closed(teacher, tests, most)
        if bool((table == OPEN).any()) or len(teacher.known) > questions:
            return Learned(table, tuple(access), teacher, False)
        wrong = counterexample(teacher, table, access, tests, extra, walks, length, generator)
        if wrong is None:
            return Learned(table, tuple(access), teacher, True)
        tests += [tail for at in range(len(wrong)) if (tail := wrong[at:]) not in tests]


def closed(teacher: Teacher, tests: list[Word], most: int) -> tuple[Tensor, list[Word]]:
    """One access word for each row that no test tells apart, nearest first, and the moves between them."""
    number: dict[tuple[bool, ...], int] = {}
    kept: list[Word] = []

    def states(found: list[Word]) -> list[int]:
        """Of each word, making a new one for a row that is new; all their tests are asked together."""
        answers = teacher.accepts([word + test for word in found for test in tests])
        rows = [tuple(answers[at : at + len(tests)]) for at in range(0, len(answers), len(tests))]
        for word, row in zip(found, rows):
            if row not in number and len(kept) < most:
                number[row] = len(kept)
                kept.append(word)
        return [number.get(row, OPEN) for row in rows]

    states([()])
    table: list[list[int]] = []
    while len(table) < len(kept):
        layer = kept[len(table) :]
        teacher.ask(set(layer))
        moves = [(*word, a) for word in layer for a, yes in enumerate(teacher.known[word]) if yes]
        after = dict(zip(moves, states(moves)))
        table += [[after.get((*word, a), -1) for a in range(teacher.size)] for word in layer]
    return torch.tensor(table), kept


def counterexample(
    teacher: Teacher, table: Tensor, access: list[Word], tests: list[Word], extra: int, walks: int,
    length: int, generator: torch.Generator,
) -> Word | None:  # fmt: skip
    """A shortest one among the words tested, or None."""
    middle = [tuple(w) for k in range(extra + 1) for w in words(teacher.size, k).tolist()]
    tried = {one + two + three for one in access for two in middle for three in tests}
    tried |= {tuple(walk) for walk in walked(table, walks, length, generator).tolist()}
    candidates = sorted(tried, key=lambda word: (len(word), word))
    answers = teacher.accepts(candidates)
    rows = table.tolist()
    for word, said in zip(candidates, answers):
        if said != accepts(rows, word):
            return word
    return None


def walked(table: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Walks ``[count, length]`` on a hypothesis, whose last token is any."""
    state, tokens = torch.zeros(count, dtype=torch.int64), []
    for _ in range(length - 1):
        legal = (table[state] >= 0).double()
        legal[legal.sum(1) == 0] = 1.0
        token = torch.multinomial(legal, 1, generator=generator)[:, 0]
        state = table[state, token].clamp(min=0)
        tokens.append(token)
    last = torch.randint(table.shape[1], (count,), generator=generator)
    return torch.stack([*tokens, last], 1)


def accepts(rows: list[list[int]], word: Word) -> bool:
    state = 0
    for token in word:
        state = rows[state][token]
        if state < 0:
            return False
    return True


@dataclass(frozen=True)
class Correspondence:
    """A learned automaton beside the true one.

    pairs           (learned, true) states that some word accepted by both leads to
    merged          learned states that stand for several true ones -> those
    split           true states that several learned ones stand for -> those
    edges           (learned state, true state, token, kind) for every token that is accepted or legal at a
                    pair: "right" where it is both, "wrong" where it is illegal, "missing" where it is refused
    counterexample  a shortest word that one accepts and the other does not; None where there is none
    """

    pairs: tuple[tuple[int, int], ...]
    merged: dict[int, tuple[int, ...]]
    split: dict[int, tuple[int, ...]]
    edges: tuple[tuple[int, int, int, str], ...]
    counterexample: Word | None


def correspondence(learned: Tensor, true: Tensor, initial: int = 0) -> Correspondence:
    """Of ``learned [state, token]`` from state 0 with the minimal ``true`` automaton from ``initial``. What
    lies behind an OPEN move is not looked at."""
    mine, theirs = learned.tolist(), true.tolist()
    queue, reached = [(0, initial)], {(0, initial): ()}
    edges: list[tuple[int, int, int, str]] = []
    shortest: Word | None = None
    for pair in queue:
        for token, after in enumerate(zip(*(side[state] for side, state in zip((mine, theirs), pair)))):
            accepted, legal = (state != -1 for state in after)
            if not accepted and not legal:
                continue
            kind = "missing" if not accepted else "right" if legal else "wrong"
            edges.append((*pair, token, kind))
            word = (*reached[pair], token)
            if kind != "right":
                shortest = shortest or word
            elif OPEN not in after and after not in reached:
                reached[after] = word
                queue.append(after)
    return Correspondence(tuple(queue), _several(queue, 0), _several(queue, 1), tuple(edges), shortest)


def _several(pairs: list[tuple[int, int]], side: int) -> dict[int, tuple[int, ...]]:
    """The states of one side that stand for several of the other."""
    found: dict[int, set[int]] = {}
    for pair in pairs:
        found.setdefault(pair[side], set()).add(pair[1 - side])
    return {state: tuple(sorted(others)) for state, others in sorted(found.items()) if len(others) > 1}
