"""The documentation and the code agree: all is documented, all that is documented is there, examples run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest

from worldsim import hookspecs, protocols, reading
from worldsim.baselines import BASELINES
from worldsim.cli import COMMANDS, exit_code
from worldsim.cli import worldsim as group
from worldsim.errors import ScenarioError
from worldsim.params import describe
from worldsim.plugins import HOOKS, load_plugins, registry
from worldsim.results import open_results

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES = [*GUIDES, *sorted((DOCS / "reference").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
NAMED = re.compile(r"# ([\w-]+\.(?:py|yaml))\n")
HOOK_NAMES = {name for name in vars(hookspecs) if name.startswith("worldsim_")}
OURS = [
    (noun, name, offers[0][0])
    for noun, table in load_plugins().tables.items()
    for name, offers in table.items()
    if offers[0][1].distribution == "worldsim"
]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "_ext" / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generated = load_generator()


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def expanded(page: Path) -> str:
    return generated.expand(page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"the reference has no section {heading!r}"
    return found[1]


def command(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


# Nothing is undocumented.


def test_every_reference_stands_on_exactly_one_page() -> None:
    marks = [name for page in PAGES for name in generated.MARK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(marks) == sorted(generated.SECTIONS)


@pytest.mark.parametrize("hook", sorted(HOOK_NAMES))
def test_hook_is_documented(hook: str) -> None:
    assert (getattr(hookspecs, hook).__doc__ or "").strip(), (
        f"{hook} needs a docstring in worldsim/hookspecs.py"
    )
    assert f"{hook}(" in section(generated.hooks(), hook)


@pytest.mark.parametrize(("noun", "name", "builder"), OURS, ids=[f"{noun}-{name}" for noun, name, _ in OURS])
def test_component_is_documented(noun: str, name: str, builder: object) -> None:
    assert (builder.__doc__ or "").strip(), f"the builder of {noun} {name!r} needs a docstring"
    page = section(generated.noun_section(noun, HOOKS[noun]), name)
    for key in describe(builder):  # type: ignore[arg-type]
        assert key.description, f"{noun} {name!r}: {key.name!r} needs Field(description=...)"
        assert f"| `{key.name}` |" in page


def test_every_baseline_is_documented() -> None:
    page = section(generated.components(), "Baselines")
    assert [name for name in BASELINES if f"| `{name}` | |" in page or f"| `{name}` |" not in page] == []
    assert set(BASELINES) == set(reading.BASELINE_NAMES)


def test_every_scenario_key_is_documented() -> None:
    sections = generated.scenario_keys()
    assert [key for key, *_ in sections["Keys of the file"]] != []
    assert {key for key, *_ in sections["Keys of the file"]} == set(reading.TOP)
    silent = [(title, key) for title, rows in sections.items() for key, *_, text in rows if not text.strip()]
    assert silent == [], "these keys need a description"
    page = generated.scenario()
    for title, rows in sections.items():
        assert [key for key, *_ in rows if f"| `{key}` |" not in section(page, title)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_documented(name: str) -> None:
    found = command(name)
    assert (found.help or "").strip(), f"worldsim {name} needs a docstring"
    page = section(generated.commands(), name)
    for option in (param for param in found.params if isinstance(param, click.Option)):
        assert (option.help or "").strip(), f"worldsim {name} {option.opts[0]} needs help"
        assert option.opts[-1] in page


def test_every_protocol_and_its_methods_are_documented() -> None:
    page = generated.protocols()
    for name, node in generated.definitions(protocols, generated.ast.ClassDef):
        assert generated.ast.get_docstring(node), f"{name} needs a docstring"
        here = section(page, name)
        if any("Protocol" in generated.ast.unparse(base) for base in node.bases):
            methods = [part for part in node.body if isinstance(part, generated.ast.FunctionDef)]
            assert [m.name for m in methods if not generated.ast.get_docstring(m)] == []
            assert [m.name for m in methods if f"{m.name}(" not in here] == []


@pytest.mark.parametrize("name", sorted(generated.SECTIONS))
def test_rows_of_generated_tables_have_the_columns_of_their_head(name: str) -> None:
    for lines in re.findall(r"(?:^\|.*\|$\n?)+", generated.SECTIONS[name](), re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}
        assert len(widths) == 1, lines


# Nothing documented is missing.


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_page_names_no_hook_that_is_not_there(page: Path) -> None:
    named = set(re.findall(r"\bworldsim_[a-z_]+\b", page.read_text(encoding="utf-8")))
    assert named - HOOK_NAMES - {"worldsim_kernels", "worldsim_plugins"} == set()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_page_names_no_command_that_is_not_there(page: Path) -> None:
    inline = [code for code in INLINE.findall(prose(page)) if re.match(r"worldsim [a-z]", code)]
    assert [code for code in inline if code.split()[1] not in COMMANDS] == []
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["worldsim"]:
            assert words[1] in COMMANDS, line
            command(words[1]).make_context(words[1], words[2:])  # raises UsageError for an unknown option


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_page_names_no_option_that_is_not_there(page: Path) -> None:
    known = {"--help"} | {flag for name in COMMANDS for param in command(name).params for flag in param.opts}
    named = {word for code in INLINE.findall(prose(page)) for word in re.findall(r"--[a-z][a-z-]*", code)}
    assert named - known == set()


@pytest.mark.parametrize("page", GUIDES, ids=label)
def test_page_names_no_component_that_is_not_there(page: Path) -> None:
    names = {noun: set(registry().names(noun)) for noun in HOOKS} | {"baseline": set(BASELINES)}
    for name, noun in re.findall(rf"`(\w+)` ({'|'.join(names)})s?\b", prose(page)):
        assert name in names[noun], f"there is no {noun} {name!r}"


def test_readme_lists_exactly_what_is_in_the_box() -> None:
    rows = re.findall(r"^\| ([\w ]+) \| (`.*`) \|$", GUIDES[0].read_text(encoding="utf-8"), re.MULTILINE)
    listed = {noun: sorted(INLINE.findall(names)) for noun, names in rows}
    expected = {
        hook.removeprefix("worldsim_"): sorted(name for noun, name, _ in OURS if HOOKS[noun] == hook)
        for hook in HOOKS.values()
    }
    suites = sorted(folder.name for folder in (ROOT / "scenarios").iterdir() if any(folder.glob("*.yaml")))
    assert listed == expected | {"baselines": sorted(BASELINES), "suites of scenarios": suites}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", expanded(page)):
        if re.match(r"\w+://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.is_file(), f"{label(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#{1,3} (.+)$", BLOCK.sub("", expanded(path)), re.MULTILINE)
            assert anchor in map(generated.anchor, headings), f"{label(page)} links to {target}"


@pytest.mark.parametrize("page", GUIDES, ids=label)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = [
        code for code in INLINE.findall(prose(page)) if re.match(r"(worldsim|docs|scenarios)/[\w/.-]+$", code)
    ]
    assert [path for path in named if not (ROOT / path).exists()] == []


# Every example works.


def written(page: Path, folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """Write a page's named blocks, made quick: (scenarios, plugins), and its other Python in one piece."""
    scenarios, plugins, rest = [], [], []
    for text in blocks(page, "python", "yaml"):
        name = NAMED.match(text)
        if name:
            file = folder / name[1]
            file.write_text(quick(text) if file.suffix == ".yaml" else text, encoding="utf-8")
            (scenarios if file.suffix == ".yaml" else plugins).append(file)
        elif not re.match(r"#|\w+: ", text):
            rest.append(text)
    return scenarios, plugins, rest


def quick(text: str) -> str:
    for key, value in (("steps", "2"), ("trajectories", "3"), ("seeds", "[0]")):
        text = re.sub(rf"\b{key}: (\d+|\[[\d, ]+\])", f"{key}: {value}", text)
    return re.sub(r"\bhorizon: [2-9]\d\.0", "horizon: 10.0", text)


@pytest.mark.parametrize("page", GUIDES, ids=label)
def test_scenarios_of_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    scenarios, plugins, _ = written(page, tmp_path)
    for file in scenarios:
        text = next(text for text in blocks(page, "yaml") if text.startswith(f"# {file.name}\n"))
        file.write_text(text, encoding="utf-8")
        assert all(scenario.about for scenario in reading.load_all(file, plugins=plugins))


@pytest.mark.parametrize("page", [page for page in GUIDES if "@hookimpl" in page.read_text()], ids=label)
def test_plugins_of_a_page_load_and_run(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenarios, plugins, _ = written(page, tmp_path)
    known = registry(tuple(plugins))
    assert known.broken == []
    with_systems = [file for file in scenarios if "name: cooling" in file.read_text(encoding="utf-8")]
    if not with_systems:
        with_systems = [tmp_path / "plain.yaml"]
        with_systems[0].write_text(PLAIN, encoding="utf-8")
    options = [word for file in plugins for word in ("--plugin", str(file))]
    for file in with_systems:
        out = tmp_path / file.stem
        code = exit_code(["run", str(file), "--workers", "0", "--no-report", "--out", str(out), *options])
        assert code == 0, capsys.readouterr()
        results = open_results(out)
        assert {results.status(entry) for entry in results.entries} == {"done"}


PLAIN = """
about: Does the plugin run?
system: cooling
data: {step: 1.0, splits: {train: {trajectories: 3, horizon: 5.0}, test: {trajectories: 3, horizon: 5.0}}}
models: {neural_ode: {name: neural_ode, width: 4}}
fit: {steps: 2}
metrics: [rollout]
seeds: [0]
"""


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "operating.md"], ids=label)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, pieces = written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert pieces
    for text in pieces:
        exec(compile(text, label(page), "exec"), names)
    future = names["future"]
    assert tuple(future.states.shape) == (1, 1, 100, 2)  # type: ignore[attr-defined]


def test_python_of_the_kernels_page_runs() -> None:
    names: dict[str, object] = {}
    for text in blocks(DOCS / "kernels.md", "python"):
        exec(compile(text, "docs/kernels.md", "exec"), names)
    assert names["whole"].output.shape == (2, 1000, 4, 64)  # type: ignore[attr-defined]


def test_python_of_the_backbones_page_runs() -> None:
    names: dict[str, object] = {}
    for text in blocks(DOCS / "backbones.md", "python"):
        exec(compile(text, "docs/backbones.md", "exec"), names)
    assert names["whole"].shape == (1, 100, 32)  # type: ignore[attr-defined]


def test_python_of_the_solvers_page_runs() -> None:
    names: dict[str, object] = {}
    for text in blocks(DOCS / "solvers.md", "python"):
        exec(compile(text, "docs/solvers.md", "exec"), names)
    assert names["some"].shape == (10, 1)  # type: ignore[attr-defined]


def test_first_steps_shows_the_problems_that_validate_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "first-steps.md"
    text = next(text for text in blocks(page, "yaml") if text.startswith("# first.yaml"))
    broken = text.replace("width", "wdith", 1).replace("steps: 500", "steps: many").replace("30.0", "30.05")
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text(broken, encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        reading.load("first.yaml")
    shown = next(text for text in blocks(page, "text") if text.startswith("first.yaml:"))
    assert shown.strip() == f"{caught.value} in 1 of 1 file"
