"""Any Gymnasium environment as a true world with actions (Towers et al. 2024).

What the agent observes is the state that models see. An environment cannot be put into a given state: a
start is a seed, and the same seed and actions give the same trajectory bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import System
from worldsim_plugins.systems import integrated

SEEDS = 2**31 - 1


class Gym:
    """States ``[trajectory, *observation]``; a Discrete observation or action is one column."""

    def __init__(
        self,
        *,
        id: Annotated[
            str, Field(description="id of the environment, as gymnasium.make takes it")
        ] = "Pendulum-v1",
        options: Annotated[
            dict[str, bool | int | float | str] | None,
            Field(description="further keyword arguments of gymnasium.make"),
        ] = None,
    ) -> None:
        self.id = id
        self.environment = made(id, options or {})
        for role, space in (("observation", self.environment.observation_space), ("action", self.actions)):
            if not isinstance(space, Box | Discrete):
                raise ValueError(
                    f"{id}: its {role} space is {space}, but only Box and Discrete spaces can be states and "
                    "actions; register a wrapped environment (gymnasium.wrappers.FlattenObservation) instead"
                )
        self.step, unit = time_step(self.environment)
        shape = vector(self.environment.observation_space.sample()).shape
        self.axes: tuple[str, ...] = (*(f"axis{i + 1}" for i in range(len(shape) - 1)), "component")
        self.labels: Mapping[str, tuple[str, ...]] = {
            axis: tuple(f"{'o' if axis == 'component' else ''}{i}" for i in range(size))
            for axis, size in zip(self.axes, shape)
        }
        self.units: Mapping[str, str] = {**dict.fromkeys(self.labels["component"], "1"), "time": unit}

    @property
    def actions(self) -> Space[Any]:
        return self.environment.action_space

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Seeds ``[n]`` int64."""
        return torch.randint(SEEDS, (n,), generator=generator)

    def sample_actions(self, n: int, times: Tensor, generator: torch.Generator) -> Tensor:
        """``[n, time, *action]`` float64, as the action space samples itself from a seed of ``generator``."""
        self.actions.seed(int(torch.randint(SEEDS, (1,), generator=generator)))
        drawn = [[vector(self.actions.sample()) for _ in times] for _ in range(n)]
        return torch.from_numpy(np.array(drawn))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, *observation]`` under ``actions`` ``[trajectory, time, *action]``.

        ``reward[.., i]`` came on arriving at frame i (0 at the start, before any action); ``terminated``
        is True from the frame of termination on. ``length`` counts the frames until an episode ends, and
        states and rewards after it are NaN. Raises ValueError without actions or on another time grid.
        """
        times = self.on_grid(times)
        if actions is None or actions.shape[:2] != (len(start), len(times)):
            raise ValueError(
                f"{self.id} is driven: it needs actions [trajectory, time, *action] = "
                f"[{len(start)}, {len(times)}, ...]; take them from sample_actions"
            )
        episodes = [self.episode(seed, row.numpy()) for seed, row in zip(start.tolist(), actions)]
        states, reward, terminated, length = (np.stack(part)[:, None] for part in zip(*episodes))
        return Trajectory(
            states=torch.from_numpy(states),
            times=times,
            actions=actions,
            observables={"reward": torch.from_numpy(reward), "terminated": torch.from_numpy(terminated)},
            length=torch.from_numpy(length),
            axes=self.axes,
            labels=self.labels,
            units=self.units,
        )

    def episode(self, seed: int, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.int64]:
        """States ``[time, *observation]``, rewards, terminations and the length of one episode."""
        first, _ = self.environment.reset(seed=seed)
        frames, rewards, ends = [self.observed(first)], [0.0], [False]
        for action in actions[:-1]:
            observation, reward, terminated, truncated, _ = self.environment.step(self.acted(action))
            frames.append(self.observed(observation))
            rewards.append(float(reward))
            ends.append(bool(terminated))
            if terminated or truncated:
                break
        rest = len(actions) - len(frames)
        states = np.concatenate([np.stack(frames), np.full((rest, *frames[0].shape), np.nan)])
        rewards_and_gap = np.array(rewards + [np.nan] * rest)
        return states, rewards_and_gap, np.array(ends + [ends[-1]] * rest), np.int64(len(frames))

    def observed(self, observation: Any) -> np.ndarray:
        return vector(observation)

    def acted(self, action: np.ndarray) -> Any:
        if isinstance(self.actions, Discrete):
            return int(action[0])
        return action.reshape(self.actions.shape).astype(self.actions.dtype)

    def on_grid(self, times: Tensor) -> Tensor:
        """``times``; raises ValueError unless they are ``step`` apart."""
        times = integrated.ascending(times)
        if not torch.allclose(times.diff(), torch.tensor(self.step, dtype=torch.float64), rtol=1e-6, atol=0):
            raise ValueError(f"{self.id} moves in steps of {self.step}: the times must be that far apart")
        return times


def made(id: str, options: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """The environment; raises ValueError when its id, options or extra packages are not there."""
    try:
        return gymnasium.make(id, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(
            f"Gymnasium cannot make {id!r}: {error}. Check the id and the options, and install what the "
            "environment needs (MuJoCo ones: pip install 'worldsim[mujoco]')"
        ) from error


def time_step(environment: gymnasium.Env[Any, Any]) -> tuple[float, str]:
    """The environment's own time step and its unit; 1 and "1" when it names none."""
    for name in ("dt", "tau"):
        step = getattr(environment.unwrapped, name, None)
        if isinstance(step, int | float):
            return float(step), "s"
    return 1.0, "1"


def vector(value: Any) -> np.ndarray:
    """An element of a Box or Discrete space as float64 with at least one axis."""
    return np.atleast_1d(np.asarray(value, dtype=np.float64))


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"gym": Gym}
