"""A request as the router reads it: texts that count differently."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from culturemanager.errors import ConfigError

MAXIMUM_CHARACTERS = 20_000
"""Of one request; of a longer one the newest text is read."""
FADING = 0.25
"""What a turn counts beside the user turn after it."""
ASSISTANT = 0.25
SYSTEM = 0.25


@dataclass(frozen=True)
class Request:
    """Texts of a request, newest first, each with its factor."""

    segments: tuple[tuple[str, float], ...]
    focus: str
    """The last user turn."""
    whole: str
    """Every user turn, the newest first: an embedder that cuts long texts keeps those."""


def read_request(request: str | Sequence[Mapping[str, Any]]) -> Request:
    """A text, or chat messages with string content or with content parts of type `text`.

    Raises:
        ConfigError: a message without a role, or a content that is no text.
    """
    if isinstance(request, str):
        text = _clean(request)[:MAXIMUM_CHARACTERS]
        return Request(((text, 1.0),), text, text)
    segments: list[tuple[str, float]] = []
    users: list[str] = []
    factor, left = 1.0, MAXIMUM_CHARACTERS
    for message in reversed(request):
        if left <= 0:
            break
        role, text = _message(message)
        text = text[:left]
        left -= len(text)
        if role == "user":
            users.append(text)
            segments.append((text, factor))
            factor *= FADING
        elif role == "assistant":
            segments.append((text, factor * ASSISTANT))
        elif role in ("system", "developer"):
            segments.append((text, SYSTEM))
    return Request(tuple(segments), users[0] if users else "", "\n".join(users))


def _message(message: Mapping[str, Any]) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ConfigError(f"message {str(message)[:60]!r}: expected an object with `role` and `content`.")
    content = message.get("content")
    if content is None:
        content = ""
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "\n".join(str(part.get("text", "")) for part in content
                            if isinstance(part, Mapping) and part.get("type") == "text")
    if not isinstance(content, str):
        raise ConfigError(f"message content {str(content)[:60]!r}: expected a text, or a list of parts of type `text`.")
    return message["role"], _clean(content)


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
