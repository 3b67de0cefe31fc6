"""Packages of strangers, installed into a real environment: good ones work, broken ones harm nothing."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

THIRD_PARTY = Path(__file__).parent / "core" / "third_party"
PACKAGES = ["spring_world", "raises_at_import", "misspelt_hook", "clashing_name", "wrong_return"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that sees this one's packages and has five more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    found = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    here = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    lines = [f"import site; site.addsitedir({place!r})" for place in dict.fromkeys(here)]
    purelib = subprocess.check_output(
        [found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    (Path(purelib) / "parent.pth").write_text("\n".join(lines), encoding="utf-8")
    for package in PACKAGES:  # pip builds in the source tree
        shutil.copytree(THIRD_PARTY / package, folder / package)
    install(found, [folder / package for package in PACKAGES])
    return found


def install(python, sources):
    """Offline: setuptools is there because torch needs it."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", *options, *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def worldsim(python, *arguments, **environment):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [str(python), "-m", "worldsim", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=variables)


@pytest.fixture(scope="module")
def listed(python):
    return json.loads(worldsim(python, "plugins", "--json").stdout)


def test_a_package_is_listed_with_its_version(listed):
    (spring,) = [plugin for plugin in listed["plugins"] if plugin["name"] == "spring"]
    assert (spring["distribution"], spring["version"]) == ("spring-world", "1.2.3")
    assert spring["components"] == {"system": ["spring"]}
    assert Path(spring["file"]).name == "spring_world.py"


@pytest.mark.trial(9)
def test_every_broken_package_is_named_with_its_reason(listed):
    broken = {entry["plugin"]: entry["reason"] for entry in listed["broken"]}
    assert sorted(broken) == [
        "misspelt (misspelt-hook 0.2)",
        "raises (raises-at-import 0.1)",
        "wrong (wrong-return 0.4)",
    ]
    assert "libmissing.so cannot be opened" in broken["raises (raises-at-import 0.1)"]
    assert "did you mean 'worldsim_systems'" in broken["misspelt (misspelt-hook 0.2)"]
    assert "it returned list" in broken["wrong (wrong-return 0.4)"]
    (clash,) = listed["clashes"]
    assert (clash["noun"], clash["name"]) == ("system", "pendulum")
    assert "clashing (clashing-name 0.3)" in clash["plugins"]


@pytest.mark.trial(9)
def test_everything_else_still_works(listed):
    names = {plugin["name"] for plugin in listed["plugins"]}
    assert {"pendulum", "neural_ode", "rollout", "spring", "clashing"} <= names


@pytest.mark.trial(9)
def test_a_scenario_runs_on_a_strangers_world(python, tmp_path):
    done = worldsim(
        python, "run", THIRD_PARTY / "spring.yaml", "--out", tmp_path, "--workers", 0, "--no-report"
    )
    assert done.returncode == 0, done.stderr
    assert "[2/2] 2 done" in done.stdout
    assert "nrmse" in done.stdout
    assert "warning: plugin raises (raises-at-import 0.1)" in done.stderr
    assert len(list(tmp_path.glob("runs/*/*.zarr.zip"))) == 2


@pytest.mark.trial(9)
def test_a_clash_is_an_error_at_its_line_and_the_full_name_is_none(python, tmp_path):
    text = (THIRD_PARTY / "spring.yaml").read_text(encoding="utf-8")
    file = tmp_path / "clash.yaml"
    file.write_text(text.replace("{name: spring, stiffness: 4.0}", "{name: pendulum}"), encoding="utf-8")
    done = worldsim(python, "validate", file)
    assert done.returncode == 2
    assert f"{file}:2:10: system" in done.stderr
    assert "clashing (clashing-name 0.3) and pendulum (worldsim" in done.stderr
    file.write_text(
        text.replace("{name: spring, stiffness: 4.0}", "{name: pendulum/pendulum}"), encoding="utf-8"
    )
    assert worldsim(python, "validate", file).returncode == 0


def test_the_kit_checks_a_package(python):
    done = worldsim(python, "plugins", "--check", "spring", WORLDSIM_PLUGINS="spring")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 10
    done = worldsim(python, "plugins", "--check", "raises", WORLDSIM_PLUGINS="raises")
    assert done.returncode == 1
    assert "libmissing.so" in done.stderr
