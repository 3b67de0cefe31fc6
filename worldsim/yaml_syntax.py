"""The YAML parser's complaints, in words for someone who writes scenarios."""

from __future__ import annotations

import re

import yaml

from worldsim.yaml_scalars import LINE_BREAK

# (words of the parser, what is wrong, what to do); the first row that matches speaks.
_TABLE = (
    ("violates indentation|indentation space", "a tab is used for indentation", "indent with spaces"),
    ("cannot start any token", "a value cannot start with {char!r}", "put the text in quotes"),
    (
        "mapping values are not allowed",
        "a ': ' where no key can stand",
        "put text that holds ': ' in quotes, and indent the keys of one mapping alike",
    ),
    ("simple key", "this line is not 'key: value'", "put a space after the colon: 'step: 0.1'"),
    (
        "flow",
        "the bracket opened on line {line} is not closed, or a comma is missing",
        "close every bracket, and put ', ' between entries",
    ),
    ("quoted scalar.*end of", "the quote opened here is never closed", "close the quote on the same line"),
    ("escape", "an unknown escape in double quotes", "use single quotes, or two backslashes for one"),
    (
        "tag",
        "tags such as '!name' are not read: scenario files are data",
        "remove the tag, or quote the text",
    ),
    ("alias|anchor", "'*' begins an alias and '&' an anchor", "put the text in quotes: '*.yaml'"),
    ("document start", "more than one document", "one file holds one scenario: split it at '---' or '...'"),
    ("incompatible", "not a version of YAML that can be read", "remove the '%YAML' line"),
    ("node content", "a value is missing before {char!r}", "write the value, or remove {char!r}"),
    (
        "block",
        "this line does not continue what began on line {line}",
        "indent the keys of one mapping alike; after a closing quote or bracket begin a new line",
    ),
    ("", "this is not YAML", "check the brackets, quotes and indentation here"),
)


def explain(error: yaml.MarkedYAMLError, text: str) -> tuple[tuple[int, int], str, str]:
    """((line, column), message, hint) of a syntax error in ``text``; both counted from 1."""
    said = f"{error.context or ''} {error.problem or ''}"
    mark = error.problem_mark
    start = error.context_mark or mark
    if start and mark and _began_wrong(said, start.line, mark.line):
        mark = start
    place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if "mapping values" in said and (above := _glued_above(text, place[0])):
        place, said = (above, 1), "simple key"
    char = line_of(text, place[0])[place[1] - 1 : place[1]]
    if char == "\t":
        said = "violates indentation"
    line = start.line + 1 if start else 1
    message, hint = next((row[1], row[2]) for row in _TABLE if re.search(row[0], said))
    return place, message.format(char=char, line=line), hint.format(char=char)


def _began_wrong(said: str, start: int, noticed: int) -> bool:
    """Whether the fault lies where the construct began rather than where the parser noticed."""
    unclosed = noticed != start and "flow" in said
    return unclosed or "simple key" in said or ("quoted scalar" in said and "end of" in said)


def _glued_above(text: str, number: int) -> int:
    """The line above ``number`` if it is ``key:value`` without a space, which YAML reads as text that goes on
    in the next line; else 0."""
    return number - 1 if number > 1 and re.match(r"\s*\w+:[^\s/]", line_of(text, number - 1)) else 0


def line_of(text: str, number: int) -> str:
    """Line ``number`` of ``text``, counted from 1; empty past the end."""
    lines = LINE_BREAK.split(text)
    return lines[number - 1] if number <= len(lines) else ""
