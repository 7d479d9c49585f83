"""What a project file leads to, in a few lines: for a person who has just written one."""

from __future__ import annotations

from culturemanager import artifacts
from culturemanager.base_model import EMBEDDED, is_local
from culturemanager.config import Project
from culturemanager.providers.folder import folder_path
from culturemanager.providers.json_api import shown


def rows(project: Project, layers: int | None, tried: bool) -> list[tuple[str, str]]:
    """What there is, and which.

    Args:
        layers: the base model's decoder layers, if known.
        tried: whether the project's addresses were asked, and answered.
    """
    answers = "which answers" if tried else "which was not asked"
    cultures, tasks, systems = artifacts.cultures(project), artifacts.tasks(project), project.evaluation.systems
    told = [("cultures", f"{len(cultures)}: {', '.join(culture.id for culture in cultures)}"),
            ("tasks", f"{len(tasks)}: {', '.join(f'{task.id} ({task.kind})' for task in tasks)}"),
            ("items", _items(project)),
            ("systems", f"{len(systems)}: {', '.join(systems)}"),
            ("search", _search(project, answers)),
            ("generator", _generator(project, answers)),
            ("base model", _base_model(project, layers)),
            ("workspace", project.workspace_url)]
    upstream = project.serving.upstream
    return [*told, ("upstream", f"{shown(upstream.base_url)}, {answers}")] if upstream else told


def _items(project: Project) -> str:
    items = artifacts.items(project).items
    told = f"{len(items)}: {project.evaluation.items}"
    without = [culture.id for culture in artifacts.cultures(project) if culture.id not in {item.culture for item in items}]
    return f"{told}; none for {', '.join(without)}, which the evaluation leaves out" if items and without else told


def _search(project: Project, answers: str) -> str:
    search = project.pages.search
    if search.kind != "folder":
        return f"{search.kind} at {shown(search.url)}, {answers}"
    return "the embedded pages" if search.path == EMBEDDED else f"the documents in {folder_path(search, project)}"


def _generator(project: Project, answers: str) -> str:
    generator = project.examples.generator
    if generator.kind != "openai":
        choices = [task.id for task in artifacts.tasks(project) if task.kind == "multiple_choice"]
        alone = choices and len(artifacts.cultures(project)) == 1
        return "rules that extract (no language model)" + (
            f"; no row for {', '.join(choices)}: wrong options come from other cultures" if alone else "")
    return f"{generator.model} at {shown(generator.base_url)}, {answers}"


def _base_model(project: Project, layers: int | None) -> str:
    path = project.base_path
    # A name that was meant as a folder would be looked for on the hub.
    name = path if path == EMBEDDED or is_local(path) else f"{path} from the Hugging Face hub (there is no such folder)"
    if layers is None:
        return f"{name}; its layers were not checked: no config.json at hand that says how many they are"
    return f"{name}, {layers} decoder layers"
