"""Sphinx configuration: ``make docs`` builds these pages, warnings being errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from worldsim import __version__

project = "worldsim"
author = "The worldsim authors"
copyright = f"2025, {author}"
release = __version__
extensions = ["myst_parser", "generated"]
exclude_patterns = ["_build", "_ext"]
myst_heading_anchors = 3
smartquotes = False  # "lattice" is YAML
html_theme = "furo"
html_title = f"worldsim {release}"
