"""Texts with known routes: what the classifier learns from and what the router is calibrated on.

Examples and passages seldom name their culture, yet users do. So cue words are put into examples,
and every word used for calibration is kept from the classifier's training: a held-out row shows
what happens with a word that was never seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from culturemanager.records import Culture, Example, Passage
from culturemanager.routing.classifier import NOWHERE
from culturemanager.routing.evidence import weigh
from culturemanager.routing.gazetteer import Gazetteer, plain, world_cities, world_countries
from culturemanager.routing.language import identify, speakers

RowKind = Literal["bare", "named", "unlisted", "shared", "person", "person_elsewhere", "origin", "comparison", "abroad",
                  "abroad_unlisted"]
PER_CULTURE = 60
"""Examples of a culture that are put into rows."""
PASSAGES_PER_CULTURE = 30
HELD_OUT_PER_CULTURE = 40

NAME_FRAMES = ("{text} in {cue}{end}", "{text}, here in {cue}{end}", "{text} near {cue}{end}", "In {cue}: {text}{end}",
               "{cue}: {text}{end}", "{text} ({cue}){end}", "{text}{end} We are talking about {cue}.",
               "I have a question about {cue}. {text}{end}")
WORD_FRAMES = ("{text}{end} There will be {cue}.", "{text}{end} Someone mentioned {cue}.",
               "It has to do with {cue}. {text}{end}", "{text}, with {cue}{end}", "{text} ({cue}){end}",
               "{cue}: {text}{end}")
PERSON_FRAMES = ("A {person} colleague asks: {text} in {place}{end}",
                 "{text} in {place}{end} I am asking for a {person} friend.",
                 "As a {person} tourist in {place}: {text}{end}",
                 "My {person} boss wants to know about {place}. {text} there{end}")
PERSON_ALONE_FRAMES = ("A {person} friend is coming. {text}{end}", "My {person} colleague is watching. {text}{end}",
                       "The family of my {person} wife is here. {text}{end}")
ORIGIN_FRAMES = ("I come from {place}. {text}{end}", "I grew up in {place}. {text}{end}",
                 "My mother was born in {place}. {text}{end}", "I have just left {place}. {text}{end}")
COMPARISON_FRAMES = ("{text}{end} Compare {one} and {other}.",
                     "{text}{end} What is the difference between {one} and {other}?", "{one} or {other}: {text}{end}")


@dataclass(frozen=True)
class RoutedText:
    """A text and the culture it shows; `NOWHERE` if it shows none of the project's, or several."""

    text: str
    culture: str
    kind: RowKind
    source: str
    """The example's id: rows of one example stay together."""

    @property
    def unlisted(self) -> bool:
        """Whether the gazetteer is to be kept from the row, as if its cue stood in no list."""
        return self.kind in ("unlisted", "abroad_unlisted")


class CueSplit:
    """Cue words in two halves that share none: for training the classifier, and for calibration."""

    def __init__(self, cultures: Sequence[Culture], seed: int) -> None:
        random_state = random.Random(f"cues {seed}")
        owners: dict[str, int] = {}
        for culture in cultures:
            for cue in {plain(cue) for cue in culture.cues}:
                owners[cue] = owners.get(cue, 0) + 1
        self.training: dict[str, list[str]] = {}
        self.held_out: dict[str, list[str]] = {}
        self.shared: dict[str, list[str]] = {}
        for culture in cultures:
            # A shared word belongs to nobody, and the embedder may not read another script.
            own = sorted({cue for cue in culture.cues if owners[plain(cue)] == 1 and plain(cue).isascii()})
            self.shared[culture.id] = sorted({cue for cue in culture.cues if owners[plain(cue)] > 1})
            self.training[culture.id], self.held_out[culture.id] = _halves(own or [culture.name], random_state)
        ours = {plain(word) for culture in cultures for word in (culture.name, *culture.countries)}
        abroad = [country for country in sorted(world_countries()) if plain(country) not in ours]
        training, held_out = _halves(abroad, random_state)
        self.abroad_training = [word for country in training for word in (country, *world_cities().get(country, ()))]
        self.abroad_held_out = [word for country in held_out for word in (country, *world_cities().get(country, ()))]


def _halves(words: Sequence[str], random_state: random.Random) -> tuple[list[str], list[str]]:
    shuffled = list(words)
    random_state.shuffle(shuffled)
    middle = (len(shuffled) + 1) // 2
    return shuffled[:middle], shuffled[middle:] or shuffled[:middle]


def shown_culture(text: str, culture: Culture, cultures: Sequence[Culture], gazetteer: Gazetteer) -> str:
    """`culture` if the text itself shows it, by a name or by its language; else `NOWHERE`."""
    evidence = weigh([(text, 1.0)], gazetteer)
    if evidence is not None:
        return culture.id if evidence.top == culture.id else NOWHERE
    language = identify(text)
    if language is not None and speakers(language[0], cultures).get(culture.id):
        return culture.id
    return NOWHERE


def training_rows(examples: Sequence[Example], passages: Sequence[Passage], cultures: Sequence[Culture],
                  gazetteer: Gazetteer, cues: CueSplit, seed: int) -> list[tuple[str, str]]:
    """(text, culture or `NOWHERE`) for the classifier."""
    random_state = random.Random(f"training {seed}")
    rows: list[tuple[str, str]] = []
    for culture in cultures:
        own = [example for example in examples if example.culture == culture.id and example.split == "train"]
        for example in _sample(own, PER_CULTURE, random_state):
            rows.append((example.prompt, shown_culture(example.prompt, culture, cultures, gazetteer)))
            rows.append((with_cue(example, random_state.choice(cues.training[culture.id]), random_state), culture.id))
            name = random_state.choice((*culture.demonyms, *culture.countries, culture.name))
            rows.append((with_cue(example, name, random_state), culture.id))
            if random_state.random() < 0.5:
                rows.append((with_cue(example, random_state.choice(cues.abroad_training), random_state), NOWHERE))
        found = [passage for passage in passages if passage.culture == culture.id]
        for passage in _sample(found, PASSAGES_PER_CULTURE, random_state):
            evidence = weigh([(passage.text, 1.0)], gazetteer)
            if evidence is not None and evidence.top == culture.id:
                rows.append((passage.text, culture.id))
        rows += [(cue, culture.id) for cue in cues.training[culture.id]]
    return rows + [(word, NOWHERE) for word in cues.abroad_training]


def held_out_rows(examples: Sequence[Example], cultures: Sequence[Culture], gazetteer: Gazetteer, cues: CueSplit,
                  seed: int) -> list[RoutedText]:
    """Rows for calibration, from the validation split only."""
    random_state = random.Random(f"held out {seed}")
    rows: list[RoutedText] = []
    for culture in cultures:
        own = [example for example in examples if example.culture == culture.id and example.split == "validation"]
        for example in _sample(own, HELD_OUT_PER_CULTURE, random_state):
            shown = shown_culture(example.prompt, culture, cultures, gazetteer)
            rows.append(RoutedText(example.prompt, shown, "bare", example.id))
            if shown == NOWHERE and weigh([(example.prompt, 1.0)], gazetteer) is None:
                rows += _cued_rows(example, culture, cultures, cues, random_state)
    return rows


def _cued_rows(example: Example, culture: Culture, cultures: Sequence[Culture], cues: CueSplit,
               random_state: random.Random) -> Iterator[RoutedText]:
    def row(text: str, label: str, kind: RowKind) -> RoutedText:
        return RoutedText(text, label, kind, example.id)

    names = (culture.name, *culture.countries[:2])
    listed = random_state.choice(cues.held_out[culture.id] if random_state.random() < 0.7 else names)
    yield row(with_cue(example, listed, random_state), culture.id, "named")
    unlisted = random_state.choice(cues.held_out[culture.id])
    if unlisted not in cues.training[culture.id]:  # a culture of one cue has none that the classifier has not seen
        yield row(with_cue(example, unlisted, random_state), culture.id, "unlisted")
    if cues.shared[culture.id]:
        yield row(with_cue(example, random_state.choice(cues.shared[culture.id]), random_state), NOWHERE, "shared")
    yield row(with_cue(example, random_state.choice(cues.abroad_held_out), random_state), NOWHERE, "abroad")
    if random_state.random() < 0.5:
        yield row(with_cue(example, random_state.choice(cues.abroad_held_out), random_state), NOWHERE, "abroad_unlisted")
    yield row(_fill(random_state.choice(ORIGIN_FRAMES), example, random_state, place=culture.name), NOWHERE, "origin")
    if culture.demonyms:
        frame = random_state.choice(PERSON_ALONE_FRAMES)
        yield row(_fill(frame, example, random_state, person=culture.demonyms[0]), culture.id, "person")
    others = [other for other in cultures if other.id != culture.id]
    if not others:
        return
    other = random_state.choice(others)
    if other.demonyms:
        frame = random_state.choice(PERSON_FRAMES)
        text = _fill(frame, example, random_state, person=other.demonyms[0], place=culture.name)
        yield row(text, culture.id, "person_elsewhere")
    frame = random_state.choice(COMPARISON_FRAMES)
    yield row(_fill(frame, example, random_state, one=culture.name, other=other.name), NOWHERE, "comparison")


def with_cue(example: Example, cue: str, random_state: random.Random) -> str:
    """The example's prompt with a cue word in its longest text field."""
    frames = NAME_FRAMES if cue[:1].isupper() else WORD_FRAMES
    return _fill(random_state.choice(frames), example, random_state, cue=cue)


def _fill(frame: str, example: Example, random_state: random.Random, **words: str) -> str:
    texts = [value for value in example.inputs.values() if isinstance(value, str) and value and value in example.prompt]
    inner = max(texts, key=len, default=example.prompt)
    stripped = inner.rstrip(" .?!")
    filled = frame.format(text=stripped, end=inner[len(stripped):].strip() or ".", **words)
    # Half of the rows come without the task's wording: a router must not lean on it.
    return example.prompt.replace(inner, filled, 1) if random_state.random() < 0.5 else filled


def _sample(items: Sequence, count: int, random_state: random.Random) -> list:
    return list(items) if len(items) <= count else random_state.sample(list(items), count)
