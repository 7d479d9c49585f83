"""What an example generator gives: candidates, which the checks have yet to pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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


Work = tuple[Culture, Task, Sequence[Passage]]
"""A task for a culture, and the passages that its candidates stand on."""
Written = tuple[list[Candidate], Counter[str]]
"""What came of a piece of work: candidates in the order of their passages, and what was thrown away, by reason."""


class ExampleGenerator(Protocol):
    """Writes candidates from passages."""

    name: str
    """Kept with every example."""

    def generate_batch(self, work: Sequence[Work]) -> list[Written]:
        """What comes of each piece of work, in its order.

        Raises:
            LanguageModelError: a generator that asks an endpoint could not reach it.
        """
        ...
