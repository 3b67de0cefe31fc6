"""A small autoregressive model over tokens: p(a_t | a_1 ... a_{t-1}), trained by cross entropy.

A start symbol stands before the first token, so that the empty prefix has a law too. What carries the past
forward is a backbone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Backbone, HasAutomaton, Streams, System
from worldsim_plugins.backbones.recurrent import Recurrent


class Sequence(nn.Module):
    """Next-token model of tokens ``[trajectory, 1, time]`` int64.

    Sequences start where the world starts: train it on whole trajectories (leave ``fit.window`` unset) and
    give contexts from the first token on. Raises ValueError when the states are not tokens, or the backbone
    is not causal.
    """

    scaling = "none"

    def __init__(
        self,
        system: System,
        truth: Trajectory,
        *,
        width: Annotated[int, Field(ge=4, le=4096, multiple_of=4, description="features per token")] = 64,
        backbone: Annotated[
            Backbone | None,
            Field(
                description="what carries the past forward; one layer of gated recurrent units when left out"
            ),
        ] = None,
        places: Annotated[
            tuple[Annotated[int, Field(ge=1)], ...],
            Field(
                description="sizes of the axes that words are written along, the last one fastest, such as "
                "[8, 8] for pictures row by row: each token is told its index along each; over the end they "
                "begin again. None when left out"
            ),
        ] = (),
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary_size(system, truth)
        self.place = nn.ParameterList(0.02 * torch.randn(size, width) for size in places)
        self.embedding = nn.Embedding(self.vocabulary + 1, width)
        self.body = (backbone or Recurrent()).layers(width, causal=True)
        self.head = nn.Linear(width, self.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[trajectory, length + 1, token]``: entry i is the law after the first i ``tokens``."""
        return self.head(self.features(tokens))

    def features(self, tokens: Tensor) -> Tensor:
        """What the head reads, ``[trajectory, length + 1, width]``: entry i for the first i ``tokens``."""
        begin = torch.full_like(tokens[:, :1], self.vocabulary) if tokens.shape[1] else self._start(tokens)
        return self.body(self.embedded(torch.cat([begin, tokens], 1)))

    def embedded(self, tokens: Tensor, first: int = 0) -> Tensor:
        """``[trajectory, length, width]`` of tokens whose first one is number ``first``; the start is 0."""
        x, index = self.embedding(tokens), torch.arange(first, first + tokens.shape[1], device=tokens.device)
        for vectors in reversed(self.place):
            x = x + vectors[index % len(vectors)]
            index = index // len(vectors)
        return x

    def _start(self, tokens: Tensor) -> Tensor:
        return torch.full((len(tokens), 1), self.vocabulary, device=tokens.device)

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean cross entropy of each token given those before it, nats; ragged ends are left out."""
        tokens = truth.states[:, 0]
        target = tokens
        if truth.length is not None:
            frame = torch.arange(tokens.shape[1], device=tokens.device)
            target = torch.where(frame < truth.length[:, :1], tokens, -100)
        return F.cross_entropy(self(tokens[:, :-1]).transpose(1, 2), target)

    @torch.no_grad()
    def latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        """The features after the last token of ``context``, ``[trajectory, width]``; nothing is drawn."""
        return self.features(context.states[:, 0].to(self.head.weight.device))[:, -1]

    def next_token(self, tokens: Tensor) -> Tensor:
        """Probabilities ``[n, token]`` float64 after the prefixes ``[n, length]`` (length >= 0)."""
        return self.token_laws(tokens)[:, -1]

    @torch.no_grad()
    def token_laws(self, tokens: Tensor) -> Tensor:
        """The same after each of the first 0, 1, ... ``length`` tokens, ``[n, length + 1, token]``."""
        device = self.head.weight.device
        return self(tokens.long().to(device)).double().softmax(-1).to(tokens.device)

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """Sampled continuations ``[trajectory, draw, time]``; frame 0 is the context's last token.

        A backbone that reads piece by piece reads every token once; another one reads the whole prefix again
        for each.
        """
        if not isinstance(self.body, Streams):
            return sampled_continuation(self.next_token, context, times, draws, generator)
        return sampled_continuation(Streamed(self), context, times, draws, generator)


class Streamed:
    """Laws ``[n, token]`` of the next token after prefixes that grow: what was read is kept as a state."""

    def __init__(self, model: Sequence) -> None:
        self.model, self.read, self.state = model, 0, None

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """``tokens`` ``[n, length]`` must go on from those of the call before."""
        model = self.model
        fresh = tokens[:, self.read :].to(model.head.weight.device)
        first = self.read + 1
        if self.state is None:
            fresh, first = torch.cat([model._start(fresh), fresh], 1), 0
        h, self.state = model.body.advance(model.embedded(fresh, first), self.state)
        self.read = tokens.shape[1]
        return model.head(h[:, -1]).double().softmax(-1).to(tokens.device)


def vocabulary_size(system: System, truth: Trajectory) -> int:
    """Number of tokens: of the system's alphabet, or one more than the largest token seen."""
    if truth.states.is_floating_point() or truth.state_shape:
        raise ValueError(
            f"sequence needs integer tokens [trajectory, draw, time], found {truth.states.dtype} "
            f"states of shape {list(truth.states.shape)}; use it on a system over tokens, such as automaton"
        )
    return len(system.alphabet) if isinstance(system, HasAutomaton) else int(truth.states.max()) + 1


def sampled_continuation(
    next_token: Callable[[Tensor], Tensor],
    context: Trajectory,
    times: Tensor,
    draws: int,
    generator: torch.Generator,
) -> Trajectory:
    """Tokens drawn one by one from ``next_token``: ``[trajectory, draw, time]``, frame 0 the given one.

    A rollout cannot stop early, so where the law accepts no token at all the next one is drawn uniformly.
    """
    tokens = context.states[:, 0].repeat_interleave(draws, 0)
    for _ in range(len(times) - 1):
        law = next_token(tokens)
        law = torch.where(law.sum(1, keepdim=True) > 0, law, torch.ones_like(law))
        tokens = torch.cat([tokens, torch.multinomial(law, 1, generator=generator)], 1)
    states = tokens[:, -len(times) :].reshape(len(context), draws, len(times))
    return context.replace(states=states, times=times, actions=None, observables={}, length=None)


@hookimpl
def worldsim_generators():
    return {"sequence": Sequence}
