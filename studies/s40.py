"""Handwritten digits written pixel by pixel with a state that does not grow (after AiM, Li et al. 2024).

The 8 x 8 digits of scikit-learn at 4 grey levels are words of 65 tokens: the class, and then the pixels in
raster order; 1,300 for training and 497 held out. `sequence` over three Mamba blocks of width 64, told
row and column, learns 900 steps of 64 words at a rate that falls from 1e-3. (At 3e-3 it learns the words by
heart, and has 0.89 bits of the others.)

Bits per pixel of the held-out digits given the class and the pixels before, and beside it those of two laws
of a pixel by itself: by its place, and one for all. The model's law is over all 14 tokens: what it gives to
classes counts against it.

Tokens that the layers read to draw L of them, which are their operations: L with the state carried, and
L (L + 1) / 2 with every prefix read again, exactly. The exponents of both times from L = 64 to 512 are told
and not asserted.
"""

import time

import torch
from torch.nn.functional import one_hot

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.generators.sequence import Sequence, Streamed
from worldsim_plugins.systems.digits import TRAIN, pictures

SEEDS = (0, 1)
CLAIM = "bits per pixel <= 0.85; operations of a rollout L, and L (L + 1) / 2 with prefixes read again"
LEVELS = 4
LENGTHS = (64, 128, 256, 512)


def words():
    """``[digit, 1, 65]``: the class (token 4 and on), and 64 levels (0 to 3)."""
    images, classes = pictures()
    levels = (images.flatten(1) * LEVELS / 17).long()
    return torch.cat([classes[:, None] + LEVELS, levels], 1)[:, None]


def windows(tokens):
    return Trajectory(tokens, torch.arange(tokens.shape[2], dtype=torch.float64))


def bits(law, tokens):
    """Mean of -log2 of the ``law`` ``[digit or 1, pixel, token]`` of the pixels of ``tokens``."""
    seen = tokens[:, 0, 1:, None]
    return float(-law.expand(len(seen), -1, -1).gather(2, seen).log2().mean())


def by_frequency(tokens):
    """The law of a pixel by its place, and one for all pixels; one is added to each count."""
    counts = one_hot(tokens[:, 0, 1:], LEVELS).sum(0).double() + 1
    return [c / c.sum(-1, keepdim=True) for c in (counts[None], counts.sum(0).expand(1, *counts.shape))]


def cost(model, length, carried):
    """Tokens read, and seconds, for drawing a word of ``length`` tokens from the start symbol on."""
    read, name = [], "advance" if carried else "forward"
    method = getattr(model.body, name)

    def counted(x, *rest):
        read.append(x.shape[1])
        return method(x, *rest)

    setattr(model.body, name, counted)
    next_token = Streamed(model) if carried else model.next_token
    tokens, generator = torch.zeros(1, 0, dtype=torch.int64), torch.Generator().manual_seed(0)
    began = time.process_time()
    for _ in range(length):
        tokens = torch.cat([tokens, torch.multinomial(next_token(tokens), 1, generator=generator)], 1)
    seconds = time.process_time() - began
    delattr(model.body, name)
    return sum(read), seconds


def exponent(values):
    """Slope of log value against log length, by least squares."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (LENGTHS, values))
    return float((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum())


def run(seed=0, steps=900):
    tokens = words()
    train, test = tokens[:TRAIN], tokens[TRAIN:]
    with forked(seed):
        model = Sequence(None, windows(train), width=64, backbone=SSM(depth=3), places=(8, 8))
    settings = FitSettings(steps=steps, batch=64, learning_rate=1e-3, schedule="cosine")
    fit(model, windows(train), None, settings, seed)
    by_place, alike = (bits(law, test) for law in by_frequency(train))
    figures = {"bits": bits(model.token_laws(test[:, 0])[:, 1:-1], test)}
    figures |= {"bits by place": by_place, "bits of one law": alike}
    for name, carried in (("carried", True), ("again", False)):
        found = [cost(model, length, carried) for length in LENGTHS]
        figures |= {f"operations of {n}, {name}": read for n, (read, _) in zip(LENGTHS, found)}
        figures[f"exponent of time, {name}"] = exponent([seconds for _, seconds in found])
    return figures


def check(figures):
    assert figures["bits"] <= 0.85
    for n in LENGTHS:
        assert figures[f"operations of {n}, carried"] == n
        assert figures[f"operations of {n}, again"] == n * (n + 1) // 2
