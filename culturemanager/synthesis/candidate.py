"""What an example generator gives: candidates, which the checks have yet to pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from culturemanager.records import Culture, Passage, Task


@dataclass(frozen=True)
class Candidate:
    """A proposed example. Nothing in it is checked but that `passage_id` is one of the passages given."""

    culture: str
    task: str
    inputs: Mapping[str, Any]
    """The task's input fields."""
    answer: str
    passage_id: str
    quote: str
    """The passage's sentence that is said to support the answer."""


class ExampleGenerator(Protocol):
    """Writes candidates from passages."""

    name: str
    """Kept with every example."""

    def generate(self, culture: Culture, task: Task, passages: Sequence[Passage]) -> Iterator[Candidate]:
        """Candidates of a task for a culture, in the order of the passages they stand on.

        Raises:
            LanguageModelError: a generator that asks an endpoint could not reach it.
        """
        ...
