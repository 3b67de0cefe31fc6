"""What a case is computed under, and what it says when an operation has no deterministic form."""

import warnings

import torch

import worldsim
from worldsim.archive import provenance_of
from worldsim.determinism import WORKSPACE, deterministic
from worldsim.provenance import REPRODUCIBILITY
from worldsim.report import write_report

CARELESS = '''
import torch
from torch import nn
from worldsim import hookimpl


class Careless(nn.Module):
    """Stands still, by an operation whose result is left open where two writers meet."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.zeros(()))

    def loss(self, batch):
        self.rate.new_zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
        return self.rate.square()

    def rollout(self, context, times, actions, draws, generator):
        start = context.states[:, :, -1:].expand(-1, draws, len(times), *context.state_shape)
        return context.replace(states=start.clone(), times=times, actions=None)


@hookimpl
def worldsim_dynamics():
    return {"careless": Careless}
'''

SCENARIO = """
about: Is it said?
system: pendulum
data: {step: 0.1, splits: {train: {trajectories: 8, horizon: 1.0}, test: {trajectories: 2, horizon: 1.0}}}
models: {careless: careless, still: elapsed_time}
fit: {steps: 3, batch: 4, window: 3}
metrics: [rollout]
baselines: []
seeds: [0]
"""


def test_all_is_set_within_and_as_it_was_afterwards(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)

    def now():
        return (
            torch.get_num_threads(),
            torch.get_deterministic_debug_mode(),
            torch.get_float32_matmul_precision(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        )

    before = now()
    with deterministic():
        assert now() == (1, 1, "highest", False, False, True)
    assert now() == before


def test_an_operation_without_a_deterministic_form_is_named_and_other_warnings_are_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for _ in range(2):  # torch and Python each like to warn once
            with deterministic() as met:
                torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
                warnings.warn("something else", stacklevel=1)
            assert met == {"put_"}
    assert [str(each.message) for each in shown] == ["something else"] * 2


def test_a_result_says_how_far_it_is_reproducible(tmp_path):
    (tmp_path / "careless.py").write_text(CARELESS)
    (tmp_path / "said.yaml").write_text(SCENARIO)

    def said():
        results = worldsim.run(
            tmp_path / "said.yaml", out=tmp_path / "out", plugins=[tmp_path / "careless.py"]
        )
        assert [results.status(entry) for entry in results.entries] == ["done", "done"]
        paths = [results.store.run_path(entry.key) for entry in results.entries]
        return {e.model: provenance_of(p)["reproducibility"] for e, p in zip(results.entries, paths)}, paths

    first, paths = said()
    without = "to tolerance: there is no deterministic form here of put_"
    assert first == {"careless": without, "still": REPRODUCIBILITY}
    report = write_report(worldsim.open_results(tmp_path / "out"), tmp_path / "report.html").read_text()
    assert f"{without} (said/careless); {REPRODUCIBILITY} (said/still)" in report
    for path in paths:
        path.unlink()
    assert said()[0] == first, "the weights that were kept say so too"
