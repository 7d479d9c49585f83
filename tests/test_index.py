"""The index finds what an exact search finds, in every kind and across shards."""

import numpy as np
import pytest

from culturemanager.errors import CorruptFileError, IncompleteStageError
from culturemanager.records import Passage
from culturemanager.sections.synthesis import IndexConfig
from culturemanager.storage import Workspace
from culturemanager.synthesis.index import PassageIndex, build_shard, choose_kind, write_index

DIMENSION = 48


class FixedEmbedder:
    """Texts are numbers of rows in a table of vectors."""

    dimension = DIMENSION

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def embed(self, texts):
        return self._vectors[[int(text) for text in texts]]


def unit(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters, as embeddings of text lie."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(40, DIMENSION))
    vectors = (centres[random.integers(40, size=count)] + 0.5 * random.normal(size=(count, DIMENSION))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def passages(count: int) -> list[Passage]:
    return [
        Passage(f"p{n}", "turkey" if n % 50 else "greece", "page", "u", "t", "", "text", "en", n, "2026-01-01")
        for n in range(count)
    ]


def write(tmp_path, count: int, config: IndexConfig) -> tuple[Workspace, np.ndarray]:
    workspace, vectors = Workspace(tmp_path), unit(count)
    with workspace.stage("index").writing("key") as draft:
        write_index(draft, passages(count), vectors, config)
    return workspace, vectors


@pytest.mark.parametrize(("kind", "recall"), [("flat", 1.0), ("hnsw", 0.95), ("ivfpq", 0.6)])
def test_every_kind_finds_the_nearest_passages(tmp_path, kind, recall):
    workspace, vectors = write(tmp_path, 1200, IndexConfig(kind=kind))
    assert workspace.stage("index").manifest().details["kind"] == kind
    index = PassageIndex.open(workspace.stage("index"), FixedEmbedder(vectors))
    exact = np.argsort(-(vectors[:40] @ vectors.T), axis=1)[:, :5]
    found = index.search([str(n) for n in range(40)], limit=5)
    hits = sum(len({h.passage_id for h in row} & {f"p{n}" for n in want}) for row, want in zip(found, exact, strict=True))
    assert hits >= recall * 200


def test_shards_give_the_same_hits_as_one_index(tmp_path):
    one, vectors = write(tmp_path / "one", 500, IndexConfig())
    many, _ = write(tmp_path / "many", 500, IndexConfig(shard_size=120))
    assert len(many.stage("index").manifest().details["shards"]) == 5
    searches = [PassageIndex.open(w.stage("index"), FixedEmbedder(vectors)).search(["3", "99"], limit=7) for w in (one, many)]
    assert [[h.passage_id for h in row] for row in searches[0]] == [[h.passage_id for h in row] for row in searches[1]]


def test_a_rare_culture_is_found_among_many_passages(tmp_path):
    workspace, vectors = write(tmp_path, 1000, IndexConfig())
    index = PassageIndex.open(workspace.stage("index"), FixedEmbedder(vectors))
    found = index.search(["7"], culture="greece", limit=20)[0]
    assert len(found) == 20 and {hit.culture for hit in found} == {"greece"}
    assert index.search(["7"], culture="nowhere", limit=5) == [[]]


def test_the_kind_follows_the_size():
    assert [choose_kind(n, IndexConfig()) for n in (1000, 50_001, 1_000_001)] == ["flat", "hnsw", "ivfpq"]
    assert build_shard(unit(10), "flat").ntotal == 10


def test_a_shard_of_too_few_for_codes_is_flat(tmp_path):
    workspace, vectors = write(tmp_path, 210, IndexConfig(kind="ivfpq", shard_size=200))
    assert workspace.stage("index").manifest().details["kind"] == "flat+ivfpq"
    index = PassageIndex.open(workspace.stage("index"), FixedEmbedder(vectors))
    assert index.search(["205"], limit=1)[0][0].passage_id == "p205"


def test_a_flipped_bit_is_noticed_before_faiss_reads_it(tmp_path):
    workspace, vectors = write(tmp_path, 100, IndexConfig())
    path = tmp_path / "index" / "shard-0000.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"shard-0000.faiss.*run the stage 'index' again"):
        PassageIndex.open(workspace.stage("index"), FixedEmbedder(vectors))


def test_an_unfinished_index_says_what_to_run(tmp_path):
    with pytest.raises(IncompleteStageError, match="culturemanager run"):
        PassageIndex.open(Workspace(tmp_path).stage("index"), FixedEmbedder(unit(1)))
