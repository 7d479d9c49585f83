"""Cultures and tasks to web queries: from templates, and from a language model if there is one.

Task-specific queries join a topic with the words of the task's own instruction, and are phrased by
the task's kind: what is judged, what is chosen, what is advised. Task-agnostic ones ask about everyday
customs (the two kinds of query of arXiv 2602.22475).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from culturemanager import prompts
from culturemanager.errors import UnusableAnswerError
from culturemanager.providers.llm import LanguageModel
from culturemanager.records import Culture, Query, Task, stable_id
from culturemanager.sections.synthesis import QueriesConfig
from culturemanager.tasks import contains_phrase, normalise

LANGUAGE = "en"
MAX_CHARACTERS = 160
TASK_WORDS = 2
CALLS_IN_FLIGHT = 8

# {people} is a demonym ("Turkish"), {place} the culture's name, {words} the task's own vocabulary.
# Each list is gone through topic by topic, then the next phrasing begins.
TASK_TEMPLATES = {
    "classification": (
        "{people} {topic} etiquette {words} or rude",
        "is it polite or offensive in {place}: {topic} {words}",
        "{topic} taboos in {place} what is frowned upon",
        "{topic} mistakes visitors make in {place} {words}",
    ),
    "multiple_choice": (
        "{topic} {words} what people usually do in {place}",
        "{people} customs {topic} how it differs from other countries {words}",
        "{topic} rules in {place} which is expected",
        "common {topic} practice among locals in {place} {words}",
    ),
    "generation": (
        "{topic} tips for visitors to {place} {words}",
        "how should guests behave in {place}: {topic} {words}",
        "{people} {topic} dos and don'ts guide",
        "{topic} in {place} what to do and what to avoid {words}",
    ),
}
AGNOSTIC_TEMPLATES = (
    "everyday customs in {place} {topic}",
    "{people} culture and social norms {topic}",
    "living in {place} {topic} traditions explained",
    "{people} manners {topic}",
)
# What an instruction says about the form of an answer, not about its subject.
FORM_WORDS = frozenset("""
    a about accepted all an and answer answers any are as at be best by can choose classify decide does each exactly fits for
    from given gives give how if in input into is it item judge kind label local most no not of on one only option options or
    output piece pick please question questions read reply respond response return say sentence short should task tell text
    that the their them there these they this to true false under user what when where whether which who will with word words
    write yes you your
""".split())
SCHEMA = {
    "type": "object",
    "properties": {"queries": {"type": "array", "items": {"type": "string"}}},
    "required": ["queries"],
    "additionalProperties": False,
}


def write_queries(config: QueriesConfig, cultures: Sequence[Culture], tasks: Sequence[Task],
                  language_model: LanguageModel | None = None, progress: Callable[[int, int, str], None] | None = None,
                  dropped: Counter[str] | None = None) -> list[Query]:
    """Queries of every culture: for each task, then task-agnostic; templates first, then the model's.

    Of two queries of a culture with the same words the first stays. Without a model the result depends
    on the arguments alone.

    Args:
        language_model: asked for as many queries again as the templates give.
        dropped: receives the number of queries dropped, by reason (`duplicate`, `unusable`, `surplus`),
            and of model calls without a usable answer (`unusable_answer`).

    Raises:
        LanguageModelError: the model's endpoint could not answer.
    """
    dropped = Counter() if dropped is None else dropped
    wanted: list[tuple[Culture, Task | None, int]] = [(culture, task, count) for culture in cultures
                                                      for task, count in _counts(config, tasks)]
    written = _ask(language_model, config, wanted, progress) if language_model else [[] for _ in wanted]
    queries: dict[tuple[str, tuple[str, ...]], Query] = {}
    for (culture, task, count), answer in zip(wanted, written, strict=True):
        if answer is None:
            dropped["unusable_answer"] += 1
        texts = [(text, "template") for text in _from_templates(config, culture, task, count)]
        texts += [(text, "llm") for text in _usable(answer or [], culture, count, dropped)]
        for text, source in texts:
            key = (culture.id, tuple(sorted(normalise(text).split())))
            if key in queries:
                dropped["duplicate"] += 1
                continue
            task_id = task.id if task else ""
            queries[key] = Query(id=stable_id(culture.id, task_id, text), culture=culture.id, task=task_id, text=text,
                                 language=LANGUAGE, source=source)
    return list(queries.values())


def _counts(config: QueriesConfig, tasks: Sequence[Task]) -> Iterator[tuple[Task | None, int]]:
    yield from ((task, config.per_task) for task in tasks)
    if config.agnostic:
        yield None, config.agnostic


def _from_templates(config: QueriesConfig, culture: Culture, task: Task | None, count: int) -> Iterator[str]:
    templates = TASK_TEMPLATES[task.kind] if task else AGNOSTIC_TEMPLATES
    words = " ".join(task_words(task)) if task else ""
    people = culture.demonyms[0] if culture.demonyms else culture.name
    pairs = [(template, topic) for template in templates for topic in config.topics]
    for template, topic in pairs[:count]:
        yield " ".join(template.format(people=people, place=culture.name, topic=topic, words=words).split())


def task_words(task: Task) -> list[str]:
    """Up to two words that say what a task is about: its instruction's, else its seeds', most frequent first."""
    sources = [task.instruction, " ".join(str(value) for seed in task.seeds for value in seed["inputs"].values())]
    for text in sources:
        found = [word for word in re.findall(r"\w+", text.lower()) if len(word) > 3 and word not in FORM_WORDS]
        if found:
            return [word for word, _ in Counter(found).most_common(TASK_WORDS)]
    return []


def _ask(model: LanguageModel, config: QueriesConfig, wanted: Sequence[tuple[Culture, Task | None, int]],
         progress: Callable[[int, int, str], None] | None) -> list[list[str] | None]:
    """The model's queries for each entry of `wanted`; `None` where its answer was of no use."""
    def ask(entry: tuple[Culture, Task | None, int]) -> list[str] | None:
        culture, task, count = entry
        prompt = prompts.write_queries(culture, task, config.topics, count)
        try:
            return json.loads(model.complete([{"role": "user", "content": prompt}], schema=SCHEMA).text)["queries"]
        except UnusableAnswerError:
            return None

    answers: list[list[str] | None] = []
    pool = ThreadPoolExecutor(CALLS_IN_FLIGHT, thread_name_prefix="queries")
    try:
        for answer in pool.map(ask, wanted):
            answers.append(answer)
            if progress:
                progress(len(answers), len(wanted), "sets of queries written")
    except BaseException:
        model.cancel()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return answers


def _usable(texts: Sequence[str], culture: Culture, count: int, dropped: Counter[str]) -> list[str]:
    """A model's queries as single lines that name their culture, at most `count`."""
    usable = []
    for text in texts:
        text = " ".join(re.sub(r"[^\w\s'&/:,?-]", " ", text).split())
        if not any(contains_phrase(text, name) for name in (culture.name, *culture.countries, *culture.demonyms)):
            text = f"{culture.name} {text}"
        if len(normalise(text).split()) <= len(normalise(culture.name).split()) or len(text) > MAX_CHARACTERS:
            dropped["unusable"] += 1
        else:
            usable.append(text)
    if len(usable) > count:
        dropped["surplus"] += len(usable) - count
    return usable[:count]
