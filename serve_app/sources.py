"""The sentences behind a culture's training rows, those nearest to a question first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from culturemanager import artifacts
from culturemanager.config import Project
from culturemanager.errors import IncompleteStageError
from culturemanager.records import Example
from culturemanager.storage import Manifest

if TYPE_CHECKING:
    import bm25s

NOT_DEPLOYED = "The training rows are not here: only the adapters were deployed."
NO_ROWS = "This culture has no training rows."
NOTHING_NEAR = "No training row of this culture shares a word with the question."

WORD = re.compile(r"[^\W_]+")
PIECE = 4
"""Letters of a piece. Pieces of words match where whole words do not: tip and tipping, shoe and shoes, in any language."""


class TrainingSources:
    """Finds the sentences that a culture's training rows stand on.

    Rows are read when first asked for, and again after the stage was made anew. Safe to use from several threads:
    the worst is that two of them read the same rows.

    Args:
        project: whose `examples` stage is read. A stage that is not there is no error.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._manifest: Manifest | None = None
        self._shelves: dict[str, Shelf] = {}

    def nearest(self, culture: str, question: str, limit: int) -> dict[str, Any]:
        """At most `limit` sentences under ``data``; where there is none, ``reason`` says why.

        Raises:
            CorruptFileError: a file of the stage differs from its sum.
        """
        try:
            shelf = self._current().get(culture)
        except IncompleteStageError:
            return {"data": [], "reason": NOT_DEPLOYED}
        if shelf is None:
            return {"data": [], "reason": NO_ROWS}
        found = shelf.nearest(question, limit)
        return {"data": [source.told() for source in found], "reason": None if found else NOTHING_NEAR}

    def _current(self) -> dict[str, Shelf]:
        manifest = artifacts.workspace(self._project).stage("examples").manifest()
        if manifest != self._manifest:
            rows: dict[str, list[Example]] = {}
            for row in artifacts.examples(self._project):
                if row.split == "train":
                    rows.setdefault(row.culture, []).append(row)
            titles = self._titles()
            self._shelves = {culture: Shelf(collect(own, titles)) for culture, own in rows.items()}
            self._manifest = manifest
        return self._shelves

    def _titles(self) -> dict[str, str]:
        """Passage id to the title of its page; empty where the passages were left behind."""
        try:
            return {passage.id: passage.title for passage in artifacts.passages(self._project)}
        except IncompleteStageError:
            return {}


@dataclass(frozen=True)
class Source:
    """A sentence, where it was found, and the training rows made from it."""

    quote: str
    title: str
    url: str
    fetched_at: str
    rows: tuple[Example, ...]

    def told(self) -> dict[str, Any]:
        """As the endpoint answers it."""
        rows = [{"task": row.task, "prompt": row.prompt, "completion": row.completion} for row in self.rows]
        return {"quote": self.quote, "title": self.title, "url": self.url, "fetched_at": self.fetched_at, "rows": rows}


def collect(rows: Sequence[Example], titles: dict[str, str]) -> list[Source]:
    """The rows by their sentence, each sentence once, in the order they come in."""
    by_quote: dict[str, list[Example]] = {}
    for row in rows:
        by_quote.setdefault(row.quote, []).append(row)
    return [Source(quote, next((titles[passage] for passage in own[0].passage_ids if titles.get(passage)), ""),
                   own[0].url, own[0].fetched_at, tuple(own))
            for quote, own in by_quote.items()]


class Shelf:
    """One culture's sentences, ranked with BM25 over pieces of words.

    An embedding model would rank better, and would hold up routing meanwhile: the router has only one.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._ranker = self._index(self._sources)

    def nearest(self, question: str, limit: int) -> list[Source]:
        """Sentences that share a piece of a word with the question; ties keep their order."""
        asked = [piece for piece in dict.fromkeys(pieces(question)) if piece in self._ranker.vocab_dict]
        if not asked:
            return []
        scores = self._ranker.get_scores(asked)
        best = np.argsort(-scores, kind="stable")[:limit]
        return [self._sources[number] for number in best if scores[number] > 0]

    @staticmethod
    def _index(sources: Sequence[Source]) -> bm25s.BM25:
        import bm25s

        ranker = bm25s.BM25()
        # What a row asks often names the matter in other words than the sentence does.
        texts = [" ".join([source.quote, *(f"{row.prompt} {row.completion}" for row in source.rows)]) for source in sources]
        ranker.index([pieces(text) for text in texts], show_progress=False)
        return ranker


def pieces(text: str) -> list[str]:
    """Stretches of four letters of every word, with the blanks around it; a short word as it is."""
    padded = (f" {word} " for word in WORD.findall(text.casefold()))
    return [word[start:start + PIECE] for word in padded for start in range(max(1, len(word) - PIECE + 1))]
