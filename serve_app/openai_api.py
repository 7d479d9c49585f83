"""The OpenAI wire format: what a request may hold, what a response looks like."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from culturemanager.records import Route

MAX_TEXT = 200_000
"""Characters of one message or prompt; longer ones are refused before they are tokenised."""


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class GenerationFields(BaseModel):
    """Fields that chat and plain completions share. Unknown fields are ignored, as OpenAI's clients send many."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1, max_length=200)
    """`auto`, a culture, an adapter version, or the base; `<base>:<adapter>` too."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    culture: str | None = Field(default=None, max_length=200)
    """The culture the answer is for, where the caller knows it; an extension of the format."""

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ContentPart(BaseModel):
    """A piece of a message; text only."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] = Field(max_length=MAX_TEXT)

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(GenerationFields):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(GenerationFields):
    """`POST /v1/completions` with one text; the text goes to the model as it is, without a chat template."""

    prompt: str = Field(min_length=1, max_length=MAX_TEXT)
    max_tokens: int = Field(default=16, ge=1)


class RouteRequest(BaseModel):
    """`POST /v1/route`: the routing alone."""

    input: str | list[str] = Field(max_length=MAX_TEXT)


class ResponseShape:
    """Builds the pieces of one response: whole, or as a stream's chunks.

    Args:
        chat: chat completions, else plain ones.
        model: what the response calls the model.
        route: the router's decision.
    """

    def __init__(self, chat: bool, model: str, route: Route) -> None:
        self._chat = chat
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._decision = decision(route)

    def whole(self, text: str, finish_reason: str, usage: dict[str, int]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {**self._head, "object": "chat.completion" if self._chat else "text_completion", "choices": [choice],
                "usage": usage, "culturemanager": self._decision}

    def chunk(self, text: str, finish_reason: str | None, first: bool) -> str:
        """One server-sent event."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self._chat:
            choice["delta"] = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        else:
            choice["text"] = text
        body = {**self._head, "object": self._chunk_object, "choices": [choice]}
        if first:
            body["culturemanager"] = self._decision
        return event(body)

    def usage_chunk(self, usage: dict[str, int]) -> str:
        return event({**self._head, "object": self._chunk_object, "choices": [], "usage": usage})

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"


def event(body: dict[str, Any]) -> str:
    """A server-sent event with a JSON body."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}


def decision(route: Route) -> dict[str, Any]:
    """The router's decision as responses carry it; an empty culture means the bare base answered."""
    return {"culture": route.culture or None, "confidence": round(route.confidence, 4), "reason": route.reason,
            "probabilities": {culture: round(p, 4) for culture, p in route.probabilities.items()}}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
