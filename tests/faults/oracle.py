"""The one oracle of the trials, and real runs to put to it.

However a batch was disturbed, in the end its decoded arrays, scores and states are those of an undisturbed
run, bit by bit (``digest``); every kept file can be read, and ``status`` says what there is (``sound``); no
run has ended with 0 and work missing (``ended``); and no process is left behind (``left_behind``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from worldsim.cli.kept import counted
from worldsim.errors import ResultError
from worldsim.index import STATES, look
from worldsim.results import open_results
from worldsim.verifying import verify

SUITE = Path(__file__).parent / "suite"
"""Scenarios of real plugins, small enough that a run of all takes seconds beside its start."""
PERILOUS = Path(__file__).parent.parent / "core" / "perilous_world.py"
"""A plugin whose models go wrong as they are asked to."""
PLUGINS = "pendulum,mass_spring,neural_ode,hamiltonian,adaptive,symplectic,rollout,invariants"
"""What the suite needs: processes start sooner without the rest."""
MARK = "WORLDSIM_TRIAL"
"""The environment variable that every process of a trial inherits."""
PATIENCE = 240.0
"""Seconds after which a run that should have ended counts as hung."""


def command(scenarios, out, *options):
    """The command line of a run with two workers."""
    targets = [scenarios] if isinstance(scenarios, str | os.PathLike) else scenarios
    words = [*targets, "--out", out, "--workers", "2", *options]
    return [sys.executable, "-m", "worldsim", "run", *map(str, words)]


def environment(out, plugins=PLUGINS, **more):
    """That of a run into ``out``: one thread, and the mark by which its processes are found."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLDSIM_PLUGINS": plugins,
        MARK: str(Path(out).absolute()),
        **more,
    }


def start(scenarios, out, *options, env=None):
    """A run in a session of its own, so that its whole process group can be killed. Its output is piped."""
    return subprocess.Popen(
        command(scenarios, out, *options),
        env=env or environment(out), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process, out):
    """Wait for a started run; its exit code, standard output and standard error. Checks ``ended``."""
    try:
        said = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    ended(process.returncode, out)
    return process.returncode, *said


def run(scenarios, out, *options, check=False, env=None):
    """A run to its end, as a CompletedProcess; ``check`` asks that it ends with 0."""
    code, output, errors = finish(process := start(scenarios, out, *options, env=env), out)
    assert not check or code == 0, errors or output
    return subprocess.CompletedProcess(process.args, code, output, errors)


def kill(process):
    """SIGKILL the whole process group of a started run; it cannot say more."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def ended(code, out):
    """No 0 with work missing. Raises AssertionError."""
    if code == 0:
        states = Counter(state for _, state in states_of(out))
        assert set(states) == {"done"}, f"exit code 0, and the cases are {dict(states)}"


def states_of(out):
    """(label, state) of every case, by reading what is kept of it rather than looking for names."""
    results, found = open_results(out), []
    for entry in results.entries:
        rolled = readable(lambda entry=entry: results.store.open_run(entry.key))
        scores = [results.store.open_scores(entry.key, key) for key in entry.metrics.values()]
        if rolled and all(score is not None for score in scores):
            state = "done"
        elif results.store.open_failure(entry.key):
            state = "failed"
        else:
            state = "unscored" if rolled else "missing"
        found.append((entry.label, state))
    return sorted(found)


def readable(read):
    try:
        read()
    except ResultError as error:
        if "there is no file" not in str(error):
            raise
        return False
    return True


def perilous(folder, *perils, seeds=1):
    """The file of a scenario with a model for each of the perils, in this order, and a baseline."""
    split = {"trajectories": 4, "horizon": 2.0}
    document = {
        "about": "What becomes of cases that go wrong, and of those beside them?",
        "system": "decay",
        "data": {"step": 0.5, "splits": {"train": split, "test": split}},
        "models": {peril: {"name": "perilous", "peril": peril} for peril in perils},
        "metrics": ["rollout"],
        "baselines": ["persistence"],
        "seeds": list(range(seeds)),
    }
    file = Path(folder) / "perilous.yaml"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def failures_of(out):
    """Model -> what is kept about its failure."""
    results = open_results(out)
    found = {entry.model: results.store.open_failure(entry.key) for entry in results.entries}
    return {model: failure for model, failure in found.items() if failure}


def digest(out, models=None):
    """A hash of everything decoded that is kept in a results folder: arrays, scores, states; of some
    ``models`` alone where they are given."""
    results, found = open_results(out), hashlib.sha256()
    states = dict(states_of(out))
    for entry in sorted(results.entries, key=lambda entry: (entry.label, entry.key)):
        if models is not None and entry.model not in models:
            continue
        found.update(states[entry.label].encode())
        found.update(f"{entry.label} {entry.key}".encode())
        if results.store.has_run(entry.key):
            tree = results.store.open_run(entry.key)
            for group in sorted(tree.groups):
                for name, array in sorted(tree[group].variables.items()):
                    shape = (group, name, array.dims, array.shape, str(array.dtype))
                    about = (*shape, sorted(array.attrs.items()))
                    found.update(repr(about).encode())
                    found.update(array.values.tobytes())
        for name, key in sorted(entry.metrics.items()):
            found.update(repr((name, results.store.open_scores(entry.key, key))).encode())
    return found.hexdigest()


def sound(out):
    """Every file is whole, and ``status`` is truthful. Raises AssertionError."""
    findings = verify(Path(out))
    assert findings.damaged == (), findings.damaged
    results, truth = open_results(out), Counter(state for _, state in states_of(out))
    index = look(Path(out))
    assert sorted((e.label, index.state(e)) for e in results.entries) == states_of(out)
    _, text = counted(results, True)
    line = re.search(r"^\d+ cases?: .*$", text, re.MULTILINE)[0]
    told = {state: int(re.search(rf"(\d+) {state}\b", line)[1]) for state in STATES}
    assert told == {state: truth[state] for state in STATES}, text


def left_behind(out, seconds=0.0):
    """The processes of runs into ``out`` that are alive after at most ``seconds``; zombies do not count."""
    end = time.monotonic() + seconds
    while (alive := processes(out)) and time.monotonic() < end:
        time.sleep(0.1)
    return alive


def processes(out):
    mark = f"{MARK}={Path(out).absolute()}\0".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_ours = mark in (place / "environ").read_bytes() + b"\0"
            if is_ours and (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(place.name))
    return [pid for pid in found if pid != os.getpid()]


def wait_for(holds, seconds=PATIENCE):
    """Whether ``holds()`` came true within ``seconds``."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(held)


def come_to(process, holds):
    """Wait until a started run has come to where ``holds()``. Raises AssertionError with what it said when it
    has ended before."""
    wait_for(lambda: holds() or process.poll() is not None)
    if not holds():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(process.communicate())
