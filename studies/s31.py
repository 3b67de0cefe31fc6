"""SwiGLU against ReLU feed-forward layers of equal size, in a small character language model.

Two layers of width 64 with causal attention of 4 heads; (silu(x W) * x V) W2 with 170 hidden channels
against relu(x W) W2 with 256: 65,280 and 65,536 parameters in all feed-forward layers. 700 steps of AdamW on
32 windows of 64 characters. The text is the first 90,000 characters of the reference topics that come with
every Python (``pydoc_data``, in order of their names); the last tenth is held out. Its wording differs a
little between versions of Python.

Single seeds go either way now and then, so only the mean of five is asserted.
"""

from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn

from worldsim_kernels import rms_norm, swiglu

SEEDS = (0,)
CLAIM = "held-out nll of SwiGLU - ReLU, mean of 5 seeds: < 0"
WIDTH, HEADS, WINDOW, BATCH = 64, 4, 64, 32


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.value, self.out = (
            nn.Linear(a, b, bias=False) for a, b in ((WIDTH, 170), (WIDTH, 170), (170, WIDTH))
        )

    def forward(self, x):
        return self.out(swiglu(self.gate(x), self.value(x)))


def relu():
    return nn.Sequential(nn.Linear(WIDTH, 256, bias=False), nn.ReLU(), nn.Linear(256, WIDTH, bias=False))


class Block(nn.Module):
    def __init__(self, feed_forward):
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed_forward = feed_forward
        self.first, self.second = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))

    def forward(self, x):
        q, k, v = self.project(rms_norm(x, self.first).output).unflatten(-1, (3, HEADS, -1)).unbind(2)
        seen = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), is_causal=True)
        y, x = rms_norm(self.out(seen.transpose(1, 2).flatten(2)), self.second, residual=x)
        return x + self.feed_forward(y)


class Model(nn.Module):
    def __init__(self, characters, feed_forward):
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(WINDOW, WIDTH)
        self.blocks = nn.Sequential(*(Block(feed_forward()) for _ in range(2)))
        self.head = nn.Linear(WIDTH, characters, bias=False)

    def forward(self, tokens):
        x = self.blocks(self.embed(tokens) + self.place.weight[: tokens.shape[1]])
        return self.head(rms_norm(x).output)


def text():
    """The characters' numbers, and how many characters there are."""
    whole = "\n".join(topics[name] for name in sorted(topics))[:90_000]
    known = sorted(set(whole))
    number = {character: i for i, character in enumerate(known)}
    return torch.tensor([number[character] for character in whole]), len(known)


def loss(model, windows):
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def trained(feed_forward, seed, steps):
    """Held-out nll per character, in nats, and the parameters of the feed-forward layers."""
    tokens, characters = text()
    cut = len(tokens) * 9 // 10
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model(characters, feed_forward)
    rng, optimizer = torch.Generator().manual_seed(seed), torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    reach = torch.arange(WINDOW + 1)
    for _ in range(steps):
        starts = torch.randint(cut - WINDOW - 1, (BATCH, 1), generator=rng)
        optimizer.zero_grad()
        loss(model, tokens[starts + reach]).backward()
        optimizer.step()
        schedule.step()
    held_out = tokens[torch.arange(cut, len(tokens) - WINDOW - 1, WINDOW)[:, None] + reach]
    with torch.no_grad():
        nll = float(loss(model, held_out))
    return nll, sum(p.numel() for block in model.blocks for p in block.feed_forward.parameters())


def run(seed=0, steps=700, pairs=5):
    figures, gaps = {}, []
    for each in range(pairs * seed, pairs * (seed + 1)):
        nlls = {}
        for name, feed_forward in (("SwiGLU", SwiGLU), ("ReLU", relu)):
            nlls[name], figures[f"parameters {name}"] = trained(feed_forward, each, steps)
        gaps.append(nlls["SwiGLU"] - nlls["ReLU"])
        figures[f"nll ReLU {each}"], figures[f"gap {each}"] = nlls["ReLU"], gaps[-1]
    values = torch.tensor(gaps, dtype=torch.float64)
    figures["mean gap"] = float(values.mean())
    figures["standard error"] = float(values.std() / len(values) ** 0.5)
    return figures


def check(figures):
    assert figures["parameters SwiGLU"] == 65_280
    assert figures["parameters ReLU"] == 65_536
    assert figures["mean gap"] < 0
