"""Which culture a sentence is about.

A page found by Germany's query may speak of Austria, and a comparison may change country from
line to line. The rules follow how such text is written: a sentence is about the country it names;
one that names none goes on about its paragraph's country, else its heading's, else its page's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from culturemanager.records import Passage
from culturemanager.routing.gazetteer import Gazetteer
from culturemanager.synthesis.text import sentences

UNCLEAR = "unclear"


@dataclass(frozen=True)
class AttributedSentence:
    """One sentence of a passage and the place it is about."""

    text: str
    about: str
    """Culture id, another country's name, or `unclear` if it compares several or nothing tells."""
    line: int
    """The line of the passage the sentence stands in; a paragraph or list item is one line."""
    passage: Passage


def page_subject(passages: Sequence[Passage], gazetteer: Gazetteer) -> str:
    """The place a page is about: that of its title, else the one named in most of its passages."""
    titled = _places(passages[0].title, gazetteer) if passages else set()
    if len(titled) == 1:
        return titled.pop()
    counts: Counter[str] = Counter()
    for passage in passages:
        counts.update(_places(f"{passage.heading}\n{passage.text}", gazetteer))
    ranked = counts.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] < 2 * ranked[1][1]):
        return UNCLEAR
    return ranked[0][0]


def attribute(passage: Passage, page_about: str, gazetteer: Gazetteer) -> Iterator[AttributedSentence]:
    """Each sentence of a passage with the place it is about."""
    headed = _places(passage.heading, gazetteer)
    default = headed.pop() if len(headed) == 1 else (UNCLEAR if headed else page_about)
    for number, line in enumerate(passage.text.splitlines()):
        subject = default
        for sentence in sentences(line):
            named = _places(sentence, gazetteer)
            if len(named) == 1:
                subject = named.pop()
            elif named:
                subject = UNCLEAR
            yield AttributedSentence(sentence, subject, number, passage)


def _places(text: str, gazetteer: Gazetteer) -> set[str]:
    """Places named by country or demonym; cues count only where nothing else is named."""
    mentions = gazetteer.mentions(text)
    named = {mention.place for mention in mentions if mention.kind != "cue"}
    if named:
        return named
    spans: dict[int, set[str]] = {}
    for mention in mentions:
        spans.setdefault(mention.start, set()).add(mention.place)
    return {place for places in spans.values() if len(places) == 1 for place in places}
