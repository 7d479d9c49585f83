"""What the report tells about a workspace: where training rows came from, what was dropped, how training went."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from culturemanager.errors import CorruptFileError, IncompleteStageError
from culturemanager.evaluation.charts import Curve
from culturemanager.storage import Workspace

STAGES = ("queries", "pages", "passages", "index", "examples")
CURVES = "training/curves.json"


@dataclass(frozen=True)
class StageCount:
    """What one stage kept and dropped."""

    name: str
    rows: int
    dropped: Mapping[str, int]
    """Reason to number."""


@dataclass(frozen=True)
class Sources:
    """Everything in the report that is not an answer."""

    stages: Sequence[StageCount] = ()
    """The complete stages, in their order."""
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Culture to task to training rows."""
    pages: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    """Culture to (page address, rows), most rows first."""
    generators: Mapping[str, int] = field(default_factory=dict)
    """Who wrote the rows."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Adapter name to losses."""


def read_sources(workspace: Workspace) -> Sources:
    """Read the stages' manifests, the examples and the loss curves; what is not there is left out.

    Raises:
        CorruptFileError: a file is damaged.
    """
    stages, rows = [], []
    for name in STAGES:
        stage = workspace.stage(name)
        try:
            details = stage.manifest().details
        except IncompleteStageError:
            continue
        stages.append(StageCount(name, int(details.get("rows", 0)), _dropped(details)))
        if name == "examples":
            rows = stage.read_rows()
    by_task: dict[str, Counter[str]] = defaultdict(Counter)
    by_page: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_task[row["culture"]][row["task"]] += 1
        by_page[row["culture"]][row["url"]] += 1
    return Sources(tuple(stages), dict(by_task), {culture: pages.most_common() for culture, pages in by_page.items()},
                   Counter(row["generator"] for row in rows), _curves(workspace))


def _dropped(details: Mapping[str, Any]) -> dict[str, int]:
    return {reason: int(number) for reason, number in details.get("dropped", {}).items() if number}


def _curves(workspace: Workspace) -> dict[str, Curve]:
    path = f"{workspace.root.rstrip('/')}/{CURVES}"
    if not workspace.filesystem.exists(path):
        return {}
    try:
        content = json.loads(workspace.filesystem.cat_file(path))
        return {name: Curve(name, list(zip(curve["steps"], curve["loss"], strict=True)),
                            list(zip(curve.get("validation_steps", ()), curve.get("validation", ()), strict=True)))
                for name, curve in content.items() if curve["steps"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} is not a file of loss curves ({error}). "
                               "Delete it; the next training writes it anew.") from error
