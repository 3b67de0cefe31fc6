"""Token shift, y_t = x_t + (x_{t-1} - x_t) mu: streamed token by token against the whole sequence, and the
Jacobian of output t over input s, which must vanish for s > t and for s < t - 1.

Every implementation that runs here is tried, for one mu and for the six mixes of an RWKV-7 block at once.
"""

import torch

from worldsim_kernels import token_shift

SEEDS = (0,)
CLAIM = "streamed = whole and influence of the future = 0, exactly; a token sees itself and the one before"
BACKENDS = (None, "torch", "reference")


def streamed(x, mu, backend):
    last, outputs = None, []
    for t in range(x.shape[1]):
        y, last = token_shift(x[:, t : t + 1], mu, last, backend=backend)
        outputs.append(y)
    return torch.cat(outputs, -2)


def influence(mu, backend):
    """Largest entries of the Jacobian [t, s] for s > t, for s < t - 1, and the smallest for the rest."""
    x = torch.linspace(-1, 1, 8 * len(mu), dtype=torch.float64).view(1, 8, len(mu)).requires_grad_()
    y = token_shift(x, mu, backend=backend).output.sum((0, 2))
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0].abs().sum((0, 2)) for one in y]
    jacobian = torch.stack(rows)
    band = jacobian.diagonal().min().minimum(jacobian.diagonal(-1).min())
    return float(jacobian.triu(1).max()), float(jacobian.tril(-2).max()), float(band)


def run(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, figures = torch.randn(3, 50, 16, generator=rng), {}
    one, six = torch.rand(16, generator=rng), torch.rand(6, 16, generator=rng)
    for backend in BACKENDS:
        name = backend or "chosen"
        gaps = [streamed(x, mu, backend) - token_shift(x, mu, backend=backend).output for mu in (one, six)]
        figures[f"streamed - whole, {name}"] = max(float(gap.abs().max()) for gap in gaps)
        future, past, band = influence(one.double(), backend)
        figures |= {f"future, {name}": future, f"past, {name}": past, f"seen, {name}": band}
    return figures


def check(figures):
    for name, value in figures.items():
        assert value > 0.1 if name.startswith("seen") else value == 0, name
