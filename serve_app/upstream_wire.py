"""What a multi-LoRA server is asked in OpenAI's format, and its stream read with care."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from culturemanager.errors import RequestError

SHOWN_CHARACTERS = 300
"""Of what a server sent, in a message."""


@dataclass(frozen=True)
class Chunk:
    """One event of a stream; any part may be missing."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    """As `serve_app.responses` describes them; servers tell no token ids."""
    usage: tuple[int, int] | None = None
    """Tokens of the prompt and of the answer."""


def path_of(request: Mapping[str, Any]) -> str:
    """Where a request goes, below the server's base address."""
    return "chat/completions" if request.get("messages") else "completions"


def body_of(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A replica's request as a server takes it, always streamed.

    Args:
        model: what the server calls the adapter, or the bare base.

    Raises:
        RequestError: it asks for what servers do differently or not at all.
    """
    for field in ("echo", "guided_choice"):
        if request.get(field):
            raise RequestError(f"{field} is not passed on to the server behind this endpoint (serving.upstream); leave it out, "
                               "or serve with the engine of our own.")
    chat = bool(request.get("messages"))
    body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "n": 1,
            "temperature": request["temperature"], "top_p": request["top_p"]}
    body |= {"messages": request["messages"]} if chat else {"prompt": request["prompt"]}
    # What is at its default is left out: not every server knows every field.
    optional = {"max_tokens": request["max_new_tokens"], "seed": request["seed"], "stop": request["stop"] or None,
                "top_k": request.get("top_k") or None}
    wanted = request.get("logprobs")
    if wanted is not None:
        optional |= {"logprobs": True, "top_logprobs": wanted} if chat else {"logprobs": wanted}
    return body | {name: value for name, value in optional.items() if value is not None}


def read_chunk(data: Mapping[str, Any]) -> Chunk:
    """An event's JSON, of a chat's stream or a plain completion's.

    Raises:
        ValueError, TypeError, KeyError, IndexError, AttributeError: it is no such event.
    """
    usage = data.get("usage")
    counts = (_count(usage["prompt_tokens"]), _count(usage["completion_tokens"])) if usage else None
    if not data["choices"]:  # the event that tells the usage
        return Chunk(usage=counts)
    choice = data["choices"][0]
    text = choice["delta"].get("content") if "delta" in choice else choice["text"]
    reason = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise TypeError("text or finish reason is no text")
    (text or "").encode()  # raises where half a surrogate pair would break our own answer
    logprobs = choice.get("logprobs")
    return Chunk(text or "", reason, _logprobs(logprobs) if logprobs else None, counts)


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a count of tokens is no number")
    return value


def _logprobs(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "tokens" not in told:  # a chat's
        return [_token(one["token"], one["logprob"], {top["token"]: top["logprob"] for top in one.get("top_logprobs") or []})
                for one in told.get("content") or []]
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return [_token(token, logprob, top or {})
            for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)]


def _token(text: str, logprob: float, top: Mapping[str, float]) -> dict[str, Any]:
    if not all(isinstance(spelled, str) for spelled in (text, *top)) or not all(map(math.isfinite, (logprob, *top.values()))):
        raise ValueError("a log-probability is no finite number, or its token no text")
    return {"token": text, "token_id": None, "logprob": logprob, "top": [[other, None, value] for other, value in top.items()]}


def error_of(data: Any) -> tuple[str, int] | None:
    """The message and the HTTP status (0: none is told) of an error in a stream; None: it is no error."""
    if not isinstance(data, dict) or not (data.get("error") or data.get("object") == "error"):
        return None
    told = data["error"] if isinstance(data.get("error"), dict) else data
    return message_of(json.dumps(data)), told["code"] if isinstance(told.get("code"), int) else 0


def message_of(body: str) -> str:
    """What an error's body says, on one short line, in each of the forms that servers use."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    said = body
    if isinstance(data, dict):
        error = data.get("error")
        inner = error.get("message") if isinstance(error, dict) else error
        said = next((text for text in (inner, data.get("message"), data.get("detail")) if isinstance(text, str) and text), body)
    return " ".join(said.split())[:SHOWN_CHARACTERS]
