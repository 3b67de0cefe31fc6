"""The command line: what it prints, where it goes wrong politely, and with which exit code it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from worldsim import load
from worldsim.cli import COMMANDS, exit_code
from worldsim.cli.terminal import MemorySize
from worldsim.quick import first_look

TINY = Path(__file__).parent / "tiny"
SCENARIO = TINY / "tiny_pendulum.yaml"
SPRING = Path(__file__).parent / "third_party" / "spring_world" / "spring_world.py"


@pytest.fixture
def cli(capsys):
    """Run one command here: (exit code, standard output, standard error)."""

    def run(*arguments):
        code = exit_code([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A results folder with three cases that are done and one that failed."""
    out = tmp_path_factory.mktemp("kept")
    assert exit_code(["run", str(TINY), "--out", str(out), "--workers", "0", "--no-report"]) == 1
    return out


def run_outside(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "worldsim", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom worldsim.cli import exit_code\n"
        "assert exit_code(['--help']) == 0\nassert exit_code(['run', '--help']) == 0\n"
        "heavy = {'torch', 'xarray', 'scipy', 'pydantic', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_and_option_says_what_it_does(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert "Usage: worldsim" in out
    for line in out.partition("Options:")[2].splitlines():
        if line.startswith("  -"):
            assert len(line.split("  ")) > 2 or len(line) > 25, f"{line!r} has no help"


def test_version(cli):
    code, out, _ = cli("--version")
    assert code == 0
    assert out.startswith("worldsim ")


def test_a_misspelt_command_is_a_usage_error(cli):
    code, _, err = cli("rum")
    assert code == 2
    assert "there is no command 'rum'; did you mean 'run'?" in err


def test_validate_counts_what_is_good(cli):
    code, out, _ = cli("validate", SCENARIO)
    assert (code, out) == (0, "1 scenario, 3 cases: no problems\n")


@pytest.mark.trial(14)
def test_validate_names_every_problem_of_every_file(cli, tmp_path):
    text = SCENARIO.read_text(encoding="utf-8")
    (tmp_path / "one.yaml").write_text(text.replace("step: 0.1", "stepp: 0.1"), encoding="utf-8")
    (tmp_path / "two.yaml").write_text(text.replace("[rollout]", "[rolout]"), encoding="utf-8")
    (tmp_path / "good.yaml").write_text(text, encoding="utf-8")
    code, _, err = cli("validate", tmp_path)
    assert code == 2
    assert f"{tmp_path / 'one.yaml'}:4:3: data.stepp: " in err
    assert "did you mean 'rollout'?" in err
    assert "problems in 2 of 3 files" in err
    assert "Traceback" not in err


def test_a_target_that_is_nothing_says_what_there_is(cli):
    code, _, err = cli("run", "quickstrat")
    assert code == 2
    assert "neither a file, a folder nor an installed suite; did you mean 'quickstart'?" in err


def test_a_model_or_seed_that_is_not_there_is_refused(cli, tmp_path):
    code, _, err = cli("run", SCENARIO, "--out", tmp_path, "--model", "smal", "--workers", 0)
    assert code == 2
    assert "did you mean 'small'?" in err
    code, _, err = cli("plan", SCENARIO, "--out", tmp_path, "--seed", 7)
    assert code == 2
    assert "no scenario has the seed 7; allowed: 0" in err


def test_plan_says_what_is_kept_and_computes_nothing(cli, kept, tmp_path):
    code, out, _ = cli("plan", SCENARIO, "--out", tmp_path / "new")
    assert code == 0
    assert out.endswith("3 to run\n")
    assert not (tmp_path / "new").exists()
    _, out, _ = cli("plan", TINY, "--out", kept)
    assert out.endswith("1 to try again, 4 kept\n")
    _, out, _ = cli("plan", TINY, "--out", kept, "--model", "small")
    assert out.endswith("1 kept\n")


def test_a_first_look_is_hastier_and_says_so(cli, tmp_path):
    """One seed and a tenth of the steps, in the scenario's own fit and a model's; what is kept can be scored
    again as what it is."""
    scenario = load("scenarios/coherence/pendulum.yaml")
    hasty = first_look(scenario)
    assert hasty.seeds == (0,)
    assert {name: spec.fit.steps for name, spec in hasty.models.items()} == {
        "neural_ode": 200, "hamiltonian": 200, "flow": 300, "elapsed_time": 200
    }  # fmt: skip
    assert hasty.metrics == scenario.metrics
    assert "1/10 of the training" in hasty.about
    kept = {case.key for case in scenario.cases() if not case.is_baseline and case.is_learned}
    assert not kept & {case.key for case in hasty.cases()}
    code, _, _ = cli("run", SCENARIO, "--quick", "--out", tmp_path, "--workers", 0, "--no-report")
    assert code == 0
    assert cli("plan", SCENARIO, "--quick", "--out", tmp_path)[1].endswith("3 kept\n")
    assert "1 changed, to run" in cli("plan", SCENARIO, "--out", tmp_path)[1]
    assert "A first look" in cli("show", tmp_path)[1]
    assert cli("score", tmp_path, "--metrics", "rollout")[0] == 0


def test_run_prints_lines_tables_and_failures(cli, tmp_path):
    arguments = ("run", TINY, "--out", tmp_path, "--workers", 0, "--no-report")
    code, out, err = cli(*arguments)
    assert code == 1
    assert "[4/4] 3 done, 1 failed, " in out
    assert "; last tiny_pendulum/persistence/0 (" in out
    assert "nrmse" in out
    assert "failed: tiny_failing/diverging/0: FitDiverged: the loss is" in out
    assert "1 of 4 cases failed" in err  # the truth of both scenarios is one case
    assert not (tmp_path / "report.html").exists()
    code, out, _ = cli("run", SCENARIO, "--out", tmp_path, "--workers", 0)
    assert code == 0
    assert "nothing to compute" in out
    assert (tmp_path / "report.html").is_file()


def test_run_in_children_gives_the_same_bytes(kept, cli, tmp_path):
    code, _, _ = cli("run", SCENARIO, "--out", tmp_path, "--workers", 2, "--no-report")
    assert code == 0
    runs = sorted(tmp_path.glob("runs/*/*.zarr.zip"))
    assert len(runs) == 3
    for run in runs:
        assert content(run) == content(kept / run.relative_to(tmp_path))


def content(run):
    """All members of a result; when and where it was made stands in the archive's comment."""
    with zipfile.ZipFile(run) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_text_of_a_scenario_is_shown_as_it_is(cli, tmp_path):
    about = "Is [/bold] [red]markup[/red] :smile: text?"
    text = SCENARIO.read_text(encoding="utf-8").partition("\n")[2]
    file = tmp_path / "markup.yaml"
    file.write_text(f'about: "{about}"\n{text}', encoding="utf-8")
    out = tmp_path / "out"
    code, said, _ = cli("run", file, "--out", out, "--model", "truth", "--workers", 0, "--no-report")
    assert code == 0
    assert about in " ".join(said.split())


def test_a_timeout_needs_children(cli):
    code, _, err = cli("run", SCENARIO, "--workers", 0, "--timeout", 5)
    assert code == 2
    assert "--workers 1" in err


def test_what_is_asked_for_wrongly_leaves_nothing_behind(cli, tmp_path):
    out = tmp_path / "out"
    for wrong, told in (
        (("--device", "gpu"), "'gpu' is no device; allowed: cpu, cuda"),
        (("--plugin", tmp_path / "none.py"), "there is no file"),
        (("--model", "pendulm"), "no scenario has a model or baseline"),
        (("--seed", 99), "no scenario has the seed 99"),
    ):
        code, _, err = cli("run", SCENARIO, "--out", out, "--workers", 0, *wrong)
        assert (code, told in err, out.exists()) == (2, True, False), err


def test_what_this_machine_lacks_is_code_3(cli, tmp_path):
    import torch

    if not torch.cuda.is_available():
        code, _, err = cli("run", SCENARIO, "--out", tmp_path, "--device", "cuda", "--workers", 0)
        assert (code, "use cpu" in err) == (3, True)
    file = tmp_path / "file"
    file.write_text("not a folder", encoding="utf-8")
    code, _, err = cli("run", SCENARIO, "--out", file / "results", "--workers", 0)
    assert code == 3
    assert "Not a directory" in err


def test_status_and_show(cli, kept):
    code, out, _ = cli("status", kept)
    assert code == 1
    assert "5 cases: 4 done, 0 unscored, 1 failed, 0 missing" in out
    assert "failed: tiny_failing/diverging/0" in out
    code, out, _ = cli("show", kept, "--all")
    assert code == 0
    assert "tiny_pendulum" in out


def test_a_folder_without_results_is_said_so(cli, tmp_path):
    for command in ("status", "show", "report", "clean"):
        code, _, err = cli(command, tmp_path)
        assert code == 2
        assert "holds no results" in err


def test_report_writes_where_it_is_told(cli, kept, tmp_path):
    code, out, _ = cli("report", kept, "-o", tmp_path / "page.html")
    assert code == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert "page.html" in out


def test_clean_asks_and_spares_what_the_plan_needs(cli, tmp_path, monkeypatch):
    cli("run", TINY, "--out", tmp_path, "--workers", 0, "--no-report")
    assert cli("clean", tmp_path, "--orphans")[1] == "nothing to delete\n"
    stray = tmp_path / "runs" / "ab" / "abcd.zarr.zip"
    stray.parent.mkdir(parents=True, exist_ok=True)
    fit = tmp_path / "fits" / "abcd.safetensors"
    for file in (stray, fit):
        file.write_bytes(b"left over")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("click.confirm", lambda text: "3 files" not in text)
    cli("clean", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    code, out, _ = cli("clean", tmp_path, "--yes")
    assert code == 0
    assert out.endswith("deleted 3 files\n")
    gone = {str(path.relative_to(tmp_path)) for path in set(before) - set(tmp_path.rglob("*"))}
    assert len(gone) == 3
    assert {"runs/ab/abcd.zarr.zip", "fits/abcd.safetensors"} < gone
    assert any(path.startswith("failures") for path in gone)


def test_plugins_lists_what_there_is(cli):
    code, out, _ = cli("plugins")
    assert code == 0
    assert "system: pendulum, driven_pendulum" in out
    listed = json.loads(cli("plugins", "--json", "--plugin", SPRING)[1])
    assert {"name": "spring_world", "distribution": "file"}.items() <= listed["plugins"][-1].items()
    assert "quickstart" in listed["suites"]


def test_plugins_checks_one(cli):
    code, out, _ = cli("plugins", "--check", "spring_world", "--plugin", SPRING)
    assert code == 0
    assert out.startswith("spring_world: ")
    code, _, err = cli("plugins", "--check", "sprig_world")
    assert code == 1
    assert "is not installed" in err


def test_a_plugin_file_that_breaks_is_refused(cli, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no luck')", encoding="utf-8")
    code, _, err = cli("validate", SCENARIO, "--plugin", broken)
    assert code == 2
    assert "broken (file 0): RuntimeError: no luck" in err


def test_schema_knows_the_installed_plugins(cli, tmp_path):
    file = tmp_path / "schema.json"
    code, _, _ = cli("schema", "-o", file, "--plugin", SPRING)
    assert code == 0
    schema = json.loads(file.read_text(encoding="utf-8"))
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    titles = {entry.get("title") for entry in schema["definitions"]["system"]["oneOf"]}
    assert {"pendulum", "spring"} <= titles
    refer = [value for key, value in walk(schema) if key == "$ref"]
    assert refer
    for reference in refer:
        assert reference.removeprefix("#/definitions/") in schema["definitions"]
    assert not {"$defs", "prefixItems", "discriminator"} & {key for key, _ in walk(schema)}


def walk(tree):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield key, value
        if isinstance(value, dict | list):
            yield from walk(value)


def test_every_shipped_scenario_fits_the_schema(cli):
    validators = pytest.importorskip("fastjsonschema")
    from worldsim.strict_yaml import read

    check = validators.compile(json.loads(cli("schema")[1]))
    files = sorted((Path(__file__).parents[2] / "scenarios").glob("*/*.yaml"))
    assert files
    for file in files:
        check(read(file).data)
    wrong = read(files[0]).data
    wrong["draw"] = 3
    with pytest.raises(validators.JsonSchemaException):
        check(wrong)


def test_doctor_looks_at_everything(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("doctor")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    expected = ["python", "worldsim", "torch", "device", "threads", "kernels", "plugins", "extras", "disk"]
    assert names == expected
    assert "state_scan" in out
    assert list(tmp_path.iterdir()) == []


SLEEPY = """
import os, pathlib, time
from worldsim import hookimpl

class Sleepy:
    "A world that takes its time."

    def sample(self, n, generator):
        return n

    def simulate(self, start, times, actions, generator):
        pathlib.Path(os.environ["MARK"]).write_text(str(os.getpid()))
        time.sleep(600)

@hookimpl
def worldsim_systems():
    return {"sleepy": Sleepy}
"""


@pytest.mark.trial(22)
def test_interrupted_it_says_how_to_go_on_and_leaves_nobody_behind(tmp_path, monkeypatch):
    mark, plugin, scenario = tmp_path / "mark", tmp_path / "sleepy.py", tmp_path / "sleepy.yaml"
    plugin.write_text(SLEEPY, encoding="utf-8")
    text = SCENARIO.read_text(encoding="utf-8").replace("{name: pendulum}", "sleepy")
    scenario.write_text(text, encoding="utf-8")
    monkeypatch.setenv("MARK", str(mark))
    process = run_outside("run", scenario, "--out", tmp_path / "out", "--workers", 1, "--plugin", plugin)
    assert waited(lambda: mark.exists() and mark.read_text(), 120), process.communicate(timeout=1)
    child = int(mark.read_text())
    assert child != process.pid
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert f"to go on: python -m worldsim run {scenario} --out " in err
    assert "Traceback" not in err
    assert waited(lambda: not alive(child), 30)


def waited(holds, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("1.5 gib", 3 * 2**29), ("300MB", 3 * 10**8)])
def test_a_size_has_a_unit(text, size):
    assert MemorySize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["4", "GB", "0GB", "-1GB", "4 parsecs"])
def test_what_is_no_size_is_refused(cli, text):
    code, _, err = cli("run", SCENARIO, "--memory", text)
    assert code == 2
    assert "such as 4GB" in err
