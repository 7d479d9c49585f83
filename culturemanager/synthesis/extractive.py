"""The `extractive` generator: rules that turn norm sentences into examples of each task's format.

It needs no language model. A judgement ("Tipping is considered rude") becomes a classification
row; a recommendation beside a judgement of the same matter becomes advice; and what the nearest
statements of other cultures recommend, found with FAISS, becomes the wrong options of a choice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from culturemanager.providers.embedding import Embedder
from culturemanager.records import Culture, Passage, Task, stable_id
from culturemanager.routing.gazetteer import Gazetteer
from culturemanager.synthesis.attribution import attribute, page_subject
from culturemanager.synthesis.candidate import Candidate, Work, Written
from culturemanager.synthesis.extractable import text_field, yes_and_no
from culturemanager.synthesis.norms import Norm, base_phrase, gerund_phrase, read_norms

NEIGHBOURS = 60
SAME_MATTER = 0.45
"""Cosine similarity from which another culture's statement is taken to be about the same matter."""
SAME_WORDING = 0.6
"""Cosine similarity from which its words may ask the question."""
BORROWED_QUESTIONS = 3
WRONG_OPTIONS = 2

JUDGED = ("{Gerund}.", "You {base}.", "A guest {base3}.")
REFERS_BACK = re.compile(r"\b(?:it|them|they|this|that|these|those|ones?|there|instead)\b(?! another)", re.I)
"""Words that need the sentence before: what holds one can be an answer, but nobody can judge it or ask about it alone."""
ASKED = ("What should I know about {gerund}?", "What do people do about {gerund}?", "What is right when it comes to {gerund}?",
         "How do I handle {gerund}?", "I wonder about {gerund}. What should I do?", "Should I be {gerund}?", "May I {base}?")


@dataclass(frozen=True)
class Statement:
    """What one line of a passage says: at least one norm, and perhaps the advice that goes with it."""

    culture: str
    passage: Passage
    judgement: Norm | None
    recommendation: Norm | None

    @property
    def matter(self) -> Norm:
        """The norm whose action says what the statement is about."""
        return self.judgement or self.recommendation


class ExtractiveGenerator:
    """Examples by rules. See the module's text.

    Args:
        passages: those of every culture, since wrong options come from the others.
        embedder: finds statements on the same matter.
    """

    name = "extractive"

    def __init__(self, passages: Sequence[Passage], cultures: Sequence[Culture], embedder: Embedder) -> None:
        self._statements = read_statements(passages, cultures)
        self._by_passage: dict[str, list[int]] = {}
        for number, statement in enumerate(self._statements):
            self._by_passage.setdefault(statement.passage.id, []).append(number)
        texts = [gerund_phrase(statement.matter) for statement in self._statements]
        self._vectors = embedder.embed(texts) if texts else np.zeros((0, embedder.dimension), np.float32)
        self._index = faiss.IndexFlatIP(embedder.dimension)
        self._index.add(self._vectors)

    def generate(self, culture: Culture, task: Task, passages: Sequence[Passage]) -> Iterator[Candidate]:
        """Candidates for one task from one culture's passages, in the passages' order.

        Raises:
            ConfigError: the rules do not fit the task (labels that are no yes and no, several text fields).
        """
        make = {"classification": self._judgements, "multiple_choice": self._choices, "generation": self._advice}[task.kind]
        field = text_field(task)
        for passage in passages:
            for number in self._by_passage.get(passage.id, ()):
                if self._statements[number].culture == culture.id:
                    yield from make(task, field, number)

    def generate_batch(self, work: Sequence[Work]) -> list[Written]:
        """`generate` for several pieces of work; nothing is thrown away."""
        return [(list(self.generate(culture, task, passages)), Counter()) for culture, task, passages in work]

    def _judgements(self, task: Task, field: str, number: int) -> Iterator[Candidate]:
        statement = self._statements[number]
        yes, no = yes_and_no(task)
        for norm in (statement.judgement, statement.recommendation):
            if norm is None or _refers_back(norm):
                continue
            label = yes if norm.acceptable else no
            for form in (JUDGED if norm is statement.judgement else JUDGED[:1]):
                yield _candidate(statement, task, {field: _fill(form, norm)}, label, norm)

    def _advice(self, task: Task, field: str, number: int) -> Iterator[Candidate]:
        statement = self._statements[number]
        norm = statement.recommendation
        if norm is None:
            return
        for question in self._questions(number):
            yield _candidate(statement, task, {field: question}, base_phrase(norm), norm)

    def _choices(self, task: Task, field: str, number: int) -> Iterator[Candidate]:
        statement = self._statements[number]
        norm = statement.recommendation
        if norm is None:
            return
        right = base_phrase(norm)
        wrong = self._wrong_options(number, right)
        if len(wrong) < WRONG_OPTIONS:
            return
        for turn, question in enumerate(self._questions(number)):
            picked = _rotate(wrong, turn)[:WRONG_OPTIONS]
            place = int(stable_id(right, question), 16) % (WRONG_OPTIONS + 1)
            options = [*picked[:place], right, *picked[place:]]
            yield _candidate(statement, task, {field: question, "options": options}, right, norm)

    def _questions(self, number: int) -> list[str]:
        """Questions about the statement's matter, in its own words and in those of like statements elsewhere."""
        own = self._statements[number].matter
        matters = [] if _refers_back(own) else [own]
        for other, similarity in self._neighbours(number):
            if similarity < SAME_WORDING or len(matters) > BORROWED_QUESTIONS:
                break
            rival = self._statements[other]
            if rival.judgement is not None and not _refers_back(rival.judgement):
                matters.append(rival.judgement)
        turn = int(stable_id(self._statements[number].passage.id, str(number)), 16)
        questions = [_fill(ASKED[(turn + i) % len(ASKED)], matter) for i, matter in enumerate(matters)]
        return list(dict.fromkeys(questions))

    def _wrong_options(self, number: int, right: str) -> list[str]:
        """What other cultures recommend on the same matter where they judge it differently, nearest first."""
        statement = self._statements[number]
        options: list[str] = []
        for other, similarity in self._neighbours(number):
            if similarity < SAME_MATTER:
                break
            rival = self._statements[other]
            if rival.recommendation is None or _agree(statement, rival):
                continue
            option = base_phrase(rival.recommendation)
            if all(_overlap(option, taken) < 0.5 for taken in (right, *options)):
                options.append(option)
        return options[:4]

    def _neighbours(self, number: int) -> Iterator[tuple[int, float]]:
        """Other cultures' statements, the most similar first."""
        scores, found = self._index.search(self._vectors[number:number + 1], min(NEIGHBOURS, len(self._statements)))
        for other, score in zip(found[0].tolist(), scores[0].tolist(), strict=True):
            if self._statements[other].culture != self._statements[number].culture:
                yield other, score


def read_statements(passages: Sequence[Passage], cultures: Sequence[Culture]) -> list[Statement]:
    """Every norm of every passage, attributed to the culture it is about and joined line by line."""
    gazetteer = Gazetteer(cultures)
    places = PlaceWords(cultures)
    known = {culture.id for culture in cultures}
    by_page: dict[str, list[Passage]] = {}
    for passage in passages:
        by_page.setdefault(passage.page_id, []).append(passage)
    statements: list[Statement] = []
    for page in by_page.values():
        about = page_subject(page, gazetteer)
        for passage in page:
            statements += _passage_statements(passage, about, gazetteer, places, known)
    return statements


def _passage_statements(passage: Passage, page_about: str, gazetteer: Gazetteer, places: PlaceWords,
                        known: set[str]) -> Iterator[Statement]:
    lines: dict[int, list[tuple[str, Norm]]] = {}
    for sentence in attribute(passage, page_about, gazetteer):
        if sentence.about == passage.culture and sentence.about in known:
            for norm in read_norms(sentence.text, places.drop):
                lines.setdefault(sentence.line, []).append((sentence.about, norm))
    for norms in lines.values():
        judgements = [norm for _, norm in norms if norm.kind == "judgement"]
        recommendations = [norm for _, norm in norms if norm.kind == "recommendation"]
        first = judgements[0] if judgements else None
        yield Statement(passage.culture, passage, first, recommendations[0] if recommendations else None)
        for norm in judgements[1:]:
            yield Statement(passage.culture, passage, norm, None)
        for norm in recommendations[1:]:
            yield Statement(passage.culture, passage, first, norm)


class PlaceWords:
    """Takes the names of places and peoples out of a sentence, so that what stays can be asked anywhere."""

    def __init__(self, cultures: Sequence[Culture]) -> None:
        names = sorted({re.escape(name) for culture in cultures
                        for name in (culture.name, *culture.countries, *culture.demonyms)}, key=len, reverse=True)
        cues = sorted(
            {re.escape(cue) for culture in cultures for cue in culture.cues if cue[:1].isupper()}, key=len, reverse=True
        )
        name, place = "|".join(names), "|".join([*names, *cues])
        self._phrase = re.compile(
            rf",?\s*\b(?:in|at|across|throughout|around|among|within|from|all over|over|by|for|to|of|with)\s+"
            rf"(?:(?:much|most|all|parts|many|the people) of\s+|many\s+|most\s+)?(?:the\s+)?(?:{place})\b(?:'s)?"
            r"(?=\s*[,.;:]|\s+(?:is|are|and|but|because|as|so|when|if|where|who|may|can|to|must|should)\b|\s*$)"
        )
        self._adjective = re.compile(rf"\b(?:the\s+|an?\s+)?(?:{name})\b(?:'s)?\s+(?=[a-z])")
        self._noun = re.compile(rf"\b(?:{name})\b")

    def drop(self, sentence: str) -> str:
        """The sentence without place names; a people's name as a noun becomes "people"."""
        text = self._phrase.sub("", sentence)
        text = self._adjective.sub(self._article, text)
        return self._noun.sub("people", text)

    @staticmethod
    def _article(match: re.Match[str]) -> str:
        text, following = match.group(), match.string[match.end():match.end() + 12]
        if text.lower().startswith(("a ", "an ")):
            return "an " if following[:1] in "aeiou" else "a "
        if text.lower().startswith("the "):
            return "the "
        if re.match(
            r"(?:is|are|usually|often|will|do|does|may|can|should|must|consider|find|expect|and|who|people)\b", following
        ):
            return "people "
        return ""


def _candidate(statement: Statement, task: Task, inputs: Mapping[str, object], answer: str, norm: Norm) -> Candidate:
    return Candidate(culture=statement.culture, task=task.id, inputs=inputs, answer=answer,
                     passage_id=statement.passage.id, quote=norm.sentence)


def _fill(form: str, norm: Norm) -> str:
    gerund, base = gerund_phrase(norm), base_phrase(norm)
    return form.format(gerund=gerund, Gerund=gerund[:1].upper() + gerund[1:], base=base, base3=_third_person(base))


def _third_person(base: str) -> str:
    """ "take off your shoes" as "takes off their shoes"."""
    if base.startswith("not "):
        return f"does {base}"
    head, _, rest = base.partition(" ")
    ending = "es" if re.search(r"(?:[sxz]|ch|sh|o)$", head) else "s"
    head = f"{head[:-1]}ies" if re.search(r"[^aeiou]y$", head) else f"{head}{ending}"
    return re.sub(r"\byour\b", "their", f"{head} {rest}".strip())


def _refers_back(norm: Norm) -> bool:
    return REFERS_BACK.search(norm.action) is not None


def _agree(one: Statement, other: Statement) -> bool:
    """Whether two statements judge their matter alike; without two judgements they may."""
    if one.judgement is None or other.judgement is None:
        return True
    return one.judgement.acceptable == other.judgement.acceptable


def _overlap(one: str, other: str) -> float:
    """Jaccard similarity of two phrases' words."""
    first, second = set(one.split()), set(other.split())
    return len(first & second) / len(first | second)


def _rotate(items: list[str], turn: int) -> list[str]:
    turn %= len(items)
    return items[turn:] + items[:turn]
