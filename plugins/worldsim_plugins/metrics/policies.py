"""What the published scores say of a policy that knows the state: exact, by recursion over pairs of states.

A policy accepts some of the legal tokens. Between the states i and j it has the boundary

    |M_k(i, j)| = #{a accepted at i, not at j} + sum over a accepted at both of |M_{k-1}(i a, j a)|

and its scores are below 1 though its knowledge is perfect: they are the ceiling for a model of what the
policy does. Compression precision is 1, since what it accepts depends on the state alone.
"""

from __future__ import annotations

from torch import Tensor

from worldsim_plugins.metrics.myhill_nerode import boundary_sizes


def policy_scores(
    transitions: Tensor, accepted: Tensor, boundary: int, suffix: int, tokens: Tensor | None = None
) -> dict[str, Tensor]:
    """distinction_precision and distinction_recall of each ordered pair, ``[state, state]``, NaN where the
    policy's or the true boundary is empty.

    ``accepted`` ``[state, token]`` bool, legal tokens alone; ``boundary`` and ``suffix`` are the lengths of
    the longest words of the true boundary, made of ``tokens``, and of the policy's. Raises ValueError where
    an illegal token is accepted.
    """
    legal = transitions >= 0
    if bool((accepted & ~legal).any()):
        raise ValueError("a policy that knows the state accepts legal tokens alone")
    true = boundary_sizes(transitions, boundary, tokens).sum(0)
    within = accepted if tokens is None else accepted & tokens
    # A word of the true boundary is illegal after j, so that the policy refuses it there in any case.
    hit = words(transitions, within, ~legal, legal, boundary)
    found = words(transitions, accepted, ~accepted, accepted, suffix)
    right = words(transitions, accepted, ~legal, accepted, suffix)
    return {"distinction_precision": right / found, "distinction_recall": hit / true}


def words(transitions: Tensor, first: Tensor, last: Tensor, both: Tensor, length: int) -> Tensor:
    """Number of words of up to ``length`` whose tokens are all of ``first`` at i, the last of ``last`` at j,
    and those before it of ``both`` at j, ``[state, state]`` float64; each is ``[state, token]`` bool."""
    ends = first.double() @ last.double().T
    total = ends.clone()
    for _ in range(length - 1):
        longer = ends.clone()
        for token in (first.any(0) & both.any(0)).nonzero()[:, 0]:
            here, there = (side[:, token].nonzero()[:, 0] for side in (first, both))
            after = total[transitions[here, token][:, None], transitions[there, token]]
            longer[here[:, None], there] += after
        total = longer
    return total
