"""CultureManager: a list of cultures and a list of tasks in, a served model that knows each culture out.

    project.yaml                  cultures, tasks, and one section a stage         config, cultures, tasks
        |
        v
    queries    what to look for, per culture and task                              synthesis.queries
        v
    pages      searched and fetched; robots.txt and size limits kept               synthesis.pages
        v
    passages   main text, a few sentences each, near-duplicates dropped            synthesis.passages
        |\\
        | index    FAISS over the passages                                         synthesis.index
        v
    examples   rows in each task's own format; each names the sentence it          synthesis.examples
        |      stands on, and is checked
        |\\
        | router   which culture a request is about, and when not to say           routing
        v
    adapters   one LoRA per culture, all trained together on one frozen base       training, adapters
        |\\
        | evaluation   ten systems on held-out items, one HTML report              evaluation
        v
    endpoint   OpenAI-compatible: request -> router -> replica with every adapter  serve_app

Each stage leaves one folder in the workspace; its manifest, written last, marks it complete.
`culturemanager.project` has the stages as functions, `culturemanager.cli` the commands.

The names below are imported when first used, so that `import culturemanager` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AdapterBank": "culturemanager.adapters.bank",
    "AdapterRegistry": "culturemanager.adapters.registry",
    "AdapterShape": "culturemanager.adapters.bank",
    "Culture": "culturemanager.records",
    "CultureManagerError": "culturemanager.errors",
    "CultureRouter": "culturemanager.routing.router",
    "Engine": "culturemanager.inference.engine",
    "Example": "culturemanager.records",
    "GenerationRequest": "culturemanager.inference.engine",
    "Passage": "culturemanager.records",
    "PassageIndex": "culturemanager.synthesis.index",
    "Project": "culturemanager.config",
    "Route": "culturemanager.records",
    "Sampling": "culturemanager.inference.engine",
    "ScoreRequest": "culturemanager.inference.engine",
    "Task": "culturemanager.records",
    "Workspace": "culturemanager.storage",
    "load_base_model": "culturemanager.base_model",
    "load_project": "culturemanager.project",
    "load_task": "culturemanager.tasks",
}
"""Public name to the module that defines it."""
_RENAMED = {"load_project": "load"}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'culturemanager' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
