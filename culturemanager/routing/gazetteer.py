"""Which cultures and countries a text names: countries, demonyms, cities, festivals, words."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal, NamedTuple

import yaml

from culturemanager.cultures import catalogue
from culturemanager.records import Culture

MentionKind = Literal["country", "demonym", "cue"]

# Phrases that hold a country's name but speak of no country; they are consumed without a mention.
IDIOMS = ("go dutch", "goes dutch", "going dutch", "went dutch", "gone dutch", "dutch treat", "dutch courage",
          "french fries", "french toast", "french press", "french kiss", "french kissing", "french exit", "french door",
          "french doors", "german shepherd", "german shepherds", "brazil nut", "brazil nuts", "chinese whispers",
          "guinea pig", "guinea pigs", "swiss army knife", "russian roulette", "russian doll", "danish pastry",
          "danish pastries", "panama hat", "indian summer", "greek yogurt", "greek yoghurt", "mexican wave",
          "mexican standoff", "irish goodbye", "english breakfast", "american express", "bank of america", "michael jordan",
          "air jordan", "air jordans", "bone china", "fine china", "south america", "south american", "south americans",
          "latin america", "latin american", "latin americans", "central america", "central american", "north america",
          "north american", "north americans", "indian ocean")

# Names that mean something else in lower case; there they count only as "in turkey?" does.
ORDINARY_WORDS = frozenset(("turkey", "china", "polish", "poles", "swede", "swedes", "danish", "cologne", "chile", "guinea",
                            "us", "java", "chad", "jordan", "the states", "natal", "spree", "white house", "scott", "randy",
                            "brad", "split", "florence", "tang", "niger", "perth", "bergen", "kiwis", "tonga", "rosario"))
ORDINARY_PATTERN = re.compile(r"\b(?:" + "|".join(sorted(ORDINARY_WORDS)) + r")\b")
BEFORE_PLACE = re.compile(r"\b(?:in|to|from|at|within|across|throughout|around|visit|visiting)\s+$")
AFTER_NAME = re.compile(r"\s*(?:$|[?.!,;:)]|(?:i|is|are|do|does|did|and|or|for|when|if|with|by|on|at|as|during|the|a|an|you|"
                        r"we|my|they|people|should|can|could|may|would|will|to|than|this|next|last|where|because|but|so|that)\b)")
INITIAL = re.compile(r"(?:^|[.!?:…]|\n)\s*[\"'“‘(¿¡]*\w|\bI\b")

NO_BOUNDARY = "\u3040-\u30ff\u3400-\u9fff"
"""Scripts written without spaces: no word boundary on either side."""
NO_RIGHT_BOUNDARY = NO_BOUNDARY + "\u0980-\u09ff\uac00-\ud7a3"
"""Also Bengali and Korean, where case endings are written onto the word."""


@dataclass(frozen=True, slots=True)
class Mention:
    """One place in a text that points to a culture, or to a country outside the project."""

    place: str
    """Culture id, or the name of a country that is none of the project's cultures."""
    known: bool
    """Whether `place` is one of the project's cultures."""
    kind: MentionKind
    start: int
    end: int


class Entry(NamedTuple):
    """What a phrase of the gazetteer stands for."""

    place: str
    known: bool
    kind: MentionKind
    capitals: tuple[int, ...]
    """Offsets in the phrase where a text that uses capitals must have one."""


def _read(name: str) -> dict[str, tuple[str, ...]]:
    text = resources.files("culturemanager").joinpath(name).read_text(encoding="utf-8")
    return {country: tuple(words) for country, words in yaml.safe_load(text).items()}


@functools.cache
def world_countries() -> dict[str, tuple[str, ...]]:
    """Every country's English name and its demonyms, shipped with the package."""
    return _read("countries.yaml")


@functools.cache
def world_cities() -> dict[str, tuple[str, ...]]:
    """Well-known cities of the countries outside the catalogue."""
    return _read("cities.yaml")


def plain(text: str) -> str:
    """Lower case, without diacritics, any white space a space: one character for one, so that offsets stay true."""
    return "".join(map(_plain_character, text))


@functools.lru_cache(maxsize=8192)
def _plain_character(character: str) -> str:
    if character in "ıİ":
        return "i"
    if character in "’‘":
        return "'"
    if character.isspace():
        return " "
    base, *marks = unicodedata.normalize("NFKD", character)
    if not all(map(unicodedata.combining, marks)):
        base = character  # a Korean syllable or a ligature, not a letter with accents
    return base.lower()[:1] or character


def uses_capitals(text: str) -> bool:
    """Whether a capital stands anywhere but at the start of a sentence or in the word I."""
    return any(character.isupper() for character in INITIAL.sub("", text))


def without_ordinary_words(text: str) -> str:
    """The text with every lower-case word that would be a place in capitals ("china", "turkey") taken out."""
    return ORDINARY_PATTERN.sub("", text)


class Gazetteer:
    """Finds mentions of the project's cultures, and of other countries, in any text.

    A phrase that several cultures share ("Eid", "pesos") is kept for all of them: `mentions`
    returns one mention for each, and the router weighs them. A name needs its capital ("a turkey
    dinner" is no country) unless the text uses none at all ("how much to tip in turkey?").
    """

    def __init__(self, cultures: Sequence[Culture]) -> None:
        self._entries: dict[str, list[Entry]] = {}
        for culture in cultures:
            self._add(culture.id, True, "country", (culture.name, *culture.countries))
            self._add(culture.id, True, "demonym", culture.demonyms)
            self._add(culture.id, True, "cue", culture.cues)
        owned = {phrase: entries[0].place for phrase, entries in self._entries.items() if entries[0].kind == "country"}
        ours = set(self._entries)
        for country, demonyms in world_countries().items():
            place, known = (owned[plain(country)], True) if plain(country) in owned else (country, False)
            self._add(place, known, "country", (country,), ours)
            self._add(place, known, "demonym", demonyms, ours)
            self._add(place, known, "cue", world_cities().get(country, ()), ours)
        for culture in catalogue().values():
            if plain(culture.name) not in owned:
                place = culture.name.removeprefix("the ")
                self._add(place, False, "country", culture.countries, ours)
                self._add(place, False, "demonym", culture.demonyms, ours)
                self._add(place, False, "cue", culture.cues, ours)
        self._pattern = _pattern([*self._entries, *IDIOMS])

    def _add(self, place: str, known: bool, kind: MentionKind, phrases: Iterable[str], ours: Iterable[str] = ()) -> None:
        """File phrases; those in `ours` belong to the project's cultures and are left to them."""
        for phrase in phrases:
            key = plain(phrase)
            entries = self._entries.setdefault(key, [])
            if key not in ours and all(entry.place != place for entry in entries):
                entries.append(Entry(place, known, kind, _capitals(phrase)))

    def mentions(self, text: str) -> list[Mention]:
        """Every mention in `text`, in order; longest phrases win where they overlap."""
        return list(self._mentions(text))

    def _mentions(self, text: str) -> Iterator[Mention]:
        simple = plain(text)
        lower_case: bool | None = None
        for match in self._pattern.finditer(simple):
            start, end = match.span()
            for entry in self._entries.get(match.group(), ()):
                if not all(text[start + offset].isupper() for offset in entry.capitals):
                    if lower_case is None:
                        lower_case = not uses_capitals(text)
                    if not lower_case or not _may_be_lower(simple, start, end):
                        continue
                yield Mention(entry.place, entry.known, entry.kind, start, end)


def _may_be_lower(simple: str, start: int, end: int) -> bool:
    name = simple[start:end]
    if name not in ORDINARY_WORDS:
        return True
    if name == "us":  # "what is it to us?"
        return False
    return bool(BEFORE_PLACE.search(simple[max(0, start - 15):start]) and AFTER_NAME.match(simple[end:end + 12]))


def _capitals(phrase: str) -> tuple[int, ...]:
    """Every letter of an acronym, else the first capital."""
    offsets = [offset for offset, character in enumerate(phrase) if character.isupper()]
    return tuple(offsets if phrase.isupper() else offsets[:1])


def _pattern(phrases: Iterable[str]) -> re.Pattern[str]:
    """One pattern for all phrases, as a trie: a look-up costs the phrase's length, not their number."""
    spaced: dict = {}
    unspaced: dict = {}
    for phrase in phrases:
        node = unspaced if re.match(f"[{NO_BOUNDARY}]", phrase) else spaced
        for character in phrase:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(rf"(?<!\w){_trie(spaced)}|{_trie(unspaced)}" if unspaced else rf"(?<!\w){_trie(spaced)}")


def _trie(node: dict, last: str = "") -> str:
    """The longest phrase comes first: the end of a phrase is the last alternative of its node."""
    branches = []
    for character, child in sorted(node.items(), reverse=True):
        if character:
            branches.append(re.escape(character) + _trie(child, character))
        else:
            branches.append("" if re.match(f"[{NO_RIGHT_BOUNDARY}]", last) else r"(?!\w)")
    return branches[0] if len(branches) == 1 else "(?:" + "|".join(branches) + ")"
