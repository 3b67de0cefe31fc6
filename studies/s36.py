"""Easy consistency tuning of a diffusion, on eight Gaussians.

Eight Gaussians of deviation 0.1 on a ring of radius 2; a network of 3 x 128 learns 5,000 steps as a diffusion
and 6,000 more with pairs of levels whose gap shrinks (Geng et al. 2024). W2 of 1,500 samples made in one and
in two steps, of the diffusion in one Euler step and in 25 of DPM-Solver++(2M), and of two samples of the
truth.
"""

import math

import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim_kernels.sampling import ddim, dpm_solver_pp_2m, karras_grid
from worldsim_plugins.generators.consistency import Consistency
from worldsim_plugins.metrics.exact_transport import wasserstein2

SEEDS = (5, 6)
CLAIM = "one step: W2 <= 0.5 and <= 0.35 x the diffusion's; two steps: <= floor + 0.15"
POINTS, DIFFUSE, TUNE = 1500, 5000, 6000


def ring(n, generator):
    """``[n, 2]``."""
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return centre + 0.1 * torch.randn(n, 2, generator=generator)


def windows(points):
    """A point law as trajectories of two frames: the given one is zero, the generated one is the point."""
    states = torch.stack([torch.zeros_like(points), points], dim=1)[:, None]
    return Trajectory(states, torch.tensor([0.0, 1.0], dtype=torch.float64))


def fitted(truth, seed, diffuse, tune=0):
    with forked(seed):
        model = Consistency(truth, width=128, depth=3, octaves=True, diffuse=diffuse / (diffuse + tune))
    fit(model, truth, None, FitSettings(steps=diffuse + tune, batch=256, schedule="cosine"), seed)
    return model


@torch.no_grad()
def made(model, generator):
    nothing, noise = torch.zeros(POINTS, 2), torch.randn(POINTS, 1, 2, generator=generator)
    return model.drawn(noise, nothing, nothing, generator, None)[:, 0]


@torch.no_grad()
def diffused(model, sampler, steps, generator):
    nothing = torch.zeros(POINTS, 2)
    x = model.denoiser.sigma_max * torch.randn(POINTS, 1, 2, generator=generator)
    levels = karras_grid(steps, model.denoiser.sigma_min, model.denoiser.sigma_max)
    end = sampler(lambda x, sigma: model.denoise(x, sigma, nothing), x, levels)
    return model.denoiser.frames(nothing, end)[:, 0]


def run(seed=0, diffuse=DIFFUSE, tune=TUNE):
    generator = torch.Generator().manual_seed(seed)
    data = windows(ring(20_000, generator))
    truth = ring(POINTS, generator)

    def distance(points):
        return wasserstein2(points, truth).W2_squared ** 0.5

    figures = {"floor": distance(ring(POINTS, generator))}
    teacher = fitted(data, seed, diffuse)
    figures["diffusion, 1 step"] = distance(diffused(teacher, ddim, 1, generator))
    figures["diffusion, 25 steps"] = distance(diffused(teacher, dpm_solver_pp_2m, 25, generator))
    model = fitted(data, seed, diffuse, tune)
    for model.levels in ((), (1.0,)):
        figures[f"consistency, {len(model.levels) + 1} step(s)"] = distance(made(model, generator))
    return figures


def check(figures):
    one, two = (figures[f"consistency, {steps} step(s)"] for steps in (1, 2))
    assert one <= 0.5
    assert one <= 0.35 * figures["diffusion, 1 step"]
    assert two <= figures["floor"] + 0.15
