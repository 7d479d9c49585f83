"""Warm-up prompts on fictional places, in the very formats that the product uses.

One *sheet* is a shared beginning (notes, worked examples, or nothing) and several questions about
it. The questions of a sheet do not see each other in training, so a sheet costs little more than
its text but teaches many answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from culturemanager import prompts, tasks
from culturemanager.embedded import warmup_templates as patterns
from culturemanager.embedded.warmup_customs import Custom, base, gerund, one, sentence_case, they, they_gerund
from culturemanager.records import Culture, Task
from culturemanager.tasks import examples_folder

SHOWN_OPTIONS = " Options: {{ options | join(' / ') }}"
"""The warm-up's choices show their options, which the task itself leaves out: to compare them with notes is part of reading."""
TASKS_FOLDER = examples_folder() / "tasks"


@dataclass(frozen=True)
class Question:
    """One question on a sheet, as the model sees it after the sheet's beginning."""

    task: str
    prompt: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A shared beginning and the questions that follow it, each on its own."""

    beginning: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Place:
    """A fictional place."""

    name: str

    @property
    def people(self) -> str:
        if " " in self.name:
            return f"people of {self.name}"
        return f"{self.name}ns" if self.name.endswith("a") else f"{self.name}ers"

    @property
    def culture(self) -> Culture:
        return Culture(id="fictional", name=self.name, countries=(), languages=("en",), demonyms=())


@dataclass(frozen=True)
class Fact:
    """What a passage says about one custom: kind, the way it is about, and perhaps a rival way."""

    kind: str
    """`norm`, `contrast`, `ban`, `free` or `no_need`."""
    custom: Custom
    way: int
    wording: str
    rival: int | None = None
    rival_wording: str = ""


class Writer:
    """Draws facts, passages and questions; equal seeds give equal text.

    Args:
        customs: the invented customs to write about.
        seed: of every draw.
        tasks_folder: where acceptability.yaml, choice.yaml and advice.yaml lie.
    """

    def __init__(self, customs: Sequence[Custom], seed: int, tasks_folder: Path = TASKS_FOLDER) -> None:
        self.customs = list(customs)
        self.rng = random.Random(seed)
        self._folder = tasks_folder
        self.difficulty = 1.0
        """From 0, where a question repeats its passage's words, to 1, where it mostly does not."""

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        loaded = {name: tasks.load_task(self._folder / f"{name}.yaml") for name in ("acceptability", "choice", "advice")}
        return loaded | {"choice": replace(loaded["choice"], template=loaded["choice"].template + SHOWN_OPTIONS)}

    def place(self, *others: Place) -> Place:
        """A place other than `others`."""
        return Place(self.rng.choice([name for name in patterns.PLACES if name not in {other.name for other in others}]))

    def custom(self, *others: Custom) -> Custom:
        """A custom with its slots filled, about another situation than `others`."""
        taken = {other.questions for other in others}
        while True:
            custom = self.rng.choice(self.customs).filled(self.rng)
            if custom.questions not in taken:
                return custom

    def fact(self, custom: Custom, kind: str = "", way: int | None = None) -> Fact:
        """A fact about a custom; what is not given is drawn."""
        # At first mostly one plain norm: yes if the question repeats it, no if it tells of another way.
        weights = (48, 17, 20, 12, 3) if self.rng.random() < self.difficulty else (66, 6, 20, 8, 0)
        kind = kind or self.rng.choices(("norm", "contrast", "ban", "free", "no_need"), weights)[0]
        way = self.rng.randrange(len(custom.ways)) if way is None else way
        rival = self.rng.choice([i for i in range(len(custom.ways)) if i != way]) if kind == "contrast" else None
        rival_wording = "" if rival is None else self.rng.choice(custom.ways[rival].phrases)
        return Fact(kind, custom, way, self.rng.choice(custom.ways[way].phrases), rival, rival_wording)

    def state(self, fact: Fact, place: Place, name_it: bool) -> tuple[str, Fact]:
        """A travel page's sentence for a fact, and the fact in the wording that the sentence uses."""
        way = fact.custom.ways[fact.way]
        if fact.kind == "norm" and self.rng.random() < 0.5:
            fact = Fact("norm", fact.custom, fact.way, way.phrases[0])
            return self._placed(way.sentence, place, name_it), fact
        pattern = self.rng.choice({"norm": patterns.NORM, "contrast": patterns.CONTRAST, "ban": patterns.BAN,
                                   "free": patterns.FREE, "no_need": patterns.NO_NEED}[fact.kind])
        situation = self.rng.choice(fact.custom.situations)
        text = self._fill(pattern, situation, fact.wording, place, fact.rival_wording)
        tails = patterns.TAILS.get({"contrast": "norm"}.get(fact.kind, fact.kind))
        if tails and text.count(".") == 1 and self.rng.random() < 0.25:
            text = text[:-1] + self.rng.choice(tails) + "."
        return self._placed(text, place, name_it), fact

    def _placed(self, text: str, place: Place, name_it: bool) -> str:
        """Make sure the text names its place if it has to."""
        if name_it and place.name not in text and place.people not in text:
            opening = self.rng.choice(("In {P}, {text}", "In {P} {text}", "{text}", "This holds for {P}: {text}"))
            if opening == "{text}":
                return f"{sentence_case(text)[:-1]} in {place.name}."
            return opening.format(P=place.name, text=text[:1].lower() + text[1:])
        return sentence_case(text)

    def _fill(self, pattern: str, situation: str, wording: str, place: Place, rival: str = "") -> str:
        words = {"S": base(situation), "sG": gerund(situation), "sT": they(situation), "S1": _first_person(base(situation)),
                 "w": base(wording), "g": gerund(wording), "t": they(wording), "tg": they_gerund(wording), "s": one(wording),
                 "P": place.name, "D": self.rng.choice((place.people, place.people, "locals")),
                 "N": self.rng.choice(patterns.NAMES), "X": self.rng.choice(patterns.DETAILS)}
        if rival:
            words |= {"o": base(rival), "og": gerund(rival), "ot": they(rival), "otg": they_gerund(rival)}
        return sentence_case(pattern.format(**words))

    def filler(self, place: Place) -> str:
        """A sentence that says nothing about a custom."""
        return self.rng.choice(patterns.FILLERS).format(P=place.name, D=place.people)

    def passage(self, facts: Sequence[Fact], place: Place, name_it: bool, fillers: int) -> tuple[str, list[Fact]]:
        """A short paragraph that states the facts in their order, with idle sentences among them."""
        stated = [self.state(fact, place, name_it and i == 0) for i, fact in enumerate(facts)]
        sentences = [text for text, _ in stated]
        for _ in range(fillers):
            sentences.insert(self.rng.randrange(len(sentences) + 1), self.filler(place))
        return " ".join(sentences), [fact for _, fact in stated]

    def question(self, fact: Fact, place: Place, task: str = "", named: bool = False) -> Question | None:
        """A question that the fact answers, or None if this fact answers none of the task."""
        # Comparing a question with its notes is learnt last of all: at first most questions ask for it.
        weights = (50, 25, 25) if self.rng.random() < self.difficulty else (80, 10, 10)
        task = task or self.rng.choices(("acceptability", "choice", "advice"), weights)[0]
        made = getattr(self, f"_{task}")(fact, place)
        if made is None:
            return None
        inputs, answer = made
        prompt = tasks.render(self._tasks[task], inputs)
        if named:
            prompt = prompts.with_culture(prompt, place.culture)
        return Question(task, prompt, answer, tuple(inputs.get("options", ())))

    def _acceptability(self, fact: Fact, place: Place) -> tuple[dict, str] | None:
        rng, ways = self.rng, fact.custom.ways
        others = [i for i in range(len(ways)) if i != fact.way]
        # (way asked about, whether it is done, the answer): only what the fact settles
        others_done = [(i, True, "no") for i in others] * (6 // len(others))
        settled = {"norm": [(fact.way, True, "yes")] * 6 + others_done + [(fact.way, False, "no")],
                   "contrast": [(fact.way, True, "yes")] * 2 + [(fact.rival, True, "no")] * 2,
                   "ban": [(fact.way, True, "no")] * 8 + [(fact.way, False, "yes")],
                   "free": [(fact.way, True, "yes")],
                   "no_need": [(fact.way, False, "yes")]}[fact.kind]
        if rng.random() >= 5 * self.difficulty:  # at first nobody is asked about what is left undone
            settled = [case for case in settled if case[1]] or settled
        way, done, answer = rng.choice(settled)
        used = fact.wording if way == fact.way else fact.rival_wording
        wording = self._other_wording(ways[way].phrases, used)
        plain = 2 if rng.random() >= self.difficulty else None
        pattern = rng.choice((patterns.DOES if done else patterns.DOES_NOT)[:plain])
        text = self._fill(pattern, rng.choice(fact.custom.situations), wording, place)
        if rng.random() < 0.1:
            text = f"{text[:-1]} in {place.name}."
        return {"behaviour": text}, answer

    def _other_wording(self, phrases: Sequence[str], used: str) -> str:
        others = [phrase for phrase in phrases if phrase != used]
        other = others and self.rng.random() < 0.8 * self.difficulty
        return self.rng.choice(others) if other else used or self.rng.choice(phrases)

    def _ask(self, fact: Fact, place: Place) -> str:
        rng = self.rng
        if fact.kind == "ban" and rng.random() < 0.6:
            return self._fill(rng.choice(patterns.ASK_BAN), rng.choice(fact.custom.situations), fact.wording, place)
        if rng.random() < 0.5:
            text = sentence_case(rng.choice(fact.custom.questions)) + "?"
        else:
            text = self._fill(rng.choice(patterns.ASK), rng.choice(fact.custom.situations), fact.wording, place)
        return f"{text[:-1]} in {place.name}?" if rng.random() < 0.15 else text

    def _advice(self, fact: Fact, place: Place) -> tuple[dict, str] | None:
        if fact.kind == "no_need":
            return None
        answer = base(fact.wording)
        return {"question": self._ask(fact, place)}, f"do not {answer}" if fact.kind == "ban" else answer

    def _choice(self, fact: Fact, place: Place) -> tuple[dict, str] | None:
        rng, ways = self.rng, fact.custom.ways
        if fact.kind == "no_need":
            return None
        others = [i for i in range(len(ways)) if i != fact.way]
        if fact.kind == "ban":
            right = rng.choice(others)
            options = [base(rng.choice(ways[right].phrases)), base(rng.choice(ways[fact.way].phrases))]
        else:
            wording = fact.wording if rng.random() < 0.4 else self._other_wording(ways[fact.way].phrases, fact.wording)
            options = [base(wording)] + [base(rng.choice(ways[i].phrases)) for i in others]
            if rng.random() < 0.15:
                options.append(base(rng.choice(rng.choice(self.custom(fact.custom).ways).phrases)))
            elif rng.random() < 0.12:
                options.pop()
        answer = options[0]
        if len(set(options)) < len(options):
            return None
        rng.shuffle(options)
        custom_fact = fact if fact.kind != "ban" else Fact("norm", fact.custom, fact.way, fact.wording)
        return {"question": self._ask(custom_fact, place), "options": options}, answer


def _first_person(text: str) -> str:
    text = re.sub(r"\byourself\b", "myself", re.sub(r"\byour\b", "my", text))
    return re.sub(r"\byou\b", "I", re.sub(r"\byou\b$", "me", text))
