"""What goes into the engine and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from culturemanager.errors import RequestError
from culturemanager.inference.sampling import GREEDY, Sampling

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""The end token or a stop string; `max_new_tokens`; `Engine.cancel`; scores that were not finite."""
MOST_LOGPROBS = 20
"""Alternatives a request may ask for beside each token."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue.

    Raises:
        RequestError: the prompt or a stop string is empty, `max_new_tokens` is below 1 (0 with `prompt_logprobs`), or
            `logprobs` is not within 0..20.
    """

    prompt_ids: tuple[int, ...]
    adapter: str = ""
    """The adapter's name in the bank; empty: the bare base."""
    max_new_tokens: int = 32
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    """Texts that end the generation and are not part of it."""
    logprobs: int | None = None
    """Tell each new token's log-probability and so many of the most likely tokens beside it; None: neither."""
    prompt_logprobs: bool = False
    """Tell the same of every prompt token but the first; with None for `logprobs` without the tokens beside it."""
    asked_at: float = 0.0
    """Seconds on a clock that all senders share. Requests are let in in this order, equals as they come."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("The prompt has no tokens, expected at least one; send a message with text.")
        if self.max_new_tokens < (0 if self.prompt_logprobs else 1):
            raise RequestError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1, or 0 with prompt_logprobs.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise RequestError(f"logprobs is {self.logprobs}, expected None or 0 to {MOST_LOGPROBS}.")
        if not all(self.stop):
            raise RequestError(f"stop is {list(self.stop)}; an empty stop string would end every text: leave it out.")


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model held a token to be, before temperature, `top_k` and `top_p`."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most likely tokens with theirs, best first. If the token is among them, its number is the very same."""


@dataclass(frozen=True)
class Generation:
    """A finished continuation."""

    text: str
    """Without special tokens; cut before the stop string that ended it."""
    token_ids: tuple[int, ...]
    """What the model chose, without the end token; those that spell a stop string are included."""
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int = field(default=0, compare=False)
    """Of the prompt's, those that were not computed, because an earlier prompt began with them; the answer is the same."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, if the request asked."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """One for each prompt token, None for the first, which nothing predicts; if the request asked and its prompt was computed."""
    end_logprob: TokenLogprob | None = None
    """Of the end token, where it ended the answer and the request asked."""


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request, or its end.

    The `text_delta`s of a request, put together, are its generation's text. A delta may be empty: a token can
    hold part of a character, or could be the beginning of a stop string.
    """

    request_id: int
    token_id: int | None
    """None when nothing but the end is told: the end token, a cancellation, an error."""
    text_delta: str
    finish_reason: FinishReason | None
    generation: Generation | None = None
    """The whole, beside the finish reason."""
    logprob: TokenLogprob | None = None
    """The token's, if the request asked."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """As in `Generation`, with the request's first event."""


@dataclass(frozen=True)
class ScoreRequest:
    """A prompt and the answers to compare after it.

    Raises:
        RequestError: the prompt is empty, or there are no options.
    """

    prompt_ids: tuple[int, ...]
    options: tuple[str, ...]
    adapter: str = ""
    """The adapter's name in the bank; empty: the bare base."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("The prompt has no tokens, expected at least one; send a message with text.")
        if not self.options:
            raise RequestError("A request to score has no options, expected at least one answer.")
