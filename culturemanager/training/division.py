"""One pack over all workers, or several packs side by side on a part of them each: whichever is done sooner.

What counts is the arithmetic of the worker that has most of it. One pack over many workers halves nothing where a step
has fewer rows of an adapter than there are workers; several packs are as slow as the one with the longest adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from culturemanager.sections.model import TrainingConfig
from culturemanager.training.costs import PASS_TOKENS

PASS_CHARACTERS = 4 * PASS_TOKENS
"""What a forward and backward pass costs beside its tokens, in characters of rows, about four to a token."""
EXCHANGE_CHARACTERS = PASS_CHARACTERS
"""What it costs to add up the gradients of several workers in each step, likewise: a guess, not measured."""


@dataclass(frozen=True)
class Work:
    """One adapter's training."""

    name: str
    rows: int
    characters: int
    """Of all rows; tokens are proportional to them, and not known before the rows are tokenised."""
    batch_size: int
    epochs: int

    @property
    def steps(self) -> int:
        return math.ceil(self.rows / self.batch_size) * self.epochs

    def on(self, workers: int) -> float:
        """Characters that the worker with most of its rows sees."""
        share = math.ceil(self.batch_size / workers) / self.batch_size
        return share * self.characters * self.epochs


@dataclass(frozen=True)
class Division:
    """Which adapters train together."""

    packs: tuple[tuple[str, ...], ...]
    """Names of each pack's adapters, in the order given."""
    workers: int
    """Of each pack."""
    cost: float
    """Of the slowest worker, in characters."""


def divide(works: Sequence[Work], config: TrainingConfig) -> list[Division]:
    """The divisions there are, the one that is estimated to be done first in front; of equals that with fewer packs.

    With ZeRO 3 there is one pack, for its workers hold one base together.

    Args:
        config: `workers`, and `packs` where that is not 0.
    """
    if config.packs or config.zero_stage == 3:
        return [_into(works, config.packs or 1, config.workers)]
    divisors = [number for number in range(1, config.workers + 1) if config.workers % number == 0 and number <= len(works)]
    return sorted((_into(works, number, config.workers) for number in divisors), key=lambda division: division.cost)


def _into(works: Sequence[Work], packs: int, workers: int) -> Division:
    """Longest adapters first, each into the pack that has least to do."""
    each = workers // packs
    members: list[list[Work]] = [[] for _ in range(packs)]
    loads = [0.0] * packs
    for work in sorted(works, key=lambda work: -work.on(each)):
        least = loads.index(min(loads))
        members[least].append(work)
        loads[least] += work.on(each)
    step = PASS_CHARACTERS + EXCHANGE_CHARACTERS * (each > 1)
    cost = max(load + step * max(work.steps for work in own) for load, own in zip(loads, members, strict=True) if own)
    order = {work.name: number for number, work in enumerate(works)}
    named = (sorted((work.name for work in own), key=order.__getitem__) for own in members)
    return Division(tuple(sorted((tuple(own) for own in named if own), key=lambda own: order[own[0]])), each, cost)
