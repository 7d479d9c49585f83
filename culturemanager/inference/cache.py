"""Keys and values of the tokens computed so far, for a fixed number of rows.

Every layer holds keys and values [rows, heads, context, width]; the token at position p of a row lies in
column p. Rows in use are 0..n-1, in the order of the batch, so that a pass reads a view and copies nothing. The
memory is reserved (as zero pages) when the first pass shows the model's sizes, and never grows: rows * context tokens.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class Begin:
    """A pass over the beginnings of prompts, which attend to nothing older."""

    rows: slice


@dataclass(frozen=True)
class Extend:
    """A pass over tokens that come after what their rows hold."""

    rows: slice
    columns: Tensor
    """[n, tokens], the new tokens' positions in their rows. A row's last one may be repeated, to fill up."""
    longest: int
    """Columns that the longest row has now."""


def reserved(size: Sequence[int], like: Tensor) -> Tensor:
    """Zeros of a tensor's type and device. On CPUs they take memory only once something is written there.

    torch writes its zeros at once; the system's own pages are zero when they are first touched. Small ones: a huge page
    would take two megabytes for a row's first token, in every head (numpy asks for those).
    """
    if like.device.type != "cpu":
        return like.new_zeros(size)
    pages = mmap.mmap(-1, math.prod(size) * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype).view(*size)


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not empty memory: a masked column still takes part as 0 * value, and a NaN would survive that.
        size = (self._cache.rows, key_states.shape[1], self._cache.context)
        self.keys = reserved((*size, key_states.shape[3]), key_states)
        self.values = reserved((*size, value_states.shape[3]), value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Store new keys and values [rows, heads, tokens, width]; return those the new tokens may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        current = self._cache.current
        keys, values = self.keys[current.rows], self.values[current.rows]
        if isinstance(current, Begin):
            length = key_states.shape[2]
            keys[:, :, :length] = key_states
            values[:, :, :length] = value_states
            return key_states, value_states
        numbers = self._cache.row_numbers[:keys.shape[0]]
        keys[numbers, :, current.columns] = key_states.transpose(1, 2)
        values[numbers, :, current.columns] = value_states.transpose(1, 2)
        return keys[:, :, :current.longest], values[:, :, :current.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # Only a `Begin` pass asks, where the new tokens are all there is; an `Extend` pass brings its own mask.
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._cache.context


class SlotCache(Cache):
    """The keys and values of every layer, as transformers models take them; used inside `torch.inference_mode`.

    Args:
        rows: sequences held at the same time.
        context: tokens a row can hold.
        device: of the model.
    """

    def __init__(self, rows: int, context: int, device: torch.device) -> None:
        super().__init__(layer_class_to_replicate=lambda: SlotLayer(self))
        self.rows = rows
        self.context = context
        self.current: Begin | Extend = Begin(slice(0, 0))
        self.row_numbers = torch.arange(rows, device=device).unsqueeze(1)
        self._device = device
        self._used = [0] * rows  # columns written since the row was cleared

    def begin(self, first_row: int, rows: int, length: int) -> None:
        """The next pass writes the first `length` columns of `rows` rows from `first_row` on."""
        self._note_use(first_row, [length] * rows)
        self.current = Begin(slice(first_row, first_row + rows))

    def extend(self, first_row: int, columns: Sequence[Sequence[int]]) -> Extend:
        """The next pass writes the columns ``columns[i]`` of the i-th row from `first_row` on, as many in each."""
        ends = [row[-1] + 1 for row in columns]
        self._note_use(first_row, ends)
        self.current = Extend(rows=slice(first_row, first_row + len(columns)), longest=max(ends),
                              columns=torch.tensor(columns, device=self._device))
        return self.current

    def _note_use(self, first_row: int, ends: Sequence[int]) -> None:
        for row, end in enumerate(ends, first_row):
            self._used[row] = max(self._used[row], end)

    def release(self, row: int, last: int) -> None:
        """Free a row: the last row in use takes its place, and what it leaves is zeroed for the next user."""
        for stored in self.tensors:
            if row != last:
                stored[row, :, :self._used[last]] = stored[last, :, :self._used[last]]
                stored[row, :, self._used[last]:self._used[row]] = 0
            stored[last, :, :self._used[last]] = 0
        self._used[row], self._used[last] = self._used[last], 0

    @property
    def tensors(self) -> list[Tensor]:
        """Each layer's keys and values in turn, [rows, heads, context, width]; none before the first pass."""
        return [stored for layer in self.layers if layer.is_initialized for stored in (layer.keys, layer.values)]

    @property
    def memory_bytes(self) -> int:
        """Bytes reserved; 0 before the first pass."""
        return sum(stored.nbytes for stored in self.tensors)
