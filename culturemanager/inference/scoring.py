"""Answers to compare after a prompt: all options of a request in one pass, with no token generated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from culturemanager.adapters.bank import AdapterBank
from culturemanager.errors import AdapterError
from culturemanager.inference.packing import PackedOptions, pack
from culturemanager.inference.requests import ScoreRequest
from culturemanager.inference.runner import ModelRunner
from culturemanager.inference.scheduler import by_length

Progress = Callable[[int, int, str], None]
"""Called with the number done, the number of all, and a word for what."""
SCORED_TOKENS = 4096
"""Padded tokens of one scoring pass."""
SCORED_LOGITS = 2**26
"""Logits of one pass that keeps those of many positions (256 MiB)."""


def spelled(requests: Sequence[ScoreRequest], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The token ids of every option."""
    texts = dict.fromkeys(text for request in requests for text in request.options)
    return {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}


def score_options(requests: Sequence[ScoreRequest], options: dict[str, list[int]], end: int, runner: ModelRunner,
                  bank: AdapterBank, on_progress: Progress | None = None) -> list[tuple[float, ...]]:
    """Mean log-probability per token of each request's options, the end token included.

    Args:
        options: as `spelled` gives them.
        end: the token that ends an answer.

    Raises:
        AdapterError: an adapter's scores are not finite.
    """
    rows = [pack(request.prompt_ids, [options[text] for text in request.options], end) for request in requests]
    scores: dict[int, tuple[float, ...]] = {}
    for batch in _batches(rows, runner.vocabulary):
        batch.sort(key=lambda number: requests[number].adapter)
        with bank.rows([bank.names[requests[number].adapter] if requests[number].adapter else 0 for number in batch]):
            scores |= zip(batch, runner.options([rows[number] for number in batch]), strict=True)
        for number in batch:
            if not all(map(math.isfinite, scores[number])):
                raise not_finite(requests[number].adapter)
        if on_progress:
            on_progress(len(scores), len(rows), "score")
    return [scores[number] for number in range(len(rows))]


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
