"""Keys and values of the tokens computed so far, for a fixed number of rows.

Every layer holds keys and values [rows, heads, context, width]; the token at position p of a row lies in
column p. Rows in use are 0..n-1, in the order of the batch, so that a pass reads a view and copies nothing. The
memory is reserved (as zero pages) when the first pass shows the model's sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class Prefill:
    """A pass over whole prompts, which attend to nothing older."""

    rows: slice


@dataclass(frozen=True)
class Decode:
    """A pass over one new token for each of the rows 0..n-1."""

    rows: Tensor
    """[n], 0..n-1."""
    columns: Tensor
    """[n], the new token's position in its row."""
    longest: int
    """Columns that the longest row has now."""


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not empty memory: a masked column still takes part as 0 * value, and a NaN would survive that.
        size = (self._cache.rows, key_states.shape[1], self._cache.context)
        self.keys = key_states.new_zeros(*size, key_states.shape[3])
        self.values = value_states.new_zeros(*size, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Store new keys and values [rows, heads, tokens, width]; return those the new tokens may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        current = self._cache.current
        rows, _, length, _ = key_states.shape
        if isinstance(current, Prefill):
            self.keys[current.rows, :, :length] = key_states
            self.values[current.rows, :, :length] = value_states
            return key_states, value_states
        self.keys[current.rows, :, current.columns] = key_states[:, :, 0]
        self.values[current.rows, :, current.columns] = value_states[:, :, 0]
        return self.keys[:rows, :, :current.longest], self.values[:rows, :, :current.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # Only prefill asks, where the new tokens are all there is; a decode pass brings its own mask.
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
        self.current: Prefill | Decode = Prefill(slice(0, 0))
        self._device = device
        self._used = [0] * rows  # columns written since the row was cleared

    def begin_prefill(self, first_row: int, rows: int, length: int) -> None:
        """The next pass writes `length` columns of `rows` rows from `first_row` on."""
        self.current = Prefill(slice(first_row, first_row + rows))
        self._used[first_row:first_row + rows] = [length] * rows

    def begin_decode(self, columns: Sequence[int]) -> Decode:
        """The next pass writes column ``columns[i]`` of row i."""
        for row, column in enumerate(columns):
            self._used[row] = max(self._used[row], column + 1)
        self.current = Decode(rows=torch.arange(len(columns), device=self._device),
                              columns=torch.tensor(columns, device=self._device), longest=max(columns) + 1)
        return self.current

    def release(self, row: int, last: int) -> None:
        """Free a row: the last row in use takes its place, and what it leaves is zeroed for the next user."""
        for layer in self.layers:
            for stored in (layer.keys, layer.values):
                if row != last:
                    stored[row, :, :self._used[last]] = stored[last, :, :self._used[last]]
                    stored[row, :, self._used[last]:self._used[row]] = 0
                stored[last, :, :self._used[last]] = 0
        self._used[row], self._used[last] = self._used[last], 0

    @property
    def memory_bytes(self) -> int:
        """Bytes reserved; 0 before the first pass."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)
