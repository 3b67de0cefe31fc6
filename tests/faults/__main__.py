"""Run the trials and say how many are passed: ``python tests/faults [TRIAL ...] [--seed N] [--kills N]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from table import Table
from trials import TRIALS

HERE = Path(__file__).resolve().parent
PLACES = ["core", "plugins", "faults", "test_packaging.py"]
"""Where tests that belong to a trial are."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/faults")
    parser.add_argument("trials", nargs="*", type=int, metavar="TRIAL", help="1 to 25")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument("--kills", type=int, default=50, help="how often trial 1 kills")
    asked = parser.parse_args()
    if unknown := set(asked.trials) - set(TRIALS):
        parser.error(f"there is no trial {min(unknown)}; there are 1 to {len(TRIALS)}")
    table = Table(tuple(asked.trials))
    options = ["-m", "trial", "-p", "no:xdist", "--seed", str(asked.seed), "--kills", str(asked.kills)]
    code = pytest.main([*options, *(str(HERE.parent / place) for place in PLACES)], plugins=[table])
    return int(code) or int(table.count("FAIL") > 0)


if __name__ == "__main__":
    sys.exit(main())
