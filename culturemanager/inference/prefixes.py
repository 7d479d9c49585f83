"""Keys and values of prompt beginnings, kept so that a later prompt that begins the same way need not compute them.

A prompt is cut into blocks. A block is known by its own tokens and the number of the block before it, the first one by
what the adapter holds, so that two blocks are the same only if everything before them is. (Kwon et al. 2023,
arXiv 2309.06180; chains as in Zheng et al. 2024, "SGLang", arXiv 2312.07104.) Blocks are copied into a row before its
prompt is computed and out of it afterwards; the memory is fixed, and the blocks used longest ago make room.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from culturemanager.inference.cache import SlotCache

BLOCK = 32
"""Tokens of a block. Fewer would find a little more and copy in smaller pieces."""

Key = tuple[Hashable, tuple[int, ...]]
"""What comes before a block, and its tokens."""


class Block(NamedTuple):
    """A block that is held."""

    number: int
    """Names the block to those after it; never given twice."""
    place: int
    """Where its keys and values lie."""


@dataclass(frozen=True)
class Match:
    """What is held of a prompt, the last token left out: its computation says how the answer starts."""

    places: tuple[int, ...] = ()
    """Of its first blocks, valid until the next `store`."""
    missing: Key | None = None
    """The first block that is not held. Of two prompts with the same one, the second gains by waiting for the first."""

    @property
    def tokens(self) -> int:
        return len(self.places) * BLOCK


NOTHING = Match()


class PrefixCache:
    """The blocks of prompts computed before.

    Args:
        cache: the rows to copy from and to.
        budget_bytes: memory for blocks, reserved when the first prompt has been computed; 0: nothing is kept.
    """

    def __init__(self, cache: SlotCache, budget_bytes: int) -> None:
        self._cache = cache
        self._budget_bytes = budget_bytes
        self._room: int | None = None if budget_bytes else 0  # blocks; None: the model's sizes are not known yet
        self._stored: list[Tensor] = []  # each layer's keys and values in turn, [room, heads, BLOCK, width]
        self._blocks: OrderedDict[Key, Block] = OrderedDict()  # the one used longest ago first
        self._numbers = itertools.count()

    def find(self, content: Hashable, prompt: tuple[int, ...]) -> Match:
        """What is held of a prompt.

        Args:
            content: names the adapter's weights; no int, which would be mistaken for a block.
        """
        if self._room == 0:
            return NOTHING
        keys, missing = self._follow(content, prompt, (len(prompt) - 1) // BLOCK)
        self._touch(keys)
        return Match(tuple(self._blocks[key].place for key in keys), missing)

    def restore(self, matches: Sequence[Match], first_row: int) -> None:
        """Copy what was found into the rows from `first_row` on, one a match."""
        copies = [(row, column, place) for row, match in enumerate(matches, first_row)
                  for column, place in enumerate(match.places)]
        for blocks, stored, (rows, columns, places) in self._layers(copies):
            blocks[rows, :, columns] = stored[places]

    def store(self, prompts: Sequence[tuple[Hashable, tuple[int, ...]]], first_row: int) -> None:
        """Keep the whole blocks of prompts, each with its adapter's content, that lie in the rows from `first_row` on."""
        if self._room is None:
            self._reserve()
        kept: set[Key] = set()  # what is stored together must not push each other out
        copies = []
        for row, (content, prompt) in enumerate(prompts, first_row):
            count = len(prompt) // BLOCK
            keys, missing = self._follow(content, prompt, count)
            self._touch(keys)
            kept.update(keys)
            while missing and (place := self._take_place(kept)) is not None:
                block = self._blocks[missing] = Block(next(self._numbers), place)
                copies.append((row, len(keys), place))
                keys.append(missing)
                kept.add(missing)
                missing = _key(block.number, prompt, len(keys)) if len(keys) < count else None
            self._touch(keys)
        for blocks, stored, (rows, columns, places) in self._layers(copies):
            stored[places] = blocks[rows, :, columns]

    def _follow(self, content: Hashable, prompt: tuple[int, ...], count: int) -> tuple[list[Key], Key | None]:
        """The keys of the first `count` blocks as far as they are held, and the first that is not."""
        keys: list[Key] = []
        before = content
        for number in range(count):
            key = _key(before, prompt, number)
            if key not in self._blocks:
                return keys, key
            keys.append(key)
            before = self._blocks[key].number
        return keys, None

    def _touch(self, keys: Sequence[Key]) -> None:
        # The first block last, so that none is dropped before those that can only be found through it.
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _take_place(self, kept: set[Key]) -> int | None:
        """A place for a new block, if need be that of the block used longest ago; None: all that is left is in `kept`."""
        if len(self._blocks) < self._room:
            return len(self._blocks)
        oldest = next(iter(self._blocks), None)
        return None if oldest is None or oldest in kept else self._blocks.pop(oldest).place

    def _reserve(self) -> None:
        tensors = self._cache.tensors
        self._room = self._budget_bytes // sum(stored[0, :, :1].nbytes * BLOCK for stored in tensors)
        # Empty memory will do: a block is written as a whole before it is read.
        self._stored = [stored.new_empty(self._room, stored.shape[1], BLOCK, stored.shape[3]) for stored in tensors]

    def _layers(self, copies: Sequence[tuple[int, int, int]]) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
        """For each layer's keys and values: the rows' blocks [rows, heads, count, BLOCK, width], what is stored, and the
        row, the block in it and the place of each copy, [copies] each."""
        if copies:
            count = max(column for _, column, _ in copies) + 1
            where = tuple(torch.tensor(list(zip(*copies, strict=True)), device=self._stored[0].device))
            for held, stored in zip(self._cache.tensors, self._stored, strict=True):
                yield held[:, :, :count * BLOCK].unflatten(2, (count, BLOCK)), stored, where

    @property
    def memory_bytes(self) -> int:
        """Bytes reserved, at most the budget; 0 before the first prompt."""
        return sum(stored.nbytes for stored in self._stored)


def _key(before: Hashable, prompt: tuple[int, ...], number: int) -> Key:
    return before, prompt[number * BLOCK:(number + 1) * BLOCK]
