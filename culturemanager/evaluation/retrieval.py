"""Passages for a prompt: the same search for evaluated items, for the rows an adapter is trained on, and in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from culturemanager.records import Example, Passage, Task
from culturemanager.tasks import read_inputs

COPIES = 16
"""The index holds a passage once for every culture whose queries found it; one of more cultures may crowd out others."""


class Hit(Protocol):
    """One search result."""

    passage_id: str


class Index(Protocol):
    """What is asked of `synthesis.index.PassageIndex`."""

    def search(self, texts: Sequence[str], *, culture: str | None, limit: int) -> Sequence[Sequence[Hit]]: ...


def question_text(inputs: Mapping[str, Any], fields: Sequence[str]) -> str:
    """What is searched for: the input fields' texts, without the template's standing words.

    Args:
        fields: the task's, in whose order the texts stand: another order may find another passage.
    """
    texts: list[str] = []
    for value in (inputs[name] for name in fields if name in inputs):
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
    read_or_given = inputs | ({"options": options} if options and "options" in task.fields else {})
    return question_text(read_or_given, task.fields)


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
        asked = limit if culture else limit * COPIES
        found = self._index.search(questions, culture=culture or None, limit=asked)
        ids = [list(dict.fromkeys(hit.passage_id for hit in hits))[:limit] for hits in found]
        return [[self._passages[one] for one in own] for own in ids]

    def texts(self, questions: Sequence[str], culture: str, limit: int) -> list[list[str]]:
        """The texts of `nearest`."""
        return [[passage.text for passage in passages] for passages in self.nearest(questions, culture, limit)]

    def for_examples(self, examples: Sequence[Example], limit: int, fields: Mapping[str, Sequence[str]]) -> list[list[str]]:
        """The passages each training example's question would get in use, its culture known.

        Args:
            fields: each task's.
        """
        by_culture: dict[str, list[int]] = defaultdict(list)
        for number, example in enumerate(examples):
            by_culture[example.culture].append(number)
        found: dict[int, list[str]] = {}
        for culture, numbers in by_culture.items():
            own = (examples[number] for number in numbers)
            questions = [question_text(example.inputs, fields[example.task]) for example in own]
            found.update(zip(numbers, self.texts(questions, culture, limit), strict=True))
        return [found[number] for number in range(len(examples))]
