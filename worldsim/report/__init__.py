"""One self-contained HTML file for a results folder: answers, figures, every number, where they come from.

Needs the extra ``worldsim[report]`` (Jinja2 and plotly). The file reaches no network, and nothing that a
scenario, a model or a plugin wrote can run in it: text is escaped, and scripts are allowed by hash.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from worldsim.errors import ResultError, WorldsimError
from worldsim.report.sections import Section, section
from worldsim.results import Results

__all__ = ["write_report"]


def write_report(results: Results, path: Path) -> Path:
    """Write the report of every scenario in ``results`` to ``path``, whole or not at all, and return it.

    Raises WorldsimError when Jinja2 or plotly is missing, ResultError when the folder is damaged.
    """
    from worldsim.store import write_text

    plotly, environment = _plotly(), _environment()
    sections = [section(results, scenario) for scenario in results.scenarios]
    scripts = [plotly, _resource("page.js")]
    html = environment.from_string(_resource("page.html.j2")).render(
        sections=sections,
        figures={
            plot.id: {"data": plot.data, "layout": plot.layout} for part in sections for plot in part.plots
        },
        numbers=[number for part in sections for number in part.numbers],
        provenance=_provenance(results, sections),
        style=_resource("page.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
    )
    write_text(Path(path), html)
    return Path(path)


def _plotly() -> str:
    """plotly.js, once. Line ends as an HTML parser sees them, or its hash would not match."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise _missing("plotly") from None
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def _environment() -> Any:
    try:
        import jinja2
    except ImportError:
        raise _missing("Jinja2") from None
    made = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return made


def _missing(name: str) -> WorldsimError:
    return WorldsimError(f"a report needs {name}, which is not installed: pip install 'worldsim[report]'")


def _resource(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _provenance(results: Results, sections: list[Section]) -> dict[str, str]:
    """What was run on what; only what is known."""
    from worldsim.scenario import SCHEMA_VERSION

    entries = results.entries
    known = {str(key).replace("_", " "): value for key, value in results.environment.items()}
    known["devices"] = ", ".join(sorted({f"{entry.device} ({entry.dtype})" for entry in entries}))
    known["cases"] = f"{sum(part.done for part in sections)} of {len(entries)} done"
    known["key scheme"] = f"schema {SCHEMA_VERSION}: the hash of what a case means and of plugin versions"
    known["reproducibility"] = _reproducibility(results)
    return {key: str(value) for key, value in known.items() if value not in ("", None)}


def _reproducibility(results: Results) -> str:
    """What a result of each model says of it, and of which models where they differ."""
    from worldsim.store import provenance_of

    said: dict[str, list[str]] = {}
    seen: set[tuple[str, str]] = set()
    for entry in results.entries:
        name = entry.scenario, entry.model
        if name in seen or not results.store.has_run(entry.key):
            continue
        seen.add(name)
        with suppress(ResultError):  # a damaged one is told of where its numbers would be
            word = provenance_of(results.store.run_path(entry.key)).get("reproducibility", "")
            said.setdefault(f"{word:.200}", []).append("/".join(name))
    if len(said) < 2:
        return "".join(said)
    return "; ".join(
        f"{word} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for word, names in said.items()
    )
