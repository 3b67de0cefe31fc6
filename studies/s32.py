"""RMSNorm (Zhang and Sennrich 2019): x (mean x^2 + eps)^(-1/2) w against torch's, and where eps belongs.

A common mistake divides by (root mean square + eps): its derivative at 0 is 1 / eps, a thousand times that of
the right form, 1 / sqrt(eps), and small inputs are blown up to full size.
"""

import torch

from worldsim_kernels import rms_norm

SEEDS = (0,)
CLAIM = "torch.nn.RMSNorm bit for bit (C within 5e-7); derivative at 0 is 1 / sqrt(eps); eps outside: 1 / eps"
EPS = 1e-6


def ours(x):
    return rms_norm(x, eps=EPS).output


def eps_outside(x):
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return x / (size + EPS)


def slope(norm):
    """Derivative along the diagonal at 0, by a difference far below sqrt(eps)."""
    step = 1e-12
    return float(norm(torch.full((1, 8), step, dtype=torch.float64))[0, 0]) / step


def run(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, w = torch.randn(256, 512, generator=rng), torch.randn(512, generator=rng)
    layer = torch.nn.RMSNorm(512, eps=EPS)
    layer.weight.data = w
    expected = layer(x).detach()
    figures = {
        "torch form - torch.nn.RMSNorm": float(
            (rms_norm(x, w, backend="torch").output - expected).abs().max()
        ),
        "chosen form, relative": float(((rms_norm(x, w).output - expected) / expected).abs().max()),
        "scale invariance": float((ours(1000 * x) - ours(x)).abs().max()),
        "change when shifted by 1": float((ours(x + 1) - ours(x)).abs().max()),
    }
    zero = torch.zeros(1, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(zero).sum(), zero)
    figures["gradient at 0"] = float(gradient[0, 0])
    small = torch.full((1, 8), 1e-4, dtype=torch.float64)
    for name, norm in (("ours", ours), ("eps outside", eps_outside)):
        figures[f"slope at 0, {name}"] = slope(norm)
        figures[f"output for 1e-4, {name}"] = float(norm(small)[0, 0])
    return figures


def check(figures):
    assert figures["torch form - torch.nn.RMSNorm"] == 0
    assert figures["chosen form, relative"] < 5e-7
    assert figures["scale invariance"] < 1e-5
    assert figures["change when shifted by 1"] > 0.1
    assert abs(figures["gradient at 0"] / 1e3 - 1) < 1e-6
    assert abs(figures["slope at 0, ours"] / 1e3 - 1) < 1e-6
    assert abs(figures["slope at 0, eps outside"] / 1e6 - 1) < 1e-3
    assert abs(figures["output for 1e-4, ours"] - 0.0995) < 1e-4
    assert figures["output for 1e-4, eps outside"] > 0.98
