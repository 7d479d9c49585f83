"""Every chosen system on the same items: compose, ask the engine in mixed batches, score, aggregate, save.

    items -> route -> compose (baselines) -> ask -> parse and score (tasks) -> figures (metrics) -> scores.json

Requests of all systems go to the engine together, each with its own adapter. Two systems that ask the
same adapter the same question share the answer. Closed tasks are answered by the likeliest of the
allowed answers, free text by greedy decoding, for every system alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from culturemanager import prompts
from culturemanager.chat import chat_ids
from culturemanager.errors import AdapterError, ConfigError
from culturemanager.evaluation import metrics
from culturemanager.evaluation.baselines import System, adapters_of, compose, culture_gone_by, pick_shots, select_systems
from culturemanager.evaluation.results import SUBJECT, Answer, Evaluation
from culturemanager.evaluation.retrieval import PassageRetriever, question_text
from culturemanager.inference.engine import Engine
from culturemanager.inference.requests import GenerationRequest, ScoreRequest
from culturemanager.items import ItemSet
from culturemanager.records import Culture, EvaluationItem, Example, Route, Score, Task
from culturemanager.sections.model import EvaluationConfig
from culturemanager.storage import StageDraft, fingerprint
from culturemanager.tasks import answers, is_correct, parse_answer, render

ASKED_AT_ONCE = 256
"""Questions handed to the engine together; an interrupted run loses at most so many answers."""

Progress = Callable[[int, int, str], None]


class Router(Protocol):
    """What is asked of `routing.router.CultureRouter`."""

    def route_many(self, texts: Sequence[str]) -> list[Route]: ...


@dataclass(frozen=True)
class Question:
    """What one system asks one adapter for one item."""

    system: str
    item: EvaluationItem
    task: Task
    prompt: str
    adapter: str
    """Name in the adapter bank; empty for the bare base."""
    culture: str
    """The culture gone by; empty if none."""

    @property
    def key(self) -> str:
        """Equal for questions that have the same answer."""
        return fingerprint(self.prompt, self.adapter, self.task.kind, answers(self.task, self.item.inputs))


def evaluate(engine: Engine, tokenizer: PreTrainedTokenizerBase, adapters: Mapping[str, str], items: ItemSet,
             tasks: Sequence[Task], cultures: Sequence[Culture], systems: Sequence[str], router: Router,
             retriever: PassageRetriever | None, examples: Sequence[Example], config: EvaluationConfig, seed: int,
             progress: Progress | None = None, *, draft: StageDraft | None = None) -> Evaluation:
    """Compare `systems` on `items`.

    Args:
        tokenizer: the engine's.
        adapters: adapter name (`baselines.required_adapters`) to its name in the engine's bank.
        retriever: needed by the systems that put passages into the prompt.
        examples: training rows; needed by few-shot.
        seed: of the worked examples and of the bootstrap.
        draft: keeps answers safe as they come; after an interruption the answered questions are not asked again.

    Raises:
        ConfigError: there is no item, an unknown system, or one that lacks what it needs.
        AdapterError: a system has none of its adapters.
        RequestError: a task's bare prompt is longer than the base model's context.
    """
    chosen = select_systems(systems)
    if not items.items:
        raise ConfigError(f"no evaluation item is about the project's cultures and tasks; left out: {dict(items.left_out)}. "
                          "Name a file with such items in `evaluation.items`.")
    missing = _missing_adapters(chosen, adapters, cultures)
    run = _Run(tokenizer, engine.context, adapters, items.items, tasks, cultures, retriever, examples, config, seed)
    run.check(chosen)
    routes = router.route_many([run.plain[item.id] for item in run.items])
    compared = [question for name, system in chosen.items() for question in run.questions(name, system, routes)]
    forced = run.forced_questions()
    said = _ask(engine, tokenizer, [*compared, *forced], config.max_new_tokens, draft, progress)
    answered = tuple(_score(question, said[question.key], run.plain[question.item.id]) for question in compared)
    scores = [answer.score for answer in answered]
    return Evaluation(answers=answered, summary={
        "seed": seed,
        "aggregation": metrics.AGGREGATION,
        "interval": {"method": "percentile bootstrap, items resampled within culture", "level": metrics.LEVEL,
                     "resamples": config.bootstrap},
        "items": len(run.items),
        "items_by_culture": dict(Counter(item.culture for item in run.items)),
        "items_left_out": dict(items.left_out),
        "cultures": {culture.id: culture.name for culture in cultures},
        "tasks": {task.id: task.kind for task in tasks},
        "systems": metrics.summarise(scores, run.items, tasks, config.bootstrap, seed),
        "differences": metrics.differences(scores, run.items, SUBJECT, config.bootstrap, seed),
        "chance": metrics.chance(run.items, tasks),
        "router": metrics.router_figures(run.items, routes),
        "interference": metrics.interference([_score(question, said[question.key], "").score for question in forced]),
        "interference_items": max(Counter(culture for _, culture in {(q.item.id, q.item.culture) for q in forced}).values(),
                                  default=0),
        "adapters": dict(adapters),
        "adapters_missing": missing,
        "prompts_shortened": dict(run.shortened),
    })


def _missing_adapters(systems: Mapping[str, System], adapters: Mapping[str, str], cultures: Sequence[Culture]) -> list[str]:
    """Names of absent adapters; a culture without one is answered by the bare base, as when serving."""
    missing: dict[str, None] = {}
    for name, system in systems.items():
        needed = adapters_of(system, [culture.id for culture in cultures])
        absent = [adapter for adapter in needed if adapter not in adapters]
        if needed and absent == needed:
            raise AdapterError(f"system {name!r} has none of its adapters ({', '.join(needed)}). "
                               f"Run `culturemanager train`, or take {name!r} off `evaluation.systems`.")
        missing |= dict.fromkeys(absent)
    return list(missing)


class _Run:
    """What composing questions needs: the arguments of `evaluate`, looked up by id."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, adapters: Mapping[str, str],
                 items: Sequence[EvaluationItem], tasks: Sequence[Task], cultures: Sequence[Culture],
                 retriever: PassageRetriever | None, examples: Sequence[Example], config: EvaluationConfig,
                 seed: int) -> None:
        self.tokenizer, self.context, self.adapters, self.items = tokenizer, context, adapters, items
        self.tasks = {task.id: task for task in tasks}
        self.cultures = {culture.id: culture for culture in cultures}
        self.retriever, self.examples, self.config, self.seed = retriever, examples, config, seed
        self.plain = {item.id: render(self.tasks[item.task], item.inputs) for item in items}
        self.shortened: Counter[str] = Counter()

    def check(self, systems: Mapping[str, System]) -> None:
        """Raise `ConfigError` if a system lacks what it puts into prompts."""
        for name, system in systems.items():
            if system.passages and self.retriever is None:
                raise ConfigError(f"system {name!r} needs the passage index. Run `culturemanager index`, "
                                  f"or take {name!r} off `evaluation.systems`.")
            if system.shots and not self.examples:
                raise ConfigError(f"system {name!r} needs training examples. Run `culturemanager examples`, "
                                  f"or take {name!r} off `evaluation.systems`.")

    def questions(self, name: str, system: System, routes: Sequence[Route]) -> list[Question]:
        """One question an item."""
        gone_by = [culture_gone_by(system, item, route) for item, route in zip(self.items, routes, strict=True)]
        passages = self._passages(gone_by) if system.passages else [[]] * len(self.items)
        return [self._question(name, system, item, culture, own)
                for item, culture, own in zip(self.items, gone_by, passages, strict=True)]

    def _passages(self, gone_by: Sequence[str]) -> list[list[str]]:
        by_culture: dict[str, list[int]] = defaultdict(list)
        for number, culture in enumerate(gone_by):
            by_culture[culture].append(number)
        found: list[list[str]] = [[] for _ in gone_by]
        for culture, numbers in by_culture.items():
            own = (self.items[number] for number in numbers)
            questions = [question_text(item.inputs, self.tasks[item.task].fields) for item in own]
            passages = self.retriever.texts(questions, culture, self.config.retrieved_passages)
            for number, texts in zip(numbers, passages, strict=True):
                found[number] = texts
        return found

    def _question(self, name: str, system: System, item: EvaluationItem, culture: str, passages: list[str]) -> Question:
        task, plain = self.tasks[item.task], self.plain[item.id]
        shots = self._shots(task, culture, item.id) if system.shots else []
        prompt, adapter = compose(system, plain, self.cultures.get(culture), passages, shots)
        given = len(passages) + len(shots)
        while (passages or shots) and not self._fits(prompt, task, item):
            # the last passage is the least near, and the shots are in random order: either way the last one goes
            passages, shots = passages[:-1], shots[:-1]
            prompt, adapter = compose(system, plain, self.cultures.get(culture), passages, shots)
        if len(passages) + len(shots) < given:
            self.shortened[name] += 1
        return Question(name, item, task, prompt, self.adapters.get(adapter, ""), culture)

    def _shots(self, task: Task, culture: str, item_id: str) -> list[tuple[str, str]]:
        picked = pick_shots(self.examples, task, culture, self.config.shots, self.seed, item_id)
        return [(prompts.with_culture(shot.prompt, self.cultures[shot.culture]), shot.completion) for shot in picked]

    def _fits(self, prompt: str, task: Task, item: EvaluationItem) -> bool:
        """Whether prompt and answer fit the base model's context."""
        allowed = answers(task, item.inputs)
        longest = max((len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in allowed),
                      default=self.config.max_new_tokens)
        return len(chat_ids(self.tokenizer, prompt)) + longest <= self.context

    def forced_questions(self) -> list[Question]:
        """Closed items of each culture, spread over its list, put to every culture's adapter, the prompt as it is."""
        closed: dict[str, list[EvaluationItem]] = defaultdict(list)
        for item in self.items:
            if self.tasks[item.task].kind != "generation":
                closed[item.culture].append(item)
        return [Question("forced", item, self.tasks[item.task], self.plain[item.id], self.adapters[culture], culture)
                for own in closed.values() for item in _spread(own, self.config.interference_items)
                for culture in self.cultures if culture in self.adapters]


def _spread(items: Sequence[EvaluationItem], count: int) -> list[EvaluationItem]:
    """`count` of the items at even distances, or all if there are no more."""
    return [items[len(items) * number // count] for number in range(count)] if count < len(items) else list(items)


def _ask(engine: Engine, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], max_new_tokens: int,
         draft: StageDraft | None, progress: Progress | None) -> dict[str, str]:
    """Question key to what the model said; each key is asked once, and not again after an interruption."""
    questions = sorted(questions, key=lambda question: question.task.kind == "generation")  # like kinds share batches
    by_key = {question.key: question for question in questions}
    said = {row["key"]: row["said"] for row in draft.rows()} if draft else {}
    waiting = [(key, question) for key, question in by_key.items() if key not in said]
    done = len(by_key) - len(waiting)
    for start in range(0, len(waiting), ASKED_AT_ONCE):
        part = waiting[start : start + ASKED_AT_ONCE]
        texts = _answer(engine, tokenizer, [question for _, question in part], max_new_tokens)
        rows = [{"key": key, "said": text} for (key, _), text in zip(part, texts, strict=True)]
        if draft:
            draft.append(rows)
        said |= {row["key"]: row["said"] for row in rows}
        if progress:
            progress(done + start + len(part), len(by_key), "answers")
    return said


def _answer(engine: Engine, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question],
            max_new_tokens: int) -> list[str]:
    """What the model says to each question, in their order."""
    said: dict[int, str] = {}
    closed = [number for number, question in enumerate(questions) if question.task.kind != "generation"]
    free = [number for number, question in enumerate(questions) if question.task.kind == "generation"]
    ids = [tuple(chat_ids(tokenizer, question.prompt)) for question in questions]
    options = [answers(question.task, question.item.inputs) for question in questions]
    scored = engine.score([ScoreRequest(prompt_ids=ids[number], options=options[number], adapter=questions[number].adapter)
                           for number in closed])
    for number, scores in zip(closed, scored, strict=True):
        said[number] = options[number][scores.index(max(scores))]
    generated = engine.generate([GenerationRequest(prompt_ids=ids[number], adapter=questions[number].adapter,
                                                   max_new_tokens=max_new_tokens) for number in free])
    for number, generation in zip(free, generated, strict=True):
        said[number] = generation.text
    return [said[number] for number in range(len(questions))]


def _score(question: Question, said: str, plain: str) -> Answer:
    parsed = parse_answer(question.task, question.item.inputs, said)
    score = Score(system=question.system, item_id=question.item.id, culture=question.item.culture, task=question.task.id,
                  answer=said, correct=is_correct(question.task, question.item, parsed), unparsed=parsed is None,
                  routed_to=question.culture)
    return Answer(score, plain, question.prompt, question.adapter, question.item.answer)
