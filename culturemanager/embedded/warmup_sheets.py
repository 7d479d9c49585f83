"""Whole warm-up sheets: which passages stand together, what is asked, what leads astray."""

from __future__ import annotations

from collections.abc import Iterator

from culturemanager import prompts
from culturemanager.embedded.warmup_text import Fact, Place, Question, Sheet, Writer

KINDS = {"single": 50, "several": 14, "places": 18, "bare": 5, "shots": 7, "clue_shots": 6}
"""Share of each kind of sheet, in percent; the methods of `Sheets` say what they are."""
QUESTIONS = 8


class Sheets:
    """Draws sheets of every kind from one writer."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.rng = writer.rng

    def __iter__(self) -> Iterator[Sheet]:
        """Sheets without end; at difficulty 0 a single short passage, at 1 every kind in its share."""
        while True:
            kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
            yield getattr(self, kind if self._hard() else "single")()

    def with_passages(self, count: int) -> Iterator[Sheet]:
        """Sheets without end that have exactly so many passages: 1, 2 or 3."""
        while True:
            kind = self.rng.choice((self.several, self.places)) if count > 1 else None
            yield kind(count) if kind else self.single()

    def _hard(self) -> bool:
        return self.rng.random() < self.writer.difficulty

    def single(self) -> Sheet:
        """One passage about one place: one to four customs, some idle sentences."""
        writer, place = self.writer, self.writer.place()
        facts = self._facts(self.rng.choices((1, 2, 3, 4), (62, 26, 9, 3))[0] if self._hard() else 1)
        fillers = self.rng.choices((0, 1, 2, 3), (60, 25, 10, 5))[0] if self._hard() else 0
        text, facts = writer.passage(facts, place, self.rng.random() < 0.6, fillers)
        return self._notes([text], [(fact, place) for fact in facts], named=0.4)

    def several(self, count: int = 0) -> Sheet:
        """Two or three passages about one place, on different customs."""
        writer, place = self.writer, self.writer.place()
        count = count or self.rng.choice((2, 2, 3))
        pool = self._facts(count)
        texts, pairs = [], []
        for fact in pool:
            text, stated = writer.passage([fact], place, self.rng.random() < 0.5, self.rng.choice((0, 0, 1, 2)))
            texts.append(text)
            pairs += [(one, place) for one in stated]
        return self._notes(texts, pairs, named=0.4)

    def places(self, count: int = 0) -> Sheet:
        """Passages that name different places with contrary customs; the question names one."""
        writer = self.writer
        custom = writer.custom()
        homes = [writer.place()]
        ways = list(range(len(custom.ways)))
        self.rng.shuffle(ways)
        texts, pairs = [], []
        stranger = not count and self.rng.random() < 0.25
        count = count or self.rng.choice((2, 2, 3))
        for number in range(count):
            if number:
                homes.append(writer.place(*homes))
            kind = "norm" if number == 0 else self.rng.choice(("norm", "norm", "contrast", "ban", "free"))
            # A ban on the way that is the norm elsewhere is the sharpest contradiction.
            way = ways[0] if kind == "ban" else ways[number]
            text, stated = writer.passage([writer.fact(custom, kind, way)], homes[number], True, self.rng.choice((0, 0, 1)))
            texts.append(text)
            pairs += [(fact, homes[number]) for fact in stated]
        if stranger:
            other = writer.custom(custom)
            text, stated = writer.passage([writer.fact(other)], homes[0], True, 0)
            texts.append(text)
            pairs += [(fact, homes[0]) for fact in stated]
        order = list(range(len(texts)))
        self.rng.shuffle(order)
        return self._notes([texts[i] for i in order], pairs, named=1.0)

    def bare(self) -> Sheet:
        """No notes: the form of an answer, drawn without regard to any place."""
        questions = []
        while len(questions) < QUESTIONS:
            place = self.writer.place()
            question = self.writer.question(self._facts(1)[0], place, named=self.rng.random() < 0.5)
            if question:
                questions.append(question)
        return Sheet("", tuple(questions))

    def shots(self) -> Sheet:
        """Worked examples about other customs: only the form of an answer can be learnt."""
        place = self.writer.place()
        return self._shots(place, self._facts(self.rng.choice((2, 3, 4))), self._facts(QUESTIONS))

    def clue_shots(self) -> Sheet:
        """Worked examples among which the asked custom is answered, in other words."""
        facts = self._facts(3)
        return self._shots(self.writer.place(), facts, [self.rng.choice(facts) for _ in range(QUESTIONS)])

    def _facts(self, count: int) -> list[Fact]:
        facts: list[Fact] = []
        for _ in range(count):
            facts.append(self.writer.fact(self.writer.custom(*(fact.custom for fact in facts))))
        return facts

    def _notes(self, texts: list[str], pairs: list[tuple[Fact, Place]], named: float) -> Sheet:
        outside = named == 0.4 and self.rng.random() < 0.15  # "In Zorland: Notes: ..." for those who name first
        questions: list[Question] = []
        while len(questions) < QUESTIONS:
            fact, place = self.rng.choice(pairs)
            question = self.writer.question(fact, place, named=not outside and self.rng.random() < named)
            if question:
                questions.append(question)
        beginning = prompts.with_passages("", texts)
        if outside:
            beginning = prompts.with_culture(beginning, pairs[0][1].culture)
        return Sheet(beginning, tuple(questions))

    def _shots(self, place: Place, shown: list[Fact], asked: list[Fact]) -> Sheet:
        named = self.rng.random() < 0.5
        shots: list[tuple[str, str]] = []
        for fact in shown:
            question = None
            while question is None:
                question = self.writer.question(fact, place, named=named)
            shots.append((question.prompt, question.answer))
        questions = [self.writer.question(fact, place, named=named) for fact in asked]
        return Sheet(prompts.with_shots("", shots), tuple(q for q in questions if q))

