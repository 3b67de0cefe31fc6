"""Triton's kernels run in its interpreter here: it must be asked for before Triton is imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
