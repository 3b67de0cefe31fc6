"""The information bottleneck of an 8 x 3 joint law, exactly: min I(X; T) - beta I(T; Y).

p(t|x) ~ p(t) exp(-beta KL[p(y|x) | p(y|t)]) iterated to its fixed point (Tishby, Pereira and Bialek 1999),
beta on the term of the future, and raised slowly from the solution before. What T tells about Y rises along
the way and stays below I(X; Y); from random starts at a high beta it may fall short.
"""

import torch

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "annealed: I(X;T), I(T;Y) rise with beta, I(T;Y) <= I(X;Y) and >= 97 % of it at the end"
BETAS = tuple(1.0 * 1.15**k for k in range(45))
F64, SPARE = torch.float64, 24
"""Values of T: more than inputs, since copies of one value are slow to part where none is to spare."""


def joint(seed):
    """Eight inputs of equal chance whose laws of three outcomes are random and uneven."""
    draws = torch.rand(8, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    law = (-draws.log()) ** 2  # uneven: a few outcomes take most
    return law / law.sum(1, keepdim=True) / 8


def information(table):
    ratio = table / (table.sum(1, keepdim=True) * table.sum(0))
    return float(torch.special.xlogy(table, torch.where(table > 0, ratio, 1)).sum())


def fixed_point(law, given, beta, rounds=600):
    """``given`` is p(t|x) ``[x, t]`` to begin with."""
    p_x = law.sum(1)
    p_y_x = law / p_x[:, None]
    for _ in range(rounds):
        p_t = p_x @ given
        p_y_t = (given * p_x[:, None]).T @ p_y_x / p_t[:, None].clamp(min=1e-300)
        apart = torch.special.xlogy(p_y_x, p_y_x).sum(1)[:, None] - p_y_x @ p_y_t.clamp(min=1e-300).log().T
        given = (p_t.clamp(min=1e-300).log() - beta * apart).softmax(1)
    return given


def terms(law, given):
    return information(law.sum(1)[:, None] * given), information(given.T @ law)


def run(seed=0):
    law, generator = joint(seed), torch.Generator().manual_seed(seed)

    def scattered():
        start = torch.rand(8, SPARE, dtype=F64, generator=generator)
        return start / start.sum(1, keepdim=True)

    given, path = scattered(), []
    for beta in BETAS:
        # A little noise, since a state that has split off from no other cannot do so by itself.
        given = fixed_point(law, 0.999 * given + 0.001 * scattered(), beta, rounds=150)
        path.append(terms(law, given))
    kept, useful = torch.tensor(path, dtype=F64).T
    random = max(terms(law, fixed_point(law, scattered(), BETAS[-1]))[1] for _ in range(3))
    return {
        "I(X;Y)": information(law),
        "I(T;Y), first": float(useful[0]),
        "I(X;T), last": float(kept[-1]),
        "I(T;Y), last": float(useful[-1]),
        "largest fall of I(X;T)": float((kept[:-1] - kept[1:]).max().clamp(min=0)),
        "largest fall of I(T;Y)": float((useful[:-1] - useful[1:]).max().clamp(min=0)),
        "largest I(T;Y) - I(X;Y)": float(useful.max()) - information(law),
        "I(T;Y), random starts": random,
    }


def check(figures):
    assert figures["largest fall of I(T;Y)"] < 1e-3
    assert figures["largest fall of I(X;T)"] < 1e-2
    assert figures["largest I(T;Y) - I(X;Y)"] < 1e-12
    assert figures["I(T;Y), first"] < 1e-3
    assert figures["I(T;Y), last"] > 0.97 * figures["I(X;Y)"]
    assert figures["I(T;Y), random starts"] <= figures["I(X;Y)"] + 1e-12
