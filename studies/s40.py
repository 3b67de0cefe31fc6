"""Handwritten digits written pixel by pixel by a model with a state that does not grow (after AiM).

The 8 x 8 digits of scikit-learn at 4 grey levels: 65 tokens, the class and then the pixels in raster order
(1,300 for training, 497 held out, disjoint). `sequence` over three retention blocks of width 64 learns 900
steps of 64 digits. Bits per pixel of the held-out digits, given the class and the pixels before; beside it
the entropy of a pixel by its place and class, and by nothing. The law is over all 14 tokens, so that weight
on what is no pixel counts against the model.

Operations of a rollout of L tokens: tokens that the layers read with the state carried, L, and with the
prefix read again for each, L (L + 1) / 2, counted and exact. The exponent of the time from 64 to 512 tokens
is told and not asserted: what is asserted of the carried one is that of its operations, which is 1.
"""

import math
import time

import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim_plugins.backbones.retention import Retention
from worldsim_plugins.generators.sequence import Sequence, sampled_continuation
from worldsim_plugins.systems.digits import pictures

SEEDS = (0, 1)
CLAIM = "bits per pixel <= 0.85; operations of a rollout L and, with prefixes read again, L (L + 1) / 2"
LEVELS, TRAIN = 4, 1300
LENGTHS = (64, 128, 256, 512)


def tokens(seed):
    """Training and held-out ``[digit, 1, 65]``: the class (tokens 4 ..) and 64 levels (0 .. 3)."""
    images, labels = pictures()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    level = (images[order].flatten(1) * LEVELS / 17).long()
    words = torch.cat([labels[order, None] + LEVELS, level], 1)[:, None]
    return words[:TRAIN], words[TRAIN:]


def windows(words):
    return Trajectory(words, torch.arange(words.shape[2], dtype=torch.float64))


@torch.no_grad()
def bits(model, words):
    law = model.token_laws(words[:, 0])[:, 1:-1]
    return float(-law.gather(2, words[:, 0, 1:, None]).log2().mean())


def baselines(train, test):
    """Bits of a pixel by its frequencies in its place, and over all places, one added to each count."""
    counts = torch.nn.functional.one_hot(train[:, 0, 1:], LEVELS).sum(0).double() + 1
    seen = test[:, 0, 1:].T[..., None]
    by_place = (counts / counts.sum(-1, keepdim=True))[:, None].expand(-1, len(test), -1)
    alike = (counts.sum(0) / counts.sum()).expand_as(by_place)
    return [float(-law.gather(2, seen).log2().mean()) for law in (by_place, alike)]


def costs(model, length):
    """Tokens read and seconds of a rollout of ``length`` tokens with the start symbol, carried and not."""
    read, body, methods = [], model.body, {}
    for name in ("advance", "forward"):
        methods[name] = getattr(body, name)

        def counted(x, *rest, name=name):
            read.append(x.shape[1])
            return methods[name](x, *rest)

        setattr(body, name, counted)
    start = Trajectory(torch.full((1, 1, 1), LEVELS), torch.zeros(1, dtype=torch.float64))
    times = torch.arange(length, dtype=torch.float64)
    found = []
    for roll in (model.rollout, lambda start, times, *rest: prefixes(model, start, times, *rest)):
        read.clear()
        began = time.perf_counter()
        with torch.no_grad():
            roll(start, times, None, 1, torch.Generator().manual_seed(0))
        found.append((sum(read), time.perf_counter() - began))
    for name, method in methods.items():
        setattr(body, name, method)
    return found


def prefixes(model, start, times, actions, draws, generator):
    return sampled_continuation(model.next_token, start, times, draws, generator)


def exponent(values):
    """Slope of log value against log length, by least squares."""
    x = torch.tensor(LENGTHS, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def run(seed=0):
    train, test = tokens(seed)
    with forked(seed):
        model = Sequence(None, windows(train), width=64, backbone=Retention(depth=3))
    model.vocabulary = max(model.vocabulary, LEVELS + 10)
    fit(model, windows(train), None, FitSettings(steps=900, batch=64, learning_rate=3e-3), seed)
    by_place, alike = baselines(train, test)
    found = [costs(model, length) for length in LENGTHS]
    carried, again = ([each[i] for each in found] for i in (0, 1))
    return {
        "bits": bits(model, test),
        "bits by place": by_place,
        "bits of one law": alike,
        "operations carried / L": max(n / length for (n, _), length in zip(carried, LENGTHS)),
        "operations again / (L (L + 1) / 2)": math.inf,
        "exponent of time, carried": exponent([seconds for _, seconds in carried]),
        "exponent of time, again": exponent([seconds for _, seconds in again]),
    }


def check(figures):
    assert figures["bits"] <= 0.85
