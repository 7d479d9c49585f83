"""Passages in front of a chat's question, where the served system reads them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from culturemanager.chat import chat_ids
from culturemanager.evaluation.in_use import Asked, ServedSystem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_SHARE = 0.25
"""Of the context, left to an answer that may be as long as it likes."""
MOST_LETTERS_A_TOKEN = 20
"""Chats so long that even with such tokens they do not fit are not tokenised, since that would hold up all others."""
KEPT = 8
"""Chats whose prompts are kept: the answers to one chat are asked for one by one."""

Turn = tuple[str, str]
"""Role and content of a message."""


class PassagePrompts:
    """Puts passages into chats.

    Args:
        system: finds them and words the prompt.
        tokenizer: the base model's.
        context: tokens that prompt and answer may have.
    """

    def __init__(self, system: ServedSystem, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        self._system, self._tokenizer, self._context = system, tokenizer, context
        self._kept = functools.lru_cache(maxsize=KEPT)(self._ask)

    def put(self, request: Mapping[str, Any], culture: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """A chat with the passages nearest to what its user said last, and these passages as its client is told of them.

        Args:
            culture: the one answered for; empty: passages of any culture.
        """
        turns = tuple((message["role"], message["content"]) for message in request["messages"])
        last = max((place for place, (role, _) in enumerate(turns) if role == "user"), default=None)
        if last is None:
            return dict(request), []
        asked = self._kept(turns, last, culture, tuple(request["guided_choice"] or ()), request["max_new_tokens"])
        told = [{"id": one.id, "title": one.title, "url": one.url, "text": one.text} for one in asked.passages]
        return dict(request) | {"messages": _saying(turns, last, asked.prompt)}, told

    def _ask(self, turns: tuple[Turn, ...], last: int, culture: str, options: tuple[str, ...], longest: int | None) -> Asked:
        room = self._context - self._answer_tokens(options, longest)

        def fits(prompt: str) -> bool:
            messages = _saying(turns, last, prompt)
            if sum(len(message["content"]) for message in messages) > room * MOST_LETTERS_A_TOKEN:
                return False
            return len(chat_ids(self._tokenizer, messages)) <= room

        return self._system.ask(turns[last][1], culture, options, fits)

    def _answer_tokens(self, options: tuple[str, ...], longest: int | None) -> int:
        if options:
            return 1 + max(len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in options)
        return longest or int(self._context * ANSWER_SHARE)


def _saying(turns: tuple[Turn, ...], last: int, prompt: str) -> list[dict[str, str]]:
    """The messages, with another text in one of them."""
    return [{"role": role, "content": prompt if place == last else content} for place, (role, content) in enumerate(turns)]
