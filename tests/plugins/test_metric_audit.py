"""Every metric ranks the truth above a truth that is slightly wrong, and that above models that know nothing.

Each score that ranks is asked on every world it can be built for: those of the shipped scenarios, shrunk, and
one of each kind for metrics that no scenario names. A score that a model without understanding meets must say
so (``met_by`` of its metric), or be told in the documentation as met on some worlds, where the report finds
it by its numbers; and no headline may be such a score. What is said to be so must be so, on a world here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from worldsim import reading
from worldsim.baselines import BASELINES, Truth, unavailable
from worldsim.build import build_systems
from worldsim.plugins import registry
from worldsim.protocols import HasActions, HasAutomaton, HasForecast, Restartable
from worldsim.report.answers import answer
from worldsim.report.standings import Board, boards, fidelity_beside, headlines, is_met
from worldsim.results import Row
from worldsim.score import residual_scores, score_with, scored_parts, with_caveats
from worldsim.strict_yaml import read
from worldsim.tables import is_variant
from worldsim.truth import held, simulate_split

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
OFFSET, CLOCK, MIXED = 0.02, 1.01, 0.02
TRAJECTORIES, TRAINED_ON, FRAMES = 16, 8, 8
"""Small: the memoriser is no null where it has seen every state of a world, and 8 trajectories are few."""
SAME = 1e-9
NULLS = set(BASELINES) - {"truth"}


class Perturbed(Truth):
    """The true system, read with an offset of 2 % of the spread and by a clock that is 1 % fast (where it
    does not move by whole steps). One that cannot be restarted from a state, or whose state is not seen, has
    its forecast moved and stretched instead; over tokens 2 % of the law is uniform, and all of it after words
    that cannot be."""

    def rollout(self, context, times, actions, draws, generator):
        system, past = self.system, self.past.states
        if isinstance(system, HasAutomaton):
            return super().rollout(context, times, actions, draws, generator)
        spread = past.flatten(0, 2).std(0)
        if isinstance(system, HasForecast) or not isinstance(system, Restartable):
            right = super().rollout(context, times, actions, draws, generator)
            states = right.states + OFFSET * (right.states - past.flatten(0, 2).mean(0) + spread)
            states[:, :, 0] = right.states[:, :, 0]
            return right.replace(states=states)
        off = context.replace(states=context.states + OFFSET * spread)
        by_steps = getattr(system, "step", 0) == 1
        fast = times if by_steps else times[0] + CLOCK * (times - times[0])
        right = super().rollout(off, fast, actions, draws, generator)
        states = right.states.clone()
        states[:, :, 0] = context.states[:, :, -1]
        return right.replace(states=states, times=times)

    def law(self, tokens, size):
        law = super().law(tokens, size)
        uniform = torch.full_like(law, 1 / law.shape[1])
        possible = law.sum(1, keepdim=True) > 0
        return torch.where(possible, (1 - MIXED) * law + MIXED * uniform, uniform)


# Worlds.


SIZES = {
    "coherence/ornstein_uhlenbeck": (64, 20),
    "mechanics/ornstein_uhlenbeck": (64, 24),
    "dynamics/hamiltonian_flow": (48, 5),
    "automata/grid_city": (24, 20),
}
"""Scenario -> (trajectories, frames): a law is not seen in a few trajectories."""
ELSEWHERE = {
    ("lorenz", "chaos"): "in the study b8: exponents need walks of many Lyapunov times",
    ("doubling_map", "coherence"): "in doubling: of states that are almost one, 2 % is no slight error",
    ("doubling_map", "rollout"): "in doubling: nor is it over eight doublings",
    ("grid_city", "coherence"): "of the lattice: a city takes ten times as long",
    ("othello", "sampled_coherence"): "of other tokens: these take as long as all of them",
}
"""(System, metric) of a shipped scenario -> where it is asked instead, and why."""


def small(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A scenario's system, data and metrics with few short trajectories and small metrics."""
    data = document["data"]
    n, frames = SIZES.get(name, (TRAJECTORIES, FRAMES))
    frames += data.get("context", 1) - 1
    splits = {
        name: {**data["splits"][name], "trajectories": count}
        for name, count in (("train", TRAINED_ON), ("test", n))
    }
    for split in splits.values():
        split["horizon"] = min(split["horizon"], data["step"] * frames)
    if data["splits"]["test"]["trajectories"] == 1:
        splits["train"]["trajectories"] = splits["test"]["trajectories"] = 1
    return {
        **{key: value for key, value in document.items() if key not in ("published", "fit")},
        "data": {**data, "splits": splits},
        "metrics": [smaller(metric, document["system"]) for metric in document["metrics"]],
        "baselines": ["truth"],
        "seeds": [0],
    }


SMALLER = {
    "coherence": {"pairs": 20, "resamples": 20, "horizon": 6, "history": 6},
    "chaos": {"walkers": 2, "steps": 30, "transient": 5, "exponents": 1},
    "sampled_coherence": {
        "pairs": 20,
        "suffixes": 10,
        "suffix_length": 6,
        "prefix_lengths": [3, 3],
        "resamples": 20,
    },
}
SMALLER |= {
    "extraction": {"questions": 20_000, "walks": 100},
    "detours": {"walks": 50, "length": 30},
    "inductive_bias": {"inputs": 200, "sets": 30},
}
OVER_TOKENS = {"horizon": 4, "prefix_length": 4}


def smaller(metric: str | Mapping[str, Any], system: str | Mapping[str, Any]) -> dict[str, Any]:
    given = {"name": metric} if isinstance(metric, str) else dict(metric)
    given.pop("splits", None)
    tokens = isinstance(system, Mapping) and system["name"] == "automaton"
    less = SMALLER.get(given["name"], {})
    return {**given, **less, **(OVER_TOKENS if tokens and given["name"] == "coherence" else {})}


def world(
    system: Any, *metrics: Any, step: float = 0.1, n: int = TRAJECTORIES, frames: int = FRAMES, **more: Any
) -> dict[str, Any]:
    """A scenario of one system for metrics that the shipped ones do not ask of it."""
    name = system if isinstance(system, str) else system["name"]
    model = "sequence" if name == "automaton" else "neural_ode"
    horizon = step * (frames + more.get("context", 1) - 1)
    splits = {
        "train": {"trajectories": more.get("trained_on", TRAINED_ON), "horizon": horizon},
        "test": {"trajectories": n, "horizon": horizon},
    }
    return {
        "about": "Who ranks?",
        "system": system,
        "data": {"step": step, "context": more.get("context", 1), "splits": splits},
        "models": {"model": model},
        "draws": more.get("draws", 1),
        "metrics": [smaller(metric, system) for metric in metrics],
        "baselines": ["truth"],
        "seeds": [0],
    }


def transports(*distances: str) -> list[dict[str, Any]]:
    return [{"name": "transport", "distance": each, "frames": 3, "permutations": 19} for each in distances]


LATTICE = {"name": "automaton", "preset": "lattice"}
EXTRA = {
    "pendulum_parts": world(
        "pendulum",
        {"name": "order_of_events", "of": ["q"]},
        {"name": "observables", "of": ["energy"]},
        {"name": "topology", "points": 32},
        "spectra",
        "one_step",
        step=0.5,
    ),
    "pendulum_information": world("pendulum", {"name": "information", "components": [0]}, n=100, frames=4),
    "driven_pendulum_actions": world({"name": "driven_pendulum", "torque": 0.5, "hold": 5}, "causality"),
    "double_integrator": world("double_integrator", "causality", "coherence", "rollout"),
    "noise": world(
        "ornstein_uhlenbeck",
        *("forecast", "spectra", "climate"),
        {"name": "coherence", "draws": 16},
        draws=16,
        n=128,
        frames=16,
    ),
    "noise_information": world("ornstein_uhlenbeck", "information", n=400, frames=4),
    "noise_forgotten": world(
        "ornstein_uhlenbeck", *("forecast", "rollout"), draws=16, n=64, frames=2, step=8.0, trained_on=512
    ),
    "noise_laws": world(
        "ornstein_uhlenbeck",
        *transports("W1", "sliced", "max_sliced", "sinkhorn", "bures", "unbalanced", "gromov"),
        *transports("mmd", "energy", "signature_mmd"),
        draws=2,
        n=64,
        step=0.2,
    ),
    "hidden_state": world(
        "linear_gaussian",
        *("rollout", "forecast"),
        {"name": "coherence", "draws": 16},
        step=1.0,
        draws=16,
        n=64,
        context=8,
    ),
    "doubling": world("doubling_map", "rollout", "coherence", "chaos", step=1.0, frames=4, n=128),
    "heat": world("heat", "rollout", "spectra", {"name": "causality", "speed": 1.0}, "topology", "coherence"),
    "burgers": world("burgers", "rollout", "spectra", "topology", frames=4),
    "tracks_of_the_second_frame": world("tracked_points", "rollout", step=0.2)
    | {"constraints": [{"name": "consistency_3d", "reference": "second"}]},
    "driven_scene": world(
        {"name": "driven_scenes", "points": 1}, {"name": "consistency_3d", "gap": 2}, step=0.2
    ),
    "lattice_information": world(LATTICE, "information", step=1.0, n=256),
}


def named(system: str | Mapping[str, Any]) -> str:
    """What a world is called: its preset or its system, and the one that it is made of."""
    if isinstance(system, str):
        return system
    inner = f" {named(system['system'])}" if "system" in system else ""
    return str(system.get("preset", system["name"])) + inner


def shipped() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pair of a system and a metric of the shipped scenarios, once."""
    seen = set(ELSEWHERE)
    for file in sorted((ROOT / "scenarios").glob("*/*.yaml")):
        document = small(read(file).data, f"{file.parent.name}/{file.stem}")
        name = named(document["system"])
        metrics = [part for part in document["metrics"] if (name, part["name"]) not in seen]
        seen |= {(name, part["name"]) for part in metrics}
        if metrics:
            yield f"{file.parent.name}/{file.stem}", {**document, "metrics": metrics}


WORLDS = {**dict(shipped()), **EXTRA}
"""Name -> scenario."""


# What is found on them.


def remembered(system: Any) -> Any:
    """The same system, which simulates the same starts with the same noise once: every model is compared
    with the same truth."""
    known: dict[Any, Any] = {}

    def once(name: str, inner: Any) -> Any:
        def call(*given):
            key = [name]
            for each in given:
                if isinstance(each, torch.Generator):
                    key.append(each.get_state().numpy().tobytes())
                elif isinstance(each, torch.Tensor):
                    key += [tuple(each.shape), each.detach().numpy().tobytes()]
                elif isinstance(each, (int, str, type(None))):
                    key.append(each)
                else:
                    return inner(*given)
            noise = [each for each in given if isinstance(each, torch.Generator)]
            if tuple(key) not in known:
                known[tuple(key)] = inner(*given), [each.get_state() for each in noise]
            found, states = known[tuple(key)]
            for each, state in zip(noise, states):
                each.set_state(state)
            return found

        return call

    for name in ("sample", "simulate", "sample_actions", "equivalent_histories"):
        if hasattr(system, name):
            setattr(system, name, once(name, getattr(system, name)))
    return system


@cache
def rows(name: str) -> list[Row]:
    """Every score of every model on a world."""
    case = reading.from_document(WORLDS[name], name.rpartition("/")[2], registry()).cases()[-1]
    scenario, systems = case.scenario, build_systems(case)
    system, train = remembered(systems["test"]), held(simulate_split(case, "train", systems["train"]))
    truth = simulate_split(case, "test", system)
    last = scenario.data.context - 1
    future, context = truth.span(last), held(truth).span(0, last + 1)
    actions = future.actions if isinstance(system, HasActions) else None
    kinds = {"truth": Truth, "perturbed": Perturbed}
    kinds |= {k: v for k, v in BASELINES.items() if k != "truth" and not unavailable(k, system, len(truth))}
    models, guesses, found = {}, {}, []
    for label, kind in kinds.items():
        model = models[label] = kind(system, train)
        model.known = held(future)
        model.differentiable_rollout = model.rollout
        generator = torch.Generator().manual_seed(7)
        guesses[label] = model.rollout(context, future.times, actions, scenario.draws, generator)
    for part in scored_parts(case):
        metric, noun = part.component.build(registry(), system=system), part.component.noun
        for label, guess in guesses.items():
            if noun == "metric":
                scores = score_with(part.component.name, metric, future, guess, models[label])
            else:
                scores = with_caveats(
                    metric, residual_scores(part.component.name, metric, guess, future, models[label])
                )
            for score, value in scores.items():
                row = Row(name, label, 0, label != "perturbed", "test", part.component.name, score, value)
                found.append(row)
    return found


def verdict(board: Board, found: Sequence[Board]) -> set[str]:
    """Baselines that stand with the perturbed truth or above it; "truth" where that is worse than perturbed
    by more than its own interval, and than the 95 % quantile of its floor. What is not measurable does not
    rank."""
    sign = 1 if board.better == "lower" else -1
    right, off = board.of("truth"), board.of("perturbed")
    if right is None or off is None or not (right.values and off.values):
        return set()
    quantile = [each.of("truth") for each in found if each.name == f"{board.name}_floor_q95"]
    floors = [right.floor, *(q.mean for q in quantile if q)]
    at_floor = any(floor is not None and sign * right.mean <= sign * floor for floor in floors)
    best = min(sign * end for end in (right.mean, *(right.own_interval or ())))
    wrong = {"truth"} if best > sign * off.mean + SAME and not at_floor else set()
    nulls = [s for s in board.standings if s.model in NULLS and s.values]
    return wrong | {s.model for s in nulls if sign * off.mean > sign * s.mean - SAME}


def excused(board: Board) -> set[str]:
    """The baselines that a metric says meet a score."""
    if "every baseline" in board.met_by:
        return NULLS
    return {name for name in BASELINES if re.search(rf"\b{name}\b", board.met_by)}


@cache
def audited(name: str) -> list[Board]:
    """Every number of every model on a world."""
    kind: Any = {model: "truth" if model == "truth" else "baseline" for model in BASELINES}
    found = boards(rows(name), {**kind, "perturbed": "model"})
    return found


# What the documentation says of it.


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page."""
    text = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell) or ["*"]


EVERYWHERE = [(names(row[0]), names(row[1]), row[2]) for row in table("Met on every world")]
SOMEWHERE = [(names(row[0]), names(row[1])) for row in table("Met on some worlds")]
NOT_ASKED = names(PAGE.partition("## Not asked\n")[2].partition("are asked")[0])


def told(board: Board) -> bool:
    """Whether the page says that a score is met on some worlds, and this is one: a report sees it."""
    return is_met([board], ()) and any(
        board.metric in metrics and any(fnmatchcase(board.name, each) for each in patterns)
        for metrics, patterns in SOMEWHERE
    )


# Tests.


@pytest.mark.parametrize("name", WORLDS)
def test_every_score_ranks_or_says_who_meets_it(name: str) -> None:
    for board in audited(name):
        if board.better:
            left = verdict(board, audited(name)) - (NULLS if told(board) else excused(board))
            values = {s.model: s.mean for s in board.standings}
            assert not left, f"{board.metric}, {board.title}, {board.better} is better: {left} in {values}"


@pytest.mark.parametrize("name", WORLDS)
def test_no_headline_is_met_without_a_word(name: str) -> None:
    found = audited(name)
    groups = headlines(found, "test")
    for group in groups:
        said = answer(group, found)
        for board in group:
            met = verdict(board, found) - {"truth"}
            if met and board.name != "coherence_auc":
                others = [
                    b for b in found if b.metric == board.metric and b.better and b not in group
                    and b.of("perturbed").values and not is_met([b], found)
                    and not is_variant(b.name, {each.name for each in found if each.metric == b.metric})
                ]  # fmt: skip
                shown = [each for one in groups for each in one]
                assert all(other in shown for other in others), f"{board.title} is there instead of {others}"
            meant = "without understanding" in said or "without following" in said or "No model" in said
            assert not met or meant, f"{board.title}: {met} say nothing in: {said}"
            if met and board.name == "coherence_auc" and fidelity_beside(board, found):
                assert "(fidelity)" in said


@pytest.mark.parametrize("name", WORLDS)
def test_a_score_has_one_direction_whether_it_is_measurable_or_not(name: str) -> None:
    directions: dict[tuple[str, str], set[str]] = {}
    for row in rows(name):
        directions.setdefault((row.metric, row.name), set()).add(row.score.better)
    assert [key for key, found in directions.items() if len(found) > 1 and key[0] != key[1]] == []


def test_every_metric_is_audited() -> None:
    asked = {
        board.metric
        for name in WORLDS
        for board in audited(name)
        if board.better and {"truth", "perturbed"} <= {s.model for s in board.standings if s.values}
    }
    ours = {
        name
        for noun in ("metric", "constraint")
        for name in registry().names(noun)
        if registry().provider(noun, name).distribution == "worldsim"
    }
    assert asked == ours


def test_the_page_says_what_the_metrics_say() -> None:
    written = {
        (metric, text): {pattern for names, patterns, cell in EVERYWHERE if cell == text and metric in names
                         for pattern in patterns}
        for metrics, _, text in EVERYWHERE for metric in metrics
    }  # fmt: skip
    found: dict[tuple[str, str], set[str]] = {}
    for name in WORLDS:
        for board in audited(name):
            if board.met_by:
                found.setdefault((board.metric, board.met_by), set()).add(board.name)
    assert set(found) == {key for key, patterns in written.items() if not patterns <= set(NOT_ASKED)}
    for key, scores in found.items():
        unseen = [name for name in scores if not any(fnmatchcase(name, each) for each in written[key])]
        assert unseen == [], key


def test_what_is_said_to_be_met_is_met_somewhere() -> None:
    everyone = [(board, verdict(board, audited(name))) for name in WORLDS for board in audited(name)]
    met = [(board, nulls & excused(board)) for board, nulls in everyone if board.better]
    shown = {(board.metric, board.met_by) for board, nulls in met if nulls}
    assert {(b.metric, b.met_by) for b, _ in met if b.met_by} == shown
    for metrics, patterns in SOMEWHERE:
        for pattern in patterns:
            assert any(
                board.metric in metrics and fnmatchcase(board.name, pattern) and nulls
                for board, nulls in everyone if board.better
            ), f"{metrics}, {pattern} ranks on every world that is here"  # fmt: skip


def test_a_belief_of_one_state_too_few_ranks_between() -> None:
    """Another perturbed truth: a lattice of four states for five."""
    case = reading.from_document(WORLDS["automata/wrong_lattices"], "few", registry()).cases()[-1]
    few = case.scenario.models["believes_four_states"].component.build
    system = build_systems(case)["test"]
    truth = simulate_split(case, "test", system)
    part = scored_parts(case)[0].component.build(registry(), system=system)
    found = score_with("coherence", part, truth, truth, few(registry(), system=system, truth=truth))
    for board in audited("automata/wrong_lattices"):
        if board.metric != "coherence":
            continue
        score, sign = found[board.name], 1 if board.better == "lower" else -1
        if board.better and not board.met_by and not board.label:
            nulls = [s.mean for s in board.standings if s.kind == "baseline" and s.values]
            right = board.of("truth").mean
            assert sign * right <= sign * score.value < min(sign * null for null in nulls), board.name
