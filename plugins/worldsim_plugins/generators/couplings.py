"""How the noise of a batch is paired with its data: a permutation of the noise, drawn before."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Coupling: TypeAlias = Annotated[
    Literal["independent", "minibatch_ot", "conditional_ot"],
    Field(
        description="how noise is paired with data in training: as drawn; by exact transport within the "
        "batch, which gives the right law only where all contexts are alike; by transport that pays for "
        "carrying noise to another context (context_weight)"
    ),
]
ContextWeight: TypeAlias = Annotated[
    float,
    Field(
        gt=0,
        description="conditional_ot: cost of giving noise to another context, per squared distance of the "
        "two; large is the independent coupling, small biases the conditional law",
    ),
]


def paired(noise: Tensor, data: Tensor, context: Tensor, coupling: Coupling, context_weight: float) -> Tensor:
    """``noise`` ``[sample, ...]`` in the order in which it goes with ``data`` and ``context``."""
    if coupling == "independent":
        return noise
    return noise[transport_plan(noise, data, context, context_weight if coupling == "conditional_ot" else 0)]


def transport_plan(noise: Tensor, data: Tensor, context: Tensor, context_weight: float) -> Tensor:
    """Which noise ``[sample]`` each row of ``data`` is given, by optimal assignment within the batch.

    Cost |z_i - x_j|^2 + context_weight |c_i - c_j|^2. Without the second term (Pooladian et al. 2023; Tong et
    al. 2023) the noise that belongs to a context is no longer normal and the conditional law is wrong; with
    it the bias vanishes as the weight grows (C2OT: Cheng and Schwing 2025, "The curse of conditions").
    """

    def squared(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x.detach().flatten(1).double(), y.detach().flatten(1).double()).square()

    cost = squared(data, noise)
    if context_weight:
        cost = cost + context_weight * squared(context, context)
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=noise.device)
