"""One model fitted by two processes that share the rows of each batch."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import weakref

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from worldsim import run
from worldsim.errors import ScenarioError, WorldsimError
from worldsim.ranks import Ranks, joined
from worldsim.store import Store

pytest.importorskip("lightning_fabric")

SCENARIO = """
about: Shared.
system: pendulum
data: {{step: 0.1, splits: {{train: {{trajectories: 32, horizon: 1.0}},
  validation: {{trajectories: 8, horizon: 1.0}}, test: {{trajectories: 4, horizon: 1.0}}}}}}
models: {{m: {model}}}
fit: {{steps: 12, batch: 8, window: 3, learning_rate: 1e-2, validate_every: 1, checkpoint_every: 5,
  processes: {processes}}}
metrics: [rollout]
baselines: []
seeds: [0]
"""
LISTENER = """
import json
from worldsim import hookimpl

@hookimpl
def worldsim_fit_progress(case, step, losses):
    with open({path!r}, "a") as file:
        file.write(json.dumps([step, losses["train"], losses["validation"]]) + "\\n")
"""


def fitted(tmp_path, processes, model="{name: neural_ode, width: 16}"):
    """The curve ``[step, (step, train, validation)]`` and the weights of a fit."""
    folder = tmp_path / str(processes)
    folder.mkdir()
    (folder / "one.yaml").write_text(SCENARIO.format(processes=processes, model=model))
    (folder / "listener.py").write_text(LISTENER.format(path=str(folder / "curve")))
    results = run(folder / "one.yaml", out=folder / "out", dtype="float64", plugins=[folder / "listener.py"])
    (entry,) = results.entries
    assert results.status(entry) == "done", results.failure(entry)
    curve = [json.loads(line) for line in (folder / "curve").read_text().splitlines()]
    (path,) = (folder / "out" / "fits").iterdir()
    tensors, meta = Store(folder / "out").open_fit(path.stem)
    assert meta["finished"] == "yes"
    return torch.tensor(curve, dtype=torch.float64), tensors


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    (one, alone), (two, shared) = fitted(tmp_path, 1), fitted(tmp_path, 2)
    assert one.shape == (12, 3), "each step is heard of once"
    assert float(one[0, 2] / one[-1, 2]) > 1.5, "it learns"
    torch.testing.assert_close(two, one, rtol=1e-9, atol=0)
    for name, weights in alone.items():
        torch.testing.assert_close(shared[name], weights, rtol=1e-7, atol=1e-9)


def test_what_a_loss_draws_each_rank_draws_for_itself(tmp_path):
    one, two = (fitted(tmp_path, n, "{name: flow, width: 16, depth: 1}")[0] for n in (1, 2))
    assert bool((one[:, 1] != two[:, 1]).all())
    assert float((one[:, 1] - two[:, 1]).abs().max()) < 2 * float(one[:, 1].mean())


def test_what_averages_gradients_is_gone_before_its_process_group(monkeypatch):
    """Or both may wait for the interpreter's lock for ever."""
    from tests.core.test_mechanisms import trajectories

    class Model(torch.nn.Linear):
        def loss(self, batch):
            return self(batch.states).square().mean()

    data = trajectories(4)
    size = data.states.shape[-1]
    reducers, destroy = [], torch.distributed.destroy_process_group
    left = lambda: destroyed.append([held() for held in reducers]) or destroy()  # noqa: E731
    destroyed = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", left)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with joined(0, 1, port, "cpu") as ranks:
        ranks.take(Model(size, 1, dtype=data.states.dtype))
        ranks.loss(data).backward()
        reducers += [weakref.ref(each) for each in gc.get_objects() if type(each) is DistributedDataParallel]
        assert len(reducers) == 1
    assert destroyed == [[None]]


def test_rows_are_shared_evenly_or_not_at_all(tmp_path):
    from tests.core.test_mechanisms import trajectories

    data = trajectories(6)
    parts = [Ranks(rank, 3, None).share(data).states for rank in range(3)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), data.states)
    with pytest.raises(WorldsimError, match=r"6 rows cannot be shared by 4 processes: make fit\.batch"):
        Ranks(0, 4, None).share(data)


def test_a_case_says_why_it_could_not_be_shared(tmp_path):
    (tmp_path / "odd.yaml").write_text(SCENARIO.format(processes=3, model="{name: neural_ode, width: 8}"))
    results = run(tmp_path / "odd.yaml", out=tmp_path / "out")
    assert "8 rows cannot be shared by 3 processes" in results.failure(results.entries[0])


def test_processes_are_a_number(tmp_path):
    (tmp_path / "none.yaml").write_text(SCENARIO.format(processes=0, model="neural_ode"))
    with pytest.raises(ScenarioError, match="processes"):
        run(tmp_path / "none.yaml", out=tmp_path / "out")


def test_a_rank_whose_first_one_is_gone_ends(tmp_path):
    """It waits for no one for ever: what it reads is no case, and it says so."""
    ended = subprocess.run(
        [sys.executable, "-m", "worldsim.rank", "1", "2", "1"], input="{}", text=True, capture_output=True
    )
    assert ended.returncode != 0


DYING = """
import os, sys
if sys.argv[0].endswith("rank.py"):
    print("x" * 100_000, "in a rank", flush=True)
    os._exit(7)
"""


def test_a_rank_that_ends_before_it_joins_is_not_waited_for(tmp_path, capfd):
    (tmp_path / "one.yaml").write_text(SCENARIO.format(processes=2, model="{name: neural_ode, width: 8}"))
    (tmp_path / "dying.py").write_text(DYING)
    results = run(tmp_path / "one.yaml", out=tmp_path / "out", plugins=[tmp_path / "dying.py"])
    assert "rank 1 of the fit ended with exit code 7 before it joined" in results.failure(results.entries[0])
    assert "in a rank" in capfd.readouterr().err
