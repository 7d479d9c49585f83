"""Passages for a prompt: the same search for evaluated items, for the rows an adapter is trained on, and in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from culturemanager.records import Example, Passage, Task
from culturemanager.tasks import read_inputs


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


def question_in(prompt: str, tasks: Sequence[Task], options: Sequence[str] = ()) -> str:
    """What is searched for where only a prompt is known: `question_text` of its inputs; all of it, if it is in no task's words.

    Args:
        options: the answers that are allowed, for tasks that have them among their inputs.
    """
    read = [(task, inputs) for task in tasks if (inputs := read_inputs(task, prompt))]
    if not read:
        return prompt
    # The more of a prompt is the template's own, the surer it is that task's.
    task, inputs = min(read, key=lambda pair: sum(map(len, pair[1].values())))
    return question_text({name: inputs.get(name) or options for name in task.fields if inputs.get(name) or name == "options"})


class PassageRetriever:
    """The passages nearest to a question.

    Args:
        index: finds passage ids.
        passages: by their ids.
    """

    def __init__(self, index: Index, passages: Mapping[str, Passage]) -> None:
        self._index = index
        self._passages = passages

    def nearest(self, questions: Sequence[str], culture: str, limit: int) -> list[list[Passage]]:
        """At most `limit` passages for each question, nearest first.

        Args:
            culture: only passages of this culture; of any, if empty.
        """
        found = self._index.search(questions, culture=culture or None, limit=limit)
        return [[self._passages[hit.passage_id] for hit in hits] for hits in found]

    def texts(self, questions: Sequence[str], culture: str, limit: int) -> list[list[str]]:
        """The texts of `nearest`."""
        return [[passage.text for passage in passages] for passages in self.nearest(questions, culture, limit)]

    def for_examples(self, examples: Sequence[Example], limit: int) -> list[list[str]]:
        """The passages each training example's question would get in use, its culture known."""
        by_culture: dict[str, list[int]] = defaultdict(list)
        for number, example in enumerate(examples):
            by_culture[example.culture].append(number)
        found: dict[int, list[str]] = {}
        for culture, numbers in by_culture.items():
            questions = [question_text(examples[number].inputs) for number in numbers]
            found.update(zip(numbers, self.texts(questions, culture, limit), strict=True))
        return [found[number] for number in range(len(examples))]
