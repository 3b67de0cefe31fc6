"""Opaque torch operators with a backward of their own.

One call registers, from a forward and a backward function: two schemas in the ``worldsim`` library, their
fake kernels (so that ``torch.compile(fullgraph=True)`` sees shapes and never the inside), the autograd
formula, and the rules that make them work under ``torch.func``'s ``grad``, ``vjp`` and ``vmap``. Forward-mode
(``jvp``) and second derivatives raise NotImplementedError and name the backend that has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY: Any = torch.library.Library("worldsim", "DEF")  # type: ignore[no-untyped-call]
HIGHER = "it has one backward of its own; for second derivatives or jvp call it with backend='reference'"


class Operator:
    """``worldsim::NAME`` and ``worldsim::NAME_backward``; call it as a function of its positional arguments.

    arguments  the schema's arguments, as "Tensor q, Tensor? g, float scale, str backend"
    outputs    how many tensors it returns (at least two: a lone one would not be a tuple)
    forward    (*arguments) -> tensors, fresh and contiguous, never views of the inputs
    fake       (*arguments) -> empty tensors of the same shapes and dtypes
    backward   (grads, outputs, needed, *arguments) -> for each *tensor* argument its gradient or None.
               grads: one tensor or None for each output; outputs: the forward's own, when ``keep`` is set,
               else (); needed: for each tensor argument whether its gradient is asked for. None for one
               that is counts as zeros
    batched    the tensor arguments whose first axis is the batch, as have all outputs. ``vmap`` over these
               alone joins the axes; over any other it calls once for each member
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        outputs: int,
        forward: Callable[..., tuple[Tensor, ...]],
        fake: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., Sequence[Tensor | None]],
        batched: Sequence[str] = (),
        keep: bool = False,
    ) -> None:
        parts = [part.strip().split() for part in arguments.split(",")]
        self.names = [part[1] for part in parts]
        self.tensors = [i for i, part in enumerate(parts) if part[0].startswith("Tensor")]
        self.batched = {self.names.index(each) for each in batched}
        self.keep, self.count, self.name = keep, outputs, name
        LIBRARY.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * outputs)})")
        LIBRARY.define(
            f"{name}_backward(Tensor?[] grads, Tensor[] outputs, bool[] needed, {arguments}) -> Tensor[]"
        )
        self._forward = getattr(torch.ops.worldsim, name)
        self._backward = getattr(torch.ops.worldsim, f"{name}_backward")
        _implement(name, forward, fake)
        _implement(f"{name}_backward", self._whole(backward), self._fake_backward)
        torch.library.register_autograd(
            f"worldsim::{name}", self._grad, setup_context=self._save, lib=LIBRARY
        )
        torch.library.register_autograd(f"worldsim::{name}_backward", self._no_second, lib=LIBRARY)
        self._transformed = _function(self)

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        # The functorch form of an autograd.Function costs some 50 microseconds more, so only where needed:
        # under a transform, and where forward-mode tangents would be dropped without a word.
        if not torch.compiler.is_compiling() and (
            torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        ):
            found: tuple[Tensor, ...] = self._transformed.apply(*arguments)
            return found
        made: tuple[Tensor, ...] = self._forward(*arguments)
        return made

    def _whole(self, backward: Callable[..., Sequence[Tensor | None]]) -> Callable[..., list[Tensor]]:
        """An operator returns tensors only: an empty one stands for a gradient that is not asked for."""

        def run(grads: Any, outputs: Any, needed: Any, *arguments: Any) -> list[Tensor]:
            found = backward(grads, outputs, needed, *arguments)
            example = arguments[self.tensors[0]]

            def made(like: Tensor, one: Tensor | None) -> Tensor:
                return torch.zeros_like(like) if one is None else one.to(like.dtype).contiguous()

            return [
                made(arguments[i], one) if want else example.new_empty(0)
                for i, one, want in zip(self.tensors, found, needed, strict=True)
            ]

        return run

    def _fake_backward(self, grads: Any, outputs: Any, needed: Any, *arguments: Any) -> list[Tensor]:
        example = arguments[self.tensors[0]]
        return [
            arguments[i].new_empty(arguments[i].shape) if want else example.new_empty(0)
            for i, want in zip(self.tensors, needed)
        ]

    def _save(self, ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(inputs[i] for i in self.tensors), *(output if self.keep else ()))
        ctx.others = [None if i in self.tensors else value for i, value in enumerate(inputs)]

    def _grad(self, ctx: Any, *grads: Tensor | None, again: Any = None) -> tuple[Tensor | None, ...]:
        if all(each is None for each in grads):
            return (None,) * len(self.names)
        saved = ctx.saved_tensors
        inputs, outputs = saved[: len(self.tensors)], saved[len(self.tensors) :]
        arguments = list(ctx.others)
        for i, tensor in zip(self.tensors, inputs):
            arguments[i] = tensor
        wanted = ctx.needs_input_grad
        needed = [
            bool(wanted[i]) and tensor is not None and tensor.is_floating_point()
            for i, tensor in zip(self.tensors, inputs)
        ]
        call = self._backward if again is None else again
        found = call(list(grads), list(outputs), needed, *arguments)
        all_of: list[Tensor | None] = [None] * len(self.names)
        for i, one, want in zip(self.tensors, found, needed):
            all_of[i] = one if want else None
        return tuple(all_of)

    def _no_second(self, ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{self.name} cannot be differentiated twice: {HIGHER}")

    def _each(self, size: int, dims: Sequence[int | None], arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """``vmap``: the mapped axis joins the batch, or else one call for each member."""
        mapped = {i for i, dim in enumerate(dims) if dim is not None}
        present = {i for i in self.batched if arguments[i] is not None}
        if mapped <= present:
            joined = list(arguments)
            for i in present:
                x = arguments[i]
                x = x.movedim(dims[i], 0) if i in mapped else x.expand(size, *x.shape)
                joined[i] = x.flatten(0, 1)
            made = self(*joined)
            return tuple(each.reshape(size, each.shape[0] // size, *each.shape[1:]) for each in made)
        calls = [
            self(*(x.select(dims[i], n) if i in mapped else x for i, x in enumerate(arguments)))
            for n in range(size)
        ]
        return tuple(torch.stack(each) for each in zip(*calls, strict=True))


def _implement(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"worldsim::{name}", fake, lib=LIBRARY)


def _function(operator: Operator) -> Any:
    """The same operator for ``torch.func``, whose transforms need this form."""

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return operator._forward(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            operator._save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return operator._grad(ctx, *grads, again=_again)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return operator._each(info.batch_size, in_dims, arguments), (0,) * operator.count

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise NotImplementedError(f"{operator.name} has no forward-mode derivative: {HIGHER}")

    class Backward(torch.autograd.Function):
        """Flat, because a transform looks only at an argument that is itself a tensor."""

        @staticmethod
        def forward(sizes: Any, needed: Any, *flat: Any) -> Any:
            count, kept = sizes
            grads, outputs = list(flat[:count]), list(flat[count : count + kept])
            return tuple(operator._backward(grads, outputs, needed, *flat[count + kept :]))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            operator._no_second(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: Any, sizes: Any, needed: Any, *flat: Any) -> Any:
            dims = in_dims[2:]
            calls = []
            for n in range(info.batch_size):
                one = [x if d is None else x.select(d, n) for x, d in zip(flat, dims, strict=True)]
                calls.append(again(sizes, needed, *one))
            made = tuple(torch.stack(each) for each in zip(*calls, strict=True))
            return made, (0,) * len(made)

    again: Any = Backward.apply

    def _again(grads: Any, outputs: Any, needed: Any, *arguments: Any) -> Any:
        return again((len(grads), len(outputs)), needed, *grads, *outputs, *arguments)

    return Transformed
