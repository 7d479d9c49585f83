"""What can be known to be wrong with a project before any stage runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from culturemanager import artifacts
from culturemanager.config import Project
from culturemanager.errors import ConfigError, LanguageModelError, ModelError, SearchError, StorageError


def check(project: Project) -> None:
    """Raise now what would otherwise be raised minutes into a run.

    Raises:
        ConfigError: naming the first thing wrong.
        ModelError: the base model's `config.json` cannot be read.
    """
    from culturemanager.evaluation.baselines import select_systems
    from culturemanager.synthesis.extractable import require_extractable

    artifacts.items(project)
    select_systems(project.evaluation.systems)
    known = [task.id for task in artifacts.tasks(project)]
    for task in project.examples.rows_of_task:
        if task not in known:
            raise ConfigError(f"examples.rows_of_task: {task!r} is none of the project's tasks ({', '.join(known)}).")
    if project.queries.llm and project.examples.generator.kind != "openai":
        raise ConfigError(f"{project.where('queries.llm')}: true, and that needs a language model; set "
                          "`examples.generator.kind: openai`.")
    if project.examples.generator.kind == "extractive":
        for task in artifacts.tasks(project):
            require_extractable(task)
    _check_places(project)
    check_layers(project)


def _check_places(project: Project) -> None:
    """Raise `ConfigError` for a folder that cannot be used, or an address that is none."""
    from culturemanager.base_model import EMBEDDED, check_folder, is_local
    from culturemanager.providers.folder import folder_path, outputs, require_documents
    from culturemanager.providers.llm import endpoint_host

    search, generator = project.pages.search, project.examples.generator
    with _laid_to(project, "workspace"):
        artifacts.workspace(project).require_usable()
    _check_own_files(project)
    if search.kind == "folder":
        with _laid_to(project, "pages.search.path"):
            require_documents(folder_path(search, project), outputs(project))
    if generator.kind == "openai":
        with _laid_to(project, "examples.generator.base_url"):
            endpoint_host(generator.base_url)
    if project.base.path != EMBEDDED and is_local(project.base_path):
        with _laid_to(project, "base.path"):
            check_folder(project.resolve(project.base_path))


def _check_own_files(project: Project) -> None:
    """Raise `ConfigError` for documents, a task or items of the user's where outputs go: they would be mixed up."""
    from culturemanager.providers.folder import folder_path, outputs

    search, items = project.pages.search, project.evaluation.items
    own = [("tasks", project.resolve(path)) for path in project.tasks]
    own += [("evaluation.items", project.resolve(items))] if items != "embedded" else []
    own += [("pages.search.path", folder_path(search, project))] if search.kind == "folder" and search.path != "embedded" else []
    for field, path in own:
        for folder in outputs(project):
            if path.is_relative_to(folder):
                raise ConfigError(f"{project.where(field)}: {path} lies in {folder}, where the workspace keeps its own files. "
                                  "Move it, or set `workspace` to another folder.")


@contextlib.contextmanager
def _laid_to(project: Project, field: str) -> Iterator[None]:
    """What fails in the block is the fault of a field of the project file, and is told as such."""
    try:
        yield
    except (SearchError, LanguageModelError, ModelError, StorageError) as error:
        raise ConfigError(f"{project.where(field)}: {error}") from error


def check_layers(project: Project, online: bool = False) -> int | None:
    """Raise `ConfigError` if adapters are asked for on more layers than the base model has; how many those are, if known.

    Args:
        online: ask the hub about a base model that is not in the local cache; it may raise `ModelError` then.
    """
    from culturemanager.base_model import count_layers

    layers, wanted = count_layers(project.base_path, online), project.training.last_layers
    if layers is not None and wanted > layers:
        raise ConfigError(f"{project.where('training.last_layers')}: {wanted}, and the base model {project.base.path} has "
                          f"{layers} decoder layers. Set a number from 1 to {layers}, or 0 for all of them.")
    return layers


def check_key(project: Project) -> None:
    """Raise `LanguageModelError` if the generator needs a key that is not in the environment."""
    if project.examples.generator.kind == "openai":
        from culturemanager.providers.llm import read_key

        read_key(project.examples.generator)
