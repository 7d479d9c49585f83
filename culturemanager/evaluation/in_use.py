"""A compared system in use: a question becomes what the model is asked, as the evaluation makes it of an item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from culturemanager.evaluation.baselines import System, compose
from culturemanager.evaluation.retrieval import PassageRetriever, question_in
from culturemanager.records import Culture, Passage, Task


@dataclass(frozen=True)
class Asked:
    """What the model is asked."""

    prompt: str
    adapter: str
    """Its name in the registry; empty for the bare base."""
    passages: tuple[Passage, ...]
    """Those that stand in the prompt, nearest to the question first."""


class ServedSystem:
    """Composes prompts as one of the compared systems does.

    Args:
        system: which one.
        cultures: the project's.
        tasks: the project's; those whose words are known in a question.
        retriever: finds passages, for a system that puts them into the prompt.
        limit: most passages in a prompt.
    """

    def __init__(self, system: System, cultures: Sequence[Culture], tasks: Sequence[Task] = (),
                 retriever: PassageRetriever | None = None, limit: int = 0) -> None:
        self._system, self._tasks, self._retriever, self._limit = system, tasks, retriever, limit
        self._cultures = {culture.id: culture for culture in cultures}

    @property
    def reads_passages(self) -> bool:
        """Whether a prompt may hold passages."""
        return self._system.passages

    def adapter(self, culture: str) -> str:
        """The registry's name for the adapter of a culture."""
        return self._system.adapter.format(culture=culture)

    def ask(self, text: str, culture: str, options: Sequence[str] = (), fits: Callable[[str], bool] = lambda _: True) -> Asked:
        """What the model is asked for a question; passages that leave it no room for an answer are left out, the last one first.

        Args:
            text: the question, in a task's words or in others.
            culture: id of the culture it is answered for; empty: none, and passages of any culture.
            options: the only answers allowed.
            fits: whether a prompt leaves room.
        """
        found: list[Passage] = []
        if self._retriever:
            (found,) = self._retriever.nearest([question_in(text, self._tasks, options)], culture, self._limit)
        while True:
            texts = [passage.text for passage in found]
            prompt, adapter = compose(self._system, text, self._cultures.get(culture), texts)
            if not found or fits(prompt):
                return Asked(prompt, adapter, tuple(found))
            found = found[:-1]
