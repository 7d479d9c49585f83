"""A linear classifier over sentence embeddings: which culture, or none that the text lets one know."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import safetensors
import safetensors.numpy

from culturemanager.errors import CorruptFileError
from culturemanager.providers.embedding import Embedder

NOWHERE = ""
"""The class of texts that show no culture of the project."""
INVERSE_REGULARISATION = 3.0
NAME = re.compile(r"(?<!^)(?<![.!?:…\n]\s)(?<!\n)\b[^\W\d_a-zß-ÿ][\w'’-]+(?: (?:(?:de|da|do|al|el|of) )?[A-ZÀ-Þ][\w'’-]+)*")
"""Words with a capital that does not come from starting a sentence."""


def names_in(text: str) -> str:
    """The proper names of a text, joined; empty if there is none."""
    return ", ".join(match.group() for match in NAME.finditer(text))


class EmbeddingClassifier:
    """Multinomial logistic regression; its weights are two plain arrays.

    Args:
        classes: culture ids, and `NOWHERE`.
        weight: float32 [classes, dimension].
        bias: float32 [classes].
    """

    def __init__(self, classes: Sequence[str], weight: np.ndarray, bias: np.ndarray) -> None:
        self.classes = tuple(classes)
        self.weight = weight
        self.bias = bias

    @classmethod
    def fit(cls, vectors: np.ndarray, labels: Sequence[str], seed: int) -> EmbeddingClassifier:
        """Fit on unit vectors [n, dimension]; every class weighs the same, however many rows it has."""
        from sklearn.linear_model import LogisticRegression  # only fitting needs it
        from threadpoolctl import threadpool_limits

        model = LogisticRegression(C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=500, random_state=seed)
        with threadpool_limits(limits=1, user_api="blas"):  # the products are small: more threads only wait for each other
            model.fit(vectors, labels)
        weight, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.vstack((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
        # scikit-learn may return columns in a row; safetensors writes memory as it lies.
        return cls([str(name) for name in model.classes_], np.ascontiguousarray(weight, dtype=np.float32),
                   np.ascontiguousarray(bias, dtype=np.float32))

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Softmax over the classes, float32 [n, classes]; not calibrated."""
        logits = vectors @ self.weight.T + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def judge(self, texts: Sequence[str], embedder: Embedder) -> list[dict[str, float]]:
        """Class to probability for each text: the mean over the text and over its proper names alone.

        A sentence's topic drowns a rare name in the sentence's embedding; the names alone keep it.
        """
        views = {text: [view for view in (text, names_in(text)) if view] for text in texts}
        wanted = list(dict.fromkeys(view for found in views.values() for view in found))
        rows = dict(zip(wanted, self.probabilities(embedder.embed(wanted)), strict=True)) if wanted else {}
        nothing = np.array([float(name == NOWHERE) for name in self.classes])
        means = (np.mean([rows[view] for view in views[text]], axis=0) if views[text] else nothing for text in texts)
        return [dict(zip(self.classes, map(float, mean), strict=True)) for mean in means]

    def to_bytes(self) -> bytes:
        """The arrays as safetensors."""
        return safetensors.numpy.save({"weight": self.weight, "bias": self.bias})

    @classmethod
    def from_bytes(cls, classes: Sequence[str], data: bytes) -> EmbeddingClassifier:
        """Read `to_bytes`.

        Raises:
            CorruptFileError: not such a file, or its shapes do not fit the classes.
        """
        try:
            arrays = safetensors.numpy.load(data)
            weight, bias = arrays["weight"], arrays["bias"]
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise CorruptFileError(f"classifier.safetensors is damaged ({error}). Run the router stage again.") from error
        if weight.ndim != 2 or len(weight) != len(classes) or bias.shape != (len(classes),):
            raise CorruptFileError(f"classifier.safetensors holds arrays {weight.shape} and {bias.shape} for {len(classes)} "
                                   "classes. Run the router stage again.")
        return cls(classes, weight, bias)
