"""Projection onto a conserved energy, by the structure of its residual, on one thread.

    python benchmarks/projection.py [--quick]

Pendulums of ``frames`` frames each compare their energy with that of frame 1, which moves too: as many
residuals as frames, less two. Four Gauss-Newton steps, from noisy trajectories:

    dense      the matrix J J^T of each sample, pseudo-inverted
    anchored   its structure, blocks on the diagonal and one of rank 1 in all of them

Beside them ``local``, which compares with frame 0, held: blocks alone. ``apart`` is the largest difference of
dense and anchored. The exponent p of seconds ~ frames^p is by least squares on logarithms, with its standard
error. Times are the least of several turns.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse

import torch
from measure import fit, take_turns
from torch import Tensor

from worldsim_kernels.project import Anchor, project

STEPS = 4


def energy(x: Tensor) -> Tensor:
    return x[..., 1].square() / 2 + 1 - x[..., 0].cos()


ANCHOR = Anchor(energy, 1)


def generated(x: Tensor) -> Tensor:
    """The energy of frames 1.. less that of frame 1."""
    change = energy(x[:, 1:]) - energy(x[:, 1:2])
    return torch.cat([torch.zeros_like(change[:, :1]), change], 1)


def noisy(samples: int, frames: int) -> Tensor:
    """``[samples, frames, 2]``: circles of radius 1, with noise."""
    generator = torch.Generator().manual_seed(0)
    angle = 0.2 * torch.arange(frames, dtype=torch.float64)
    circle = torch.stack([angle.cos(), -angle.sin()], -1)
    return circle + 0.1 * torch.randn(samples, frames, 2, dtype=torch.float64, generator=generator)


def calls(x: Tensor) -> dict[str, object]:
    settings = {"frozen": 0, "tolerance": 0.0, "max_iterations": STEPS}
    return {
        "dense": lambda: project(generated, x, **settings),
        "anchored": lambda: project(generated, x, anchor=ANCHOR, **settings),
        "local": lambda: project(lambda y: energy(y) - energy(x[:, :1]), x, local=True, **settings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples and frames")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    samples, sizes = (200, (9, 17, 33)) if quick else (2000, (9, 17, 33, 65, 129))
    longest = 33 if quick else 65
    print(f"{samples} samples, {STEPS} Gauss-Newton steps; ms, dense / anchored, largest difference")
    spent: dict[str, dict[int, float]] = {"dense": {}, "anchored": {}, "local": {}}
    for frames in sizes:
        x = noisy(samples, frames)
        tried = {name: call for name, call in calls(x).items() if name != "dense" or frames <= longest}
        for name, took in take_turns(tried, budget=0.2 if quick else 2.0).items():
            spent[name][frames] = took
        shown = "  ".join(f"{name} {spent[name][frames] * 1e3:9.1f}" for name in tried)
        if "dense" in tried:
            apart = (tried["dense"]().x - tried["anchored"]().x).abs().max()
            shown += f"  ratio {spent['dense'][frames] / spent['anchored'][frames]:6.1f}  apart {apart:.1e}"
        print(f"{frames:4d} frames  {shown}")
    for name, took in spent.items():
        exponent, spread = fit(list(took), list(took.values()))
        print(f"{name:9} ~ frames^{exponent:.2f} +- {spread:.2f}")


if __name__ == "__main__":
    main()
