"""What comes back from a chat endpoint, read with care: replies, failures, and answers made usable."""

from __future__ import annotations

import datetime
import email.utils
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

MAX_RETRY_AFTER_S = 300.0
SHOWN_CHARACTERS = 120
THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)

NEXT_STEPS = {
    401: "Check the API key in the environment variable {key}",
    403: "Check the API key in the environment variable {key}, and what it may use",
    404: "Check `base_url` and `model` under `examples.generator`",
}
OTHER_STEP = "Check `model`, `temperature` and `max_tokens` under `examples.generator`"


class CallFailedError(Exception):
    """One call that did not come to a usable answer. Its text goes on after "The language model at ..."."""

    def __init__(self, message: str, *, status: int = 0, transient: bool = False, retry_after_s: float | None = None,
                 one_call_only: bool = False) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 if none came."""
        self.transient = transient
        """The same call may well succeed later."""
        self.retry_after_s = retry_after_s
        """Seconds the endpoint asked to wait."""
        self.one_call_only = one_call_only
        """The trouble lies in this call; others may succeed."""


@dataclass(frozen=True)
class Reply:
    """An answered call, whatever is in it."""

    text: str
    """What the model said; empty if the body is no chat completion or holds no text."""
    raw: str
    """`text`, or the whole body where there is none: for showing to a person."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def from_body(cls, body: str) -> Reply:
        """Read an HTTP body; anything but a chat completion becomes a reply without text."""
        try:
            data = json.loads(body)
            choice = data["choices"][0]
            text = choice["message"].get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return cls("", body, "", 0, 0)
        text = text if isinstance(text, str) else ""
        usage = data.get("usage")
        return cls(text, text or body, str(choice.get("finish_reason") or ""),
                   _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))


def _tokens(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def status_failure(error: Any, said: str, key_variable: str, again: str) -> CallFailedError:
    """What an HTTP error status means for the call.

    Args:
        error: an `openai.APIStatusError`.
        said: its text, free of secrets.
        key_variable: name of the environment variable with the API key.
        again: what to do about trouble that passes by itself.
    """
    status = error.status_code
    said = f"answered {status} ({said[:2 * SHOWN_CHARACTERS]})"
    # Azure's filter judges one prompt, and one prompt may be too long: the next passages may pass.
    if error.code in ("content_filter", "context_length_exceeded"):
        return CallFailedError(f"{said}.", status=status, one_call_only=True)
    # The account is out of money: waiting does not help, though the status says to slow down.
    if error.code == "insufficient_quota":
        return CallFailedError(f"{said}. Raise the account's quota, then run the same command again.", status=status)
    if status in (408, 409, 429) or status >= 500:
        wait_s = retry_after_s(error.response.headers)
        if wait_s is not None and wait_s > MAX_RETRY_AFTER_S:
            return CallFailedError(f"{said} and asks to wait {wait_s:.0f} s. {again}.", status=status)
        return CallFailedError(f"{said}. {again}.", status=status, transient=True, retry_after_s=wait_s)
    step = NEXT_STEPS.get(status, OTHER_STEP).format(key=key_variable)
    return CallFailedError(f"{said}. {step}.", status=status)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` or `retry-after` (RFC 9110: seconds or a date); `None` if neither can be read."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(headers.get("retry-after", ""))
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        except ValueError:
            return None
        if moment.tzinfo is None:  # "-0000": a time in UTC, as RFC 5322 has it
            moment = moment.replace(tzinfo=datetime.UTC)
        seconds = (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def usable_text(text: str, finish_reason: str, schema: Mapping[str, Any] | None) -> str:
    """The answer alone; with `schema`, the JSON document in it, which may stand in a code fence.

    Raises:
        ValueError: it is no use. The message says why in words of ours and of the schema, never in the
            model's: it goes into the next prompt, where page text that the model repeats must not stand.
    """
    text = THINKING.sub("", text).strip()
    if finish_reason == "content_filter":
        raise ValueError("it was stopped by a content filter")
    if not text:
        raise ValueError("it holds no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode") from None
    if schema is None:
        return text
    start = text.find("{")
    if start < 0:
        raise ValueError("it holds no JSON object")
    try:
        document, _ = json.JSONDecoder().raw_decode(text, start)
        misfit = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
        text = json.dumps(document, ensure_ascii=False)
        text.encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON ({error.msg} at character {error.pos})") from None
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if misfit is not None:
        rule = json.dumps(misfit.validator_value, ensure_ascii=False)[:SHOWN_CHARACTERS]
        raise ValueError(f"it does not fit the schema at {misfit.json_path}: expected {misfit.validator} {rule}")
    return text
