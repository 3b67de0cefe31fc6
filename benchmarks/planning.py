"""How long a plan, a status and the resume of a finished suite take, by the number of cases.

    python benchmarks/planning.py --cases 10000

The scenario is read from a file like any other; the results are files of the names and places that a run
would give them, with nothing in them, since a plan looks at no more than that.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCENARIO = """\
about: How long does it take to plan?
system: pendulum
data:
  step: 0.1
  splits: {{train: {{trajectories: 4, horizon: 1.0}}, test: {{trajectories: 4, horizon: 1.0}}}}
models:
  ode: {{name: neural_ode, depth: 1}}
fit: {{steps: 10}}
metrics: [rollout, invariants]
baselines: [truth]
seeds: {seeds}
sweep: {{models: {{ode: {{width: {widths}}}}}}}
"""


def planning(cases: int, root: Path, models: int = 100) -> dict[str, float]:
    """Seconds of the plan of new cases, of its freezing, of a status in a process of its own and of a resume
    of the finished suite, reading the scenario included; MB of this process at its peak.

    ``root`` is an empty folder. What is imported once, torch above all, is not counted, but for the status.
    """
    from worldsim.batch import freeze, read_scenarios, tasks
    from worldsim.planning import make_plan
    from worldsim.plugins import registry

    models = min(models, cases)
    text = SCENARIO.format(seeds=list(range(cases // models)), widths=list(range(1, models + 1)))
    file, out = root / "planned.yaml", root / "out"
    file.write_text(text, encoding="utf-8")
    _ = registry().tables
    read_scenarios([file])  # the schema of each component is made at first use
    found: dict[str, float] = {}

    begun = time.perf_counter()
    plan = make_plan(read_scenarios([file]), out)
    lines = [f"{step.does} {step.entry.label} {plan.why(step)}" for step in plan.steps]
    found["plan"] = time.perf_counter() - begun
    begun = time.perf_counter()
    freeze(plan)
    found["freeze"] = time.perf_counter() - begun
    pretend(plan, out)
    begun = time.perf_counter()
    again = make_plan(read_scenarios([file]), out)
    freeze(again)
    left = tasks(again, ())
    found["resume"] = time.perf_counter() - begun
    assert not left, f"{len(left)} of {len(lines)} cases would be computed again"
    begun = time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-m", "worldsim", "status", str(out)], capture_output=True, text=True, check=True
    ).stdout
    found["status"] = time.perf_counter() - begun
    assert f"{len(lines)} done, 0 unscored" in said, said
    found["MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def pretend(plan, out: Path) -> None:
    """Files as a run would leave them, by name alone."""
    from worldsim.store import Store

    store = Store(out)
    for step in plan.steps:
        run = store.run_path(step.entry.key)
        run.parent.mkdir(parents=True, exist_ok=True)
        run.touch()
        for key in step.entry.metrics.values():
            score = store.score_path(step.entry.key, key)
            score.parent.mkdir(parents=True, exist_ok=True)
            score.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[10_000])
    parser.add_argument("--models", type=int, default=100, help="over which the cases are spread")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures = {}
    for cases in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            figures[cases] = planning(cases, Path(folder), options.models)
        told = ", ".join(
            f"{name} {value:.0f}" if name == "MB" else f"{name} {value:.2f} s"
            for name, value in figures[cases].items()
        )
        print(f"{cases} cases: {told}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
