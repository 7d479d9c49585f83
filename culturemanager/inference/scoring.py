"""Answers to compare after a prompt, with no token generated; a request's options share a pass, as far as one may hold them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from culturemanager.adapters.bank import AdapterBank
from culturemanager.errors import AdapterError
from culturemanager.inference.packing import PackedOptions, pack
from culturemanager.inference.requests import ScoreRequest
from culturemanager.inference.runner import ModelRunner
from culturemanager.inference.scheduler import by_length

Progress = Callable[[int, int, str], None]
"""Called with the number done, the number of all, and a word for what."""
Passes = Generator[int, None, list[tuple[float, ...]]]
"""Computes one pass at each `next`, yields how many requests are done, and returns the scores of all."""
SCORED_TOKENS = 4096
"""Padded tokens of one scoring pass."""
SCORED_LOGITS = 2**26
"""Logits of one pass that keeps those of many positions (256 MiB); one option alone may need more."""


def spelled(requests: Sequence[ScoreRequest], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The token ids of every option."""
    texts = dict.fromkeys(text for request in requests for text in request.options)
    return {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}


def score_options(requests: Sequence[ScoreRequest], options: dict[str, list[int]], end: int, runner: ModelRunner,
                  bank: AdapterBank) -> Passes:
    """Mean log-probability per token of each request's options, the end token included, a pass at a time.

    Args:
        options: as `spelled` gives them.
        end: the token that ends an answer.

    Raises:
        AdapterError: an adapter's scores are not finite.
    """
    rows, owners = [], []
    for owner, request in enumerate(requests):
        for share in _shares([options[text] for text in request.options], len(request.prompt_ids), runner.vocabulary):
            rows.append(pack(request.prompt_ids, share, end))
            owners.append(owner)
    scores: dict[int, tuple[float, ...]] = {}
    waiting = Counter(owners)
    for batch in _batches(rows, runner.vocabulary):
        batch.sort(key=lambda number: requests[owners[number]].adapter)
        adapters = [requests[owners[number]].adapter for number in batch]
        with torch.inference_mode(), bank.rows([bank.names[adapter] if adapter else 0 for adapter in adapters]):
            scores |= zip(batch, runner.options([rows[number] for number in batch]), strict=True)
        for number, adapter in zip(batch, adapters, strict=True):
            if not all(map(math.isfinite, scores[number])):
                raise not_finite(adapter)
        waiting.subtract(owners[number] for number in batch)
        yield sum(not left for left in waiting.values())
    whole: list[list[float]] = [[] for _ in requests]
    for number, owner in enumerate(owners):
        whole[owner] += scores[number]
    return [tuple(one) for one in whole]


def _shares(options: Sequence[list[int]], prompt: int, vocabulary: int) -> list[list[list[int]]]:
    """The options, in their order, as they share rows: as many as a pass may hold, and one at least."""
    room = min(SCORED_TOKENS - prompt, SCORED_LOGITS // vocabulary - 1)  # the logits of the prompt's last token are kept, too
    shares: list[list[list[int]]] = []
    used = 0
    for option in options:
        if not shares or used + len(option) > room:
            shares.append([])
            used = 0
        shares[-1].append(option)
        used += len(option)
    return shares


def _batches(rows: Sequence[PackedOptions], vocabulary: int) -> list[list[int]]:
    """Numbers of rows of similar length, as many as the logits of a pass may take."""
    most_kept = max((len(row.kept) for row in rows), default=1)
    most_rows = max(1, SCORED_LOGITS // (most_kept * vocabulary))
    return by_length(range(len(rows)), lambda number: len(rows[number].ids), most_rows, SCORED_TOKENS)


def not_finite(adapter: str) -> AdapterError:
    """The error for scores that are no numbers."""
    who = f"Adapter {adapter!r}" if adapter else "The base model"
    return AdapterError(f"{who} gives scores that are not finite numbers. Load the base in float32 or bfloat16; "
                        "if that does not help, train the adapter again.")
