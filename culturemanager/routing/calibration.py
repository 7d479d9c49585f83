"""From raw scores to probabilities one can trust, and from those to a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MINIMUM_ROWS = 30
CLIP = 1e-4
BINS = 10
LEAST_THRESHOLD = 0.5


@dataclass(frozen=True)
class PlattScaling:
    """A logistic curve over a score's log-odds (Platt 1999); the default is the identity."""

    slope: float = 1.0
    offset: float = 0.0
    rows: int = 0
    """Held-out rows it was fitted on; 0 for the identity."""

    @classmethod
    def fit(cls, scores: Sequence[float], right: Sequence[bool]) -> PlattScaling:
        """Fit on held-out rows; the identity if they are fewer than 30 or all alike."""
        from sklearn.linear_model import LogisticRegression  # only fitting needs it

        if len(scores) < MINIMUM_ROWS or len(set(right)) < 2:
            return cls()
        model = LogisticRegression(C=10.0, max_iter=500).fit(_log_odds(scores)[:, None], np.asarray(right))
        # A score that does not rise with being right says nothing beyond the base rate.
        slope = max(0.0, float(model.coef_[0, 0]))
        offset = float(model.intercept_[0]) if slope else float(_log_odds([np.mean(right)])[0])
        return cls(slope, offset, len(scores))

    def __call__(self, score: float) -> float:
        """The probability that the decision behind this score is right."""
        return float(1 / (1 + np.exp(-(self.slope * _log_odds([score])[0] + self.offset))))


def _log_odds(scores: Sequence[float]) -> np.ndarray:
    clipped = np.clip(np.asarray(scores, dtype=np.float64), CLIP, 1 - CLIP)
    return np.log(clipped / (1 - clipped))


def precision_coverage(confidences: Sequence[float], right: Sequence[bool],
                       knowable: Sequence[bool]) -> list[dict[str, float]]:
    """For every possible threshold: the precision of what is routed, and the share of knowable rows routed rightly.

    A row is one held-out text with its best culture; `right` says whether that culture is the true
    one, `knowable` whether the text shows its culture at all. Thresholds fall along the list.
    """
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    ranked = np.asarray(confidences, dtype=np.float64)[order]
    hits = np.cumsum(np.asarray(right, dtype=np.int64)[order])
    total = max(1, int(np.sum(knowable)))
    last_of_ties = np.append(np.nonzero(np.diff(ranked))[0], len(ranked) - 1) if len(ranked) else []
    return [{"threshold": float(ranked[i]), "precision": float(hits[i] / (i + 1)), "coverage": float(hits[i] / total),
             "routed": (i + 1) / len(ranked)} for i in last_of_ties]


def choose_threshold(curve: Sequence[dict[str, float]], target_precision: float) -> tuple[float, bool]:
    """The lowest threshold that reaches the target, and whether any does.

    It lies halfway to the next confidence, the first that would miss the target, but not below one
    half: a culture more likely wrong than right is never picked. If no threshold reaches the
    target, the most precise one (of equal ones the lowest) is taken.
    """
    if not curve:
        return 1.0, False
    best = max(point["precision"] for point in curve)
    last = max(number for number, point in enumerate(curve) if point["precision"] >= min(target_precision, best))
    below = curve[last + 1] if last + 1 < len(curve) else curve[last]
    return max((curve[last]["threshold"] + below["threshold"]) / 2, LEAST_THRESHOLD), best >= target_precision


def reliability_bins(confidences: Sequence[float], right: Sequence[bool]) -> list[dict[str, Any]]:
    """Ten equal bins of confidence: rows, mean confidence, share that was right."""
    values, hits = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    places = np.minimum((values * BINS).astype(int), BINS - 1)
    return [{"from": place / BINS, "to": (place + 1) / BINS, "rows": int(mask.sum()),
             "confidence": float(values[mask].mean()), "right": float(hits[mask].mean())}
            for place in range(BINS) if (mask := places == place).any()]


def expected_calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """Mean gap between confidence and share right, weighted by rows (Naeini et al. 2015)."""
    rows = sum(entry["rows"] for entry in bins)
    return sum(entry["rows"] * abs(entry["confidence"] - entry["right"]) for entry in bins) / rows if rows else 0.0
