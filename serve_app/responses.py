"""The OpenAI wire format, outbound: whole responses, chunks of a stream, log-probabilities, errors.

A *piece* is what a replica yields: ``text``, ``finish_reason`` (None until the last), ``prompt_tokens``,
``completion_tokens``, ``logprobs`` (of the piece's tokens, or None), in the last one, where it is known, ``cached_tokens``
(the prompt's that were not computed anew) and, in the first piece of an echo, ``prompt``
(``text`` and ``logprobs``). A token's log-probability is ``{"token", "token_id", "logprob", "top": [[token, id, logprob]]}``.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from culturemanager.records import Route

Piece = dict[str, Any]


class ResponseShape:
    """Builds one response: whole, or as a stream's chunks.

    Args:
        chat: chat completions, else plain ones.
        model: what the response calls the model.
        routes: the router's decision on each choice.
        passages: those in the prompt; None: the served system reads none.
    """

    def __init__(self, chat: bool, model: str, routes: Sequence[Route],
                 passages: Sequence[dict[str, str]] | None = None) -> None:
        self._chat = chat
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._decisions = [decision(route) for route in routes]
        self._read = {} if passages is None else {"passages": list(passages)}
        self._offsets: dict[int, int] = {}  # characters of each choice that went out before

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """The response with every choice, in order."""
        choices = []
        for number, piece in enumerate(answers):
            choice = self._choice(number, piece)
            text = _echoed(piece) + piece["text"]
            choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            if len(answers) > 1:
                choice["culturemanager"] = self._decisions[number]
            choices.append(choice)
        # Choices of one prompt are computed from it anew; the prompt counts for each, as it was worked on for each.
        return {**self._head, "object": "chat.completion" if self._chat else "text_completion", "choices": choices,
                "usage": usage(answers), "culturemanager": self._decisions[0] | self._read}

    def chunk(self, number: int, piece: Piece, first: bool) -> str:
        """One server-sent event with a piece of a choice; `first`: of this choice."""
        choice = self._choice(number, piece)
        text = _echoed(piece) + piece["text"]
        if self._chat:
            choice["delta"] = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        else:
            choice["text"] = text
        body = {**self._head, "object": self._chunk_object, "choices": [choice]}
        if first:
            body["culturemanager"] = self._decisions[number] | self._read
        return event(body)

    def usage_chunk(self, tokens: dict[str, Any]) -> str:
        return event({**self._head, "object": self._chunk_object, "choices": [], "usage": tokens})

    def _choice(self, number: int, piece: Piece) -> dict[str, Any]:
        prompt = (piece.get("prompt") or {}).get("logprobs") or []
        tokens = piece.get("logprobs")
        logprobs = None
        if tokens is not None:
            logprobs = {"content": [_chat_token(token) for token in tokens]} if self._chat else (
                self._completion_logprobs(number, [*prompt, *tokens]))
        return {"index": number, "finish_reason": piece["finish_reason"], "logprobs": logprobs}

    def _completion_logprobs(self, number: int, tokens: Sequence[dict[str, Any]]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(number, 0))
            self._offsets[number] = offsets[-1] + len(token["token"])
        return {"tokens": [token["token"] for token in tokens], "text_offset": offsets,
                "token_logprobs": [token["logprob"] for token in tokens],
                "top_logprobs": [_by_text(token) for token in tokens]}

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"


def _echoed(piece: Piece) -> str:
    return piece["prompt"]["text"] if piece.get("prompt") else ""


def _by_text(token: dict[str, Any]) -> dict[str, float] | None:
    """The alternatives by their text; None for a prompt's first token, which nothing predicts."""
    if token["logprob"] is None:
        return None
    alternatives: dict[str, float] = {}
    for text, _, logprob in token["top"]:
        alternatives.setdefault(text, logprob)  # two tokens may be spelled alike: the likelier one comes first
    alternatives.setdefault(token["token"], token["logprob"])
    return alternatives


def _chat_token(token: dict[str, Any]) -> dict[str, Any]:
    def entry(text: str, logprob: float) -> dict[str, Any]:
        # A token that is only part of a character has no text of its own.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

    return entry(token["token"], token["logprob"]) | {"top_logprobs": [entry(text, p) for text, _, p in token["top"]]}


def event(body: dict[str, Any]) -> str:
    """A server-sent event with a JSON body."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def usage(pieces: Collection[Piece]) -> dict[str, Any]:
    """Tokens of all choices, from the last piece of each."""
    prompt, completion, cached = (sum(piece.get(name, 0) for piece in pieces)
                                  for name in ("prompt_tokens", "completion_tokens", "cached_tokens"))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached}}


def decision(route: Route) -> dict[str, Any]:
    """The router's decision as responses carry it; an empty culture means the bare base answered."""
    return {"culture": route.culture or None, "confidence": round(route.confidence, 4), "reason": route.reason,
            "probabilities": {culture: round(p, 4) for culture, p in route.probabilities.items()}}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
