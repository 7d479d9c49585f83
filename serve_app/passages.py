"""Passages in front of a chat's question, where the served system reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from culturemanager.chat import chat_ids
from culturemanager.evaluation.in_use import ServedSystem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_SHARE = 0.25
"""Of the context, left to an answer that may be as long as it likes."""


class PassagePrompts:
    """Puts passages into chats.

    Args:
        system: finds them and words the prompt.
        tokenizer: the base model's.
    """

    def __init__(self, system: ServedSystem, tokenizer: PreTrainedTokenizerBase) -> None:
        self._system, self._tokenizer = system, tokenizer

    def put(self, request: Mapping[str, Any], culture: str, context: int | None) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """A chat with the passages nearest to what its user said last, and these passages as its client is told of them.

        Args:
            culture: the one answered for; empty: passages of any culture.
            context: tokens that prompt and answer may have; None: not known.
        """
        messages = request["messages"]
        last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is None:
            return dict(request), []

        def saying(prompt: str) -> list[dict[str, str]]:
            return [*messages[:last], {"role": "user", "content": prompt}, *messages[last + 1:]]

        def fits(prompt: str) -> bool:
            return context is None or len(chat_ids(self._tokenizer, saying(prompt))) + self._room(request, context) <= context

        asked = self._system.ask(messages[last]["content"], culture, request["guided_choice"] or (), fits)
        told = [{"id": one.id, "title": one.title, "url": one.url, "text": one.text} for one in asked.passages]
        return dict(request) | {"messages": saying(asked.prompt)}, told

    def _room(self, request: Mapping[str, Any], context: int) -> int:
        """Tokens left to the answer."""
        if request["guided_choice"]:
            return 1 + max(len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in request["guided_choice"])
        return request["max_new_tokens"] or int(context * ANSWER_SHARE)
