"""A paged store of keys and values, whose sequences share what they have in common.

A pool of fixed blocks and a table of blocks for each sequence (Kwon et al. 2023): token j of a sequence lies
in slot j % P of block table[j // P]. A fork copies the table alone and counts the blocks' owners; a shared
block is copied when one of its owners writes into it. Attention gathers some blocks of every sequence at a
time and merges the parts. Futures that branch from one past store that past once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect
from worldsim_kernels.attention import Attention, attend, merge

GATHERED = 1024
"""Tokens of each sequence that are gathered at a time."""


@dataclass
class _Sequence:
    length: int = 0
    table: list[int] = field(default_factory=list)


class PagedCache:
    """Keys [heads, key_width] and values [heads, value_width] of each token of any number of sequences.

    blocks  how many blocks the pool has; its memory is taken at once
    block   tokens of a block

    What is stored is finite and carries no gradient. Not for use from several threads at once.
    """

    def __init__(
        self,
        blocks: int,
        heads: int,
        key_width: int,
        value_width: int | None = None,
        *,
        block: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if blocks < 1 or block < 1:
            raise ValueError(f"PagedCache: blocks is {blocks} and block {block}; both are at least 1")
        self.block = block
        value_width = key_width if value_width is None else value_width
        self.keys = torch.zeros(blocks, block, heads, key_width, dtype=dtype, device=device)
        self.values = torch.zeros(blocks, block, heads, value_width, dtype=dtype, device=device)
        self._free = list(range(blocks - 1, -1, -1))
        self._owners = [0] * blocks
        self._sequences: dict[int, _Sequence] = {}
        self._next = 0

    def add(self) -> int:
        """A new, empty sequence; returns the number it goes by."""
        return self._enter(_Sequence())

    def append(self, sequence: int, k: Tensor, v: Tensor) -> None:
        """Add tokens k [T, heads, key_width] and v [T, heads, value_width] at the sequence's end.

        Raises KeyError for an unknown sequence, and MemoryError, with nothing stored, when the pool has too
        few free blocks.
        """
        found = self._known(sequence)
        self._expect(k, v)
        end = found.length + k.shape[0]
        slot = found.length % self.block
        shared = bool(k.shape[0] and slot and self._owners[found.table[-1]] > 1)
        needed = -(-end // self.block) - len(found.table) + shared
        if needed > len(self._free):
            raise MemoryError(
                f"PagedCache: {needed} blocks are needed for {k.shape[0]} tokens of sequence {sequence}, "
                f"{len(self._free)} of {len(self._owners)} are free; free a sequence or make the pool larger"
            )
        if shared:
            self._make_own(found)
        while len(found.table) * self.block < end:
            found.table.append(self._take())
        at = torch.arange(found.length, end)
        rows = torch.tensor(found.table, dtype=torch.int64)[at // self.block].to(self.keys.device)
        slots = (at % self.block).to(self.keys.device)
        self.keys[rows, slots], self.values[rows, slots] = k.detach(), v.detach()
        found.length = end

    def fork(self, sequence: int, count: int = 1) -> list[int]:
        """``count`` new sequences with the tokens of this one, of which nothing is copied yet."""
        found = self._known(sequence)
        if count < 0:
            raise ValueError(f"PagedCache: count is {count}; expected at least 0")
        for each in found.table:
            self._owners[each] += count
        return [self._enter(_Sequence(found.length, list(found.table))) for _ in range(count)]

    def free(self, sequence: int) -> None:
        """Forget a sequence; its blocks that no other owns are free again."""
        for each in self._known(sequence).table:
            self._leave(each)
        del self._sequences[sequence]

    def length(self, sequence: int) -> int:
        """How many tokens the sequence has."""
        return self._known(sequence).length

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def stored(self) -> int:
        """Tokens in the pool, those of a shared block once."""
        filled: dict[int, int] = {}
        for each in self._sequences.values():
            for place, block in enumerate(each.table):
                held = min(self.block, each.length - place * self.block)
                filled[block] = max(filled.get(block, 0), held)
        return sum(filled.values())

    @property
    def utilisation(self) -> float:
        """``stored`` over the slots of all blocks in use; 1 for an empty cache."""
        used = (len(self._owners) - len(self._free)) * self.block
        return self.stored / used if used else 1.0

    def attend(
        self,
        q: Tensor,
        sequences: Sequence[int],
        *,
        scale: float | None = None,
        backend: str | None = None,
    ) -> Attention:
        """Attention of queries [N, T, H, K], the last T tokens of each of N sequences, over what is stored.

        Query i of a sequence of S tokens sees tokens j <= i + S - T, as ``attend`` with ``causal``; H is a
        multiple of the cache's heads. Differentiable in q. Raises KeyError for an unknown sequence.
        """
        found = [self._known(each) for each in sequences]
        expect(
            "PagedCache", "q", q, (("N", len(found)), ("T", None), ("H", None), ("K", self.keys.shape[-1]))
        )
        device, at_once = self.keys.device, max(1, GATHERED // self.block)
        lengths = torch.tensor([each.length for each in found], device=device)
        last = lengths[:, None] - q.shape[1] + torch.arange(q.shape[1], device=device)
        tables = _padded([each.table for each in found]).to(device)
        parts = []
        for first in range(0, max(tables.shape[1], 1), at_once):
            blocks = tables[:, first : first + at_once]
            k, v = (pool[blocks].flatten(1, 2) for pool in (self.keys, self.values))
            place = first * self.block + torch.arange(k.shape[1], device=device)
            seen = place <= last[..., None]
            parts.append(attend(q, k, v, mask=seen[:, None], scale=scale, backend=backend))
        return merge(parts)

    def _known(self, sequence: int) -> _Sequence:
        if sequence not in self._sequences:
            raise KeyError(f"PagedCache: there is no sequence {sequence!r}; it was never added, or freed")
        return self._sequences[sequence]

    def _enter(self, made: _Sequence) -> int:
        number, self._next = self._next, self._next + 1
        self._sequences[number] = made
        return number

    def _take(self) -> int:
        block = self._free.pop()
        # What is hidden has weight 0, which a NaN of an earlier owner would outlive.
        self.keys[block], self.values[block] = 0, 0
        self._owners[block] = 1
        return block

    def _leave(self, block: int) -> None:
        self._owners[block] -= 1
        if self._owners[block] == 0:
            self._free.append(block)

    def _make_own(self, found: _Sequence) -> None:
        """The last block, which others own too, becomes a copy."""
        shared, own = found.table[-1], self._take()
        self.keys[own], self.values[own] = self.keys[shared], self.values[shared]
        found.table[-1] = own
        self._leave(shared)

    def _expect(self, k: Tensor, v: Tensor) -> None:
        heads = self.keys.shape[2]
        for name, each, pool in (("k", k, self.keys), ("v", v, self.values)):
            width = pool.shape[-1]
            axes = (("T", len(k) if name == "v" else None), ("heads", heads), ("width", width))
            expect("PagedCache", name, each, axes, like=pool, dtypes=(pool.dtype,))


def _padded(tables: Sequence[Sequence[int]]) -> Tensor:
    """[N, longest]; where a table has ended its own first block stands, and the mask hides it."""
    longest = max((len(each) for each in tables), default=0)
    rows = [[*each, *[each[0] if each else 0] * (longest - len(each))] for each in tables]
    return torch.tensor(rows, dtype=torch.int64).view(len(tables), longest)
