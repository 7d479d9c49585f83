"""What a text is about, judged by the places it names and by how it names them.

"A Turkish colleague asks how to greet people in Seoul" names two cultures and is about one: where
something happens counts more than where a person or a dish comes from. The weights below say how
much more; what a given mix of them is worth as a probability is calibrated on held-out rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from culturemanager.routing.gazetteer import Gazetteer, Mention

PLACE, PLAIN, PERSON, ASIDE = "place", "plain", "person", "aside"
WEIGHTS = {
    ("country", PLACE): 4.0, ("country", PLAIN): 3.0, ("country", ASIDE): 0.7,
    ("demonym", PLACE): 4.0, ("demonym", PLAIN): 3.0, ("demonym", PERSON): 1.2, ("demonym", ASIDE): 0.7,
    ("cue", PLACE): 3.0, ("cue", PLAIN): 2.0, ("cue", ASIDE): 0.7,
}
"""Weight of a mention by its kind and its role in the sentence; a shared phrase divides it."""
PEAKEDNESS = 2.0
"""Shares are taken of weights raised to this power."""
UNSAID = 0.7
"""Weight of what the text may be about without naming it: "I come from Brazil" leaves open where somebody is."""

SPOKEN_FACTOR = 0.5
"""A cue in a text of its own language may be no more than a word: "Trinkgeld" in German points to nowhere."""

BEFORE = 48
AFTER = 40
_ADJECTIVES = (r"(?:(?:the|a|an|my|our|your|their|his|her|this|central|downtown|rural|northern|southern|eastern|"
               r"western|traditional|typical|small|big|old)\s+)*")
INTO_PLACE = re.compile(r"\b(?:in|at|to|into|within|inside|across|throughout|around|near|outside|during|visit|visits|"
                        rf"visiting|attending|touring|through|reach|reaching)\s+{_ADJECTIVES}$", re.I)
INTO_ASIDE = re.compile(r"(?:\b(?:from|unlike(?: in)?|like(?: in)?|than(?: in)?|compared (?:to|with)|as in|"
                        r"back(?: home)? in|used to|not in|left|leaving|"
                        r"(?:born|raised|grew up|lived|married) in)\s+(?:the\s+)?)$", re.I)
INTO_PERSON = re.compile(r"\b(?:an?|as|my|our|your|his|her|their|fellow|another|some|two|three|several)\s+(?:\w+\s+)?$",
                         re.I)
A_PERSON = re.compile(r"\s+(?:\w+\s+)?(?:colleague|coworker|co-worker|friend|neighbou?r|wife|husband|girlfriend|boyfriend|"
                      r"partner|classmate|roommate|room-mate|flatmate|boss|manager|client|customer|student|tourist|travell?er|"
                      r"visitor|expat|immigrant|intern|guest|cousin|nurse|doctor|engineer|teacher|businessman|businesswoman|man|"
                      r"woman|couple|girl|boy|passport|citizen)s?\b", re.I)


@dataclass(frozen=True)
class Evidence:
    """What the named places say together."""

    shares: Mapping[str, float]
    """Place to its share; they sum to less than 1. A place is a culture id or another country's name."""
    places: frozenset[str]
    """Those named by country or demonym, not by a cue alone."""
    known: frozenset[str]
    """Those that are the project's cultures."""

    @property
    def top(self) -> str:
        return max(self.shares, key=lambda place: (self.shares[place], place))


def role(text: str, mention: Mention) -> str:
    """How a sentence uses a name: where it happens, who somebody is, what it is set apart from, or plainly."""
    before = text[max(0, mention.start - BEFORE):mention.start]
    if INTO_ASIDE.search(before):
        return ASIDE
    if mention.kind == "demonym" and A_PERSON.match(text[mention.end:mention.end + AFTER]):
        return PERSON
    if INTO_PLACE.search(before):
        return PLACE
    if mention.kind == "demonym" and INTO_PERSON.search(before):
        return PERSON
    return PLAIN


def weigh(segments: Sequence[tuple[str, float]], gazetteer: Gazetteer, spoken: Collection[str] = ()) -> Evidence | None:
    """Weigh every mention in texts that count differently; `None` if they name nothing.

    Args:
        segments: texts, each with its factor in (0, 1]; a plain text is one segment of factor 1.
        spoken: cultures whose language the texts are in, if it is not English.
    """
    best: dict[tuple[str, str], float] = {}
    counts: dict[tuple[str, str], int] = {}
    places, known = set(), set()
    newest = 0.0
    for text, factor in segments:
        mentions = gazetteer.mentions(text)
        if mentions:
            newest = max(newest, factor)
        sharing = Counter(mention.start for mention in mentions)
        for mention in mentions:
            key = (mention.place, text[mention.start:mention.end].lower())
            weight = factor * WEIGHTS[mention.kind, role(text, mention)] / sharing[mention.start]
            if mention.kind == "cue" and mention.place in spoken:
                weight *= SPOKEN_FACTOR
            best[key] = max(best.get(key, 0.0), weight)
            counts[key] = counts.get(key, 0) + 1
            if mention.known:
                known.add(mention.place)
            if mention.kind != "cue":
                places.add(mention.place)
    if not best:
        return None
    weights: Counter[str] = Counter()
    for key, weight in best.items():
        weights[key[0]] += weight / newest * (1 + math.log2(counts[key]) / 2)  # type: ignore[assignment]
    powers = {place: weight**PEAKEDNESS for place, weight in weights.items()}
    total = sum(powers.values()) + UNSAID**PEAKEDNESS
    return Evidence({place: power / total for place, power in powers.items()}, frozenset(places), frozenset(known))
