"""Passages for a prompt: the same search for evaluated items and for the rows an adapter is trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from culturemanager.records import Example


class Hit(Protocol):
    """One search result."""

    passage_id: str


class Index(Protocol):
    """What is asked of `synthesis.index.PassageIndex`."""

    def search(self, texts: Sequence[str], *, culture: str | None, limit: int) -> Sequence[Sequence[Hit]]: ...


def question_text(inputs: Mapping[str, Any]) -> str:
    """What is searched for: the input fields' texts, without the template's standing words."""
    texts: list[str] = []
    for value in inputs.values():
        texts += [value] if isinstance(value, str) else map(str, value)
    return " ".join(texts)


class PassageRetriever:
    """The texts of the passages nearest to a question.

    Args:
        index: finds passage ids.
        texts: passage id to passage text.
    """

    def __init__(self, index: Index, texts: Mapping[str, str]) -> None:
        self._index = index
        self._texts = texts

    def passages(self, questions: Sequence[str], culture: str, limit: int) -> list[list[str]]:
        """At most `limit` passages for each question, nearest first.

        Args:
            culture: only passages of this culture; of any, if empty.
        """
        found = self._index.search(questions, culture=culture or None, limit=limit)
        return [[self._texts[hit.passage_id] for hit in hits] for hits in found]

    def for_examples(self, examples: Sequence[Example], limit: int) -> list[list[str]]:
        """The passages each training example's question would get in use, its culture known."""
        by_culture: dict[str, list[int]] = defaultdict(list)
        for number, example in enumerate(examples):
            by_culture[example.culture].append(number)
        found: dict[int, list[str]] = {}
        for culture, numbers in by_culture.items():
            questions = [question_text(examples[number].inputs) for number in numbers]
            found.update(zip(numbers, self.passages(questions, culture, limit), strict=True))
        return [found[number] for number in range(len(examples))]
