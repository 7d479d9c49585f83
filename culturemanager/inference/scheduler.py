"""Which requests run: first come, first served, as far as free rows and a step's share of prompt tokens go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from culturemanager.inference.requests import FinishReason, Generation, GenerationRequest
from culturemanager.inference.sampling import TokenPicker
from culturemanager.inference.text import TextStream

PADDING_SHARE = 0.1
PADDING_TOKENS = 64
"""A pass may hold this share, and this many tokens, of padding before a second pass is cheaper."""

Item = TypeVar("Item")


@dataclass(eq=False)
class ActiveRequest:
    """A request from `submit` to its end."""

    id: int
    request: GenerationRequest
    text: TextStream
    picker: TokenPicker
    token_ids: list[int] = field(default_factory=list)

    @property
    def last_position(self) -> int:
        """Position of the newest token, which the cache does not hold yet."""
        return len(self.request.prompt_ids) + len(self.token_ids) - 1

    def generation(self, reason: FinishReason) -> Generation:
        return Generation(self.text.text, tuple(self.token_ids), reason, len(self.request.prompt_ids))


class Scheduler:
    """The queue of waiting requests and the rows of running ones.

    Args:
        rows: requests that run at the same time.
        prefill_tokens: prompt tokens let in per step (a longer prompt comes alone), so that
            running requests do not wait long for their next token.
    """

    def __init__(self, rows: int, prefill_tokens: int) -> None:
        self.rows = rows
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[ActiveRequest] = deque()
        self.running: list[ActiveRequest] = []
        """The request of each cache row, from row 0 on."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def __iter__(self) -> Iterator[ActiveRequest]:
        yield from self.running
        yield from self.waiting

    def admissible(self) -> list[list[ActiveRequest]]:
        """The waiting requests that may start now, in batches of similar length; `start` takes them off the queue."""
        chosen: list[ActiveRequest] = []
        tokens = 0
        for active in self.waiting:
            tokens += len(active.request.prompt_ids)
            if len(self.running) + len(chosen) == self.rows or (chosen and tokens > self.prefill_tokens):
                break
            chosen.append(active)
        batches = by_length(chosen, lambda active: len(active.request.prompt_ids), self.rows, self.prefill_tokens)
        # Rows of one adapter side by side are the cheapest for the bank.
        return [sorted(batch, key=lambda active: active.request.adapter) for batch in batches]

    def start(self, batch: Sequence[ActiveRequest]) -> None:
        """Give these waiting requests the next rows."""
        for active in batch:
            self.waiting.remove(active)
            self.running.append(active)

    def finish(self, active: ActiveRequest) -> tuple[int, int]:
        """Take a running request off its row; the last row moves there. Returns both row numbers."""
        row, last = self.running.index(active), len(self.running) - 1
        self.running[row] = self.running[last]
        self.running.pop()
        return row, last


def by_length(items: Sequence[Item], length: Callable[[Item], int], rows: int, tokens: int) -> list[list[Item]]:
    """Split into batches with little padding, of at most `rows` items and `tokens` padded tokens.

    An item longer than `tokens` makes a batch of its own.
    """
    batches: list[list[Item]] = []
    real = 0
    for item in sorted(items, key=length, reverse=True):
        size = length(item)
        if batches:
            padded = length(batches[-1][0]) * (len(batches[-1]) + 1)
            fits = len(batches[-1]) < rows and padded <= tokens
            if fits and padded - real - size <= PADDING_TOKENS + PADDING_SHARE * padded:
                batches[-1].append(item)
                real += size
                continue
        batches.append([item])
        real = size
    return batches
