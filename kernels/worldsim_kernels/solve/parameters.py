"""What a term depends on besides its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from worldsim_kernels.solve.stepper import Stepper
from worldsim_kernels.solve.terms import ODE, of_rows


def parameters_of(term: Any, events: tuple[Any, ...], stepper: Stepper, t: Tensor, y: Tensor) -> list[Tensor]:
    """The leaf tensors that require a gradient and that ``term`` or ``events`` reach: the parameters of
    modules that they are, that their methods are bound to, that they close over or have as defaults, and
    whatever row 0 meets on its graph. A bare tensor that is used in some states only, and not in this one,
    is not found: keep it in a module or in ``args``.

    t, y  ``[row]`` and ``[row, *state]``
    """
    found: dict[int, Tensor] = {}
    for owner in (term, *events):
        for each in _owned(owner, set()):
            found[id(each)] = each
    if len(y):
        for each in _met(term, events, stepper, t, y):
            found[id(each)] = each
    given = {id(each) for each in getattr(term, "args", ())}
    return [each for key, each in found.items() if key not in given]


def has_parameters(term: Any, events: tuple[Any, ...], stepper: Stepper, t: Tensor, y: Tensor) -> bool:
    """Whether ``parameters_of`` finds any; asks the field only where nothing that holds one is seen."""
    given = {id(each) for each in getattr(term, "args", ())}
    owned = (each for owner in (term, *events) for each in _owned(owner, set()))
    return any(id(each) not in given for each in owned) or bool(parameters_of(term, events, stepper, t, y))


def _owned(owner: Any, seen: set[int]) -> Iterator[Tensor]:
    """Parameters and leaf tensors that ``owner`` holds, as far as a function, a bound method, a partial, a
    module or a term can be looked into."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, Tensor):
        if owner.is_leaf and owner.requires_grad:
            yield owner
    elif isinstance(owner, nn.Module):
        yield from (each for each in owner.parameters() if each.requires_grad)
    elif isinstance(owner, partial):
        for part in (owner.func, *owner.args, *owner.keywords.values()):
            yield from _owned(part, seen)
    elif isinstance(owner, list | tuple):
        for part in owner:
            yield from _owned(part, seen)
    elif hasattr(owner, "__dataclass_fields__"):
        for name in owner.__dataclass_fields__:
            if name != "args":
                yield from _owned(getattr(owner, name), seen)
    else:
        yield from _of_function(owner, seen)


def _of_function(owner: Any, seen: set[int]) -> Iterator[Tensor]:
    for name in ("__self__", "__func__", "__wrapped__"):
        yield from _owned(getattr(owner, name, None), seen)
    for cell in getattr(owner, "__closure__", None) or ():
        try:
            yield from _owned(cell.cell_contents, seen)
        except ValueError:  # a cell that is not filled yet
            continue
    yield from _owned(getattr(owner, "__defaults__", None), seen)
    if callable(owner) and not hasattr(owner, "__code__"):
        for part in getattr(owner, "__dict__", {}).values():
            yield from _owned(part, seen)


def _met(term: Any, events: tuple[Any, ...], stepper: Stepper, t: Tensor, y: Tensor) -> Iterator[Tensor]:
    """The leaves on the graph of row 0: of its slope, or of a short step of a term of several functions."""
    first = torch.zeros(1, dtype=torch.int64, device=y.device)
    with torch.enable_grad():
        term, t, y = of_rows(term, first), t[:1].detach(), y[:1].detach()
        h = torch.full_like(t, 1e-3)
        if isinstance(term, ODE):  # whose steps evaluate nothing else
            within = getattr(stepper, "within", None)
            outputs = [(term if within is None else within(term, t, h))(t, y)]
        else:
            outputs = [stepper.step(term, t, h, y, stepper.start(term, t, y)).y]
        outputs += [event.value(t, y, term) for event in events]
        outputs += [event.reset(t.to(y.dtype), y, *term.args) for event in events if event.reset is not None]
    todo = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
