"""RWKV-7's generalised delta rule tracks discrete state, which decay alone cannot.

(i) Construction. With w = 1, eta = 2 and kappa = (e_i - e_j) / sqrt(2) the update swaps rows i and j of the
state: 2,000 random transpositions of five objects in float64, against the permutation itself.

(ii) Learned parity of bits. One layer of width 16 between an embedding and a linear read-out, trained on
lengths 2 to 40 to give the parity of every prefix, 2,000 steps of Adam; accuracy of the last parity at 16, 64
and 256 bits. Three mixers: the delta rule with beta in (0, 2), with beta in (0, 1), and linear attention with
positive decays. Parity needs a transition with a negative eigenvalue (Grazzi et al., 2024), which only the
first has.
"""

import torch
from torch import nn
from torch.nn import functional as F

from worldsim_kernels import delta_rule, gla, rwkv7

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "swaps to 1e-9; parity >= 0.99 at 64 and >= 0.95 at 256 with beta < 2; at 16 <= 0.6 without"
WIDTH, STEPS, BATCH, LONGEST = 16, 2000, 128, 40
TESTED = (16, 64, 256)


def swap_error(seed, swaps=2000, objects=5):
    """Largest difference between the state after all swaps and the permuted identity."""
    draw = torch.Generator().manual_seed(seed)
    order = list(range(objects))
    kappa = torch.zeros(1, swaps, 1, objects, dtype=torch.float64)
    for t in range(swaps):
        i, j = torch.randperm(objects, generator=draw)[:2].tolist()
        kappa[0, t, 0, i], kappa[0, t, 0, j] = 0.5**0.5, -(0.5**0.5)
        order[i], order[j] = order[j], order[i]
    zero, start = torch.zeros_like(kappa), torch.eye(objects, dtype=torch.float64)
    state = rwkv7(
        zero, zero, zero, zero, kappa, torch.full_like(kappa, 2), initial_state=start[None, None]
    ).state
    return float((state[0, 0] - start[order]).abs().max())


class Layer(nn.Module):
    """Bits [B, T] to the logit of each prefix's parity."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer
        self.embed = nn.Embedding(2, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.rate = nn.Linear(WIDTH, WIDTH if mixer == "decay" else 1)
        self.norm = nn.LayerNorm(WIDTH)
        self.read = nn.Linear(WIDTH, 1)

    def forward(self, bits):
        x = self.embed(bits)
        q, k, v = self.qkv(x)[:, :, None].chunk(3, -1)
        if self.mixer == "decay":
            mixed = gla(q, k, v, F.logsigmoid(self.rate(x))[:, :, None])
        else:
            beta = {"delta 2": 2, "delta 1": 1}[self.mixer] * torch.sigmoid(self.rate(x))
            mixed = delta_rule(q, k, v, beta)
        return self.read(self.norm(x + mixed.output[:, :, 0]))[..., 0]


def trained(mixer, seed, steps):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Layer(mixer)
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        length = int(torch.randint(2, LONGEST + 1, (1,), generator=draw))
        bits = torch.randint(0, 2, (BATCH, length), generator=draw)
        parity = bits.cumsum(1) % 2
        loss = F.binary_cross_entropy_with_logits(model(bits), parity.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def accuracy(model, length, seed, count=2000):
    bits = torch.randint(0, 2, (count, length), generator=torch.Generator().manual_seed(1000 + seed))
    return float(((model(bits)[:, -1] > 0) == (bits.sum(1) % 2 == 1)).float().mean())


def run(seed=0, steps=STEPS):
    figures = {"swap error": swap_error(seed)}
    for mixer in ("delta 2", "delta 1", "decay"):
        model = trained(mixer, seed, steps)
        figures |= {f"{mixer} at {length}": accuracy(model, length, seed) for length in TESTED}
    return figures


def check(figures):
    assert figures["swap error"] < 1e-9
    for length, bound in zip(TESTED, (0.99, 0.99, 0.95)):
        assert figures[f"delta 2 at {length}"] >= bound
    for mixer in ("delta 1", "decay"):
        assert figures[f"{mixer} at 16"] <= 0.6
