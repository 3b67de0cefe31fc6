"""Samplers of diffusions: one function for each published algorithm, all of one denoiser.

    x_sigma = x_0 + sigma z,  z ~ N(0, I);    D(x, sigma) = E[x_0 | x_sigma = x]

Noise levels descend (the convention of Karras, Aittala, Aila and Laine 2022, "EDM"). A network of another
path or another target becomes such a denoiser by a change of variables (``paths``); the laws whose denoiser
is known in closed form are in ``exact``.
"""

from worldsim_kernels.sampling.ancestral import ancestral, gamma_sampling, stochastic_heun
from worldsim_kernels.sampling.deterministic import Denoise, ddim, dpm_solver_pp_2m, heun
from worldsim_kernels.sampling.exact import GaussianDenoiser, MixtureDenoiser
from worldsim_kernels.sampling.grids import karras_grid, log_snr_grid
from worldsim_kernels.sampling.paths import of_noise, of_v, of_velocity, velocity_of

__all__ = [
    "Denoise",
    "GaussianDenoiser",
    "MixtureDenoiser",
    "ancestral",
    "ddim",
    "dpm_solver_pp_2m",
    "gamma_sampling",
    "heun",
    "karras_grid",
    "log_snr_grid",
    "of_noise",
    "of_v",
    "of_velocity",
    "stochastic_heun",
    "velocity_of",
]
