"""The reference pages, made from the code each time the documentation is built.

A page says ``% generated: hooks`` where its reference goes. Nothing of it is written by hand or kept on
disk: hooks, protocols and errors come from their docstrings, components from the plugins that are
installed and their signatures, keys from the schema of scenario files, and commands from click.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from textwrap import dedent
from typing import Any, get_args, get_origin

MARK = re.compile(r"^% generated: (\w+)$", re.MULTILINE)
Key = tuple[str, str, str, str]
"""(key, type, default, description)"""

_CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)
_TITLE = re.compile(r"(?<![\w*])\*([A-Z][^*]+)\*(?!\w)")


def expand(page: str) -> str:
    """A page with every mark replaced by what it stands for. Raises KeyError for an unknown mark."""
    return MARK.sub(lambda match: SECTIONS[match[1]](), page)


def hooks() -> str:
    """Every hook: its signature and docstring."""
    from worldsim import hookspecs

    return "\n\n".join(
        f"## {name}\n\n{fence(signature(node))}\n\n{prose(ast.get_docstring(node))}"
        for name, node in definitions(hookspecs, ast.FunctionDef)
        if name.startswith("worldsim_")
    )


def protocols() -> str:
    """Every noun, capability and data type: docstring, attributes and methods."""
    from worldsim import protocols

    return "\n\n".join(class_section(name, node) for name, node in definitions(protocols, ast.ClassDef))


def python() -> str:
    """Every public name of worldsim, and what its functions return."""
    import worldsim
    from worldsim import results, wrapped

    public = [name for name in worldsim.__all__ if not name.startswith("__")]
    found = [(name, getattr(worldsim, name)) for name in public]
    found += [("Results", results.Results), ("Wrapped", wrapped.Wrapped)]
    return "\n\n".join(public_section(name, value) for name, value in found)


def errors() -> str:
    """Every error that worldsim raises on purpose."""
    from worldsim import errors

    return "\n\n".join(
        f"## {name}\n\n{prose(ast.get_docstring(node))}"
        for name, node in definitions(errors, ast.ClassDef)
        if issubclass(getattr(errors, name), errors.WorldsimError)
    )


def components() -> str:
    """Every component that the installed plugins provide, noun by noun, and the baselines."""
    from worldsim.plugins import HOOKS

    parts = [noun_section(noun, hook) for noun, hook in HOOKS.items()]
    return "\n\n".join([*parts, baselines()])


def noun_section(noun: str, hook: str) -> str:
    from worldsim.plugins import registry

    plugins = registry()
    parts = [f"## {hook.removeprefix('worldsim_').capitalize()}"]
    shown: dict[str, str] = {}
    for name, offers in plugins.tables[noun].items():
        builder, provider = offers[0]
        origin = f"Plugin `{provider.name}` of {provider.distribution} {provider.version}."
        parts += [f"### {name}", origin, *about_module(builder, name, shown), prose(builder.__doc__)]
        if needs := getattr(builder, "needs", ()):
            links = ", ".join(f"[{need}](protocols.md#{anchor(need)})" for need in needs)
            parts.append(f"Needs a system with {links}.")
        parts.append(key_table(described(builder)))
    return "\n\n".join(parts)


def about_module(builder: Any, name: str, shown: dict[str, str]) -> Iterator[str]:
    """The docstring of a builder's module, once: it holds the equation and its source."""
    if first := shown.get(builder.__module__):
        yield f"The equation and its source stand at [{first}](#{anchor(first)})."
    else:
        shown[builder.__module__] = name
        yield prose(sys.modules[builder.__module__].__doc__)


def described(builder: Any) -> list[Key]:
    """(key, type, default, description) of every key that a scenario may write."""
    from worldsim.params import describe

    return [(key.name, key.type, key.default, key.description) for key in describe(builder)]


def baselines() -> str:
    """The models that need no plugin and no fit."""
    from worldsim.baselines import BASELINES

    rows = [(f"`{name}`", cell(prose(kind.__doc__))) for name, kind in BASELINES.items()]
    return "## Baselines\n\n" + table(("name", "what it predicts"), rows)


def scenario() -> str:
    """Every key of a scenario file that belongs to no component."""
    return "\n\n".join(f"## {title}\n\n{key_table(rows)}" for title, rows in scenario_keys().items())


@cache
def scenario_keys() -> dict[str, list[Key]]:
    """Section -> its keys, from what reads and validates scenario files."""
    from worldsim import scenario
    from worldsim.plugins import registry
    from worldsim.schema import scenario_schema

    schema = scenario_schema(registry())
    return {
        "Keys of the file": top_level(schema),
        "data": fields_of(scenario.DataSettings),
        "data.splits.LABEL": fields_of(scenario.SplitSettings),
        "fit": fields_of(scenario.FitSettings),
        "models.LABEL": further_keys(schema, "scenario_model", "model"),
        "models.LABEL.constraints": further_keys(schema, "constraint_use", "constraint"),
        "metrics": further_keys(schema, "scenario_metric", "metric"),
        "published": fields_of(scenario.Published),
    }


def top_level(schema: Any) -> list[Key]:
    defaults = default_scenario()
    rows = []
    for key, part in schema["properties"].items():
        default = "" if key in schema["required"] else yaml_text(defaults[key])
        rows.append((key, schema_type(part), default, part["description"]))
    return rows


def default_scenario() -> dict[str, Any]:
    """What a scenario that says only what it must ends up with."""
    from worldsim.plugins import registry
    from worldsim.reading import from_document

    split = {"trajectories": 2, "horizon": 1.0}
    least = {
        "about": "the least that a scenario can say",
        "system": "pendulum",
        "data": {"step": 1.0, "splits": {"train": split, "test": split}},
        "models": {"neural_ode": "neural_ode"},
        "metrics": ["rollout"],
        "seeds": [0],
    }
    read = from_document(least, "least", registry())
    return {
        "baselines": list(read.baselines),
        "constraints": list(read.constraints),
        "draws": read.draws,
        "fit": {},
        "master_seed": read.master_seed,
        "published": list(read.published),
        "sweep": {},
        "tags": list(read.tags),
        "under": [],
    }


def further_keys(schema: Any, wide: str, noun: str) -> list[Key]:
    """What may stand beside a component's own keys, where it stands in a scenario."""
    definitions = schema["definitions"]
    own, all_keys = (definitions[name]["oneOf"][0]["properties"] for name in (noun, wide))
    return [
        (key, schema_type(part), yaml_text(part.get("default", {"array": []}.get(part.get("type"), {}))),
         part.get("description") or definitions[reference(part)].get("description", "see below"))
        for key, part in all_keys.items() if key not in own
    ]  # fmt: skip


WRITTEN = {
    "data": "mapping",
    "fit": "mapping",
    "published": "mapping",
    "scenario_model": "model",
    "scenario_metric": "metric",
}
"""Definition of the schema -> what someone who writes YAML calls it."""


def schema_type(part: Any) -> str:
    """A part of the schema in words."""
    if name := reference(part, deep=False):
        return WRITTEN.get(name, name.replace("_use", ""))
    if "enum" in part:
        return " or ".join(map(yaml_text, part["enum"]))
    if part["type"] == "array":
        return f"list of {schema_type(part['items'])}"
    if part["type"] == "object" and "additionalProperties" not in part:
        return "mapping"
    if part["type"] == "object":
        return f"mapping of label to {schema_type(part['additionalProperties'])}"
    bounds = [f"from {part['minimum']}"] if "minimum" in part else []
    bounds += [f"to {part['maximum']}"] if "maximum" in part else []
    word = {"integer": "whole number", "number": "number", "string": "string"}[part["type"]]
    return " ".join([word, *bounds])


def reference(part: Any, deep: bool = True) -> str:
    """The definition that a part of the schema, or of its items, refers to; empty when to none."""
    inner = part["items"] if deep and "items" in part else part
    target: str = inner.get("$ref") or inner.get("allOf", [{}])[0].get("$ref", "")
    return target.rpartition("/")[2]


def fields_of(section: Any) -> list[Key]:
    """(key, type, default, description) of a pydantic section."""
    from pydantic_core import PydanticUndefined

    from worldsim.signatures import type_text

    rows = []
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = "" if default is PydanticUndefined else yaml_text(default)
        rows.append((name, type_of(field, type_text), text, field.description or ""))
    return rows


def type_of(field: Any, type_text: Callable[[Any], str]) -> str:
    values = get_args(field.annotation)[1:] if get_origin(field.annotation) is dict else ()
    if values == (Any,):
        return "mapping"
    if values and inspect.isclass(values[0]):
        return "mapping of label to mapping"
    return type_text(field.rebuild_annotation())


def yaml_text(value: Any) -> str:
    """A default as a scenario would write it."""
    return json.dumps(value)


def commands() -> str:
    """Every command: usage, help and options."""
    import click

    from worldsim.cli import worldsim as group

    context = click.Context(group, info_name="worldsim")
    parts = [prose(group.help)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        usage = f"worldsim {name} {' '.join(command.collect_usage_pieces(inner))}"
        options = [option for option in command.params if isinstance(option, click.Option)]
        records = filter(None, (option.get_help_record(inner) for option in options))
        rows = [(f"`{cell(flags)}`", cell(escaped(help))) for flags, help in records]
        parts += [f"## {name}", fence(usage, "text"), prose(command.help)]
        parts += [table(("option", "meaning"), rows)] if rows else []
    return "\n\n".join(parts)


def kernels() -> str:
    """Every public kernel, module by module, with the equation and source that its module states."""
    import worldsim_kernels

    found: dict[str, list[tuple[str, Any]]] = {}
    for name in worldsim_kernels.__all__:
        value = getattr(worldsim_kernels, name)
        found.setdefault(value.__module__, []).append((name, value))
    parts = []
    for module, members in found.items():
        parts += [f"## {module}", prose(sys.modules[module].__doc__)]
        parts += [public_section(name, value).replace("## ", "### ", 1) for name, value in members]
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[], str]] = {
    "kernels": kernels,
    "hooks": hooks,
    "protocols": protocols,
    "python": python,
    "errors": errors,
    "components": components,
    "scenario": scenario,
    "commands": commands,
}


def public_section(name: str, value: Any) -> str:
    module = getattr(value, "__module__", "")
    for page in ("protocols", "errors"):
        if module == f"worldsim.{page}":
            return f"## {name}\n\nSee [{name}]({page}.md#{anchor(name)})."
    if not inspect.isroutine(value) and not inspect.isclass(value):
        first = (inspect.getdoc(type(value)) or "").partition("\n\n")[0]
        return f"## {name}\n\n{prose(first)}"
    node = ast.parse(inspect.getsource(value)).body[0]
    if isinstance(node, ast.ClassDef):
        return class_section(name, node)
    return f"## {name}\n\n{fence(signature(node))}\n\n{prose(ast.get_docstring(node))}"  # type: ignore[arg-type]


def class_section(name: str, node: ast.ClassDef) -> str:
    """A class: docstring, annotated attributes, and public methods that say what they do."""
    parts = [f"## {name}", prose(ast.get_docstring(node))]
    bases = [ast.unparse(base) for base in node.bases]
    if inherited := [base for base in bases if base in ("Model",)]:
        parts.append(f"Has all that a [{inherited[0]}](#{anchor(inherited[0])}) has.")
    attributes = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
    if attributes:
        parts.append(fence("\n".join(attributes)))
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            parts += [fence(signature(method)), prose(ast.get_docstring(method))]
    return "\n\n".join(filter(None, parts))


def definitions(module: Any, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """(name, node) of the definitions of a module, in its order."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, kind):
            yield node.name, node


def signature(node: Any) -> str:
    """``name(argument: type) -> type``, one argument a line where it would be long."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    marks = {ast.unparse(mark) for mark in node.decorator_list}
    if "property" in marks or "cached_property" in marks:
        return f"{node.name}{returns.replace(' -> ', ': ')}"
    short = f"{node.name}({ast.unparse(node.args)}){returns}"
    if len(short) <= 90:
        return short
    return f"{node.name}(\n{''.join(f'    {one},{chr(10)}' for one in arguments(node.args))}){returns}"


def arguments(args: ast.arguments) -> Iterator[str]:
    """Each argument with its annotation and default."""
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    for one, default in zip(plain, defaults, strict=True):
        yield with_default(one, default)
    if args.kwonlyargs:
        yield "*"
    for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield with_default(one, default)


def with_default(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


def prose(doc: str | None) -> str:
    """A docstring as Markdown; aligned and indented blocks stay as they are."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(doc or ""))
    return "\n\n".join(
        fence(block, "text") if is_table(block) else escaped(block) for block in blocks if block
    )


def is_table(block: str) -> bool:
    lines = block.splitlines()
    return lines[0].startswith("    ") or any(re.search(r"\S {3,}\S", line) for line in lines)


def escaped(text: str) -> str:
    """Text outside backticks, with what Markdown would read as markup escaped; titles stay italic."""
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [_plain(text[end : match.start()]), f"`{match[1] or match[2]}`"]
        end = match.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    pieces = _TITLE.split(text)
    quoted = [re.sub(r"([\\*<\[\]|])", r"\\\1", piece) for piece in pieces]
    return "".join(f"*{piece}*" if index % 2 else piece for index, piece in enumerate(quoted))


def key_table(rows: Sequence[Key]) -> str:
    """Keys of YAML, or a sentence where there are none."""
    if not rows:
        return "It takes no keys."
    body = [
        (f"`{key}`", f"{cell(kind)}", f"`{cell(default)}`" if default else "required", cell(escaped(text)))
        for key, kind, default, text in rows
    ]
    return table(("key", "type", "default", "meaning"), body)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text that fits into a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def fence(text: str, language: str = "python") -> str:
    return f"```{language}\n{dedent(text).strip()}\n```"


def anchor(heading: str) -> str:
    """The link target of a heading, as MyST makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx: expand every page as it is read."""

    def read(app: Any, name: str, source: list[str]) -> None:
        source[0] = expand(source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True, "version": "1"}
