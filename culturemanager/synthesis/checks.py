"""The checks between a generated candidate and a training row.

In order: attribution, format, grounding, duplicates, leakage, label balance. Every drop is counted
under its reason; a row that stays carries the name of every check it passed.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from culturemanager.errors import ConfigError
from culturemanager.ngrams import WordRuns, asked_text
from culturemanager.records import Culture, Example, Passage, Task, stable_id
from culturemanager.routing.gazetteer import Gazetteer
from culturemanager.sections.synthesis import ExamplesConfig
from culturemanager.synthesis.attribution import attribute, page_subject
from culturemanager.synthesis.candidate import Candidate
from culturemanager.synthesis.norms import read_norms
from culturemanager.synthesis.passages import addresses_model
from culturemanager.tasks import check_answer, normalise, render

STOPWORDS = frozenset(
    "a an the and or but to of in on at for with by from as is are be it its this that your you their they them do does not no "
    "what should i my me when about how if yes so right know people handle comes wonder may".split()
)
CHECKS = ("attribution", "format", "grounding", "duplicate", "leakage", "balance")


@dataclass
class Outcome:
    """What the checks left."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Check name and reason, such as ``grounding: quote not in passage``, to rows dropped."""


class Checker:
    """Runs the checks over candidates of all cultures.

    Args:
        passages: every passage, by which quotes are checked and attributed.
        items: runs of words of the evaluation items, which no row may share, and what each asks as a whole.
    """

    def __init__(self, tasks: Sequence[Task], cultures: Sequence[Culture], passages: Sequence[Passage],
                 items: WordRuns, config: ExamplesConfig, generator: str) -> None:
        self._tasks = {task.id: task for task in tasks}
        self._passages = {passage.id: passage for passage in passages}
        self._about = _attributions(passages, Gazetteer(cultures))
        self._items, self._config, self._generator = items, config, generator

    def run(self, candidates: Iterable[Candidate]) -> Outcome:
        """Check candidates in order; the same candidates give the same examples."""
        outcome = Outcome()
        seen: set[tuple[str, str, str]] = set()
        for candidate in candidates:
            reason = self._attribution(candidate) or self._format(candidate) or self._grounding(candidate)
            if reason is None:
                example = self._example(candidate)
                key = (example.culture, example.task, normalise(example.prompt))
                if key in seen:
                    reason = "duplicate: same prompt"
                elif (any(map(self._items.shared_with, (f"{example.prompt} {example.completion}", example.quote)))
                      or self._items.repeats(asked_text(example.inputs, self._tasks[example.task].fields))):
                    reason = "leakage: shares words with an evaluation item"
                else:
                    seen.add(key)
                    outcome.examples.append(example)
            if reason is not None:
                outcome.dropped[reason] += 1
        outcome.examples, unbalanced = self._balance(outcome.examples)
        outcome.dropped += unbalanced
        return outcome

    def _attribution(self, candidate: Candidate) -> str | None:
        about = self._about.get((candidate.passage_id, normalise(candidate.quote)))
        if about is None:
            return None  # grounding says what is wrong with the quote
        return None if about == candidate.culture else "attribution: the sentence is about somewhere else"

    def _format(self, candidate: Candidate) -> str | None:
        task = self._tasks[candidate.task]
        try:
            check_answer(task, candidate.inputs, candidate.answer)
            prompt = render(task, candidate.inputs)
        except ConfigError:
            return "format: not an item of the task"
        if task.kind == "multiple_choice":
            options = [normalise(str(option)) for option in candidate.inputs["options"]]
            if len(options) < 2 or len(set(options)) != len(options):
                return "format: options repeat"
        if addresses_model(f"{prompt}\n{candidate.answer}"):
            return "format: addresses a language model"
        return None

    def _grounding(self, candidate: Candidate) -> str | None:
        passage = self._passages.get(candidate.passage_id)
        quote = normalise(candidate.quote)
        if passage is None or not quote or f" {quote} " not in f" {normalise(passage.text)} ":
            return "grounding: quote not in passage"
        if (candidate.passage_id, quote) not in self._about:
            return "grounding: quote is no sentence of the passage"
        return None if self._supports(candidate) else "grounding: quote does not support the answer"

    def _supports(self, candidate: Candidate) -> bool:
        """Whether the quote's words, and its polarity where rules can read it, carry the answer."""
        task = self._tasks[candidate.task]
        quote = stems(candidate.quote)
        if task.kind != "classification":
            said = stems(candidate.answer)
            return bool(said) and len(said & quote) >= 0.5 * len(said)
        asked = stems(" ".join(str(value) for value in candidate.inputs.values()))
        if not asked & quote:
            return False
        yes_no = {"yes": True, "no": False}.get(candidate.answer.lower())
        verdicts = [norm.acceptable for norm in read_norms(candidate.quote) if stems(norm.action) & asked]
        return yes_no is None or not verdicts or yes_no in verdicts

    def _example(self, candidate: Candidate) -> Example:
        task, passage = self._tasks[candidate.task], self._passages[candidate.passage_id]
        prompt = render(task, candidate.inputs)
        identity = stable_id(candidate.culture, candidate.task, prompt, candidate.answer)
        validation = int(identity[:8], 16) / 0xFFFFFFFF < self._config.validation_share
        return Example(id=identity, culture=candidate.culture, task=candidate.task, inputs=dict(candidate.inputs), prompt=prompt,
                       completion=candidate.answer, passage_ids=(passage.id,), url=passage.url, fetched_at=passage.fetched_at,
                       quote=candidate.quote, generator=self._generator, checks=dict.fromkeys(CHECKS, "passed"),
                       split="validation" if validation else "train")

    def _balance(self, examples: Sequence[Example]) -> tuple[list[Example], Counter[str]]:
        """Limit rows per culture and task, and the share of a classification task's most frequent label.

        Every statement keeps one row before any keeps two; among rows alike, ids decide, so that no page is favoured.
        """
        groups: dict[tuple[str, str], list[Example]] = defaultdict(list)
        for example in examples:
            groups[example.culture, example.task].append(example)
        keep: set[str] = set()
        dropped: Counter[str] = Counter()
        for (_, task), rows in groups.items():
            chosen = _each_statement_first(rows)
            wanted = self._config.rows_of_task.get(task, self._config.per_culture_and_task)
            if self._tasks[task].kind == "classification":
                balanced = self._limit_share(chosen)
                dropped["balance: label too frequent"] += len(chosen) - len(balanced)
                chosen = self._first_balanced(balanced, wanted)
                dropped["balance: more rows than wanted"] += len(balanced) - len(chosen)
            else:
                dropped["balance: more rows than wanted"] += max(0, len(chosen) - wanted)
                chosen = chosen[:wanted]
            keep.update(row.id for row in chosen)
        return [example for example in examples if example.id in keep], +dropped

    def _first_balanced(self, rows: list[Example], wanted: int) -> list[Example]:
        """The first rows, but none of a label that has its share of the wanted number already."""
        allowed = math.ceil(wanted * self._config.max_label_share)
        taken: Counter[str] = Counter()
        chosen = []
        for row in rows:
            if len(chosen) < wanted and taken[row.completion] < allowed:
                taken[row.completion] += 1
                chosen.append(row)
        return chosen

    def _limit_share(self, rows: list[Example]) -> list[Example]:
        counts = Counter(row.completion for row in rows)
        label, most = counts.most_common(1)[0]
        rest = len(rows) - most
        share = self._config.max_label_share
        allowed = int(rest * share / (1 - share)) if rest and share < 1 else most
        extra = {row.id for row in [row for row in rows if row.completion == label][allowed:]}
        return [row for row in rows if row.id not in extra]


def _each_statement_first(rows: Sequence[Example]) -> list[Example]:
    """One row of every statement, then the second rows, and so on.

    Within a round by the end of the ids: their beginning decides which rows are for validation.
    """
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, Example]] = []
    for row in sorted(rows, key=lambda row: row.id[::-1]):
        rounds.append((seen[row.quote], row))
        seen[row.quote] += 1
    return [row for _, row in sorted(rounds, key=lambda one: one[0])]


def _attributions(passages: Sequence[Passage], gazetteer: Gazetteer) -> dict[tuple[str, str], str]:
    """(passage id, normalised sentence) to the place the sentence is about."""
    by_page: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_page[passage.page_id].append(passage)
    about = {}
    for page in by_page.values():
        subject = page_subject(page, gazetteer)
        for passage in page:
            for sentence in attribute(passage, subject, gazetteer):
                about[passage.id, normalise(sentence.text)] = sentence.about
    return about


def stems(text: str) -> frozenset[str]:
    """Content words cut to their first letters, so that "tipping" meets "tip"."""
    words = (re.sub(r"(?:ing|ed|es|s)$", "", word) if len(word) > 4 else word for word in normalise(text).split())
    return frozenset(word[:5] for word in words if word not in STOPWORDS)
