"""Open a report in a headless browser: no script error, nothing that the policy refused, every figure drawn.

    python tests/browser/check.py results/report.html

Prints what it counted; exits with 1 when something is wrong, and with 0 when there is no Chromium to ask.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1300,2000",
)  # fmt: skip
SECONDS = 180


class Drawn(HTMLParser):
    """What the page has become: its own count of errors, its figures, and the drawings in them."""

    def __init__(self) -> None:
        super().__init__()
        self.root: dict[str, str | None] = {}
        self.places: list[dict[str, str | None]] = []
        self.drawings = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "html":
            self.root = found
        if "data-figure" in found:
            self.places.append(found)
        # A figure has several layers of this class; the first one alone holds its definitions.
        if tag == "svg" and (found.get("class") or "").split() == ["main-svg"] and "style" in found:
            self.drawings += 1


def opened(browser: str, report: Path) -> str:
    """The document after its scripts have run. Raises subprocess.TimeoutExpired when they never end."""
    with tempfile.TemporaryDirectory(prefix="worldsim-browser-") as profile:
        command = [browser, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=60000", "--dump-dom"]
        done = subprocess.run(
            [*command, report.resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    return done.stdout


def wrong(page: Drawn) -> list[str]:
    """What is not as it should be, in words."""
    found = []
    errors = page.root.get("data-errors")
    if errors is None:
        found.append("the page's script did not run")
    elif errors != "0":
        found.append(f"{errors} script errors, the first: {page.root.get('data-first-error')}")
    if page.root.get("data-ready") != "1":
        found.append("the page did not finish drawing")
    found += [
        f"figure {place['data-figure']} was not drawn" for place in page.places if "data-drawn" not in place
    ]
    if page.drawings < len(page.places):
        found.append(f"{len(page.places)} figures hold only {page.drawings} drawings")
    if not page.places:
        found.append("there is no figure")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("usage: python tests/browser/check.py REPORT.html", file=sys.stderr)
        return 2
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        print("NOT RUN: chromium is not installed")
        return 0
    page = Drawn()
    page.feed(opened(browser, Path(arguments[0])))
    print(f"{arguments[0]}: {len(page.places)} figures, {page.drawings} drawings, "
          f"{page.root.get('data-errors', 'no count of')} script errors")  # fmt: skip
    problems = wrong(page)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
