"""The frozen records that travel between stages.

Every record is a plain dataclass: it pickles through Ray, turns into a Parquet row with
`to_row` and comes back with `from_row`. Tuples become lists in a row and mappings become
JSON text, because Parquet has no open mapping type.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

TaskKind = Literal["classification", "multiple_choice", "generation"]
Split = Literal["train", "validation"]


def stable_id(*parts: str) -> str:
    """16 hexadecimal digits that depend on the parts alone: equal content, equal id."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


class Record:
    """Row conversion shared by the records below."""

    __slots__ = ()

    def to_row(self) -> dict[str, Any]:
        """The record as one Parquet row."""
        row = {}
        for name in (f.name for f in dataclasses.fields(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = json.dumps(value, ensure_ascii=False, sort_keys=True)
            row[name] = value
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Rebuild the record from `to_row`'s output; unknown columns are ignored.

        Raises:
            KeyError: a column without a default is missing from `row`.
        """
        values = {}
        for f in dataclasses.fields(cls):  # type: ignore[arg-type]
            if f.name not in row:
                if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                    raise KeyError(f"{cls.__name__} row has no column {f.name!r}; found {sorted(row)}")
                continue
            value = row[f.name]
            kind = str(f.type)
            if kind.startswith("tuple") and value is not None:
                value = tuple(value)
            elif kind.startswith("Mapping") and isinstance(value, str):
                value = json.loads(value)
            values[f.name] = value
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Culture(Record):
    """One national culture and the words by which a text shows that it speaks of it."""

    id: str
    name: str
    """How a prompt names it: "South Korea" in "In South Korea: ..."."""
    countries: tuple[str, ...]
    languages: tuple[str, ...]
    """ISO 639-1 codes, most spoken first."""
    demonyms: tuple[str, ...]
    cues: tuple[str, ...] = ()
    """Cities, festivals, given names and everyday words that point to the culture."""


@dataclass(frozen=True, slots=True)
class Task(Record):
    """One culture-sensitive task; `tasks.py` renders, parses and scores it."""

    id: str
    kind: TaskKind
    instruction: str
    """What the task asks, in one sentence; given to a language model that writes examples."""
    fields: tuple[str, ...]
    """The input fields the template may use."""
    template: str
    """Jinja2 text, rendered in a sandbox with the fields."""
    metric: str
    labels: tuple[str, ...] = ()
    """The closed set of answers of a classification task; empty for the other kinds."""
    seeds: tuple[Mapping[str, Any], ...] = ()
    """A few worked items: ``{"inputs": {...}, "answer": "..."}``."""


@dataclass(frozen=True, slots=True)
class Query(Record):
    """One web query made for a culture; `task` is empty for a task-agnostic query."""

    id: str
    culture: str
    task: str
    text: str
    language: str
    source: Literal["template", "llm"]


@dataclass(frozen=True, slots=True)
class Page(Record):
    """One fetched page. `culture` is that of the query that found it, not yet what it is about."""

    id: str
    culture: str
    query_ids: tuple[str, ...]
    url: str
    final_url: str
    title: str
    content_type: str
    content: str
    """The decoded body, markup included."""
    fetched_at: str
    """ISO 8601, UTC."""
    sha256: str
    """Of the body's bytes as received."""


@dataclass(frozen=True, slots=True)
class Passage(Record):
    """A stretch of a page's main text, a few sentences long, with its source."""

    id: str
    culture: str
    """The culture whose query found the page; examples decide anew whom each sentence is about."""
    page_id: str
    url: str
    title: str
    heading: str
    """The nearest heading above the passage; empty if there is none."""
    text: str
    language: str
    position: int
    """0 for the page's first passage."""
    fetched_at: str


@dataclass(frozen=True, slots=True)
class Example(Record):
    """One training row, traceable to the sentence it stands on."""

    id: str
    culture: str
    task: str
    inputs: Mapping[str, Any]
    """The task's input fields."""
    prompt: str
    """The rendered template, without culture or passages."""
    completion: str
    passage_ids: tuple[str, ...]
    url: str
    fetched_at: str
    quote: str
    """The sentence of the passage that supports the completion."""
    generator: str
    checks: Mapping[str, str] = field(default_factory=dict)
    """Check name to "passed" or the reason it failed."""
    split: Split = "train"


@dataclass(frozen=True, slots=True)
class EvaluationItem(Record):
    """One held-out question with what counts as right."""

    id: str
    culture: str
    task: str
    inputs: Mapping[str, Any]
    answer: str
    """A label, an option's text, or for generation a model answer."""
    cue: bool
    """Whether the text itself shows its culture; if not, only metadata tells it."""
    topic: str = ""
    accept: tuple[str, ...] = ()
    """Generation: a right answer contains one of these phrases..."""
    reject: tuple[str, ...] = ()
    """...and none of these."""


@dataclass(frozen=True, slots=True)
class AdapterVersion(Record):
    """One immutable adapter directory of the registry."""

    name: str
    """Directory name and served model id: ``turkey-v0001``."""
    culture: str
    version: int
    base_model: str
    rank: int
    data_digest: str
    """SHA-256 over the training rows and hyperparameters; equal digest, nothing to retrain."""
    content_digest: str
    """SHA-256 of the weights file."""
    created_at: str
    base_digest: str = ""
    """Stands for what the base model computes (`base_model.content_digest`); empty: nobody knows."""
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route(Record):
    """The router's decision for one request."""

    culture: str
    """The culture whose adapter answers; empty for the bare base."""
    confidence: float
    """Calibrated probability in [0, 1] that `culture` is right."""
    reason: Literal["pinned", "named", "language", "classifier", "abstained"]
    probabilities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score(Record):
    """One system's answer to one evaluation item."""

    system: str
    item_id: str
    culture: str
    task: str
    answer: str
    """What the model said."""
    correct: bool
    unparsed: bool
    """The answer could not be read as one the task allows; counted as wrong."""
    routed_to: str = ""


def to_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """`to_row` over many records."""
    return [record.to_row() for record in records]
