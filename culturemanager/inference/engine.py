"""Continuous batching over many adapters on one base.

Requests join and leave at every step (Yu et al. 2022, "Orca", OSDI): `step` lets waiting requests in, computes
their prompts together, then computes one token for every running row, each with its own adapter through the bank.
Long prompts are computed over several steps (Agrawal et al. 2024, "Sarathi-Serve", arXiv 2403.02310), and what a prompt
shares with an earlier one under the same adapter is not computed again. Every row is answered as if it ran alone; only
rounding depends on the company.

An engine belongs to one thread.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from culturemanager.adapters.bank import AdapterBank
from culturemanager.errors import AdapterError, ModelError, RequestError
from culturemanager.inference.logprobs import score_prompts, token_logprobs
from culturemanager.inference.prefixes import NOTHING, Match, PrefixCache
from culturemanager.inference.requests import (
    FinishReason,
    Generation,
    GenerationRequest,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
)
from culturemanager.inference.runner import ModelRunner, context_length
from culturemanager.inference.sampling import Sampling, TokenPicker, pick_tokens
from culturemanager.inference.scheduler import ActiveRequest, Chunk, Scheduler
from culturemanager.inference.scoring import SCORED_LOGITS, Passes, Progress, not_finite, score_options, spelled
from culturemanager.inference.text import TextStream

__all__ = ["Engine", "Generation", "GenerationRequest", "Sampling", "ScoreRequest", "TokenEvent", "TokenLogprob"]

DEFAULT_CONTEXT = 4096
"""A model made for far more would reserve gigabytes for requests that do not come."""
BASE = ("",)
"""What the bare base holds, beside the contents that the bank names."""


class Engine:
    """Generates and scores for requests that each name an adapter.

    Args:
        model: a causal language model in evaluation mode, the one `bank` is on.
        tokenizer: the model's.
        bank: holds the adapters. An adapter may be added at any time, and removed while it is not in
            `adapters_in_use`.
        max_batch_rows: requests computed together.
        context: tokens a request may have, prompt and answer together; None: what the model allows, at most
            4096. The cache has room for `max_batch_rows` times as many and never grows, so a request that
            has a row has all the memory it may come to need.
        prefill_tokens: prompt tokens computed per step; a longer prompt takes several.
        prefix_cache_mb: MiB for the beginnings of earlier prompts, reserved beside the cache; 0: none are kept.

    Raises:
        ModelError: the model or tokenizer cannot be used this way; the message says why.
        RequestError: a size below 1, a negative `prefix_cache_mb`, or a context beyond the model's.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bank: AdapterBank, *,
                 max_batch_rows: int = 32, context: int | None = None, prefill_tokens: int = 2048,
                 prefix_cache_mb: float = 256) -> None:
        longest = context_length(model)
        if min(max_batch_rows, prefill_tokens, longest if context is None else context) < 1:
            raise RequestError(f"max_batch_rows {max_batch_rows}, context {context} and prefill_tokens {prefill_tokens} "
                               "must all be at least 1.")
        if prefix_cache_mb < 0:
            raise RequestError(f"prefix_cache_mb is {prefix_cache_mb}, expected 0 (nothing is kept) or more.")
        if context is not None and context > longest:
            raise RequestError(f"A context of {context} tokens is more than the model's {longest}; lower it.")
        if tokenizer.eos_token_id is None:
            raise ModelError(f"The tokenizer of {tokenizer.name_or_path!r} has no end token (eos_token), so no answer could "
                             "end; use a model that was trained to end its turn.")
        self.context = context or min(longest, DEFAULT_CONTEXT)
        self._tokenizer = tokenizer
        self._bank = bank
        self._runner = ModelRunner(model, max_batch_rows, self.context)
        self._prefixes = PrefixCache(self._runner.cache, int(prefix_cache_mb * 2**20))
        self._ends = _end_ids(model, tokenizer)
        self._scheduler = Scheduler(max_batch_rows, prefill_tokens, max(1, SCORED_LOGITS // self._runner.vocabulary))
        self._reused_tokens = 0
        self._scored: Counter[str] = Counter()  # adapters of answers that are being compared
        self._ids = itertools.count(1)
        self._events: list[TokenEvent] = []

    # ---- streaming

    def submit(self, request: GenerationRequest) -> int:
        """Queue a request and return its number; `step` answers it.

        Raises:
            RequestError: prompt and `max_new_tokens` are longer than the context.
            AdapterError: the bank holds no such adapter.
        """
        self._check(request)
        text = TextStream(self._tokenizer, request.stop)
        active = ActiveRequest(next(self._ids), request, text, TokenPicker(request.sampling))
        self._scheduler.wait(active)
        return active.id

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Compute the next token of every running request, after letting waiting ones in.

        A request gets two tokens in the step that ends its prompt. If a pass fails, the step may be
        repeated: a request then goes on from its last token that was told.

        Raises:
            AdapterError: an adapter in use was removed from the bank.
        """
        budget = self._scheduler.prefill_tokens
        while chunks := self._scheduler.next_batch(budget, self._find_prefix):
            budget -= sum(map(len, chunks))
            self._prefill(chunks)
        if self._scheduler.running:
            batch = list(self._scheduler.running)
            with self._bank.rows(self._slots(batch)):
                logits = self._runner.decode([active.token_ids[-1] for active in batch],
                                             [active.last_position for active in batch])
            self._take(batch, logits)
        events, self._events = self._events, []
        return events

    @torch.inference_mode()
    def cancel(self, request_id: int) -> bool:
        """End a request and free its row now; the next `step` tells so. False: it has ended already, or never was."""
        for active in self._scheduler:
            if active.id == request_id:
                self._finish(active, "cancelled", None)
                return True
        return False

    @property
    def pending(self) -> int:
        """Requests that have not ended, and ends not told yet: while it is not 0, call `step`."""
        return len(self._scheduler) + len(self._events)

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Rows in use."""
        return self._scheduler.rows_in_use

    @property
    def adapters_in_use(self) -> set[str]:
        """Adapters of requests that have not ended; these must stay in the bank."""
        return ({active.request.adapter for active in self._scheduler} | set(+self._scored)) - {""}

    @property
    def cache_bytes(self) -> int:
        """Bytes reserved for keys and values, those of earlier prompts included; 0 before the first request."""
        return self._runner.cache.memory_bytes + self._prefixes.memory_bytes

    @property
    def reused_tokens(self) -> int:
        """Prompt tokens so far that were not computed, because an earlier prompt began with them."""
        return self._reused_tokens

    # ---- whole lists

    def generate(self, requests: Sequence[GenerationRequest], on_progress: Progress | None = None) -> list[Generation]:
        """Answer all requests, in their order.

        Args:
            on_progress: called with the number done, the number of all, and a word for what.

        Raises:
            RequestError: as `submit`, before anything is computed; or streamed requests have not ended.
            AdapterError: as `submit`; or an adapter's scores are not finite.
        """
        for request in requests:
            self._check(request)
        if self.pending:
            raise RequestError(f"{self.pending} submitted requests have not ended; call `step` until they have.")
        # Neighbours with the same adapter and length share passes best.
        order = sorted(range(len(requests)), key=lambda i: (requests[i].adapter, -len(requests[i].prompt_ids)))
        places = {self.submit(requests[i]): i for i in order}
        done: dict[int, Generation] = {}
        try:
            while len(done) < len(requests):
                ended = [event for event in self.step() if event.generation]
                for event in ended:
                    done[places[event.request_id]] = event.generation
                    if event.finish_reason == "error":
                        raise not_finite(requests[places[event.request_id]].adapter)
                if ended and on_progress:
                    on_progress(len(done), len(requests), "generate")
        finally:
            self._abandon(places)
        return [done[i] for i in range(len(requests))]

    def score(self, requests: Sequence[ScoreRequest], on_progress: Progress | None = None) -> list[tuple[float, ...]]:
        """Mean log-probability per token of each option's text, the end token included, after the prompt.

        A request's options share one computation of the prompt, unless they are more than a pass may hold. Streamed requests
        are not disturbed.

        Args:
            on_progress: called with the number done, the number of all, and a word for what.

        Raises:
            RequestError: a prompt with its longest option is longer than the context.
            AdapterError: the bank holds no such adapter, or its scores are not finite.
        """
        passes = self.score_in_passes(requests)
        while True:
            try:
                done = next(passes)
            except StopIteration as end:
                return end.value
            if on_progress:
                on_progress(done, len(requests), "score")

    def score_in_passes(self, requests: Sequence[ScoreRequest]) -> Passes:
        """As `score`, for callers that `step` in between, and `close` what they do not exhaust.

        Raises:
            RequestError, AdapterError: as `score`; those of a request itself before anything is computed.
        """
        options = spelled(requests, self._tokenizer)
        for request in requests:
            longest = max(len(options[text]) for text in request.options)
            self._check_length(len(request.prompt_ids), longest, "the longest option")
            self._check_adapter(request.adapter)
        passes = score_options(requests, options, self._tokenizer.eos_token_id, self._runner, self._bank)
        return self._holding([request.adapter for request in requests], passes)

    # ---- how

    def _holding(self, adapters: Sequence[str], passes: Passes) -> Passes:
        """The same passes, with these adapters in use from the first one on."""
        self._scored.update(adapters)
        try:
            return (yield from passes)
        finally:
            self._scored.subtract(adapters)

    def _find_prefix(self, active: ActiveRequest) -> Match:
        """What is held of a waiting request's prompt, none of which helps if every token's score is wanted."""
        request = active.request
        self._check_adapter(request.adapter)
        active.content = self._bank.content(request.adapter) if request.adapter else BASE
        return NOTHING if request.prompt_logprobs else self._prefixes.find(active.content, request.prompt_ids)

    def _prefill(self, chunks: Sequence[Chunk]) -> None:
        """Compute prompt tokens, and pick the first new token of each prompt that ends with them."""
        first_row, scored = len(self._scheduler.running), chunks[0].active.request.prompt_logprobs
        batch = [chunk.active for chunk in chunks]
        self._prefixes.restore([chunk.match for chunk in chunks], first_row)
        with self._bank.rows(self._slots(batch)):
            logits = self._runner.prefill([chunk.ids for chunk in chunks], [chunk.start for chunk in chunks], first_row, scored)
        self._scheduler.advance(chunks)
        for chunk in chunks:
            chunk.active.reused += chunk.match.tokens
            self._reused_tokens += chunk.match.tokens
        if scored:
            score_prompts(chunks, logits)
        if chunks[0].ends_prompt:  # then all do
            self._prefixes.store([(active.content, active.request.prompt_ids) for active in batch], first_row)
            last = [len(chunk) - 1 if scored else 0 for chunk in chunks]
            self._take(batch, logits[range(len(batch)), last])

    def _take(self, batch: Sequence[ActiveRequest], logits: Tensor) -> None:
        """Pick each row's next token from its logits [rows, vocabulary], and end the rows that are done."""
        tokens = pick_tokens(logits, [active.picker for active in batch])
        logprobs = self._logprobs(batch, tokens, logits)
        for active, token, logprob in zip(batch, tokens, logprobs, strict=True):
            if token is None:
                self._finish(active, "error")
                continue
            if not active.request.max_new_tokens or token in self._ends:
                active.end_logprob = logprob if active.request.max_new_tokens else None
                self._finish(active, "stop" if active.request.max_new_tokens else "length")
                continue
            active.token_ids.append(token)
            delta = active.text.push(token)
            if logprob:
                active.logprobs.append(logprob)
            if active.text.stopped or len(active.token_ids) == active.request.max_new_tokens:
                self._finish(active, "stop" if active.text.stopped else "length", token, delta, logprob)
            else:
                self._events.append(active.event(token, delta, logprob))

    def _logprobs(self, batch: Sequence[ActiveRequest], tokens: Sequence[int | None],
                  logits: Tensor) -> list[TokenLogprob | None]:
        """Of each row's token, where the request asked and there is one."""
        logprobs: list[TokenLogprob | None] = [None] * len(batch)
        asked = [row for row, active in enumerate(batch) if active.request.logprobs is not None and tokens[row] is not None]
        if asked:
            told = token_logprobs(logits[asked], [tokens[row] for row in asked], [batch[row].request.logprobs for row in asked])
            for row, logprob in zip(asked, told, strict=True):
                logprobs[row] = logprob
        return logprobs

    def _finish(self, active: ActiveRequest, reason: FinishReason, token: int | None = None, delta: str = "",
                logprob: TokenLogprob | None = None) -> None:
        """Free the request's row, or its place in the queue, and note its end."""
        for row, last in self._scheduler.finish(active):
            self._runner.cache.release(row, last)
        delta += active.text.finish()
        self._events.append(active.event(token, delta, logprob, reason))

    def _abandon(self, ids: Container[int]) -> None:
        """Cancel those that have not ended, without a word."""
        for active in list(self._scheduler):
            if active.id in ids:
                self.cancel(active.id)
        self._events = [event for event in self._events if event.request_id not in ids]

    def _check(self, request: GenerationRequest) -> None:
        self._check_length(len(request.prompt_ids), request.max_new_tokens, "max_new_tokens")
        self._check_adapter(request.adapter)

    def _check_length(self, prompt: int, answer: int, what: str) -> None:
        if prompt + answer > self.context:
            raise RequestError(f"The request has {prompt + answer} tokens ({prompt} of the prompt, {answer} of {what}), the "
                               f"context holds {self.context}. Shorten the prompt or the answer.")

    def _check_adapter(self, name: str) -> None:
        if name and name not in self._bank.names:
            raise AdapterError(f"The bank holds no adapter {name!r}; it holds {sorted(self._bank.names)}. Load it first.")

    def _slot(self, adapter: str) -> int:
        """Looked up for every pass, so that a removed adapter is an error and never another's weights."""
        self._check_adapter(adapter)
        return self._bank.names[adapter] if adapter else 0

    def _slots(self, batch: Sequence[ActiveRequest]) -> list[int]:
        return [self._slot(active.request.adapter) for active in batch]


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    more = configured if isinstance(configured, (list, tuple)) else [configured]
    return frozenset({tokenizer.eos_token_id, *(token for token in more if token is not None)})
