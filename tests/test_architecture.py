"""The house keeps its shape: imports go downwards, and every plugin is an entry point."""

import ast
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE, KERNELS, PLUGINS = (
    ROOT / "worldsim",
    ROOT / "kernels" / "worldsim_kernels",
    ROOT / "plugins" / "worldsim_plugins",
)
LAYERS = [
    "cli __main__",
    "testing",
    "report batch rescoring leftovers",
    "verifying export",
    "rank",
    "dask_executor dask_worker dask_clusters",
    "executors run build results tables composed comparing xarray_backend planning compacting stacking",
    "failures",
    "quick ranks",
    "selection index",
    "plan_files",
    "fit score store archive scenario reading checking schema truth trees wrapped constrained baselines provenance costs",  # noqa: E501
    "sweeps untrusted seals",
    "files",
    "plugins params component_schema",
    "strict_model param_errors components signatures strict_yaml yaml_nodes yaml_scalars yaml_syntax seeds",
    "mechanisms",
    "hookspecs events children worker",
    "protocols",
    "errors changes leases determinism untouched",
]
"""From the top down; a module may import those beside it and below it."""

PUBLIC = {"worldsim", "worldsim.protocols"}
DEFAULTS = {("dynamics", "solvers"), ("generators", "backbones")}
"""A model picks its own default for a component nested in it, so it may import that noun's plugins."""


def imports(path):
    """The modules that a file imports, in functions too; not what only a type checker sees."""
    for node in seen(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield from (resolved(node.module, alias.name) for alias in node.names)


def seen(node):
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from seen(child)


def resolved(module, name):
    """``from package import module`` imports the module."""
    for root in (CORE, KERNELS, PLUGINS):
        inside = root.parent / module.replace(".", "/") / name
        if inside.with_suffix(".py").is_file() or (inside / "__init__.py").is_file():
            return f"{module}.{name}"
    return module


def module_of(path):
    """The part of the core that a file belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def files(root):
    return sorted(root.rglob("*.py"))


def is_under(module, package):
    return module == package or module.startswith(package + ".")


def layer(name):
    found = [depth for depth, names in enumerate(LAYERS) if name in names.split()]
    assert found, f"worldsim/{name} has no layer yet: write it into LAYERS"
    return found[0]


def test_the_core_imports_downwards():
    for path in files(CORE):
        if path == CORE / "__init__.py":
            continue
        here = module_of(path)
        for module in imports(path):
            if is_under(module, "worldsim") and module != "worldsim":
                there = module.split(".")[1]
                assert layer(there) >= layer(here), f"{here} must not import {there}: it lies above"


DOORS = {"constrained.py": "projection", "costs.py": "measuring", "installed.py": "explaining the choice"}
"""The modules of the core that may import the kernels, and what for."""


def test_the_core_names_no_plugin_and_has_few_doors_to_the_kernels():
    for path in files(CORE):
        for module in imports(path):
            assert not is_under(module, "worldsim_plugins"), f"{path.name} imports {module}"
            if is_under(module, "worldsim_kernels"):
                assert path.name in DOORS, f"{path.name} imports {module}; only {', '.join(DOORS)} may"


def test_kernels_import_only_torch():
    allowed = {"torch", "triton", "worldsim_kernels", *sys.stdlib_module_names}
    for path in files(KERNELS):
        for module in imports(path):
            assert module.split(".")[0] in allowed, f"{path.name} imports {module}"


def test_plugins_import_only_public_names_and_their_own_noun():
    for path in files(PLUGINS):
        noun = path.relative_to(PLUGINS).parts[0]
        for module in imports(path):
            if is_under(module, "worldsim"):
                assert module in PUBLIC, f"{path.name} imports {module}; public are {sorted(PUBLIC)}"
            if is_under(module, "worldsim_plugins") and module != "worldsim_plugins":
                other = module.split(".")[1]
                allowed = other == noun or (noun, other) in DEFAULTS
                assert allowed, f"{noun}/{path.name} imports {module}: plugins know only their own noun"


def test_folders_that_are_no_packages_are_none():
    for folder in ("kernels", "plugins", "scenarios", "tests"):
        found = ROOT / folder / "__init__.py"
        assert not found.exists(), f"{found} would make {folder!r} an import name, which collides with others"


def hook_modules():
    """Every module of ours with a hook implementation."""
    for path in files(PLUGINS):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        decorators = [d for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) for d in n.decorator_list]
        if any("hookimpl" in ast.unparse(decorator) for decorator in decorators):
            yield ".".join(path.relative_to(PLUGINS.parent).with_suffix("").parts)


def written_entry_points():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["entry-points"]["worldsim.plugins"]


def test_every_module_with_a_hook_is_an_entry_point():
    written = set(written_entry_points().values())
    missing = set(hook_modules()) - written
    assert not missing, f"write {sorted(missing)} into pyproject.toml, then pip install -e . again"
    stray = written - set(hook_modules())
    assert not stray, f"{sorted(stray)} are entry points without a hook implementation"


def test_installed_metadata_is_what_is_written():
    points = entry_points(group="worldsim.plugins")
    installed = {p.name: p.value for p in points if p.dist is not None and p.dist.name == "worldsim"}
    assert installed == written_entry_points(), "the installed metadata is old: pip install -e . again"


@pytest.mark.parametrize("path", files(CORE) + files(KERNELS) + files(PLUGINS), ids=lambda p: p.name)
def test_every_module_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    is_marker = path.name == "__init__.py" and not text.strip()
    assert is_marker or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_no_file_knows_the_machine_it_was_written_on():
    places = ["worldsim", "kernels", "plugins", "scenarios", "docs", "studies", "tests", "Makefile", ".ci"]
    for place in places:
        top = ROOT / place
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in {".py", ".yaml", ".md", ".toml", ".txt", ""} and path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                for word in ("/" + "work/", "/" + "root/", "/" + "opt/wheels"):
                    assert word not in text, f"{path} names {word}"
