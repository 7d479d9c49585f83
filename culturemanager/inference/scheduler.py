"""Which requests run: first asked, first served, as far as free rows and a step's share of prompt tokens go."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from culturemanager.inference.prefixes import NOTHING, Match
from culturemanager.inference.requests import FinishReason, Generation, GenerationRequest, TokenEvent, TokenLogprob
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
    content: Hashable = None
    """What its adapter held when the request was let in."""
    computed: int = 0
    """Tokens of the prompt that the cache holds."""
    reused: int = 0
    """Of them, those that an earlier prompt left."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's second token and those after it."""
    end_logprob: TokenLogprob | None = None
    told: bool = False
    """Whether an event has told of it."""

    @property
    def last_position(self) -> int:
        """Position of the newest token, which the cache does not hold yet."""
        return len(self.request.prompt_ids) + len(self.token_ids) - 1

    def event(self, token: int | None, delta: str, logprob: TokenLogprob | None = None,
              reason: FinishReason | None = None) -> TokenEvent:
        """Tell of a new token, or of the end."""
        prompt_logprobs = () if self.told else self._prompt_logprobs
        self.told = True
        return TokenEvent(self.id, token, delta, reason, self._generation(reason) if reason else None, logprob, prompt_logprobs)

    def _generation(self, reason: FinishReason) -> Generation:
        return Generation(self.text.text, tuple(self.token_ids), reason, len(self.request.prompt_ids), self.reused,
                          tuple(self.logprobs), self._prompt_logprobs, self.end_logprob)

    @property
    def _prompt_logprobs(self) -> tuple[TokenLogprob | None, ...]:
        """One a prompt token; none if they were not asked for, or the prompt is not computed yet."""
        asked = self.request.prompt_logprobs and self.computed == len(self.request.prompt_ids)
        return (None, *self.prompt_logprobs) if asked else ()


@dataclass(frozen=True)
class Chunk:
    """Tokens of one prompt, computed in one pass."""

    active: ActiveRequest
    start: int
    end: int
    match: Match
    """What lies before `start`, if the prompt begins here."""

    @property
    def ids(self) -> tuple[int, ...]:
        return self.active.request.prompt_ids[self.start:self.end]

    @property
    def ends_prompt(self) -> bool:
        return self.end == len(self.active.request.prompt_ids)

    @property
    def kind(self) -> tuple[bool, bool]:
        """Chunks of one kind can share a pass: those with nothing before them, and those whose every logit counts."""
        return self.start > 0, self.active.request.prompt_logprobs

    def __len__(self) -> int:
        return self.end - self.start


class Scheduler:
    """The queue of waiting requests and the rows of running ones.

    A prompt longer than a step's share is computed in chunks over several steps, while the running
    requests go on. At most one prompt is so begun at any time; its row is the last one in use.

    Args:
        rows: requests that have a row at the same time.
        prefill_tokens: prompt tokens computed per step, so that running requests do not wait long for their
            next token.
        scored_tokens: the most tokens of a pass that keeps the logits of every one.
    """

    def __init__(self, rows: int, prefill_tokens: int, scored_tokens: int) -> None:
        self.rows = rows
        self.prefill_tokens = prefill_tokens
        self.scored_tokens = scored_tokens
        self.waiting: deque[ActiveRequest] = deque()
        self.running: list[ActiveRequest] = []
        """The requests whose prompts are computed, of the cache rows from row 0 on."""
        self.begun: ActiveRequest | None = None
        """The one whose prompt is computed in part, in the row after those."""

    def __len__(self) -> int:
        return len(self.waiting) + self.rows_in_use

    def __iter__(self) -> Iterator[ActiveRequest]:
        yield from self.running
        if self.begun:
            yield self.begun
        yield from self.waiting

    @property
    def rows_in_use(self) -> int:
        return len(self.running) + (self.begun is not None)

    def wait(self, active: ActiveRequest) -> None:
        """Queue a request behind those that were asked before it, or at the same time."""
        bisect.insort(self.waiting, active, key=lambda one: one.request.asked_at)

    def next_batch(self, budget: int, find: Callable[[ActiveRequest], Match]) -> list[Chunk]:
        """The prompt tokens to compute in the next pass, into the rows after the running ones; empty: none for now.

        Requests come in the order they were asked, and a prompt that has been begun is finished first. One that begins
        as another one of the batch does waits for it, so that the beginning is computed once.

        Args:
            budget: tokens left of the step's share.
            find: says what is held of a waiting request's prompt.
        """
        if self.begun:
            chunk = self._chunk(self.begun, self.begun.computed, NOTHING)
            return [chunk] if len(chunk) <= budget else []
        chunks: list[Chunk] = []
        missing: set[Hashable] = set()
        for active in self.waiting:
            if len(self.running) + len(chunks) == self.rows:
                break
            match = find(active)
            chunk = self._chunk(active, match.tokens, match)
            if len(chunk) > budget or match.missing in missing:
                break
            chunks.append(chunk)
            budget -= len(chunk)
            if match.missing:
                missing.add(match.missing)
            if not chunk.ends_prompt:
                break
        return self._one_pass(chunks)

    def _chunk(self, active: ActiveRequest, start: int, match: Match) -> Chunk:
        most = min(self.prefill_tokens, self.scored_tokens) if active.request.prompt_logprobs else self.prefill_tokens
        return Chunk(active, start, min(len(active.request.prompt_ids), start + most), match)

    def _one_pass(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Those of one kind and similar length, whole prompts first; rows of one adapter, cheapest for the bank, together."""
        alike = [chunk for chunk in chunks if chunk.ends_prompt and chunk.kind == chunks[0].kind]
        if not alike:
            return chunks[:1]
        tokens = self.scored_tokens if alike[0].active.request.prompt_logprobs else self.prefill_tokens
        return sorted(by_length(alike, len, self.rows, tokens)[0], key=lambda chunk: chunk.active.request.adapter)

    def advance(self, batch: Sequence[Chunk]) -> None:
        """Note that a pass has computed these, in the rows after the running ones."""
        for chunk in batch:
            if chunk.active is self.begun:
                self.begun = None
            else:
                self.waiting.remove(chunk.active)
            chunk.active.computed = chunk.end
            if chunk.ends_prompt:
                self.running.append(chunk.active)
            else:
                self.begun = chunk.active

    def finish(self, active: ActiveRequest) -> list[tuple[int, int]]:
        """Take a request off its row or off the queue.

        Returns:
            (row, last) for each row that is freed and taken over by the last one in use at that moment, in turn.
        """
        count = len(self.running)
        if active in self.running:
            row, last = self.running.index(active), count - 1
            self.running[row] = self.running[last]
            self.running.pop()
            return [(row, last), (last, count)] if self.begun else [(row, last)]
        if active is self.begun:
            self.begun = None
            return [(count, count)]
        self.waiting.remove(active)
        return []


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
