"""Strict YAML: scalars of the 1.2 core schema, refusals with their places, and limits against bombs."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from worldsim import strict_yaml, yaml_nodes
from worldsim.errors import Problem, ScenarioError
from worldsim.strict_yaml import parse, read
from worldsim.yaml_nodes import dotted

FILE = Path("scenario.yaml")


@pytest.fixture(params=["C", "Python"])
def loader(request, monkeypatch):
    """Both parsers of PyYAML must give the same answers."""
    monkeypatch.setattr(strict_yaml, "LOADER", yaml.CSafeLoader if request.param == "C" else yaml.SafeLoader)


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ScenarioError) as caught:
        parse(text, FILE)
    return caught.value.problems


def places(text: str) -> list[tuple[int, int, str]]:
    return [(problem.line, problem.column, problem.key) for problem in problems(text)]


@pytest.mark.trial(15)
@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.0e-3", 0.001),
        (".5", 0.5),
        ("-.5E+3", -500.0),
        ("1.", 1.0),
        ("+1", 1),
        ("-7", -7),
        ("012", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("9223372036854775807", 2**63 - 1),
        ("0.0", 0.0),
        ("0e5", 0.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("1e", "1e"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'.inf'", ".inf"),
        ("ä\U0001f680", "ä\U0001f680"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    found = parse(f"key: {text}\n", FILE).data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.trial(15)
@pytest.mark.parametrize(
    "text", [".inf", "-.Inf", ".nan", "1e400", "-1e400", "1e-400", str(2**63), "9" * 5000, "0x" + "f" * 17]
)
def test_numbers_that_cannot_be_held_are_refused(text):
    (problem,) = problems(f"data:\n  step: {text}\n")
    assert (problem.line, problem.column, problem.key) == (2, 9, "data.step")
    assert any(word in problem.message for word in ("finite", "64"))
    assert "finite number" in problem.hint


@pytest.mark.usefixtures("loader")
def test_a_document_is_plain_data():
    text = "---\na: {x: 1, y: [1, two]}\nb:\n- c: 3\n  d: |\n    text\n- &n 5\ne: *n\n...\n"
    assert parse(text, FILE).data == {
        "a": {"x": 1, "y": [1, "two"]},
        "b": [{"c": 3, "d": "text\n"}, 5],
        "e": 5,
    }


def test_aliased_values_are_copies():
    data = parse("a: &a {x: [1]}\nb: *a\n", FILE).data
    data["a"]["x"].append(2)
    assert data["b"] == {"x": [1]}


def test_places_point_at_keys_and_fall_back_to_the_nearest_parent():
    document = parse("about: x\nmodels:\n  ünder: {name: a, width: 3}\nseeds:\n  - 1\n  - 2\n", FILE)
    assert document.place(()) == (1, 1)
    assert document.place(("models",)) == (2, 1)
    assert document.place(("models", "ünder")) == (3, 3)
    assert document.place(("models", "ünder", "width")) == (3, 20)
    assert document.place(("models", "ünder", "depth", "deeper")) == (3, 3)
    assert document.place(("seeds", 1)) == (6, 5)
    assert document.place(("seeds", 9)) == (4, 1)
    assert document.place(("absent",)) == (1, 1)


def test_a_problem_carries_place_key_and_hint():
    document = parse("models:\n  flow: [1, 2]\n", FILE)
    problem = document.problem(("models", "flow", 1), "wrong", "do this")
    assert problem == Problem(FILE, 2, 13, "models.flow[1]", "wrong", "do this")
    assert dotted(()) == "(file)"


@pytest.mark.trial(14, 18)
@pytest.mark.usefixtures("loader")
def test_every_problem_of_a_file_is_reported_at_once():
    text = "a: 1\na: 2\nb: !x 1\nc: !!python/object/apply:os.system [ls]\nd: {e: 1, e: 2, e: 3}\n"
    assert places(text) == [(2, 1, "a"), (3, 4, "b"), (4, 4, "c"), (5, 11, "d.e"), (5, 17, "d.e")]


def test_problems_before_a_syntax_error_are_reported_with_it():
    assert places("a: 1\na: 2\nb: [1\nc: 2\n") == [(2, 1, "a"), (3, 4, "b[1]")]


@pytest.mark.trial(13, 14, 16, 18)
@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a: 1\nb: {a: 1}\na: 2\n", "given twice, first on line 1", "keep one"),
        ("é: 1\ne\u0301: 2\n", "given twice", "keep one"),
        ("b: &b {x: 1}\na: {<<: *b}\n", "merge keys", "write the merged keys out"),
        ("a: !!python/name:os.system x\n", "tag !!python/name:os.system", "remove the tag"),
        ("a: ! x\n", "tag ! is not read", "remove the tag"),
        ("a: !!str 1\n", "tag !!str", "plain value"),
        ("!x {a: 1}\n", "tag !x", "remove"),
        ("1: a\n", "a key must be text, this is a number", "quotes: '1'"),
        ("true: a\n", "this is true or false", "'true'"),
        ("null: a\n", "this is empty", "'null'"),
        ("?\n: 1\n", "a key is missing", "before the colon"),
        ("? [a]\n: 1\n", "a sequence cannot be a key", "plain word"),
        ("? {a: 1}\n: 1\n", "a mapping cannot be a key", "plain word"),
        ("a: &x b\n*x : 1\n", "an alias cannot be a key", "write the key out"),
        ("a: {x:1}\n", "no space after the colon", "write 'x: 1'"),
        ("a: &a [*a]\n", "stands inside its own value", "write the value out"),
        ("a: &near 1\nb: *naer\n", "no anchor '&naer'", "did you mean 'near'"),
        ("a: 1\n---\nb: 1\n", "more than one document", "split it"),
        ("a: 1\n...\nb: 1\n", "more than one document", "split it"),
        ("", "the file is empty", "about"),
        ("# only a comment\n", "the file is empty", "about"),
        ("---\n", "the file is empty", "about"),
        ("- a\n", "not 'key: value' lines", "about"),
        ("text\n", "not 'key: value' lines", "about"),
        ('a: "\\0"\n', "control character", "escapes"),
        ("a:\n\tb: 1\n", "a tab is used for indentation", "spaces"),
        ("a: b: c\n", "where no key can stand", "quotes"),
        ("a: 1\nb:2\nc: 3\n", "not 'key: value'", "space after the colon"),
        ("a: [1, 2\nb: 3\n", "opened on line 1 is not closed", "close every bracket"),
        ("a: {x: 1 y: 2}\n", "a comma is missing", "between entries"),
        ("a: 'b\n", "never closed", "close the quote"),
        ("a: 'b'c\n", "does not continue", "indent"),
        ("a:\n  b: 1\n c: 2\n", "does not continue what began on line 1", "indent"),
        ("a: }\n", "a value is missing before '}'", "remove '}'"),
        ("a: %x\n", "cannot start with '%'", "in quotes"),
        ('a: "\\d"\n', "unknown escape", "single quotes"),
        ("a: !e!x 1\n", "tags", "remove the tag"),
        ("a: *.yaml\n", "begins an alias", "'*.yaml'"),
        ("%YAML 3.0\n---\na: 1\n", "version of YAML", "remove the '%YAML' line"),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_do(text, message, hint):
    problem = problems(text)[0]
    assert message in problem.message
    assert hint in problem.hint
    assert problem.line >= 1
    assert problem.column >= 1
    assert problem.file == FILE


@pytest.mark.trial(16)
@pytest.mark.parametrize("char", ["\0", "\x1b", "\x7f", "\x85", "\u2028", "\u202e"])
def test_characters_that_editors_hide_are_refused(char):
    (problem,) = problems(f"a: 1\nb: x{char}y\n")
    assert (problem.line, problem.column) == (2, 5)
    assert f"U+{ord(char):04X}" in problem.message


NINE = ",".join(["*{}"] * 9)
BOMBS = {
    "nine levels of nine aliases": "a0: &a0 [x,x]\n"
    + "".join(f"a{i}: &a{i} [{NINE.replace('{}', f'a{i - 1}')}]\n" for i in range(1, 10)),
    "merge keys that double twenty times": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 21)),
    "flow nesting": "a: " + "[" * 20_000,
    "block nesting": "".join(" " * i + "a:\n" for i in range(2000)),
    "keys as keys": "? " * 20_000,
    "a chain of aliases, each within nesting": "a0: &a0 1\n"
    + "".join(f"a{i}: &a{i} {'[' * 9}*a{i - 1}{']' * 9}\n" for i in range(1, 90)),
    "many aliases": "a: &a 1\nb: [" + "*a, " * 101 + "]\n",
    "the same key again and again": "a: 1\n" * 200_000,
    "one long number": "a: " + "9" * 4_000_000,
    "too long": "# " + "x" * strict_yaml.MAX_BYTES,
    "zeros": "\0\n" * 50_000,
}


@pytest.mark.trial(13)
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_little_memory(name):
    tracemalloc.start()
    try:
        found = problems(BOMBS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1 <= len(found) <= 101
    assert peak < 150 * 2**20
    assert all(problem.hint for problem in found)


@pytest.mark.trial(13)
def test_many_values_are_refused(monkeypatch):
    monkeypatch.setattr(yaml_nodes, "MAX_NODES", 2000)
    (problem,) = problems("a: [" + "1," * 3000 + "]\n")
    assert problem.message == "more than 2000 values"
    assert problem.key == "a[1997]"


def test_limits_leave_room_for_long_scenarios():
    text = "base: &base {a: [1, 2, 3]}\n" + "".join(f"k{i}: *base\n" for i in range(100))
    text += "seeds: [" + ", ".join(map(str, range(20_000))) + "]\n"
    text += "deep: " + "[" * 60 + "]" * 60 + "\n"
    data = parse(text, FILE).data
    assert len(data["seeds"]) == 20_000
    assert data["k99"] == {"a": [1, 2, 3]}


def refused(path: Path) -> Problem:
    with pytest.raises(ScenarioError) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert problem.file == path
    return problem


@pytest.mark.trial(13, 16)
@pytest.mark.parametrize(
    ("raw", "place", "message"),
    [
        ("a: 1".encode("utf-16"), (1, 1), "UTF-16"),
        ("a: 1".encode("utf-32"), (1, 1), "UTF-16"),
        (b"a: 1\nb: \xc3\xa9\xe9\n", (2, 5), "0xE9 is not UTF-8"),
        (b"a: \x00\n", (1, 4), "U+0000"),
        (b"", (1, 1), "empty"),
        (b"\xef\xbb\xbf", (1, 1), "empty"),
        (b" " * (strict_yaml.MAX_BYTES + 1), (1, 1), "longer than 4 MiB"),
    ],
)
def test_bytes_that_are_not_a_scenario(tmp_path, raw, place, message):
    file = tmp_path / "a.yaml"
    file.write_bytes(raw)
    problem = refused(file)
    assert (problem.line, problem.column) == place
    assert message in problem.message


@pytest.mark.trial(16)
def test_a_byte_order_mark_is_taken_off(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = read(file)
    assert document.data == {"a": 1, "b": 2}
    assert document.place(("b",)) == (2, 1)


@pytest.mark.trial(17)
def test_what_is_not_a_file(tmp_path):
    (tmp_path / "pendulum.yaml").write_text("a: 1\n")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "folder" in refused(tmp_path).message
    assert "did you mean 'pendulum.yaml'" in refused(tmp_path / "pendulm.yaml").hint
    assert "no folder" in refused(tmp_path / "nowhere" / "a.yaml").hint
    assert "not a regular file" in refused(tmp_path / "pipe.yaml").message
    assert "not a regular file" in refused(Path("/dev/zero")).message
    assert "cannot be read" in refused(tmp_path / ("x" * 300)).message


def test_a_file_without_permission(tmp_path, monkeypatch):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\n")

    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    problem = refused(file)
    assert "Permission denied" in problem.message
    assert "permissions" in problem.hint


@pytest.mark.parametrize("parser", [yaml.CSafeLoader, yaml.SafeLoader])
def test_any_text_is_read_or_refused(parser, monkeypatch):
    monkeypatch.setattr(strict_yaml, "LOADER", parser)

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.text(alphabet="ab01:-,[]{}&*!|>%@'\"#?.~<\n\t \r\\é", max_size=40))
    def read_or_refused(text):
        try:
            data = parse(text, FILE).data
        except ScenarioError as error:
            data = dict.fromkeys(error.problems)
        assert isinstance(data, dict)
        assert data or "{}" in text

    read_or_refused()


KEYS = st.text("abz é.:#'\"-1~", max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("abz .:#'\"-1e", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_what_json_writes_is_read_back(data):
    assert parse(json.dumps(data, ensure_ascii=False), FILE).data == data
