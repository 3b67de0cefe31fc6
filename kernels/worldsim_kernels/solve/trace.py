"""What a field computes, recorded once for one row: the operations on what differs from row to row.

The field runs as it is, at one row, under a dispatch mode. Tensors are told apart by their memory: a view
shares the storage of what it shows, so views, slices and writes into a part of a tensor need no treatment of
their own; an operation on tensors none of which depends on the row is computed and forgotten, its result is
data. A field whose control flow depends on its state asks for a number of the state, and is refused there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worldsim_kernels.solve.terms import of_rows

BAKED = 100_000
"""Whole numbers of a tensor that may become part of the program (indices and masks)."""

_SHAPE_ONLY = frozenset(
    (
        *("zeros_like", "ones_like", "empty_like", "full_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full"),
        # Of derivatives forwards.
        *("_has_same_storage_numel", "_new_zeros_with_same_feature_meta"),
    )
)


class Refused(Exception):
    """The field cannot be made a program; the message says why."""


@dataclass(frozen=True)
class Seen:
    """A tensor as a window on memory: of the row (``kind`` "row"), of "data", or "known" whole numbers."""

    kind: str
    number: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    values: tuple[int | bool, ...] = ()


@dataclass(frozen=True)
class Call:
    """One operation: its name without overload or trailing underscore, what it took, what it made."""

    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[Seen, ...]
    target: Seen | None = None  # of an operation in place


@dataclass
class Tape:
    """A recorded field.

    Storage 0 is t, 1 the state, 2 + k the k-th of the term's ``args``; ``leaves`` are the float tensors the
    field closed over or made from such, in the order of first use.
    """

    calls: list[Call] = field(default_factory=list)
    result: Seen | None = None
    leaves: list[Tensor] = field(default_factory=list)
    inputs: tuple[Seen, ...] = ()

    def key(self) -> str:
        """The same for fields that differ in the values of their float tensors alone."""
        return repr((self.inputs, self.calls, self.result))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, lowered: Callable[[str], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lowered = lowered
        self.tape = Tape()
        self.alive: list[Tensor] = []
        self.rows: dict[int, int] = {}
        self.leaves: dict[int, int] = {}
        self.made: set[int] = set()

    def input(self, tensor: Tensor) -> Tensor:
        """``tensor`` copied to memory of its own that is known as the next input."""
        own = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._own(own)
        return own

    def _own(self, tensor: Tensor) -> Seen:
        self.alive.append(tensor)
        self.rows.setdefault(_storage(tensor), len(self.rows))
        return self.seen(tensor)

    def depends(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self.rows

    def seen(self, tensor: Tensor) -> Seen:
        """``tensor`` as the tape knows it."""
        if tensor.is_complex() or tensor.is_conj() or tensor.is_neg() or tensor.layout != torch.strided:
            raise Refused(f"it computes with a tensor of {tensor.dtype}, {tensor.layout}")
        shape, stride = tuple(tensor.shape), tuple(tensor.stride())
        place = (int(tensor.storage_offset()), shape, stride, tensor.dtype)
        number = self.rows.get(_storage(tensor))
        if number is not None:
            return Seen("row", number, *place)
        if not tensor.is_floating_point():
            if tensor.numel() > BAKED:
                raise Refused(f"it uses {tensor.numel()} indices or flags, at most {BAKED} can be part of it")
            return Seen("known", 0, 0, shape, (), tensor.dtype, tuple(tensor.flatten().tolist()))
        return Seen("data", self._leaf(tensor), *place)

    def _leaf(self, tensor: Tensor) -> int:
        key = _storage(tensor)
        if key not in self.leaves:
            self.alive.append(tensor)
            size = tensor.untyped_storage().nbytes() // tensor.element_size()
            whole = tensor.detach().as_strided((size,), (1,), 0)
            # What the field made it may yet overwrite.
            self.tape.leaves.append(whole.clone() if key in self.made else whole)
            self.leaves[key] = len(self.tape.leaves) - 1
        return self.leaves[key]

    def dispatch(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        given = [each for each in _flat([args, kwargs]) if isinstance(each, Tensor)]
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refused(f"it draws random numbers ({name})")
        depends = any(self.depends(each) for each in given)
        if func._schema.is_mutable and depends:
            return self._in_place(func, name, args, kwargs)
        if not depends or name in _SHAPE_ONLY:
            return self._data(func, args, kwargs)
        return self._record(func, name, args, kwargs)

    def _data(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func._schema.is_mutable:
            for each in _flat([args, kwargs]):
                if isinstance(each, Tensor):
                    self.leaves.pop(_storage(each), None)
            if _storage(args[0]) not in self.made:
                raise Refused("it writes into a tensor that it did not make")
        made = func(*args, **kwargs)
        known = {_storage(each) for each in _flat([args, kwargs]) if isinstance(each, Tensor)}
        for each in _flat(made):
            if isinstance(each, Tensor) and _storage(each) not in known:
                self.alive.append(each)
                self.made.add(_storage(each))
        return made

    def _record(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.lowered(name) and (not func.is_view or _is_composite(func)):
            if name in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"):
                raise Refused("its control flow depends on the state (item(), bool(), a mask as an index)")
            return self._simpler(func, name, args, kwargs)
        before = self._encode(args), self._encode(kwargs)
        made = func(*args, **kwargs)
        outputs = [each for each in _flat(made) if isinstance(each, Tensor)]
        fresh = [each for each in outputs if not self.depends(each)]
        if fresh:
            kept = tuple(self._own(each) for each in outputs)
            self.tape.calls.append(Call(name, before[0], before[1], kept))
        elif not outputs:
            raise Refused(f"it uses {name} of the state, which gives no tensor")
        return made

    def _simpler(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation taken apart as torch's own compiler would do it."""
        import torch._refs  # noqa: F401  its decompositions enter themselves
        from torch._decomp import decomposition_table

        rule = decomposition_table.get(func, func.decompose)
        with self:
            made = rule(*args, **kwargs)
        if made is NotImplemented:
            raise Refused(f"it uses {name}, which is not among the operations that can be printed")
        return made

    def _in_place(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if target is None or not name.endswith("_") or not self.lowered(name[:-1]):
            raise Refused(f"it uses {name}, which is not among the operations that can be printed")
        if not self.depends(target):
            if _storage(target) not in self.made:
                raise Refused("it writes into a tensor that it did not make")
            self._become_row(target)
        before = self._encode(args), self._encode(kwargs)
        made = func(*args, **kwargs)
        self.tape.calls.append(Call(name[:-1], before[0], before[1], (), self.seen(target)))
        return made

    def _become_row(self, target: Tensor) -> None:
        """The memory of ``target``, data so far, as memory of the row with these values."""
        size = target.untyped_storage().nbytes() // target.element_size()
        whole = target.detach().as_strided((size,), (1,), 0)
        before = self.seen(whole)
        self.leaves.pop(_storage(target), None)
        self.tape.calls.append(Call("clone", (before,), (), (self._own(whole),)))

    def _encode(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.seen(value)
        if isinstance(value, (list, tuple)):
            return tuple(self._encode(each) for each in value)
        if isinstance(value, dict):
            return tuple((key, self._encode(each)) for key, each in value.items())
        return value


# Given in the class, torch would wrap it to hide it from its compiler, whose import takes seconds.
_Recorder.__torch_dispatch__ = _Recorder.dispatch  # type: ignore[assignment]


def record(term: Any, t: Tensor, y: Tensor, lowered: Callable[[str], bool]) -> Tape:
    """The operations of ``term(t, y)`` for the first row of ``t`` ``[row]``, ``y`` and the term's ``args``.

    lowered   whether an operation of this name can be printed; others are taken apart where torch knows how
    Raises Refused, with the reason.
    """
    recorder = _Recorder(lowered)
    first = torch.zeros(1, dtype=torch.int64, device=y.device)
    with torch.inference_mode(False), torch.no_grad():
        single = of_rows(term, first)
        start = recorder.input(t[:1]), recorder.input(y[:1])
        if single.args:
            single = replace(single, args=tuple(recorder.input(each) for each in single.args))
        own = (*start, *single.args)
        recorder.tape.inputs = tuple(recorder.seen(each) for each in own)
        try:
            with recorder:
                slope = single(*start)
            recorder.tape.result = recorder.seen(slope)
        except Refused:
            raise
        except Exception as problem:
            raise Refused(f"it fails at one row: {type(problem).__name__}: {problem}") from problem
    return recorder.tape


def _is_composite(func: Any) -> bool:
    """Whether torch has it as a composition of others alone, as ``to`` and ``reshape``."""
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in _flat(each)]
    return [value]
