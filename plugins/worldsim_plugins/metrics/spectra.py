"""Spectra of a rollout beside those of the truth, band by band of wavenumbers or frequencies.

    spectral_mse_<band>  power of the error in the band; the bands sum to the mean squared error (Parseval)
    power_ratio_<band>   power of the prediction over that of the truth: below 1 where it smooths

Fields on a grid are transformed in space, radially, others in time. A model that minimises its mean error
blurs what it cannot predict: its error is small and its spectrum is wrong. Bands of wavenumbers below 4, 4 to
11 and from 12 on are those of PDEBench (Takamoto et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import Metric, Model, System
from worldsim_kernels.spectra import band_power, crmse, fourier_rmse, shells, vrmse
from worldsim_plugins.metrics import known_shapes
from worldsim_plugins.metrics.comparison import compare, component_scale, mean_interval
from worldsim_plugins.metrics.law_scores import NORMAL
from worldsim_plugins.metrics.truth_samples import afresh

SILENT = 1e-20
"""A band with less than this part of the truth's power holds rounding."""


class Spectra:
    """spectral_mse_<band>, power_ratio_<band> and power_log_ratio_<band>, the ratio's |logarithm|, with its
    floor and ``*_floor_q95`` from pairs of truth samples. Bands are low, mid and high, or band1, band2 and
    so on. Over space also vrmse and crmse (the error of each component's mean over the grid), and on a line
    frmse_<band>.

    States are standardised per component by the truth's mean and spread, errors are those of the mean of the
    draws, powers those of single draws; over time a Hann window is put on them first. Over space the grid is
    taken for periodic. Raises NotMeasurable over tokens, for trajectories that end at different times, for
    unequal time steps (over time) and for states without a grid (over space); rollouts that are not finite
    leave nothing measurable.
    """

    met_by: Mapping[str, str] = {
        "power_log_ratio_*": "shuffled and memoriser, whose power is that of a truth, and persistence, where "
        "the power of a single frame is",
    }
    ground_truths = staticmethod(known_shapes.of_spectra)

    def __init__(
        self,
        system: System,
        *,
        over: Annotated[
            Literal["space", "time"] | None,
            Field(
                description="what is transformed; left out, space for fields on a grid and time for others"
            ),
        ] = None,
        edges: Annotated[
            list[int],
            Field(min_length=1, description="first wavenumber of each band after the lowest, rising"),
        ] = [4, 12],  # noqa: B006 -- it is read only
        pairs: Annotated[int, Field(ge=20, description="pairs of truth samples that measure the floor")] = 20,
        seed: Annotated[int, Field(ge=0, description="seed of the truth samples for the floor")] = 0,
    ) -> None:
        if sorted(set(edges)) != list(edges) or edges[0] < 1:
            raise ValueError(f"edges {edges} must rise, from 1 at least")
        self.system, self.over, self.edges = system, over, tuple(edges)
        self.pairs, self.seed = pairs, seed
        count = len(edges) + 1
        self.bands = ("low", "mid", "high") if count == 3 else tuple(f"band{i + 1}" for i in range(count))

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not truth.states.is_floating_point():
            raise NotMeasurable("tokens have no spectrum: spectra needs states that are numbers")
        both = compare(truth, prediction)
        grid = self.grid(truth)
        if not both.valid.all():
            raise NotMeasurable(
                "trajectories end at different times, so that their spectra cannot be compared"
            )
        if both.failed:
            lost = Score(float("nan"), n=len(truth), failed=both.failed, reason=both.reason)
            names = (f"{what}_{band}" for what in ("spectral_mse", "power_log_ratio") for band in self.bands)
            return dict.fromkeys(names, lost)
        middle, scale = self.standard(both.truth, truth.state_shape, grid)
        actual, draws = (both.truth - middle) / scale, (both.draws - middle) / scale
        own, made = self.power(actual, grid), self.power(draws.flatten(0, 1), grid)
        made = made.reshape(len(draws), draws.shape[1], -1).mean(1)
        error = draws.mean(1) - actual
        parts = self.power(error, grid, window=False)
        scores = {
            f"spectral_mse_{band}": self.band_error(band, rows, grid or both.times.shape)
            for band, rows in zip(self.bands, parts.T)
        }
        if grid:
            scores |= self.field_errors(draws.mean(1), actual, grid)
        return scores | self.ratios(own, made, self.floors(truth, grid, scale, middle))

    def grid(self, truth: Trajectory) -> tuple[int, ...]:
        """The grid to transform over; empty over time."""
        fields = len(truth.state_shape) > 1 and truth.axes[:1] != ("body",)
        over = self.over or ("space" if fields else "time")
        if over == "space":
            if not fields:
                raise NotMeasurable(f"states {list(truth.state_shape)} have no grid; use over: time")
            return truth.state_shape[:-1]
        steps = truth.times[1:].diff()
        if len(steps) and not torch.allclose(steps, steps[:1]):
            raise NotMeasurable("the times are not equally far apart, so there is no spectrum over time")
        return ()

    @staticmethod
    def standard(states: Tensor, shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean and spread ``[component]`` of ``states`` ``[n, time, component]``; those of a field are the
        same at every point of its grid."""
        pooled = states.reshape(len(states), -1, shape[-1] if grid else states.shape[2])
        scale = component_scale(pooled, torch.ones(pooled.shape[:2], dtype=torch.bool))
        points = math.prod(grid)
        return pooled.mean((0, 1)).repeat(points), scale.repeat(points)

    def power(self, states: Tensor, grid: tuple[int, ...], window: bool = True) -> Tensor:
        """``[n, band]`` of standardised ``states`` ``[n, time, component]``, averaged over all else."""
        if grid:
            fields = states.reshape(*states.shape[:2], *grid, -1).movedim(-1, 2)
            return band_power(fields, self.edges, dims=len(grid)).mean((1, 2))
        lines = states.movedim(1, 2)
        if window:
            hann = torch.hann_window(lines.shape[-1], dtype=torch.float64)
            lines = lines * hann / hann.square().mean().sqrt()
        return band_power(lines, self.edges).mean(1)

    def band_error(self, band: str, rows: Tensor, grid: Sequence[int]) -> Score:
        """The mean of ``rows`` ``[n]``; not measurable where ``grid`` has no wavenumber in the band."""
        first, largest = (0, *self.edges)[self.bands.index(band)], int(shells(grid).max())
        if first > largest:
            reason = f"the {band} band begins at wavenumber {first}, and {list(grid)} points reach {largest}"
            return Score(float("nan"), n=len(rows), reason=reason)
        return Score(float(rows.mean()), interval=mean_interval(rows), n=len(rows))

    def floors(
        self, truth: Trajectory, grid: tuple[int, ...], scale: Tensor, middle: Tensor
    ) -> tuple[Tensor, str]:
        """|ln| of the ratio of the powers of two truth samples, ``[pair, band]``; or why there is none."""
        generator, found = torch.Generator().manual_seed(self.seed), []
        frames = torch.arange(1, len(truth.times))
        for _ in range(self.pairs):
            try:
                pair = [afresh(self.system, len(truth), truth.times, frames, generator) for _ in range(2)]
            except (NotMeasurable, ValueError) as reason:
                return torch.empty(0, len(self.bands)), str(reason)
            if not all(valid.all() for _, valid in pair):
                return torch.empty(0, len(self.bands)), "some true trajectories end early"
            powers = [self.power((states - middle) / scale, grid).mean(0) for states, _ in pair]
            found.append((powers[0] / powers[1]).log().abs())
        whole = torch.stack(found)
        if not whole.nan_to_num().any():
            return whole[:0], f"the starts of {type(self.system).__name__} are fixed: no two samples differ"
        return whole, ""

    def ratios(self, own: Tensor, made: Tensor, floors: tuple[Tensor, str]) -> dict[str, Score]:
        """Of the powers ``[n, band]`` of truth and prediction, with an interval by the delta method."""
        scores, n, own_floors = {}, len(own), floors[0]
        for i, band in enumerate(self.bands):
            right, guess = own[:, i], made[:, i]
            if not float(right.mean()) > SILENT * float(own.sum(1).mean()):
                reason = f"the truth has no power in the {band} band"
                scores[f"power_ratio_{band}"] = Score(float("nan"), better="", n=n, reason=reason)
                scores[f"power_log_ratio_{band}"] = Score(float("nan"), n=n, reason=reason)
                continue
            ratio = float(guess.mean() / right.mean())
            if not ratio > SILENT:
                reason = f"the prediction has no power in the {band} band"
                scores[f"power_ratio_{band}"] = Score(ratio, better="", floor=1.0, n=n)
                scores[f"power_log_ratio_{band}"] = Score(float("nan"), n=n, reason=reason)
                continue
            influence = guess / guess.mean() - right / right.mean()
            factor = math.exp(NORMAL * float(influence.std()) / n**0.5) if n > 1 else math.nan
            interval = (ratio / factor, ratio * factor) if math.isfinite(factor) else None
            scores[f"power_ratio_{band}"] = Score(ratio, better="", floor=1.0, interval=interval, n=n)
            column = own_floors[:, i]
            floor = float(column.mean()) if len(column) else None
            scores[f"power_log_ratio_{band}"] = Score(abs(math.log(ratio)), floor=floor, n=n)
            if len(column):
                high = Score(float(column.quantile(0.95)), better="", n=len(column))
                scores[f"power_log_ratio_{band}_floor_q95"] = high
        return scores

    def field_errors(self, guess: Tensor, actual: Tensor, grid: tuple[int, ...]) -> dict[str, Score]:
        """Errors of fields by their usual names, of standardised ``[n, time, component]``."""
        first, second = (each.reshape(*each.shape[:2], *grid, -1).movedim(-1, 2) for each in (guess, actual))
        dims, n = len(grid), len(guess)
        spread = second.var(tuple(range(-dims, 0)), correction=0)
        if bool((spread > SILENT).all()):
            rows = vrmse(first, second, dims=dims).mean((1, 2))
            scores = {"vrmse": Score(float(rows.mean()), interval=mean_interval(rows), n=n)}
        else:
            scores = {
                "vrmse": Score(float("nan"), n=n, reason="some true fields are the same at every point")
            }
        totals = crmse(*(each.flatten(0, 2) for each in (first, second)), dims=dims)
        scores["crmse"] = Score(float(totals), n=n)
        if dims == 1:
            found = fourier_rmse((first - second).flatten(0, 2), self.edges)
            scores |= {
                f"frmse_{band}": Score(float(value), n=n)
                for band, value in zip(self.bands, found)
                if value.isfinite()
            }
        return scores


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"spectra": Spectra}
