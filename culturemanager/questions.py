"""Questions to a finished project, answered in this process: passages by meaning, and the trained model."""

from __future__ import annotations

from dataclasses import dataclass

from culturemanager import artifacts
from culturemanager.config import Project
from culturemanager.errors import ConfigError
from culturemanager.records import Passage, Route, Task
from culturemanager.tasks import answers, render


@dataclass(frozen=True)
class FoundPassage:
    """One search result with its source."""

    score: float
    """Cosine similarity, at most 1."""
    passage: Passage


def search_passages(project: Project, text: str, culture: str = "", limit: int = 5) -> list[FoundPassage]:
    """The passages nearest to a text, best first; of one culture, if given.

    Raises:
        ConfigError: the text is empty, or the culture is not the project's.
        IncompleteStageError: the index is not there yet, or of other passages.
    """
    require_text(text)
    artifacts.require_culture(project, culture)
    passages = {(passage.id, passage.culture): passage for passage in artifacts.passages(project)}
    index = artifacts.open_index(project, artifacts.open_embedder(project))
    artifacts.require_same_passages(project, index, {id for id, _ in passages})
    hits = index.search([text], culture=culture or None, limit=limit)[0]
    return [FoundPassage(hit.score, passages[hit.passage_id, hit.culture]) for hit in hits]


def require_text(text: str) -> None:
    """Raise `ConfigError` for a text without a word."""
    if not text.strip():
        raise ConfigError(f"The text {text!r} is empty; expected a question or some words.")


@dataclass(frozen=True)
class Reply:
    """An answer, and who gave it."""

    text: str
    route: Route
    adapter: str
    """The version that answered; empty for the bare base."""
    passages: tuple[Passage, ...] = ()
    """Those that stood in the prompt."""


def ask(project: Project, text: str, culture: str = "", task: str = "", max_new_tokens: int = 48) -> Reply:
    """One question to the trained model, in this process.

    Args:
        text: the question, as it stands; with `task`, the value of the task's one input field.
        culture: pins the culture; otherwise the router decides.
        task: a task's id: the question is put in the task's own words, and only an answer it allows is given.

    Raises:
        ConfigError: an empty text, a culture or task that the project does not have, or a task with several input fields.
        IncompleteStageError: the router is not there yet.
        AdapterError: the served system has adapters of its own, and none was trained.
    """
    from culturemanager.chat import chat_ids
    from culturemanager.inference.engine import GenerationRequest, ScoreRequest

    require_text(text)
    artifacts.require_culture(project, culture)
    chosen = _task_of_one_field(project, task) if task else None
    artifacts.workspace(project).stage("router").manifest()  # an error here costs no loading of models
    artifacts.served_adapters(project)
    embedder = artifacts.open_embedder(project)
    route = artifacts.open_router(project, embedder).route(text, pinned=culture or None)
    options = answers(chosen, {}) if chosen else ()
    system = artifacts.open_served_system(project, embedder)
    asked = system.ask(render(chosen, {chosen.fields[0]: text}) if chosen else text, route.culture, options)
    adapter = artifacts.registry(project).aliases().get(asked.adapter, "")
    engine, tokenizer, _ = artifacts.open_serving(project, [adapter] if adapter else [])
    ids = tuple(chat_ids(tokenizer, asked.prompt))
    if options:
        (scores,) = engine.score([ScoreRequest(ids, options, adapter)])
        return Reply(options[scores.index(max(scores))], route, adapter, asked.passages)
    (generation,) = engine.generate([GenerationRequest(ids, adapter, max_new_tokens)])
    return Reply(generation.text.strip(), route, adapter, asked.passages)


def _task_of_one_field(project: Project, name: str) -> Task:
    tasks = {task.id: task for task in artifacts.tasks(project)}
    if name not in tasks:
        raise ConfigError(f"--task {name!r}: not one of the project's tasks ({', '.join(tasks)}).")
    if len(tasks[name].fields) != 1:
        raise ConfigError(f"--task {name!r} takes the fields {list(tasks[name].fields)}, and a question is one text. "
                          "Leave --task out, or name a task with one field.")
    return tasks[name]
