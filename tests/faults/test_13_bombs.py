"""Trial 13: YAML bombs, read from a file by a process of their own: refused in a second and little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trial(13)

READ = """
import json, re, sys, time
from pathlib import Path
from worldsim.errors import ScenarioError
from worldsim.strict_yaml import read

found = {}
for file in sorted(Path(sys.argv[1]).glob("*.yaml")):
    begun = time.process_time()
    try:
        read(file)
        problems = 0
    except ScenarioError as error:
        problems = len(error.problems)
    found[file.stem] = [problems, time.process_time() - begun]
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text()) if status.exists() else None
print(json.dumps([found, int(peak[1]) * 1024 if peak else 0]))
"""
NINE = ",".join(["*{}"] * 9)
BOMBS = {
    "aliases": "a0: &a0 [x,x]\n"
    + "".join(f"a{i}: &a{i} [{NINE.replace('{}', f'a{i - 1}')}]\n" for i in range(1, 10)),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 21)),
    "nesting": "a: " + "[" * 20_000,
    "block_nesting": "".join(" " * i + "a:\n" for i in range(2000)),
    "recursion": "a: &a [*a]\n",
}
SECONDS, BYTES = 1.0, 200 * 2**20


def test_bombs_are_refused_soon_and_within_little_memory(tmp_path):
    """Seconds of the processor, which other work on the machine does not lengthen."""
    for name, text in BOMBS.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    with (tmp_path / "long.yaml").open("wb") as file:
        file.write(b"about: |\n")
        for _ in range(50):
            file.write(b"  " + b"x" * (2**20 - 3) + b"\n")
    assert (tmp_path / "long.yaml").stat().st_size > 50 * 10**6
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    found, peak = json.loads(done.stdout)
    assert sorted(found) == sorted([*BOMBS, "long"])
    assert all(problems >= 1 for problems, _ in found.values()), found
    assert all(seconds < SECONDS for _, seconds in found.values()), found
    assert peak < BYTES
