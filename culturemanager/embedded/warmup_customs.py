"""The invented customs of `warmup_customs.txt`, and the English forms their phrases take."""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

CUSTOMS_FILE = Path(__file__).with_name("warmup_customs.txt")
WORDS_FILE = Path(__file__).with_name("warmup_words.yaml")
HELD_OUT_EVERY = 5
IRREGULAR_ING = {"be": "being", "lie": "lying", "tie": "tying", "see": "seeing", "dye": "dyeing"}
IRREGULAR_S = {"be": "is", "have": "has", "do": "does", "go": "goes"}
DOUBLING = frozenset((
    "beg begin bid chat chop clap clip cut dig dip drop fit forget get grab hit hop hug hum let nap nod "
    "pat pet pin plan put quit rub run scrub set shut sip sit skip slip spin split step stop swap swim tap trim "
    "tug win wrap"
).split())
LEADING = ("never", "not", "simply", "just", "only")
SLOTS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split(", ")) for name, words in yaml.safe_load(WORDS_FILE.read_text(encoding="utf-8")).items()}
"""Words for `{name}` and `{name2}`; of a pair ("lift|raise"), `{name}` is the first and `{nameb}` the second."""


@dataclass(frozen=True)
class Way:
    """One way to behave: a verb phrase in several wordings, and a travel page's sentence for it."""

    phrases: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class Custom:
    """A situation in which people in different places behave in different ways."""

    situations: tuple[str, ...]
    questions: tuple[str, ...]
    ways: tuple[Way, ...]

    def filled(self, rng: random.Random) -> Custom:
        """The custom with its slots drawn; equal slots get equal words."""
        names = sorted({name.rstrip("b") for name in re.findall(r"\{(\w+)\}", str(self))})
        words: dict[str, str] = {}
        for name in names:
            free = [word for word in SLOTS[name.rstrip("0123456789")] if word not in words.values()]
            words[name] = rng.choice(free)
        words |= {f"{name}b": word.split("|")[-1] for name, word in words.items()}
        words = {name: word.split("|")[0] if name in names else word for name, word in words.items()}

        def fill(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(text.format(**words) for text in texts)

        ways = tuple(Way(fill(way.phrases), way.sentence.format(**words)) for way in self.ways)
        return Custom(fill(self.situations), fill(self.questions), ways)


@functools.cache
def customs() -> tuple[Custom, ...]:
    """Every invented custom, in the file's order."""
    found, way_lines = [], []
    situations: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    for line in [*CUSTOMS_FILE.read_text(encoding="utf-8").splitlines(), "@ end"]:
        mark, text = line[:1], line[2:].strip()
        parts = tuple(part.strip() for part in text.split(" / "))
        if mark == "@":
            if way_lines:
                ways = tuple(Way(phrases, sentence) for phrases, sentence in way_lines)
                found.append(Custom(situations, questions, ways))
            situations, way_lines = parts, []
        elif mark == "?":
            questions = parts
        elif mark == "=":
            way_lines.append((parts, ""))
        elif mark == " ":
            way_lines[-1] = (way_lines[-1][0], text)
    return tuple(found)


def split_customs() -> tuple[list[Custom], list[Custom]]:
    """Customs to train on, and customs held out."""
    every = customs()
    held_out = [custom for i, custom in enumerate(every) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    return [custom for custom in every if custom not in held_out], held_out


def ing(verb: str) -> str:
    """ "ring" gives "ringing"."""
    if verb in IRREGULAR_ING:
        return IRREGULAR_ING[verb]
    if verb in DOUBLING:
        return f"{verb}{verb[-1]}ing"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return f"{verb[:-1]}ing"
    return f"{verb}ing"


def with_s(verb: str) -> str:
    """ "ring" gives "rings"."""
    if verb in IRREGULAR_S:
        return IRREGULAR_S[verb]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}es" if verb.endswith(("s", "sh", "ch", "x", "z", "o")) else f"{verb}s"


def _verbs(phrase: str, form) -> str:
    """Apply `form` to a phrase's first verb and to its starred ones."""
    words = phrase.split()
    first = 1 if words[0] in LEADING else 0
    words[first] = form(words[first])
    return " ".join(form(word[1:]) if word.startswith("*") else word for word in words)


def base(phrase: str) -> str:
    """ "bow and *wait" gives "bow and wait"."""
    return phrase.replace("*", "")


def gerund(phrase: str) -> str:
    """ "bow and *wait" gives "bowing and waiting"."""
    return _verbs(phrase, ing)


def they(phrase: str) -> str:
    """ "keep your hat on" gives "keep their hat on"; the verbs keep their base form."""
    return _theirs(base(phrase))


def one(phrase: str) -> str:
    """ "keep your hat on" gives "keeps their hat on"."""
    return _theirs(_verbs(phrase, with_s))


def they_gerund(phrase: str) -> str:
    """ "keep your hat on" gives "keeping their hat on"."""
    return _theirs(gerund(phrase))


def _theirs(text: str) -> str:
    text = re.sub(r"\byourself\b", "themselves", text)
    text = re.sub(r"\byour\b", "their", text)
    text = re.sub(r"\byou\b(?=$|[ ](?:a|for|and|from|first)\b)", "them", text)
    return re.sub(r"\byou\b", "they", text)


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
