"""What an evaluation comes to, every answer and the figures; saved, and read again without what made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from culturemanager.records import Score
from culturemanager.storage import StageDirectory, StageDraft

SUBJECT = "culturemanager"
"""The system that all others are compared with."""


@dataclass(frozen=True)
class Answer:
    """One system's answer, with what it was asked."""

    score: Score
    question: str
    """The task's own prompt, the same for every system."""
    prompt: str
    """The whole prompt, with culture, passages or examples."""
    adapter: str
    expected: str
    """The item's answer; for free text a model answer."""

    def to_row(self) -> dict[str, Any]:
        return self.score.to_row() | {"question": self.question, "prompt": self.prompt, "adapter": self.adapter,
                                      "expected": self.expected}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Answer:
        return cls(Score.from_row(row), row["question"], row["prompt"], row["adapter"], row["expected"])


@dataclass(frozen=True)
class Evaluation:
    """The outcome: `summary` is the content of `scores.json`."""

    summary: Mapping[str, Any]
    answers: tuple[Answer, ...]


def save(draft: StageDraft, evaluation: Evaluation) -> None:
    """Write `scores.json` and `answers.parquet` into the stage."""
    draft.write_json("scores.json", evaluation.summary)
    draft.write_rows([answer.to_row() for answer in evaluation.answers], name="answers.parquet")
    draft.details |= {"items": evaluation.summary["items"], "systems": list(evaluation.summary["systems"])}


def load(stage: StageDirectory) -> Evaluation:
    """A saved evaluation.

    Raises:
        IncompleteStageError: the stage did not finish.
        CorruptFileError: a file differs from its sum.
    """
    return Evaluation(stage.read_json("scores.json"), tuple(map(Answer.from_row, stage.read_rows("answers.parquet"))))
