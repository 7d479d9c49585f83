"""What is kept of the batch compositions met lately: serving and training meet the same ones again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor

from culturemanager.adapters.plan import RowPlan
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError

PLANS_KEPT = 64
"""Compositions remembered; a plan is a few kilobytes."""

Gathered = dict[str, tuple[Tensor, Tensor, tuple[int, int, int]]]
"""Layer name to the blocks' A [blocks, in, rank], their scaled B [blocks, rank, out] and the version they were copied at."""


class Compositions:
    """The plans of the compositions met lately, and the weights gathered for them in inference passes.

    A composition is the slot of each row of a batch.

    Args:
        block_bytes: what the weights of one block take over all layers, for each unit of rank.
        cache_bytes: upper bound for the gathered weights.

    Attributes:
        generation: rises whenever the gathered weights are dropped, so that a pass that is open keeps no older ones.
    """

    def __init__(self, block_bytes: int, cache_bytes: int) -> None:
        self.generation = 0
        self._block_bytes = block_bytes
        self._cache_bytes = cache_bytes
        self._plans: OrderedDict[tuple[int, ...], RowPlan] = OrderedDict()
        self._gathered: OrderedDict[tuple[int, ...], Gathered] = OrderedDict()

    def plan(self, slots: tuple[int, ...], taken: Callable[[], Mapping[int, AdapterShape]]) -> RowPlan:
        """The matrix products of a batch.

        Args:
            slots: one slot a row; 0 is the bare base.
            taken: gives the shape in each taken slot; asked only where the composition is not kept.

        Raises:
            AdapterError: a slot is empty or unknown, or there is no row.
        """
        plan = self._plans.get(slots)
        if plan is None:
            shapes = taken()
            unknown = sorted({slot for slot in slots if slot and slot not in shapes})
            if unknown or not slots:
                raise AdapterError(f"No adapter lies in the slots {unknown or list(slots)}; taken are {sorted(shapes)}.")
            plan = RowPlan(slots, {slot: shape.rank for slot, shape in shapes.items()},
                           {slot: shape.scale for slot, shape in shapes.items()})
            self._plans[slots] = plan
            if len(self._plans) > PLANS_KEPT:
                self._gathered.pop(self._plans.popitem(last=False)[0], None)
        self._plans.move_to_end(slots)
        return plan

    def gathered(self, plan: RowPlan) -> Gathered | None:
        """Where an inference pass keeps gathered weights; None if there is nothing to gather, or no room."""
        if plan.is_range or self._bytes_of(plan) > self._cache_bytes:
            return None
        if plan.slots not in self._gathered:
            self._gathered[plan.slots] = {}
            while sum(self._bytes_of(self._plans[other]) for other in self._gathered) > self._cache_bytes:
                self._gathered.popitem(last=False)
        self._gathered.move_to_end(plan.slots)
        return self._gathered[plan.slots]

    def _bytes_of(self, plan: RowPlan) -> int:
        return len(plan.blocks) * plan.rank * self._block_bytes

    def drop_gathered(self) -> None:
        """For after a write to weights: what was gathered is old."""
        self.generation += 1
        self._gathered.clear()

    def clear(self) -> None:
        """For after an adapter came or went: a slot may mean another one."""
        self._plans.clear()
        self.drop_gathered()
