"""How the rows of one batch fall on adapter slots, worked out once per composition of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """A batch's rows brought together by slot, each slot filled up to as many rows as the one with most.

    A row that fills up repeats the slot's own first one, so that no other adapter's values enter a product;
    its result is read by nobody.
    """

    slots: Tensor
    """[groups]"""
    scales: Tensor
    """[groups, 1, 1]"""
    together: Tensor
    """[padded_rows], the row of the batch that stands at each place."""
    apart: Tensor
    """[rows], the place at which each row's result is found."""


class RowPlan:
    """The matrix products one batch needs.

    Rows that stand next to each other and share a slot become one block, if all such runs are equally
    long; otherwise every row is its own block. A batch sorted by adapter, with as many rows for each, is
    therefore computed without copying weights per row.

    Args:
        slots: the slot of each row; 0 is the bare base.
        ranks: slot to rank, for every slot in use but 0.
        scales: slot to ``alpha / rank``, likewise.
    """

    def __init__(self, slots: tuple[int, ...], ranks: Mapping[int, int], scales: Mapping[int, float]) -> None:
        runs = [(slot, sum(1 for _ in run)) for slot, run in itertools.groupby(slots)]
        equal = len({length for _, length in runs}) == 1
        self.slots = slots
        self.is_base = not any(slots)
        self.blocks = tuple(slot for slot, _ in runs) if equal else slots
        self.rank = max((ranks[slot] for slot in slots if slot), default=0)
        """The largest rank in use: columns beyond it are zero and left out."""
        self.first = self.blocks[0]
        self.is_range = self.blocks == tuple(range(self.first, self.first + len(self.blocks)))
        """The blocks' slots follow one another, so that their weights are a view, not a copy."""
        self.rows_of: dict[int, list[int]] = {}
        """Slot to the positions of its rows."""
        for row, slot in enumerate(slots):
            self.rows_of.setdefault(slot, []).append(row)
        self.padded_rows = len(self.rows_of) * max(map(len, self.rows_of.values()))
        """Rows after every slot was filled up to as many as the one with most has."""
        self._scales = {slot: scales.get(slot, 0.0) for slot in self.rows_of}
        self._blocks_on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._groups_on: dict[torch.device, Groups] = {}

    @property
    def scale(self) -> float:
        """The only block's scale."""
        return self._scales[self.first]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The blocks' slots [blocks] and scales [blocks, 1, 1] as tensors on `device`."""
        if device not in self._blocks_on:
            self._blocks_on[device] = self._slots_and_scales(self.blocks, device)
        return self._blocks_on[device]

    def groups(self, device: torch.device) -> Groups:
        """The rows regrouped by slot, whatever their order and number."""
        if device not in self._groups_on:
            most = max(map(len, self.rows_of.values()))
            together, apart = [], [0] * len(self.slots)
            for group, rows in enumerate(self.rows_of.values()):
                together += rows + rows[:1] * (most - len(rows))
                for place, row in enumerate(rows):
                    apart[row] = group * most + place
            slots, scales = self._slots_and_scales(tuple(self.rows_of), device)
            with torch.inference_mode(False):
                self._groups_on[device] = Groups(slots, scales, torch.tensor(together, device=device),
                                                 torch.tensor(apart, device=device))
        return self._groups_on[device]

    def _slots_and_scales(self, slots: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):  # a plan made while serving may be used again while training
            return (torch.tensor(slots, device=device),
                    torch.tensor([self._scales[slot] for slot in slots], device=device).view(-1, 1, 1))
