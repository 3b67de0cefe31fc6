"""Broken: a dependency that is not there."""

raise ImportError("libmissing.so cannot be opened")
