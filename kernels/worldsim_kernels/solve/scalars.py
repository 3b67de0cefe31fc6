"""A recorded field as a straight-line program of scalars: what is printed as C or Triton.

Symbolic arrays are int64 tensors of node numbers, so whatever only moves numbers (cat, roll, an index) is
done by torch itself, on the node numbers. Equal nodes are one node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.trace import Call, Refused, Seen, Tape

MOST = 20_000
"""Nodes of a program."""

LEAVES = ("literal", "flag", "t", "y", "arg", "data")
TRUTHS = frozenset(("flag", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not"))

_MOVES = (
    "cat stack flip roll index_select gather index repeat constant_pad_nd select_backward slice_backward "
    "index_put scatter slice_scatter select_scatter index_copy tril triu diag_embed diagonal_scatter "
    "_reshape_copy view_copy expand_copy permute_copy unfold"
)
MOVES = frozenset(_MOVES.split())
"""Operations that only move numbers, and fill with 0."""

COPIES = frozenset(("clone", "copy", "_to_copy", "fill", "zero"))

Node = tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """Nodes in order: ``(operation, operands)``, operands the numbers of earlier nodes.

    The leaves are ("literal", value), ("flag", bool), ("t",), ("y", i), ("arg", slot), ("data", slot).

    outputs    node of each component of the slope
    arguments  for each argument slot: which of the term's ``args``, which number of its row
    data       for each data slot: which leaf of the tape, which number of it
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    arguments: tuple[tuple[int, int], ...]
    data: tuple[tuple[int, int], ...]
    dtype: torch.dtype


class Machine:
    """Runs a tape on node numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[Node] = []
        self.numbers: dict[Node, int] = {}
        self.memory: dict[int, Tensor] = {}
        self.zero = self.literal(0.0)  # node 0, which is what torch fills a moved tensor with

    # Nodes.

    def node(self, *node: Any) -> int:
        if node[0] in ("add", "mul", "eq", "ne", "and", "or", "xor") and node[1] > node[2]:
            node = (node[0], node[2], node[1])
        found = self.numbers.get(node)
        if found is None:
            found = self.numbers[node] = len(self.nodes)
            self.nodes.append(node)
            if found >= MOST:
                raise Refused(f"it takes more than {MOST} scalar operations")
        return found

    def literal(self, value: float) -> int:
        # By its text, for 0.0 == -0.0.
        return self.node("literal", float(value).hex())

    def flag(self, value: bool) -> int:
        return self.node("flag", bool(value))

    def is_truth(self, number: int) -> bool:
        return self.nodes[number][0] in TRUTHS or (
            self.nodes[number][0] == "where" and self.is_truth(self.nodes[number][2])
        )

    def real(self, number: int) -> int:
        """The node as a number: 1 for true."""
        if not self.is_truth(number):
            return number
        return self.node("where", number, self.literal(1.0), self.zero)

    def truth(self, number: int) -> int:
        """The node as a truth: whether it is not 0."""
        return number if self.is_truth(number) else self.node("ne", number, self.zero)

    # Tensors.

    def ids(self, value: Any) -> Tensor:
        """Node numbers of an operand: symbolic, a tensor of known numbers, or a number."""
        if isinstance(value, Symbolic):
            return value.ids
        if isinstance(value, Tensor):
            make = self.flag if value.dtype == torch.bool else self.literal
            return torch.tensor([make(each) for each in value.flatten().tolist()]).reshape(value.shape).long()
        if isinstance(value, bool):
            return torch.tensor(self.flag(value))
        if isinstance(value, (int, float)):
            return torch.tensor(self.literal(value))
        raise Refused(f"it computes with a {type(value).__name__}")

    def read(self, value: Any) -> Any:
        """An argument of a call, its tensors as they are now."""
        if isinstance(value, tuple):
            return [self.read(each) for each in value]
        if not isinstance(value, Seen):
            return value
        if value.kind == "known":
            return torch.tensor(value.values, dtype=value.dtype).reshape(value.shape)
        if value.kind == "row":
            ids = self.memory[value.number].as_strided(value.shape, value.stride, value.offset)
            return Symbolic(ids, value.dtype, True)
        reach = value.offset + sum((n - 1) * s for n, s in zip(value.shape, value.stride)) + 1
        places = torch.arange(reach).as_strided(value.shape, value.stride, value.offset)
        found = [self.node("data", value.number, place) for place in places.flatten().tolist()]
        return Symbolic(torch.tensor(found).long().reshape(value.shape), value.dtype, False)

    def write(self, seen: Seen, ids: Tensor) -> None:
        """New memory that shows ``ids`` through the window ``seen``."""
        reach = seen.offset + sum((n - 1) * s for n, s in zip(seen.shape, seen.stride)) + 1
        memory = self.memory.get(seen.number)
        if memory is None or len(memory) < reach:
            memory = self.memory[seen.number] = torch.full((max(reach, 0),), -1)
        memory.as_strided(seen.shape, seen.stride, seen.offset).copy_(ids)


@dataclass
class Symbolic:
    """Node numbers, the dtype of the tensor they stand for, and whether it depends on the row."""

    ids: Tensor
    dtype: torch.dtype
    row: bool


def program_of(tape: Tape, dtype: torch.dtype) -> Program:
    """The program of a recorded field, for states of ``dtype``. Raises Refused, with the reason."""
    from worldsim_kernels.solve.lowering import LOWERED

    if dtype not in (torch.float32, torch.float64):
        raise Refused(f"the state is {dtype}, not float32 or float64")
    machine = Machine(dtype)
    for number, seen in enumerate(tape.inputs):
        machine.write(seen, _input(machine, number, seen))
    for call in tape.calls:
        _run(machine, call, LOWERED)
    assert tape.result is not None
    result = machine.read(tape.result)
    ids = machine.ids(result)
    if ids.shape != tape.inputs[1].shape:
        raise Refused(f"it gives {list(ids.shape)} for a state {list(tape.inputs[1].shape)}")
    return _live(machine, [machine.real(each) for each in ids.flatten().tolist()])


def _input(machine: Machine, number: int, seen: Seen) -> Tensor:
    if number == 0:
        return torch.tensor([machine.node("t")])
    count = max(1, torch.Size(seen.shape).numel())
    if number == 1:
        found = [machine.node("y", i) for i in range(count)]
    else:
        found = [machine.node("arg", number - 2, i) for i in range(count)]
        if seen.dtype == torch.bool:
            found = [machine.truth(each) for each in found]
    return torch.tensor(found)[: torch.Size(seen.shape).numel()].reshape(seen.shape)


def _run(machine: Machine, call: Call, table: Any) -> None:
    args = machine.read(call.args)
    kwargs = {key: machine.read(value) for key, value in call.kwargs}
    if call.name in COPIES:
        made: Any = _copied(machine, call, args)
    else:
        made = table[call.name](machine, *args, **kwargs)
        _check_dtypes(machine, call, args)
    for seen, ids in zip(call.outputs, made if isinstance(made, (list, tuple)) else [made]):
        machine.write(seen, ids.reshape(seen.shape))
    if call.target is not None:
        ids = _cast(machine, made, call.target.dtype)
        machine.write(call.target, ids.expand(call.target.shape).clone())


def _copied(machine: Machine, call: Call, args: list[Any]) -> Tensor:
    """clone, _to_copy, copy_, fill_ and zero_: numbers as they are, if the new dtype can hold them."""
    to = call.target or call.outputs[0]
    source = args[-1] if call.name in ("copy", "fill") else 0.0 if call.name == "zero" else args[0]
    if call.name == "copy":
        source = args[1]  # 2 is whether to wait
    start = source.dtype if isinstance(source, (Symbolic, Tensor)) else to.dtype
    if start.is_floating_point and to.dtype.is_floating_point:
        narrower = torch.finfo(to.dtype).eps > torch.finfo(machine.dtype).eps
        if narrower and to.dtype != start:
            raise Refused(f"it rounds to {to.dtype}, where the state is {machine.dtype}")
    elif start.is_floating_point and to.dtype != torch.bool:
        raise Refused(f"it rounds to {to.dtype}")
    return _cast(machine, machine.ids(source), to.dtype)


def _cast(machine: Machine, ids: Tensor, dtype: torch.dtype) -> Tensor:
    cast = machine.truth if dtype == torch.bool else machine.real
    return torch.tensor([cast(each) for each in ids.flatten().tolist()]).long().reshape(ids.shape)


def _check_dtypes(machine: Machine, call: Call, args: list[Any]) -> None:
    """Raises Refused unless arithmetic is in the dtype of the state."""
    for seen in (*call.outputs, *([call.target] if call.target else [])):
        if call.name in MOVES or seen.dtype in (torch.bool, machine.dtype):
            continue
        raise Refused(f"it computes in {seen.dtype} ({call.name}), where the state is {machine.dtype}")
    if call.name not in MOVES and any(seen.dtype == torch.bool for seen in call.outputs):
        given = [each for each in args if isinstance(each, Symbolic) and each.ids.dim()]
        for dtype in {each.dtype for each in given if each.dtype.is_floating_point} - {machine.dtype}:
            raise Refused(f"it compares numbers of {dtype}, where the state is {machine.dtype}")


def _live(machine: Machine, outputs: list[int]) -> Program:
    """The nodes that the outputs need, numbered anew."""
    needed = set(outputs)
    for number in range(len(machine.nodes) - 1, -1, -1):
        node = machine.nodes[number]
        if number in needed and node[0] not in LEAVES:
            needed.update(node[1:])
    if -1 in needed:
        raise Refused("it uses memory that it did not fill")
    new: dict[int, int] = {}
    nodes: list[Node] = []
    slots: dict[str, dict[tuple[int, int], int]] = {"arg": {}, "data": {}}
    for number in sorted(needed):
        op, *rest = machine.nodes[number]
        if op in slots:
            rest = [slots[op].setdefault((rest[0], rest[1]), len(slots[op]))]
        elif op == "literal":
            rest = [float.fromhex(rest[0])]
        elif op not in LEAVES:
            rest = [new[each] for each in rest]
        new[number] = len(nodes)
        nodes.append((op, *rest))
    return Program(
        tuple(nodes),
        tuple(new[each] for each in outputs),
        tuple(slots["arg"]),
        tuple(slots["data"]),
        machine.dtype,
    )
