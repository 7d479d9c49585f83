"""The FAISS index over the passages: built in shards by Ray Data, searched across them.

The index kind follows the size (FAISS's own guidelines): exact search while it is fast enough, an
HNSW graph (Malkov and Yashunin 2018) for more, inverted lists with product quantisation (Jégou et
al. 2011) where memory counts. Vectors have unit norm, so the inner product is the cosine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import torch

from culturemanager.errors import CorruptFileError
from culturemanager.providers.embedding import Embedder, build_embedder
from culturemanager.records import Passage
from culturemanager.sections.synthesis import EmbeddingConfig, IndexConfig
from culturemanager.storage import StageDirectory, StageDraft

FLAT_UP_TO = 50_000
HNSW_UP_TO = 1_000_000
HNSW_LINKS = 32
CODE_BYTES = 48
TRAINABLE = 39
"""Vectors for each centroid, below which FAISS warns of too few; IVF-PQ of fewer than these is of no use."""
OVERSAMPLE = 20
"""A search limited to one culture asks each shard for this many times the hits wanted, at first."""


@dataclass(frozen=True)
class Hit:
    """One passage found."""

    passage_id: str
    culture: str
    score: float
    """Cosine similarity, at most 1."""


class EmbedPassages:
    """Ray Data actor: adds a `vector` column to a batch of passages."""

    def __init__(self, config: EmbeddingConfig) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.actors))  # Ray would leave an actor one thread
        self._embedder = build_embedder(config)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch["vector"] = self._embedder.embed([str(text) for text in batch["text"]])
        return batch


def embed_passages(passages: Sequence[Passage], config: EmbeddingConfig,
                   progress: Callable[[int, int, str], None] | None = None) -> np.ndarray:
    """Vectors of all passages, float32 [passages, dimension] in the passages' order, through a Ray Data actor pool.

    A text that several cultures' queries found is embedded once.
    """
    import ray.data

    texts = [f"{p.heading}\n{p.text}" for p in passages]
    places = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    rows = [{"number": number, "text": text} for text, number in places.items()]
    dataset = ray.data.from_items(rows).map_batches(
        EmbedPassages, fn_constructor_args=(config,), batch_size=config.batch_size,
        compute=ray.data.ActorPoolStrategy(size=config.actors))
    numbers, vectors, done = [], [], 0
    for batch in dataset.iter_batches(batch_size=config.batch_size, batch_format="numpy"):
        numbers.append(batch["number"])
        vectors.append(np.stack(batch["vector"]).astype(np.float32))
        done += len(batch["number"])
        if progress:
            progress(done, len(rows), "passages embedded")
    by_place = np.concatenate(vectors)[np.argsort(np.concatenate(numbers))]
    return by_place[[places[text] for text in texts]]


def choose_kind(count: int, config: IndexConfig) -> str:
    """The index kind for a shard of `count` vectors."""
    if config.kind == "ivfpq" and count < TRAINABLE:
        return "flat"
    if config.kind != "auto":
        return config.kind
    return "flat" if count <= FLAT_UP_TO else "hnsw" if count <= HNSW_UP_TO else "ivfpq"


def build_shard(vectors: np.ndarray, kind: str) -> faiss.Index:
    """One FAISS index over float32 [count, dimension] unit vectors, searched by inner product."""
    count, dimension = vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(dimension)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        lists = max(1, min(int(4 * count**0.5), count // TRAINABLE))
        codes = next(m for m in range(min(CODE_BYTES, dimension), 0, -1) if dimension % m == 0)
        bits = 8 if count >= 256 * TRAINABLE else 4
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dimension), dimension, lists, codes, bits, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(8, lists // 8)
        index.train(vectors)
    index.add(vectors)
    return index


def write_index(draft: StageDraft, passages: Sequence[Passage], vectors: np.ndarray, config: IndexConfig) -> None:
    """Write the shards, which passages they hold, and the kind chosen."""
    shards = []
    for number, start in enumerate(range(0, len(passages), config.shard_size)):
        part = vectors[start:start + config.shard_size]
        kind = choose_kind(len(part), config)
        name = f"shard-{number:04d}.faiss"
        draft.write_bytes(name, faiss.serialize_index(build_shard(part, kind)).tobytes())
        shards.append({"file": name, "kind": kind, "rows": len(part)})
    draft.write_rows([{"passage_id": p.id, "culture": p.culture} for p in passages], name="passages.parquet")
    draft.details |= {"rows": len(passages), "dimension": int(vectors.shape[1]), "shards": shards,
                      "kind": "+".join(sorted({shard["kind"] for shard in shards}))}


class PassageIndex:
    """Search over every shard of a finished index stage."""

    def __init__(self, shards: Sequence[faiss.Index], passage_ids: Sequence[str], cultures: Sequence[str],
                 embedder: Embedder) -> None:
        self._shards, self._ids, self._embedder = shards, passage_ids, embedder
        self._cultures = np.array(cultures)

    @classmethod
    def open(cls, stage: StageDirectory, embedder: Embedder) -> PassageIndex:
        """Load the index, every file's SHA-256 checked before FAISS sees it.

        Raises:
            IncompleteStageError: the stage did not finish.
            CorruptFileError: a file is damaged, or was built with another embedding model.
        """
        details = stage.manifest().details
        if details["dimension"] != embedder.dimension:
            raise CorruptFileError(f"the index has {details['dimension']} dimensions, the embedding model {embedder.dimension}. "
                                   "Run `culturemanager index` again.")
        shards = [faiss.deserialize_index(np.frombuffer(stage.read_bytes(shard["file"]), dtype=np.uint8))
                  for shard in details["shards"]]
        rows = stage.read_table("passages.parquet").to_pydict()
        return cls(shards, rows["passage_id"], rows["culture"], embedder)

    @property
    def passage_ids(self) -> frozenset[str]:
        """Of every passage that may be found."""
        return frozenset(self._ids)

    def search(self, texts: Sequence[str], *, culture: str | None = None, limit: int = 5) -> list[list[Hit]]:
        """The most similar passages for each text, best first.

        Args:
            culture: only passages found for this culture; None searches all.
            limit: most hits for a text.
        """
        return self.search_vectors(self._embedder.embed(list(texts)), culture=culture, limit=limit)

    def search_vectors(self, vectors: np.ndarray, *, culture: str | None = None, limit: int = 5) -> list[list[Hit]]:
        """`search` with unit vectors, float32 [texts, dimension]."""
        found: list[list[Hit]] = [[] for _ in vectors]
        start = 0
        for shard in self._shards:
            self._search_shard(shard, start, vectors, culture, limit, found)
            start += shard.ntotal
        return [sorted(hits, key=lambda hit: (-hit.score, hit.passage_id))[:limit] for hits in found]

    def _search_shard(self, shard: faiss.Index, start: int, vectors: np.ndarray, culture: str | None, limit: int,
                      found: list[list[Hit]]) -> None:
        """Ask for more hits until the culture's passages fill the limit or the shard is exhausted."""
        cultures = self._cultures[start:start + shard.ntotal]
        wanted = limit if culture is None else min(limit, int((cultures == culture).sum()))
        if not wanted:
            return
        asked = min(shard.ntotal, limit if culture is None else limit * OVERSAMPLE)
        while True:
            scores, numbers = shard.search(vectors, asked)
            rows = [[Hit(self._ids[start + n], str(cultures[n]), float(s)) for n, s in zip(row, values, strict=True)
                     if n >= 0 and culture in (None, cultures[n])][:limit] for row, values in zip(numbers, scores, strict=True)]
            if asked == shard.ntotal or all(len(row) >= wanted for row in rows):
                break
            asked = min(shard.ntotal, asked * 4)
        for hits, more in zip(found, rows, strict=True):
            hits += more
