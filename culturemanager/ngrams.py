"""Whether a text repeats a stretch of words of a held-out item: the check that keeps evaluation out of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from culturemanager.records import EvaluationItem
from culturemanager.tasks import normalise


class WordRuns:
    """Every run of `n` words of some texts; case and punctuation do not count.

    Args:
        texts: the held-out texts. One of fewer than `n` words has no run and shares none.
        n: words in a run.
        whole: texts that count as repeated when all of their words are, however few.
    """

    def __init__(self, texts: Iterable[str], n: int = 8, whole: Iterable[str] = ()) -> None:
        if n < 1:
            raise ValueError(f"a run has at least one word, got n={n}")
        self.n = n
        self._runs = {run for text in texts for run in self._of(text)}
        self._whole = frozenset(filter(None, map(normalise, whole)))

    def _of(self, text: str) -> list[tuple[str, ...]]:
        words = normalise(text).split()
        return [tuple(words[start : start + self.n]) for start in range(len(words) - self.n + 1)]

    def shared_with(self, text: str) -> str | None:
        """The first run that `text` has in common with the held-out texts; `None` if there is none."""
        return next((" ".join(run) for run in self._of(text) if run in self._runs), None)

    def repeats(self, text: str) -> bool:
        """Whether `text` is one of the whole texts."""
        return normalise(text) in self._whole


def asked_text(inputs: Mapping[str, Any], fields: Sequence[str]) -> str:
    """What an item or a row asks, as one text: the task's fields but for lists, such as the options of a choice."""
    return " ".join(value for value in map(inputs.get, fields) if isinstance(value, str))


def item_texts(item: EvaluationItem) -> list[str]:
    """Every text of an item that training must not have seen: its input fields and its model answer."""
    texts = [item.answer]
    for value in item.inputs.values():
        texts += [value] if isinstance(value, str) else map(str, value)
    return texts


def leakage(texts: Sequence[str], items: Iterable[EvaluationItem], n: int = 8) -> list[bool]:
    """For each text, whether it shares a run of `n` words with any item."""
    held_out = WordRuns((text for item in items for text in item_texts(item)), n)
    return [held_out.shared_with(text) is not None for text in texts]
