"""Telling a model's failure from everybody else's, so that it is counted and never dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worldsim import NotMeasurable


class ModelFailed(Exception):
    """A model raised, or answered with something that is no prediction; the message says which."""


@contextmanager
def blaming_the_model() -> Iterator[None]:
    """Turn any error of the block into ModelFailed, except NotMeasurable, which is an answer."""
    try:
        yield
    except NotMeasurable:
        raise
    except Exception as error:
        raise ModelFailed(f"the model failed: {type(error).__name__}: {error}") from error
