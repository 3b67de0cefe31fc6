"""The doubling map, the simplest chaos, exact in binary: x(t + 1) = 2 x(t) mod 1.

Two states that differ by d are 2^k d apart after k steps, so that the frame at which they pass any distance
is known; and every state has 2^k pasts of length k, by (x + b) / 2 for b = 0, 1. A float64 holds 52 binary
digits: one is spent at every step, so histories and futures together have at most that many steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated

DIGITS = 52


class DoublingMap:
    """States ``[trajectory, (x,)]`` in [0, 1), uniform, with the observable ``circle``: (cos, sin) of 2 pi x,
    in which the ends of the interval are one point. Times are whole steps."""

    axes = ("component",)
    step = 1.0
    conserved: tuple[str, ...] = ()
    history_kinds: tuple[str, ...] = ("window_shift", "preimages")
    alike_kinds: tuple[str, ...] = ("near",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("x",)}
    units: Mapping[str, str] = {"x": "1", "circle": "1", "time": "1"}

    def __init__(
        self,
        *,
        near: Annotated[int, Field(ge=1, le=40, description="near states are 2^-near apart")] = 10,
    ) -> None:
        self.near = near

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (x,)]``."""
        return self.drawn(n, DIGITS, generator)

    def drawn(self, n: int, digits: int, generator: torch.Generator) -> Tensor:
        """States of so many binary digits."""
        return torch.randint(2**digits, (n, 1), generator=generator).double() / 2**digits

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, (x,)]``."""
        return integrated.checked(states, (1,))

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        angle = 2 * math.pi * states[..., 0]
        return {"circle": torch.stack([angle.cos(), angle.sin()], -1)}

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (x,)]``."""
        if actions is not None:
            raise ValueError("doubling_map is not driven: it takes no actions; leave them out")
        steps = whole_steps(times)
        if steps[-1] > DIGITS:
            raise ValueError(
                f"the doubling map has {DIGITS} exact steps in float64, not {int(steps[-1])}: "
                "shorten the horizon"
            )
        frames = torch.stack([torch.frac(start * 2.0**k) for k in steps.tolist()], 1)
        return self.recorded(frames, times)

    def recorded(self, frames: Tensor, times: Tensor) -> Trajectory:
        states = frames.unsqueeze(1)
        return Trajectory(
            states, times, observables=self.observe(states), axes=self.axes, labels=self.labels,
            units=self.units,
        )  # fmt: skip

    def past(self, end: Tensor, times: Tensor, generator: torch.Generator) -> Trajectory:
        """A past of ``end`` ``[n, (x,)]``, each as likely."""
        frames = [end]
        for _ in range(int(whole_steps(times)[-1])):
            digit = torch.randint(2, end.shape, generator=generator)
            frames.append((frames[-1] + digit) / 2)
        return self.recorded(torch.stack(frames[::-1], 1)[:, whole_steps(times)], times)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``; ``preimages``: two pasts of one state."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        end = self.drawn(n, self.left(times), generator)
        pasts = [self.past(end, times, generator) for _ in range(2)]
        if kind == "window_shift":
            return integrated.window_shift(pasts[0])
        return HistoryPairs(*pasts, align=lambda states: states)

    def alike_histories(self, kind: str, n: int, times: Tensor, generator: torch.Generator) -> HistoryPairs:
        """``near``: pasts of two states that are 2^-near apart."""
        if kind not in self.alike_kinds:
            raise integrated.unknown_kind(kind, self.alike_kinds)
        end = self.drawn(n, self.left(times), generator)
        ends = end, torch.frac(end + 2.0**-self.near)
        pasts = [self.past(each, times, generator) for each in ends]
        return HistoryPairs(*pasts, align=lambda states: states)

    def left(self, times: Tensor) -> int:
        """Digits of a state that has such a past."""
        digits = DIGITS - int(whole_steps(times)[-1])
        if digits < self.near:
            raise ValueError(f"a past of {DIGITS - digits} steps leaves {digits} digits: shorten the history")
        return digits


def whole_steps(times: Tensor) -> Tensor:
    """``times`` less the first as int64; raises ValueError unless they are whole steps apart."""
    steps = integrated.ascending(times) - times[0]
    if (steps != steps.round()).any():
        raise ValueError("this system moves once a step: times must be whole steps apart; set data.step to 1")
    return steps.long()


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"doubling_map": DoublingMap}
