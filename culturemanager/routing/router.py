"""The router: which culture a request is about, how sure that is, and when to abstain.

Signals, strongest first: the caller's pin, the places a text names, its language, and a classifier
over its embedding. Each gives a best culture and a raw score; Platt scaling fitted on held-out rows
turns the score into a confidence, and below the signal's threshold chosen there nobody is picked.
"""

from __future__ import annotations

import dataclasses
import difflib
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from culturemanager.errors import ConfigError, CorruptFileError, UnknownCultureError
from culturemanager.providers.embedding import Embedder
from culturemanager.records import Culture, Example, Passage, Route
from culturemanager.routing.calibration import PlattScaling
from culturemanager.routing.classifier import NOWHERE, EmbeddingClassifier
from culturemanager.routing.evidence import Evidence, weigh
from culturemanager.routing.gazetteer import Gazetteer, without_ordinary_words
from culturemanager.routing.language import identify, speakers
from culturemanager.routing.request import Request, read_request
from culturemanager.sections.model import RouterConfig
from culturemanager.storage import StageDirectory, StageDraft

SIGNALS = ("named", "language", "classifier")
DECIDED = 0.8
"""A share of the evidence from which cues alone need no other signal."""
FORMAT = 1
CLASSIFIER = "classifier.safetensors"


@dataclass(frozen=True)
class Judgement:
    """The strongest signal's say, before calibration."""

    signal: str
    """One of `SIGNALS`."""
    culture: str
    """The best culture; `NOWHERE` if the text is about no culture of the project."""
    score: float
    """In [0, 1]: the culture's share of the evidence."""
    shares: Mapping[str, float] = field(default_factory=dict)


class CultureRouter:
    """Routes texts and conversations to cultures.

    Args:
        cultures: the project's cultures.
        embedder: the one the classifier was fitted with.
        classifier: its classes are culture ids and `NOWHERE`.
        calibrators: by signal.
        thresholds: by signal, the least confidence that is routed.
        languages: of the texts the classifier was fitted on; it is asked about no others.
        report: figures on held-out rows.
    """

    def __init__(self, cultures: Sequence[Culture], embedder: Embedder, classifier: EmbeddingClassifier,
                 calibrators: Mapping[str, PlattScaling], thresholds: Mapping[str, float], languages: Collection[str],
                 report: Mapping[str, Any]) -> None:
        self.cultures = tuple(cultures)
        self.thresholds = dict(thresholds)
        self.calibrators = dict(calibrators)
        self.languages = frozenset(languages)
        self._ids = frozenset(culture.id for culture in self.cultures)
        self._names = {word.casefold(): culture.id for culture in self.cultures for word in (culture.name, culture.id)}
        self._gazetteer = Gazetteer(self.cultures)
        self._embedder = embedder
        self._classifier = classifier
        self._report = dict(report)

    @classmethod
    def fit(cls, examples: Sequence[Example], passages: Sequence[Passage], cultures: Sequence[Culture], embedder: Embedder,
            config: RouterConfig, seed: int) -> CultureRouter:
        """Train the classifier, calibrate every signal and choose the threshold.

        Raises:
            ConfigError: there are no training or no validation rows to do it with.
        """
        from culturemanager.routing.fitting import fit_router  # it builds routers, so it imports this file

        return fit_router(examples, passages, cultures, embedder, config, seed)

    def route(self, request: str | Sequence[Mapping[str, Any]], *, pinned: str | None = None,
              cultures_allowed: Collection[str] | None = None) -> Route:
        """Route one text or one conversation, a list of ``{"role": ..., "content": ...}``.

        Args:
            pinned: culture id or name the caller asks for; nothing is guessed then.
            cultures_allowed: ids that may be picked; a request about another one abstains.

        Raises:
            UnknownCultureError: `pinned` or an allowed id is not in the project, or `pinned` is not allowed.
        """
        return self.route_many([request], pinned=pinned, cultures_allowed=cultures_allowed)[0]

    def route_many(self, requests: Sequence[str | Sequence[Mapping[str, Any]]], *, pinned: str | None = None,
                   cultures_allowed: Collection[str] | None = None) -> list[Route]:
        """`route` over many requests; texts that need the classifier are embedded together."""
        allowed = self._ids if cultures_allowed is None else frozenset(self.resolve(name) for name in cultures_allowed)
        if pinned is not None:
            culture = self.resolve(pinned)
            if culture not in allowed:
                raise UnknownCultureError(f"culture {pinned!r} may not be used here; "
                                          f"allowed: {', '.join(sorted(allowed)) or 'none'}.")
            return [Route(culture, 1.0, "pinned", {culture: 1.0}) for _ in requests]
        judgements = self.judge([read_request(request) for request in requests])
        return [self._decide(judgement, allowed) for judgement in judgements]

    def resolve(self, name: str) -> str:
        """The id of a culture given by id or name.

        Raises:
            UnknownCultureError: no such culture in the project; the nearest are named.
        """
        found = self._names.get(unicodedata.normalize("NFC", name).strip().casefold())
        if found is None:
            near = difflib.get_close_matches(name.casefold().replace(" ", "_"), sorted(self._ids), n=3, cutoff=0.5)
            hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(sorted(self._ids))}."
            raise UnknownCultureError(f"unknown culture {name[:80]!r}. {hint} Expected a culture id or name of the project.")
        return found

    def report(self) -> dict[str, Any]:
        """Figures on held-out rows, JSON values only: threshold, curve, reliability bins, confusion, rows by kind."""
        return self._report

    def judge(self, requests: Sequence[Request], use_gazetteer: bool = True) -> list[Judgement]:
        """The strongest signal's say on each request, before calibration."""
        judgements: list[Judgement | None] = []
        for request in requests:
            language = identify(request.focus) or identify(request.whole)
            spoken = speakers(language[0], self.cultures) if language else {}
            evidence = weigh(request.segments, self._gazetteer, spoken) if use_gazetteer else None
            judgements.append(self._without_embedding(evidence, language, spoken))
        waiting = [request for request, judgement in zip(requests, judgements, strict=True) if judgement is None]
        asked = iter(self._ask_classifier(waiting))
        return [next(asked) if judgement is None else judgement for judgement in judgements]

    def _without_embedding(self, evidence: Evidence | None, language: tuple[str, float] | None,
                           spoken: Mapping[str, float]) -> Judgement | None:
        """Names and language; `None` if the classifier has to be asked."""
        if evidence is not None:
            clear = evidence.places or evidence.shares[evidence.top] >= DECIDED
            if clear or not evidence.known & spoken.keys():
                best = evidence.top if evidence.top in evidence.known else NOWHERE
                return Judgement("named", best, evidence.shares[evidence.top] if best else 0.0, evidence.shares)
            # Words that several cultures share: the language says whose they are.
        if language is not None and spoken:
            shares = {culture: share * language[1] for culture, share in spoken.items()}
            best = max(shares, key=lambda culture: (shares[culture], culture))
            return Judgement("language", best, shares[best], shares)
        if language is not None and language[0] not in self.languages:
            return Judgement("classifier", NOWHERE, 0.0)
        return None

    def _ask_classifier(self, requests: Sequence[Request]) -> list[Judgement]:
        texts = list(dict.fromkeys(text for request in requests for text in (request.focus, request.whole)))
        # Nothing was named, so a lower-case "china" is tableware: an embedder that ignores case must not see it.
        shown = [without_ordinary_words(text) for text in texts]
        found = dict(zip(texts, self._classifier.judge(shown, self._embedder), strict=True))
        judgements = []
        for request in requests:
            shares = found[request.focus]
            if max(shares, key=shares.__getitem__) == NOWHERE:  # the last turn shows nothing: does the conversation?
                shares = found[request.whole]
            best = max(self._ids & shares.keys(), key=lambda culture: (shares[culture], culture), default=NOWHERE)
            judgements.append(Judgement("classifier", best, shares.get(best, 0.0), shares))
        return judgements

    def confidence(self, judgement: Judgement) -> float:
        """The calibrated probability that the judgement's culture is right."""
        if judgement.culture == NOWHERE:
            return 0.0
        return self.calibrators.get(judgement.signal, PlattScaling())(judgement.score)

    def _decide(self, judgement: Judgement, allowed: Collection[str]) -> Route:
        confidence = self.confidence(judgement)
        probabilities = self._probabilities(judgement, confidence)
        if judgement.culture not in allowed or confidence < self.thresholds[judgement.signal]:
            return Route("", confidence, "abstained", probabilities)
        return Route(judgement.culture, confidence, judgement.signal, probabilities)  # type: ignore[arg-type]

    def _probabilities(self, judgement: Judgement, confidence: float) -> dict[str, float]:
        """The shares, moved so that the best culture has its calibrated confidence; what is left is nobody's."""
        shares = {culture: share for culture, share in judgement.shares.items() if culture in self._ids}
        rest = 1 - judgement.score
        if confidence < judgement.score:
            factor = confidence / judgement.score
        else:
            factor = (1 - confidence) / rest if rest > 0 else 0.0
        scaled = {culture: share * factor for culture, share in shares.items()}
        if judgement.culture != NOWHERE:
            scaled[judgement.culture] = confidence
        return dict(sorted(scaled.items(), key=lambda item: -item[1]))

    def save(self, draft: StageDraft) -> None:
        """Write `router.json` and `classifier.safetensors`."""
        draft.write_json("router.json", {
            "format": FORMAT,
            "dimension": int(self._classifier.weight.shape[1]),
            "cultures": [culture.to_row() for culture in self.cultures],
            "classes": list(self._classifier.classes),
            "languages": sorted(self.languages),
            "thresholds": self.thresholds,
            "calibrators": {signal: dataclasses.asdict(scaling) for signal, scaling in self.calibrators.items()},
            "report": self._report,
        })
        draft.write_bytes(CLASSIFIER, self._classifier.to_bytes())

    @staticmethod
    def saved_report(stage: StageDirectory) -> dict[str, Any]:
        """A saved router's `report`, sums checked; needs no embedder.

        Raises:
            IncompleteStageError, CorruptFileError: as `load`.
        """
        stage.read_bytes(CLASSIFIER)
        return _read(stage)["report"]

    @classmethod
    def load(cls, stage: StageDirectory, embedder: Embedder) -> CultureRouter:
        """Read what `save` wrote, sums checked.

        Raises:
            IncompleteStageError: the stage did not finish.
            CorruptFileError: a file is damaged.
            ConfigError: `embedder` is not of the size the classifier was fitted with.
        """
        data = _read(stage)
        if embedder.dimension != data["dimension"]:
            raise ConfigError(f"the router was fitted on embeddings of size {data['dimension']}, this embedding model gives "
                              f"{embedder.dimension}. Set `embedding.model` back, or run the router stage again.")
        classifier = EmbeddingClassifier.from_bytes(data["classes"], stage.read_bytes(CLASSIFIER))
        calibrators = {signal: PlattScaling(**values) for signal, values in data["calibrators"].items()}
        cultures = [Culture.from_row(row) for row in data["cultures"]]
        return cls(cultures, embedder, classifier, calibrators, data["thresholds"], data["languages"], data["report"])


def _read(stage: StageDirectory) -> dict[str, Any]:
    data = stage.read_json("router.json")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CorruptFileError(f"{stage.path}/router.json is no router of format {FORMAT}. Run the router stage again.")
    return data
