"""The scan of affine maps by its log-depth forms, by chunks and in C, against the loop; in float64.

L = 37 is not a power of two. The largest difference of states, of gradients, and the growth of a decay of
one half over 10^5 steps, whose product is 10^-30103: no form divides by it.
"""

import torch

from worldsim_kernels import affine_scan
from worldsim_kernels.affine import affine_scan_reference, associative_scan
from worldsim_kernels.backends import backends_of

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "forms agree within 1e-12 at L = 37; gradcheck; no NaN and h = 2 at L = 10^5, a = 0.5"


def tree(method):
    return lambda a, b: associative_scan(a, b, method).offset


def forms():
    named = {"odd-even": tree("odd_even"), "Hillis-Steele": tree("hillis_steele")}
    backends = ["torch", "native"] if backends_of("affine_scan").reason("native") is None else ["torch"]
    return named | {name: lambda a, b, name=name: affine_scan(a, b, backend=name).output for name in backends}


def run(seed=0, length=37, long=100_000):
    rng = torch.Generator().manual_seed(seed)
    a = torch.rand(2, length, 3, generator=rng, dtype=torch.float64).requires_grad_()
    b = torch.randn(2, length, 3, generator=rng, dtype=torch.float64).requires_grad_()
    g = torch.randn(2, length, 3, generator=rng, dtype=torch.float64)
    exact = affine_scan_reference(a, b).output
    slopes = torch.autograd.grad(exact, (a, b), g)
    ones = torch.ones(1, long, 1, dtype=torch.float64)
    few = [x[:1, :, :1].detach().requires_grad_() for x in (a, b)]
    figures = {}
    for name, form in forms().items():
        found = form(a, b)
        found_slopes = torch.autograd.grad(found, (a, b), g)
        figures[f"difference {name}"] = float((found - exact).detach().abs().max())
        figures[f"gradient difference {name}"] = max(
            float((x - y).abs().max()) for x, y in zip(found_slopes, slopes)
        )
        figures[f"gradcheck {name}"] = float(torch.autograd.gradcheck(form, few))
        figures[f"long {name}"] = float((form(ones / 2, ones)[0, -1] - 2).abs())
    return figures


def check(figures):
    for name in forms():
        assert figures[f"difference {name}"] < 1e-12
        assert figures[f"gradient difference {name}"] < 1e-12
        assert figures[f"gradcheck {name}"] == 1
        assert figures[f"long {name}"] < 1e-12
