"""Fitting a router: classifier, calibration, threshold, and the figures that say how good it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from culturemanager.errors import ConfigError
from culturemanager.providers.embedding import Embedder
from culturemanager.records import Culture, Example, Passage, stable_id
from culturemanager.routing.calibration import (
    MINIMUM_ROWS,
    PlattScaling,
    choose_threshold,
    expected_calibration_error,
    precision_coverage,
    reliability_bins,
)
from culturemanager.routing.classifier import NOWHERE, EmbeddingClassifier
from culturemanager.routing.gazetteer import Gazetteer
from culturemanager.routing.language import identify
from culturemanager.routing.request import read_request
from culturemanager.routing.router import SIGNALS, CultureRouter, Judgement
from culturemanager.routing.rows import CueSplit, RoutedText, held_out_rows, training_rows
from culturemanager.sections.model import RouterConfig

LANGUAGE_SHARE = 0.02
"""A language counts as trained on if so many of the training texts are in it."""
CURVE_POINTS = 60
UNMEASURED_THRESHOLD = 0.75
"""For a signal no held-out row speaks to (all examples in English): more than two cultures with one language can share."""


def fit_router(examples: Sequence[Example], passages: Sequence[Passage], cultures: Sequence[Culture], embedder: Embedder,
               config: RouterConfig, seed: int) -> CultureRouter:
    """See `CultureRouter.fit`.

    The held-out rows are halved by example: one half fits the calibration, the other chooses the
    thresholds and gives every figure of the report.
    """
    gazetteer = Gazetteer(cultures)
    cues = CueSplit(cultures, seed)
    training = training_rows(examples, passages, cultures, gazetteer, cues, seed)
    held_out = held_out_rows(examples, cultures, gazetteer, cues, seed)
    if not any(example.split == "train" for example in examples):
        raise ConfigError("the router needs training examples of the cultures "
                          f"{', '.join(culture.id for culture in cultures)}; found none. Run the examples stage first.")
    if not held_out:
        raise ConfigError("the router needs validation examples to be calibrated on, found none. "
                          "Raise `examples.validation_share`, or collect more pages.")
    texts = [text for text, _ in training]
    classifier = EmbeddingClassifier.fit(embedder.embed(texts), [label for _, label in training], seed)
    router = CultureRouter(cultures, embedder, classifier, {}, {}, _languages(texts), {})

    judged = list(zip(held_out, _judge(router, held_out), strict=True))
    ours, theirs = [pair for pair in judged if _half(pair[0])], [pair for pair in judged if not _half(pair[0])]
    if not ours or not theirs:
        ours = theirs = judged  # a single example cannot be halved
    for signal in SIGNALS:
        rows = [(row, judgement) for row, judgement in ours if judgement.signal == signal and judgement.culture != NOWHERE]
        router.calibrators[signal] = PlattScaling.fit([judgement.score for _, judgement in rows],
                                                      [row.culture == judgement.culture for row, judgement in rows])
    confidences = [router.confidence(judgement) for _, judgement in theirs]
    right = [row.culture == judgement.culture != NOWHERE for row, judgement in theirs]
    curves = {signal: _curve(theirs, confidences, right, signal) for signal in (*SIGNALS, "all")}
    chosen = {signal: choose_threshold(curve, config.target_precision) for signal, curve in curves.items()}
    thresholds = {signal: chosen[signal][0] if curves[signal] else UNMEASURED_THRESHOLD for signal in SIGNALS}
    figures = _report(theirs, confidences, right, thresholds)
    figures |= {"target_precision": config.target_precision, "thresholds": thresholds,
                "target_reached": {signal: chosen[signal][1] for signal in SIGNALS if curves[signal]},
                "curves": {signal: _thin(curve) for signal, curve in curves.items() if curve},
                "training_rows": dict(Counter(label or "nowhere" for _, label in training)),
                "calibration_rows": len(ours), "measured_rows": len(theirs)}
    return CultureRouter(cultures, embedder, classifier, router.calibrators, thresholds, router.languages, figures)


def _curve(judged: Sequence[tuple[RoutedText, Judgement]], confidences: Sequence[float], right: Sequence[bool],
           signal: str) -> list[dict[str, float]]:
    """Precision and coverage of one signal's rows, or of all; empty if the signal judged too few to tell.

    Each signal has to reach the target alone: names are nearly always right, and would pay for a
    classifier that is not.
    """
    numbers = [number for number, (_, judgement) in enumerate(judged) if signal in ("all", judgement.signal)]
    if signal != "all" and len(numbers) < MINIMUM_ROWS:
        return []
    return precision_coverage([confidences[number] for number in numbers], [right[number] for number in numbers],
                              [judged[number][0].culture != NOWHERE for number in numbers])


def _languages(texts: Sequence[str]) -> frozenset[str]:
    found = Counter(language[0] for text in texts if (language := identify(text)) is not None)
    return frozenset(language for language, count in found.items() if count >= LANGUAGE_SHARE * sum(found.values()))


def _judge(router: CultureRouter, rows: Sequence[RoutedText]) -> list[Judgement]:
    judgements: dict[int, Judgement] = {}
    for unlisted in (False, True):
        numbers = [number for number, row in enumerate(rows) if row.unlisted == unlisted]
        found = router.judge([read_request(rows[number].text) for number in numbers], use_gazetteer=not unlisted)
        judgements |= zip(numbers, found, strict=True)
    return [judgements[number] for number in range(len(rows))]


def _half(row: RoutedText) -> bool:
    """Depends on the example alone: its rows stay together."""
    return int(stable_id(row.source), 16) % 2 == 0


def _report(judged: Sequence[tuple[RoutedText, Judgement]], confidences: Sequence[float], right: Sequence[bool],
            thresholds: Mapping[str, float]) -> dict[str, Any]:
    confusion: dict[str, Counter[str]] = {}
    kinds: dict[str, Counter[str]] = {}
    signals: dict[str, Counter[str]] = {}
    for (row, judgement), confidence, hit in zip(judged, confidences, right, strict=True):
        routed = confidence >= thresholds[judgement.signal] and judgement.culture != NOWHERE
        outcome = "abstained" if not routed else "right" if hit else "wrong"
        confusion.setdefault(row.culture or "nowhere", Counter())[judgement.culture if routed else "abstained"] += 1
        kinds.setdefault(row.kind, Counter())[outcome] += 1
        signals.setdefault(judgement.signal, Counter())[outcome] += 1
    bins = reliability_bins(confidences, right)
    routed_right = sum(counts["right"] for counts in kinds.values())
    routed = routed_right + sum(counts["wrong"] for counts in kinds.values())
    knowable = sum(row.culture != NOWHERE for row, _ in judged)
    return {"precision": routed_right / routed if routed else None,
            "coverage": routed_right / knowable if knowable else None, "reliability": bins,
            "calibration_error": expected_calibration_error(bins), "confusion": _plain(confusion), "kinds": _plain(kinds),
            "signals": _plain(signals)}


def _plain(table: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(counts.items())) for name, counts in sorted(table.items())}


def _thin(curve: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    step = max(1, len(curve) // CURVE_POINTS)
    return [*curve[:-1:step], curve[-1]]
