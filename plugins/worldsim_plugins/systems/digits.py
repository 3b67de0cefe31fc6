"""Handwritten digits: the 8 x 8 pictures of Alpaydin and Kaynak (1998; the test part) in scikit-learn.

A world of two frames, or more: the first is blank, and then there is a digit of the class that is asked for,
which stays. 1,300 pictures are for training and the other 497 for testing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from worldsim import Trajectory, hookimpl

CLASSES, TRAIN = 10, 1300


@cache
def pictures() -> tuple[Tensor, Tensor]:
    """All 1,797, ``[picture, row, column]`` with ink from 0 to 16, and their classes ``[picture]``, shuffled
    once and for all. Raises ImportError, in words, without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: pip install 'worldsim[data]'"
        ) from error
    shipped = load_digits()
    order = torch.randperm(len(shipped.target), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(shipped.images)[order], torch.as_tensor(shipped.target)[order]


class Digits:
    """States ``[trajectory, (row, column, ink)]``, ink in [0, 1]; the action is the class, one of ten
    ``[trajectory, time, 10]``, of which that at the first frame counts.

    Starts are drawn with replacement from ``part``. Raises ImportError, in words, without scikit-learn, and
    ValueError without actions.
    """

    axes = ("row", "column", "component")

    def __init__(
        self,
        *,
        part: Annotated[
            Literal["train", "test"],
            Field(description="which pictures; give the splits that test models `system: {part: test}`"),
        ] = "train",
    ) -> None:
        images, classes = pictures()
        mine = slice(0, TRAIN) if part == "train" else slice(TRAIN, None)
        self.images, self.classes = images[mine].double()[..., None] / 16, classes[mine]
        self.labels: Mapping[str, tuple[str, ...]] = {"component": ("ink",)}
        self.units: Mapping[str, str] = {"ink": "1", "time": "1"}

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n]`` in [0, 1): where among the pictures of its class a digit stands."""
        return torch.rand(n, dtype=torch.float64, generator=generator)

    def sample_actions(self, n: int, times: Tensor, generator: torch.Generator) -> Tensor:
        """Every class is as frequent as any other."""
        chosen = torch.randint(CLASSES, (n, 1), generator=generator).expand(-1, len(times))
        return F.one_hot(chosen, CLASSES).double()

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 8, 8, 1]``; nothing is drawn."""
        if actions is None:
            raise ValueError("digits need actions: the class of each, one of ten")
        asked = actions[:, 0].argmax(-1)
        picked = torch.stack([self._picked(float(u), int(c)) for u, c in zip(start, asked)])
        states = self.images[picked][:, None, None].repeat(1, 1, len(times), 1, 1, 1)
        states[:, :, 0] = 0
        return Trajectory(states, times, actions, {}, None, self.axes, self.labels, self.units)

    def _picked(self, start: float, asked: int) -> Tensor:
        """Index of the picture at ``start`` in [0, 1) of those of a class."""
        (those,) = torch.where(self.classes == asked)
        return those[min(int(start * len(those)), len(those) - 1)]


@hookimpl
def worldsim_systems() -> Mapping[str, Callable[..., Digits]]:
    return {"digits": Digits}
