"""What a project file leads to: its parts read and checked, its finished stages opened."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import PurePath
from typing import TYPE_CHECKING

from culturemanager.config import Project
from culturemanager.cultures import resolve_cultures
from culturemanager.errors import (
    AdapterError,
    ConfigError,
    CultureManagerError,
    IncompleteStageError,
    OtherBaseError,
    StorageError,
)
from culturemanager.items import ItemSet, load_items
from culturemanager.records import Culture, Example, Passage, Task
from culturemanager.sections.synthesis import EmbeddingConfig
from culturemanager.storage import Workspace
from culturemanager.tasks import examples_folder, is_task_file, load_task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from culturemanager.adapters.bank import AdapterBank
    from culturemanager.adapters.registry import AdapterRegistry, AdapterVersion
    from culturemanager.adapters.shape import AdapterShape
    from culturemanager.evaluation.in_use import ServedSystem
    from culturemanager.evaluation.retrieval import PassageRetriever
    from culturemanager.inference.engine import Engine
    from culturemanager.providers.embedding import Embedder
    from culturemanager.routing.router import CultureRouter
    from culturemanager.synthesis.index import PassageIndex

    LoadVersion = Callable[[str], tuple[AdapterShape, Mapping[str, Tensor]]]


def cultures(project: Project) -> tuple[Culture, ...]:
    """The project's cultures, in its order."""
    return resolve_cultures(project.cultures)


def require_culture(project: Project, culture: str) -> None:
    """Raise `ConfigError` unless the culture is empty or the project's."""
    known = [culture.id for culture in cultures(project)]
    if culture and culture not in known:
        raise ConfigError(f"culture {culture!r}: not one of the project's ({', '.join(known)}).")


def tasks(project: Project) -> list[Task]:
    """The project's tasks, in its order.

    Raises:
        ConfigError: a task file is missing or wrong, or two have the same id.
    """
    by_id: dict[str, Task] = {}
    for path in project.tasks:
        if not project.resolve(path).exists():
            raise ConfigError(_no_task_file(project, path))
        task = load_task(project.resolve(path))
        if task.id in by_id:
            raise ConfigError(f"{path}: the task id {task.id!r} is used twice; give every task file an id of its own.")
        by_id[task.id] = task
    return list(by_id.values())


def _no_task_file(project: Project, path: str) -> str:
    """Which file names it, what was tried, and the task files that lie near, the likeliest first."""
    tried, home = project.resolve(path), project.resolve(".")
    folders = dict.fromkeys(folder for folder in (tried.parent, home, home / "tasks") if folder.is_dir())
    near = [os.path.relpath(file, home) for folder in folders for file in sorted(folder.glob("*.y*ml")) if is_task_file(file)]
    likeliest = difflib.get_close_matches(path, near, n=1, cutoff=0.5)
    if likeliest:
        advice = f"Nearest: {likeliest[0]}; task files there are: {', '.join(near)}."
    elif near:
        advice = f"Task files there are: {', '.join(near)}."
    else:
        advice = f"No task file lies near; {examples_folder() / 'tasks'} has one of each kind to copy."
    return f"{project.where('tasks')}: {path!r}: there is no file {tried}. {advice}"


def items(project: Project) -> ItemSet:
    """The held-out items of the project's cultures and tasks."""
    source = project.evaluation.items
    return load_items(source if source == "embedded" else project.resolve(source), tasks(project), cultures(project))


def workspace(project: Project) -> Workspace:
    return Workspace(project.workspace_url)


def registry(project: Project) -> AdapterRegistry:
    """The adapter versions on disk."""
    from culturemanager.adapters.registry import AdapterRegistry

    return AdapterRegistry(workspace(project).local_path("adapters"))


def require_version(project: Project, name: str) -> None:
    """Raise `ConfigError` unless there is an adapter version of that name."""
    known = [version.name for version in registry(project).versions()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            hint = f"Nearest: {', '.join(near)}."
        else:
            hint = f"There are: {', '.join(known)}." if known else "`culturemanager train` makes them."
        raise ConfigError(f"adapter version {name!r}: there is none of that name in {registry(project).folder}. {hint}")


def examples(project: Project) -> list[Example]:
    """The training rows.

    Raises:
        IncompleteStageError: the stage did not finish.
    """
    return [Example.from_row(row) for row in workspace(project).stage("examples").read_rows()]


def passages(project: Project) -> list[Passage]:
    """The passages; one that the queries of several cultures found stands there once for each, with one id.

    Raises:
        IncompleteStageError: the stage did not finish.
    """
    return [Passage.from_row(row) for row in workspace(project).stage("passages").read_rows()]


def report_path(project: Project) -> str:
    """Where the evaluation's report lies."""
    return f"{workspace(project).stage('evaluation').path}/report.html"


def open_embedder(project: Project) -> Embedder:
    """The project's embedding model, loaded once in a process."""
    return _embedder(project.embedding)


@functools.lru_cache(maxsize=1)
def _embedder(config: EmbeddingConfig) -> Embedder:
    from culturemanager.providers.embedding import build_embedder

    return build_embedder(config)


def open_index(project: Project, embedder: Embedder) -> PassageIndex:
    from culturemanager.synthesis.index import PassageIndex

    _require_embedding(project, "index")
    return PassageIndex.open(workspace(project).stage("index"), embedder)


def open_retriever(project: Project, embedder: Embedder) -> PassageRetriever:
    """Finds passages for prompts.

    Raises:
        IncompleteStageError: the passages or their index are not there, or the index is of other passages.
    """
    from culturemanager.evaluation.retrieval import PassageRetriever

    index, by_id = open_index(project, embedder), {passage.id: passage for passage in passages(project)}
    require_same_passages(project, index, by_id.keys())
    return PassageRetriever(index, by_id)


def require_same_passages(project: Project, index: PassageIndex, ids: Set[str]) -> None:
    """Raise `IncompleteStageError` if the index finds passages that are not there."""
    if not index.passage_ids <= ids:
        raise IncompleteStageError(f"The index in {project.workspace_url} was built from other passages than are there now. "
                                   "Run `culturemanager index`.")


def served_adapters(project: Project) -> dict[str, str]:
    """Names in the registry of the adapters that are served, and the culture each answers for.

    Raises:
        AdapterError: the served system has adapters of its own, and none was trained.
    """
    from culturemanager.evaluation.baselines import SYSTEMS, adapters_of

    name = project.serving.system
    by_adapter = {adapters_of(SYSTEMS[name], [culture.id])[0]: culture.id for culture in cultures(project)}
    if name != "culturemanager" and not by_adapter.keys() & registry(project).aliases().keys():
        raise AdapterError(f"serving.system is {name!r}, and none of its adapters ({', '.join(by_adapter)}) is there. Run "
                           "`culturemanager train` with this project file.")
    return by_adapter


def served_stages(project: Project) -> tuple[str, ...]:
    """The stages that serving reads."""
    from culturemanager.evaluation.baselines import SYSTEMS

    return ("router", "passages", "index") if SYSTEMS[project.serving.system].passages else ("router",)


def open_served_system(project: Project, embedder: Embedder) -> ServedSystem:
    """What is asked of the model for a question.

    Raises:
        IncompleteStageError: the system reads passages, and they or their index are not there.
    """
    from culturemanager.evaluation.baselines import SYSTEMS
    from culturemanager.evaluation.in_use import ServedSystem

    system = SYSTEMS[project.serving.system]
    if not system.passages:
        return ServedSystem(system, cultures(project))
    retriever = open_retriever(project, embedder)
    return ServedSystem(system, cultures(project), tasks(project), retriever, project.evaluation.retrieved_passages)


def open_router(project: Project, embedder: Embedder) -> CultureRouter:
    from culturemanager.routing.router import CultureRouter

    _require_embedding(project, "router")
    return CultureRouter.load(workspace(project).stage("router"), embedder)


def _require_embedding(project: Project, stage: str) -> None:
    """Raise `IncompleteStageError` for a stage that was made with another embedding model: its size alone tells little."""
    made_with = workspace(project).stage(stage).manifest().details.get("embedding", project.embedding.model)
    if made_with != project.embedding.model:
        raise IncompleteStageError(f"The stage {stage!r} in {project.workspace_url} was made with the embedding model "
                                   f"{made_with!r}, and the project's is {project.embedding.model!r}. Run `culturemanager run`, "
                                   "or set `embedding.model` back.")


def version_loader(project: Project) -> LoadVersion:
    """Gives the weights of adapter versions that were made for the base model as it lies there when this is called.

    What it returns raises:
        AdapterError: there is no such version.
        OtherBaseError: it was made for another base model.
        CorruptFileError: a file differs from its sum.
    """
    from culturemanager.base_model import content_digest, resolve_base_model

    versions, base = registry(project), resolve_base_model(project.base_path)
    digest = content_digest(base)

    def load(name: str) -> tuple[AdapterShape, Mapping[str, Tensor]]:
        _require_base(versions.get(name), base, digest)
        return versions.load(name)

    return load


def _require_base(version: AdapterVersion, base: str, digest: str) -> None:
    """Raise `OtherBaseError` unless the version was made for this base model."""
    trained_on, here = PurePath(version.base_model), PurePath(base)
    if trained_on.name != here.name:  # the folder may lie elsewhere on another machine
        raise OtherBaseError(f"{version.name} was trained on the base model {trained_on}, and the project's is {here}. Run "
                             "`culturemanager train`, or set `base.path` back.")
    # A hub's model is known by its commit, a folder by its files: one says nothing of the other.
    comparable = version.base_digest and trained_on.is_absolute() == here.is_absolute()
    if comparable and version.base_digest != digest:
        raise OtherBaseError(f"{version.name} was trained on {trained_on}, and the files of {here} are no longer the same. Run "
                             "`culturemanager train`, put the old files back, or, where an endpoint runs on the old ones, "
                             "start it anew.")


def open_serving(project: Project, adapters: Iterable[str], spare_slots: int = 0,
                 on_damage: Callable[[str, CultureManagerError], None] | None = None, load: LoadVersion | None = None,
                 ) -> tuple[Engine, PreTrainedTokenizerBase, AdapterBank]:
    """An engine on the base model with these adapter versions, under their version names; its tokenizer and its bank.

    Args:
        spare_slots: room in the bank for so many more adapters.
        on_damage: told of each version that is missing or damaged, and what is wrong; it is left out then, its slot kept.
            None: that is raised.
        load: what `version_loader` returned, where it was needed anyway.

    Raises:
        AdapterError: a version is missing.
        OtherBaseError: one was made for another base model; with `on_damage`, all were.
        CorruptFileError: a file differs from its sum.
    """
    import torch

    from culturemanager.adapters.bank import AdapterBank
    from culturemanager.base_model import load_base_model
    from culturemanager.inference.engine import Engine

    load = load or version_loader(project)
    wanted, loaded, other_base = list(dict.fromkeys(adapters)), {}, []
    for name in wanted:
        try:
            loaded[name] = load(name)
        except (AdapterError, StorageError) as error:
            if on_damage is None:
                raise
            on_damage(name, error)
            other_base += [error] if isinstance(error, OtherBaseError) else []
    if other_base and len(other_base) == len(wanted):  # it is the base that is wrong
        raise other_base[0]
    model, tokenizer = load_base_model(project.base_path, project.base.dtype, "cuda" if torch.cuda.is_available() else "cpu")
    ranks = [shape.rank for shape, _ in loaded.values()]
    if spare_slots:  # what may come: every version there is, and what training would make
        ranks += [project.training.rank, *(version.rank for version in registry(project).readable())]
    bank = AdapterBank(model, slots=max(1, len(wanted) + spare_slots), max_rank=max(ranks, default=project.training.rank))
    for name, (shape, tensors) in loaded.items():
        bank.load(name, shape, tensors)
    return Engine(model, tokenizer, bank, max_batch_rows=project.serving.max_batch_rows,
                  prefix_cache_mb=project.serving.prefix_cache_mb), tokenizer, bank
