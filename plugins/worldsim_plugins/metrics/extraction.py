"""Which automaton does a model behave as, and what does it take for one that is two, or for two that is one?

The automaton is learned by asking the model which tokens it accepts (L*, Angluin 1987; of trained networks by
thresholds: Weiss, Goldberg and Yahav 2018), and set beside the minimal true one. It is what the model behaves
as as far as was asked: an answer to words of a stated length and no proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, HasNextToken, Metric, Model, System
from worldsim_plugins.metrics import graph_scores
from worldsim_plugins.metrics.automaton_extraction import (
    OPEN,
    Correspondence,
    Learned,
    Teacher,
    Word,
    correspondence,
    learn,
)
from worldsim_plugins.metrics.comparison import within
from worldsim_plugins.metrics.machine_statistics import machine_scores, machine_statistics
from worldsim_plugins.metrics.minimisation import minimise
from worldsim_plugins.metrics.model_failure import ModelFailed

MOST_TOKENS = 32
"""Every token is asked for after every state: above this a table is no longer filled in seconds."""


class Extraction:
    """The automaton that a model behaves as, a token being accepted above ``epsilon``, beside the true one.

    edges_right        of the tokens that are accepted or legal where some word leads, the share that is both
    edges_wrong        ... accepted and illegal
    edges_missing      ... legal and refused
    states_merged      learned states that stand for several true ones: a word leads to both
    states_split       true states that several learned ones stand for
    states_unreached   true states that no learned one stands for
    states_learned     and states_true, of the minimal automaton
    counterexample_length  of the shortest word that was asked for, legal or accepted but not both
    words_asked        words that the model gave a law after
    finished           1 where nothing that was asked contradicts the learned automaton, else 0: there were
                       ``most`` states, or ``questions`` words, and the rest was cut off

    What a policy would not do counts as refused: it has edges missing though it may know of them.

    A network whose law is not sharp behaves as a new state wherever a long word brings a token across
    ``epsilon``: many states and ``finished`` 0 say so. Moves to states that were cut off count as edges and
    are not followed.

    Of the words that the model rolls out, by the learned states that they walk on, and of the truth by the
    true ones, in bits, where the model was given one token alone:

    machine_entropy_rate   ``*_truth`` and ``*_error``: of the next token, given the state
    machine_complexity     ... of the state: the statistical complexity, where equal possibilities mean equal
                           laws
    machine_excess_entropy ... that past and future have in common, on a walk without end
    machine_refused        share of tokens that the learned automaton does not follow, being below ``epsilon``

    The graph is kept too: ``automaton_true``, ``automaton_right``, ``automaton_wrong`` and
    ``automaton_missing`` ``[edge, end]``, from and to, the first between true states, the others between
    learned ones (NaN: to none), and ``automaton_states`` ``[state, true_state]``, 1 where the learned state
    stands for the true one. States have the names of the system's ``state_names`` where it has them.

    Raises ValueError for a system that is no automaton, or has more than 32 tokens, or more states than
    ``most``; NotMeasurable for a model without a law of the next token.
    """

    met_by: Mapping[str, str] = {
        "edges_wrong": "constant, whose one token may be legal everywhere",
        "edges_missing": "climatology and uniform, which accept everything",
        "states_*": "every baseline: few states are soon neither merged nor split, and all may be one",
        "machine_*_error": "shuffled, whose words are those of a truth",
    }

    def __init__(
        self,
        system: System,
        *,
        epsilon: Annotated[
            float, Field(gt=0, lt=1, description="a token is accepted above this probability")
        ] = 0.01,
        most: Annotated[
            int, Field(ge=2, le=1000, description="states after which learning is cut off")
        ] = 100,
        questions: Annotated[
            int, Field(ge=100, le=10_000_000, description="words after which learning is cut off")
        ] = 300_000,
        extra: Annotated[
            int, Field(ge=0, le=3, description="tokens between a state and a test of it: the W method's")
        ] = 1,
        walks: Annotated[int, Field(ge=0, le=100_000, description="random walks that are tested too")] = 300,
        length: Annotated[int, Field(ge=1, le=1000, description="tokens of such a walk")] = 12,
        pairs: Annotated[int, Field(ge=20, description="pairs of truth samples that measure the floor")] = 20,
        seed: Annotated[int, Field(ge=0, description="draws the walks and the truth samples")] = 0,
    ) -> None:
        if not isinstance(system, HasAutomaton):
            raise ValueError(f"extraction needs an automaton, {type(system).__name__} is none")
        self.system, self.alphabet, self.pairs = system, tuple(system.alphabet), pairs
        if len(self.alphabet) > MOST_TOKENS:
            raise ValueError(
                f"extraction asks for every token after every state: {len(self.alphabet)} tokens are more "
                f"than {MOST_TOKENS}; take sampled_coherence, or a smaller world"
            )
        minimal = minimise(system.transitions(), system.initial)
        self.true = minimal.transitions
        if len(self.true) > most:
            raise ValueError(
                f"most: the true automaton has {len(self.true)} states, so that no learned one of {most} is "
                "right; raise most, take sampled_coherence, or a smaller world"
            )
        self.names = class_names(getattr(system, "state_names", ()), minimal.classes)
        self.epsilon, self.most, self.questions, self.seed = epsilon, most, questions, seed
        self.extra, self.walks, self.length = extra, walks, length

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above, of ``model``; what it rolled out, ``prediction [trajectory, draw, time]``, counts
        for the entropies alone."""
        if not isinstance(model, HasNextToken):
            raise NotMeasurable(f"{type(model).__name__} gives no law of the next token (next_token)")
        try:
            learned = learn(
                model.next_token,
                len(self.alphabet),
                epsilon=self.epsilon,
                most=self.most,
                questions=self.questions,
                extra=self.extra,
                walks=self.walks,
                length=self.length,
                generator=torch.Generator().manual_seed(self.seed),
            )
            beside = correspondence(learned.transitions, self.true)
            if beside.counterexample is not None:
                learned.teacher.accepts([beside.counterexample])
        except ModelFailed as error:
            return {
                f"edges_{kind}": Score(
                    float("nan"),
                    better="higher" if kind == "right" else "lower",
                    n=0,
                    failed=1,
                    reason=str(error),
                )
                for kind in ("right", "wrong", "missing")
            }
        scores = {**self.counted(learned, beside), **self.graph(learned, beside)}
        return scores | self.machine(learned, truth, prediction)

    def counted(self, learned: Learned, beside: Correspondence) -> dict[str, Score]:
        kinds, n = [kind for *_, kind in beside.edges], len(beside.edges)
        unreached = len(self.true) - len({true for _, true in beside.pairs})
        states, asked = len(learned.transitions), learned.asked
        return {
            "edges_right": Score(kinds.count("right") / n, better="higher", floor=1.0, n=n),
            "edges_wrong": Score(kinds.count("wrong") / n, floor=0.0, n=n),
            "edges_missing": Score(kinds.count("missing") / n, floor=0.0, n=n),
            "states_merged": Score(float(len(beside.merged)), floor=0.0, n=states),
            "states_split": Score(float(len(beside.split)), floor=0.0, n=len(self.true)),
            "states_unreached": Score(float(unreached), floor=0.0, n=len(self.true)),
            "states_learned": Score(float(states), better="", n=states),
            "states_true": Score(float(len(self.true)), better="", n=len(self.true)),
            "counterexample_length": counterexample_length(learned.teacher, self.true),
            "words_asked": Score(float(asked), better="", n=asked),
            "finished": Score(float(learned.finished), better="", n=1),
        }

    def machine(self, learned: Learned, truth: Trajectory, prediction: Trajectory) -> dict[str, Score]:
        """Entropies by states; the first draw of each trajectory counts."""
        try:
            if not learned.finished:
                raise NotMeasurable("learning was cut off: there are no states to count")
            if float(truth.times[0]) != 0 or len(truth.times) < 2:
                raise NotMeasurable("words must be rolled out from their first token on: set context to 1")
            if not within(truth).all():
                raise NotMeasurable("sequences of different lengths have no common law of states")
            found = machine_statistics(learned.transitions, prediction.states[:, 0])
            right = machine_statistics(self.true, truth.states[:, 0])
        except NotMeasurable as reason:
            return {
                f"machine_{name}_error": Score(float("nan"), units="bit", n=0, reason=str(reason))
                for name in ("entropy_rate", "complexity", "excess_entropy")
            }
        generator = torch.Generator().manual_seed(self.seed)
        start = self.system.sample(2 * self.pairs * len(truth), generator)
        drawn = self.system.simulate(start, truth.times, None, generator).states[:, 0].split(len(truth))
        samples = [machine_statistics(self.true, tokens) for tokens in drawn]
        return machine_scores(found, right, list(zip(samples[::2], samples[1::2])))

    def graph(self, learned: Learned, beside: Correspondence) -> dict[str, Score]:
        """The two automata as lists of edges, and which state stands for which."""
        true, mine = self.true.tolist(), learned.transitions.tolist()
        stands = torch.zeros(len(mine), len(true), dtype=torch.float64)
        stands[tuple(zip(*beside.pairs))] = 1.0
        known = [(q, a, there) for q, row in enumerate(true) for a, there in enumerate(row) if there >= 0]
        edges: dict[str, dict[tuple[int, int, int], None]] = {"right": {}, "wrong": {}, "missing": {}}
        for state, truly, token, kind in beside.edges:
            there = mine[state][token]
            if kind == "missing":
                # Where the truth goes: to a learned state that stands for that, if there is one.
                stand = stands[:, true[truly][token]]
                there = state if stand[state] else int(stand.argmax()) if stand.any() else OPEN
            edges[kind][state, token, there] = None
        right = [edge for edge in edges["right"] if edge not in edges["wrong"]]
        words = [" ".join(self.alphabet[a] for a in word) for word in learned.access]
        return {
            "automaton_true": graph_scores.edges(known, self.alphabet),
            "automaton_right": graph_scores.edges(right, self.alphabet),
            "automaton_wrong": graph_scores.edges(list(edges["wrong"]), self.alphabet),
            "automaton_missing": graph_scores.edges(list(edges["missing"]), self.alphabet),
            "automaton_states": graph_scores.states(stands.numpy(), words, self.names),
        }


def counterexample_length(teacher: Teacher, true: Tensor) -> Score:
    """Of the shortest word that was asked for and that the model and the automaton ``true [state, token]``
    from state 0 do not agree on."""
    better: Literal[""] = ""
    table = true.tolist()
    for word in sorted(teacher.known, key=lambda word: (len(word), word)):
        state = follow(table, word)
        if state >= 0 and any(yes != (there >= 0) for yes, there in zip(teacher.known[word], table[state])):
            return Score(float(len(word) + 1), better=better, n=len(teacher.known))
    reason = f"none found among {len(teacher.known):,} words and the tokens after them"
    return Score(float("nan"), better=better, n=len(teacher.known), reason=reason)


def follow(table: list[list[int]], word: Word) -> int:
    """The state after ``word`` from state 0, -1 after an illegal token."""
    state = 0
    for token in word:
        state = table[state][token]
        if state < 0:
            return -1
    return state


def class_names(states: tuple[str, ...], classes: Tensor) -> list[str]:
    """A name of each class of ``classes [state]``, after its first state and the number of others."""
    names = []
    for number in range(int(classes.max()) + 1):
        members = (classes == number).nonzero()[:, 0].tolist()
        name = states[members[0]] if states else str(number)
        names.append(name if len(members) == 1 or not states else f"{name} and {len(members) - 1} like it")
    return names


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"extraction": Extraction}
