"""Signatures as schemas: strict models, components, their errors in words, and the editor's schema."""

from __future__ import annotations

import functools
import json
import pickle
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import Field

from worldsim import hookimpl
from worldsim.component_schema import json_schema
from worldsim.errors import PluginError
from worldsim.params import Component, ParamErrors, component, describe, given, model
from worldsim.plugins import Provider, Registry

if TYPE_CHECKING:
    from worldsim.protocols import Solver


class Leapfrog:
    """Stoermer-Verlet.

    A second paragraph.
    """

    def __init__(
        self,
        *,
        step: Annotated[float, Field(gt=0, description="length of a step, s")] = 0.1,
        start: Solver | None = None,
    ):
        self.step, self.start = step, start


class Pendulum:
    """A bob on a rod."""

    def __init__(
        self,
        *,
        energy: Annotated[tuple[float, float], Field(description="lowest and highest energy, J")],
        length: Annotated[float, Field(gt=0, le=100, description="length of the rod, m")] = 1,
        bodies: Annotated[int, Field(ge=1, description="how many")] = 1,
        damped: Annotated[bool, Field(description="whether it loses energy")] = False,
        label: Annotated[str, Field(description="what to call it")] = "bob",
        ends: Annotated[Literal["fixed", "free"], Field(description="what holds it")] = "free",
        masses: Annotated[tuple[float, ...], Field(min_length=2, max_length=3, description="kg")] = (
            1.0,
            2.0,
        ),
        rates: Annotated[dict[str, float], Field(description="per observable")] = {},  # noqa: B006
        points: Annotated[list[list[float]], Field(description="places")] = [],  # noqa: B006
        scale: Annotated[float | None, Field(gt=0, description="energy that counts as 1")] = None,
        option: Annotated[bool | int | str | None, Field(description="passed on")] = None,
    ):
        self.written = dict(locals())
        del self.written["self"]


def hamiltonian(
    truth,
    system,
    *,
    width: Annotated[int, Field(ge=1, description="units")] = 64,
    solver: Annotated[Solver | None, Field(description="integrates the field")] = None,
):
    """A learned energy."""
    return truth, system, width, solver


def needs_solver(system, *, solver: Solver):
    return solver


def energy(system, *, scale: float = 1.0):
    return system, scale


def plugin(**tables: Any) -> ModuleType:
    module = ModuleType("module")
    for hook, table in tables.items():
        namespace: dict[str, Any] = {"table": table}
        exec(f"def worldsim_{hook}(): return table", namespace)
        setattr(module, f"worldsim_{hook}", hookimpl(namespace[f"worldsim_{hook}"]))
    return module


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    first = plugin(
        systems={"pendulum": Pendulum, "spring": Leapfrog},
        dynamics={"hamiltonian": hamiltonian, "strict": needs_solver},
        constraints={"energy": energy},
        solvers={"leapfrog": Leapfrog, "rk4": Leapfrog},
    )
    found.add(Provider("first", "mechanics", "1.0", ""), lambda: first)
    second = plugin(solvers={"rk4": Leapfrog}, generators={"flow": needs_solver})
    found.add(Provider("second", "other", "2.0", ""), lambda: second)

    def broken() -> ModuleType:
        raise ImportError("no module named 'rare'")

    found.add(Provider("third", "elsewhere", "3.0", ""), broken)
    return found


def errors(noun: str, data: Any, registry: Registry) -> list[tuple[Any, str, str]]:
    with pytest.raises(ParamErrors) as caught:
        component(noun, data, registry)
    return caught.value.errors


def the_error(data: dict[str, Any], registry: Registry) -> tuple[Any, str, str]:
    (one,) = errors("system", {"name": "pendulum", "energy": [0, 1], **data}, registry)
    return one


def test_positional_parameters_are_given_in_their_own_order():
    assert given(hamiltonian) == ("truth", "system")
    assert given(Pendulum) == ()
    assert given(functools.partial(hamiltonian, width=3)) == ("truth", "system")


def test_a_component_has_every_default_written_out(registry):
    part = component("system", {"name": "pendulum", "energy": [0, 1.5], "rates": {"x": 1}}, registry)
    assert part == Component(
        "system",
        "pendulum",
        "first",
        {
            "energy": (0.0, 1.5),
            "length": 1.0,
            "bodies": 1,
            "damped": False,
            "label": "bob",
            "ends": "free",
            "masses": (1.0, 2.0),
            "rates": {"x": 1.0},
            "points": [],
            "scale": None,
            "option": None,
        },
    )
    assert type(part.params["length"]) is float
    assert part.build(registry).written == part.params


def test_what_is_built_shares_nothing_with_the_component(registry):
    part = component("system", {"name": "pendulum", "energy": [0, 1]}, registry)
    part.build(registry).written["points"].append([1.0])
    assert part.params["points"] == []
    assert part.build(registry).written["points"] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"energy": [0, 1]}, {"energy": [0.0, 1.0]}),
        ({"energy": [-0.0, 1]}, {"energy": [0.0, 1]}),
        ({"energy": [0, 1]}, {"energy": [0, 1], "length": 1}),
        ({"energy": [0, 1], "rates": {"a": 1, "b": 2}}, {"rates": {"b": 2, "a": 1}, "energy": [0, 1]}),
        ({"energy": [0, 1]}, {"energy": [0, 1], "name": "first/pendulum"}),
    ],
)
def test_what_means_the_same_is_canonically_the_same(registry, one, other):
    documents = [
        json.dumps(component("system", {"name": "pendulum", **data}, registry).canonical(), sort_keys=True)
        for data in (one, other)
    ]
    assert documents[0] == documents[1]


def test_canonical_tells_what_differs_apart(registry):
    def canonical(name):
        return component("solver", {"name": name, "start": "leapfrog"}, registry).canonical()

    assert canonical("leapfrog") == {
        "noun": "solver",
        "name": "leapfrog",
        "plugin": "first",
        "params": {
            "start": {
                "noun": "solver",
                "name": "leapfrog",
                "plugin": "first",
                "params": {"start": None, "step": 0.1},
            },
            "step": 0.1,
        },
    }
    assert canonical("first/rk4") != canonical("second/rk4")


def test_a_component_can_be_sent_to_a_worker(registry):
    part = component("model", {"name": "hamiltonian", "solver": "leapfrog"}, registry)
    assert pickle.loads(pickle.dumps(part)) == part


def test_components_nest_and_are_built_inside_out(registry):
    data = {"name": "hamiltonian", "solver": {"name": "leapfrog", "step": 1, "start": "first/rk4"}}
    part = component("model", data, registry)
    assert part.noun == "dynamics"
    assert part.params["solver"].params["start"].name == "first/rk4"  # two plugins provide an rk4
    truth, system, width, solver = part.build(registry, system="the system", truth="the truth")
    assert (truth, system, width, solver.step) == ("the truth", "the system", 64, 1.0)
    assert isinstance(solver.start, Leapfrog)


def test_a_bare_name_stands_for_all_defaults(registry):
    assert component("solver", "leapfrog", registry).params == {"step": 0.1, "start": None}


def test_building_without_what_is_asked_for_says_so(registry):
    part = component("dynamics", "hamiltonian", registry)
    with pytest.raises(PluginError, match=r"hamiltonian asks for 'truth', which is not at hand"):
        part.build(registry, system=1)


@pytest.mark.parametrize(
    ("data", "loc", "message", "hint"),
    [
        ({"lenght": 1}, ("lenght",), "unknown key", "did you mean 'length'"),
        ({"qqq": 1}, ("qqq",), "unknown key", "allowed: bodies, damped"),
        (
            {"length": "abc"},
            ("length",),
            "expected a number, found a string 'abc'",
            "number > 0, <= 100: length",
        ),
        (
            {"length": "0.5"},
            ("length",),
            "expected a number, found a string '0.5'",
            "write 0.5, without quotes",
        ),
        ({"length": "1_000"}, ("length",), "expected a number", "write 1000"),
        ({"length": None}, ("length",), "expected a number, found nothing", "length of the rod"),
        ({"length": True}, ("length",), "expected a number, found true", "length of the rod"),
        ({"length": [1]}, ("length",), "expected a number, found a list", "length of the rod"),
        ({"length": {}}, ("length",), "expected a number, found a mapping", "length of the rod"),
        ({"length": float("nan")}, ("length",), "expected a finite number", "length of the rod"),
        ({"length": float("inf")}, ("length",), "expected a finite number", "length of the rod"),
        ({"length": 0}, ("length",), "must be > 0, found the number 0", "length of the rod"),
        ({"length": -0.1}, ("length",), "must be > 0, found the number -0.1", "number > 0, <= 100"),
        ({"length": 101}, ("length",), "must be <= 100", "length of the rod"),
        ({"bodies": 0}, ("bodies",), "must be >= 1, found the number 0", "whole number >= 1: how many"),
        ({"bodies": 2.5}, ("bodies",), "expected a whole number, found the number 2.5", "how many"),
        ({"bodies": 3.0}, ("bodies",), "expected a whole number", "write 3"),
        ({"bodies": "4"}, ("bodies",), "expected a whole number, found a string '4'", "write 4"),
        ({"bodies": False}, ("bodies",), "expected a whole number, found false", "how many"),
        ({"damped": "yes"}, ("damped",), "expected true or false, found a string 'yes'", "write true"),
        ({"damped": "off"}, ("damped",), "expected true or false", "write false"),
        ({"damped": 1}, ("damped",), "expected true or false, found the number 1", "write true"),
        ({"label": 7}, ("label",), "expected a string, found the number 7", "put it in quotes: '7'"),
        ({"label": True}, ("label",), "expected a string, found true", "put it in quotes: 'true'"),
        ({"ends": "fix"}, ("ends",), "expected 'fixed' or 'free', found a string 'fix'", "what holds it"),
        ({"energy": 1}, ("energy",), "expected a list, found the number 1", "write a list"),
        ({"energy": [1]}, ("energy",), "too few values: found 1", "[number, number]: lowest and highest"),
        ({"energy": []}, ("energy",), "too few values: found 0", "[number, number]"),
        ({"energy": [1, 2, 3]}, ("energy",), "takes at most 2 values, found 3", "[number, number]"),
        ({"energy": [1, "a"]}, ("energy", 1), "expected a number, found a string 'a'", "lowest and highest"),
        ({"masses": [1]}, ("masses",), "needs at least 2 values, found 1", "list of number: kg"),
        ({"masses": [1, 1, 1, 1]}, ("masses",), "takes at most 3 values", "list of number"),
        ({"rates": {"x": "1"}}, ("rates", "x"), "expected a number, found a string '1'", "write 1"),
        ({"rates": [1]}, ("rates",), "expected a mapping, found a list", "mapping of name to number"),
        ({"points": [[1], [2, "b"]]}, ("points", 1, 1), "expected a number, found a string 'b'", "places"),
        ({"points": [1]}, ("points", 0), "expected a list, found the number 1", "write a list"),
        ({"scale": -1}, ("scale",), "must be > 0, found the number -1", "number > 0 or null: energy that"),
        (
            {"option": [1]},
            ("option",),
            "cannot stand here: a list",
            "true or false or whole number or string",
        ),
    ],
)
def test_errors_are_told_in_the_words_of_yaml(registry, data, loc, message, hint):
    told = the_error(data, registry)
    assert told[0] == loc
    assert message in told[1]
    assert hint in told[2]


def test_every_error_of_a_component_is_told_at_once(registry):
    data = {"name": "pendulum", "lenght": 1, "bodies": "two", "damped": "no"}
    told = errors("system", data, registry)
    assert [loc for loc, _, _ in told] == [("energy",), ("bodies",), ("damped",), ("lenght",)]
    assert told[0][1] == "'energy' is missing"
    assert "lowest and highest energy" in told[0][2]


def test_errors_of_nested_components_are_told_with_their_place(registry):
    data = {
        "name": "hamiltonian",
        "width": 0,
        "solver": {"name": "leapfrog", "step": -1, "start": {"name": "x"}},
    }
    assert [loc for loc, _, _ in errors("model", data, registry)] == [
        ("solver", "start", "name"),
        ("solver", "step"),
        ("width",),
    ]


def test_locations_are_below_the_one_given(registry):
    with pytest.raises(ParamErrors) as caught:
        component("solver", {"name": "leapfrog", "step": 0}, registry, ("models", "flow"))
    assert caught.value.errors[0][0] == ("models", "flow", "step")
    assert "models.flow.step: must be > 0" in str(caught.value)


@pytest.mark.parametrize(
    ("noun", "data", "loc", "message", "hint"),
    [
        ("system", "pendulm", (), "there is no system 'pendulm'", "did you mean 'pendulum'"),
        (
            "system",
            {"name": "pendulm"},
            ("name",),
            "there is no system",
            "third (elsewhere 3.0): Import",
        ),
        ("solver", "rk4", (), "provided by first (mechanics 1.0) and second (other 2.0)", "'first/rk4'"),
        ("model", "leapfrog", (), "there is no model 'leapfrog'", "allowed: flow, hamiltonian, strict"),
        ("system", 3, (), "expected a system, found the number 3", "pendulum, spring"),
        ("system", None, (), "expected a system, found nothing", "write {name: ...}"),
        ("system", ["pendulum"], (), "expected a system, found a list", "pendulum, spring"),
        ("system", {"energy": [0, 1]}, (), "'name' is missing", "say which system: one of pendulum, spring"),
        ("system", {"name": 3}, ("name",), "expected the name of a system, found the number 3", "pendulum"),
        ("metric", {}, (), "'name' is missing", "no plugin provides any"),
        ("dynamics", "strict", ("solver",), "'solver' is missing", "component"),
        ("dynamics", {"name": "strict", "solver": None}, ("solver",), "found nothing", ""),
        ("dynamics", {"name": "strict", "solver": "x"}, ("solver",), "there is no solver 'x'", "allowed: "),
    ],
)
def test_what_is_no_component_is_refused(registry, noun, data, loc, message, hint):
    (told,) = errors(noun, data, registry)
    assert told[0] == loc
    assert message in told[1]
    assert hint in told[2]


def test_a_parameter_is_described_from_its_annotation():
    assert describe(Leapfrog) == [
        ("step", "number > 0", "0.1", "length of a step, s"),
        ("start", "solver or null", "null", ""),
    ]
    assert [(d.type, d.default) for d in describe(Pendulum)] == [
        ("[number, number]", ""),
        ("number > 0, <= 100", "1"),
        ("whole number >= 1", "1"),
        ("true or false", "false"),
        ("string", '"bob"'),
        ('"fixed" or "free"', '"free"'),
        ("list of number", "[1.0, 2.0]"),
        ("mapping of name to number", "{}"),
        ("list of list of number", "[]"),
        ("number > 0 or null", "null"),
        ("true or false or whole number or string or null", "null"),
    ]


def positional(width: int = 3): ...
def keyword_bag(**options: int): ...
def value_bag(*values: int): ...
def bare_parameter(*, width=3): ...
def takes_name(*, name: str): ...
def takes_copy(*, copy: bool = True): ...
def private(*, _x: int = 1): ...
def unknown_type(*, path: Registry): ...
def unknown_name(*, path: Nowhere): ...  # noqa: F821
def untyped_list(*, items: list): ...
def any_type(*, item: Any): ...
def choice(*, item: int | list[int]): ...
def integer_keys(*, items: dict[int, str]): ...
def built_default(*, solver: Solver = Leapfrog()): ...  # noqa: B008
def bad_default(*, width: Annotated[int, Field(ge=1)] = 0): ...
def wrong_default(*, width: int = "three"): ...
def infinite_default(*, scale: float = float("inf")): ...
def bad_bound(*, width: Annotated[bool, Field(min_length=1)] = True): ...


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (positional, r"positional parameter 'width'; write `\*` before it"),
        (keyword_bag, r"takes \*\*options.*name every parameter"),
        (value_bag, r"takes \*values"),
        (bare_parameter, r"no annotation for 'width'; write `width: Annotated"),
        (takes_name, "a parameter 'name'; give it another name"),
        (takes_copy, "a parameter 'copy'; give it another name"),
        (private, "'_x'"),
        (unknown_type, "annotates 'path' with Registry; allowed are bool"),
        (unknown_name, "annotates 'path' with Nowhere, which fails: NameError"),
        (untyped_list, "annotates 'items' with list"),
        (any_type, "annotates 'item' with .*Any"),
        (choice, "a choice of types"),
        (integer_keys, "keys are not strings"),
        (built_default, "a built solver as the default of 'solver'; make the default None"),
        (bad_default, "the default of 'width' breaks its own annotation: must be >= 1"),
        (wrong_default, "the default of 'width'.*expected a whole number"),
        (infinite_default, "the default of 'scale'.*finite"),
        (bad_bound, "annotations that do not work"),
        (dict, "no signature|cannot check"),
    ],
)
def test_an_unusable_builder_is_refused_by_its_full_name(builder, message):
    with pytest.raises(PluginError, match=message) as caught:
        model(builder)
    assert f"{builder.__module__}.{builder.__qualname__}" in str(caught.value)


def test_a_builder_may_ask_only_for_what_its_noun_is_given():
    registry = Registry()
    module = plugin(solvers={"greedy": energy}, constraints={"greedy": hamiltonian})
    registry.add(Provider("p", "p", "1", ""), lambda: module)
    with pytest.raises(PluginError, match="asks for 'system'; a solver is given nothing"):
        component("solver", "greedy", registry)
    with pytest.raises(PluginError, match="asks for 'truth'; a constraint is given 'system'"):
        component("constraint", "greedy", registry)


def test_builders_that_are_not_plain_functions(registry):
    class Callable:
        def __call__(self, system, *, width: int = 3):
            return system, width

    @functools.wraps(energy)
    def wrapped(*args, **kwargs):
        return energy(*args, **kwargs)

    part = functools.partial(energy, scale=3.0)
    module = plugin(constraints={"object": Callable(), "wrapped": wrapped, "partial": part})
    registry.add(Provider("fourth", "x", "1", ""), lambda: module)
    built = [
        component("constraint", n, registry).build(registry, system=0)
        for n in ("object", "wrapped", "partial")
    ]
    assert built == [(0, 3), (0, 1.0), (0, 3.0)]


def test_the_schema_names_every_component_with_its_documentation(registry):
    definitions = json_schema(registry, {"constraint": {"weight": {"type": "number"}}})["definitions"]
    nouns = {"system", "model", "dynamics", "generator", "constraint", "metric", "solver", "backbone"}
    assert set(definitions) == nouns
    pendulum, spring, bare = definitions["system"]["oneOf"]
    assert pendulum["properties"]["name"] == {"const": "pendulum"}
    assert pendulum["required"] == ["name", "energy"]
    assert pendulum["additionalProperties"] is False
    assert pendulum["properties"]["length"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 100,
        "default": 1,
        "description": "length of the rod, m",
    }
    assert pendulum["properties"]["energy"]["items"] == [{"type": "number"}, {"type": "number"}]
    assert spring["description"] == "Stoermer-Verlet."
    assert bare == {"enum": ["spring"]}
    hamiltonian_schema = definitions["dynamics"]["oneOf"][0]
    assert {"$ref": "#/definitions/solver"} in hamiltonian_schema["properties"]["solver"]["anyOf"]
    assert [one["title"] for one in definitions["model"]["oneOf"][:-1]] == ["flow", "hamiltonian", "strict"]
    assert "weight" in definitions["constraint"]["oneOf"][0]["properties"]
    assert [one.get("title") for one in definitions["solver"]["oneOf"]] == [
        "leapfrog",
        None,
    ]  # rk4 is ambiguous
    text = json.dumps(definitions)
    assert "prefixItems" not in text
    assert "$defs" not in text
