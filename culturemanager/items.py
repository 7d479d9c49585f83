"""Held-out evaluation items: reading, and strict checks.

One JSON object a line, `records.EvaluationItem`. An item of a culture or task that the project does
not have is left out and counted; one that nobody could have is an error that names its line.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from culturemanager.cultures import catalogue
from culturemanager.errors import ConfigError
from culturemanager.records import Culture, EvaluationItem, Task
from culturemanager.tasks import check_answer, is_correct, normalise, render
from culturemanager.yamlfile import validate_model

EMBEDDED = "embedded"


class ItemLine(BaseModel):
    """The schema of one line."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(min_length=1)
    """Unique in the file."""
    culture: str
    """The culture whose practice is right."""
    task: str
    """Id of the task whose fields `inputs` fills."""
    inputs: dict[str, Any]
    """The task's input fields."""
    answer: str
    """A label, an option's text, or a model answer."""
    cue: bool
    """Whether the text itself shows its culture; if not, the culture travels as metadata."""
    topic: str = ""
    """What the item is about; for reading results, not for scoring."""
    accept: tuple[str, ...] = ()
    """Free text: a right answer contains one of these phrases..."""
    reject: tuple[str, ...] = ()
    """...and none of these."""


@dataclass(frozen=True)
class ItemSet:
    """The items a project is evaluated on."""

    items: tuple[EvaluationItem, ...]
    left_out: Mapping[str, int]
    """Reason to number of items of the file that this project does not use."""


def load_items(source: str | Path, tasks: Sequence[Task], cultures: Sequence[Culture]) -> ItemSet:
    """Read the items of a project's tasks and cultures.

    Args:
        source: `embedded`, or a JSON Lines file.

    Raises:
        ConfigError: the file cannot be read; a line is no item, repeats an id, has a culture or task that
            neither the project nor the package knows, inputs that do not fit its task, or an answer that
            its task would count as wrong.
    """
    by_task = {task.id: task for task in tasks}
    own_cultures = {culture.id for culture in cultures}
    items: list[EvaluationItem] = []
    left_out: Counter[str] = Counter()
    seen: dict[str, int] = {}
    for number, text in enumerate(_lines(source), 1):
        if not text.strip():
            continue
        where = f"{source}:{number}"
        item = _parse(text, where)
        if item.id in seen:
            raise ConfigError(f"{where}: id {item.id!r} was used on line {seen[item.id]}; every item needs its own.")
        seen[item.id] = number
        _check_known(where, "culture", item.culture, own_cultures, set(catalogue()))
        _check_known(where, "task", item.task, set(by_task), _embedded_tasks())
        if item.culture not in own_cultures:
            left_out["culture not in the project"] += 1
        elif item.task not in by_task:
            left_out["task not in the project"] += 1
        else:
            try:
                _check_fits(where, by_task[item.task], item)
            except ConfigError:
                if str(source) != EMBEDDED:
                    raise
                left_out["made for a shipped task, and the project's of that name differs"] += 1
                continue
            items.append(item)
    return ItemSet(tuple(items), dict(left_out))


def _lines(source: str | Path) -> list[str]:
    if str(source) == EMBEDDED:
        return resources.files("culturemanager").joinpath("embedded/items.jsonl").read_text(encoding="utf-8").split("\n")
    try:
        return Path(source).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the evaluation items {source}: {getattr(error, 'strerror', None) or error}. "
                          "Set `evaluation.items` to `embedded` or to a JSON Lines file.") from error


def _parse(text: str, where: str) -> EvaluationItem:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON: {error}. Expected one item, a JSON object, a line.") from error
    if isinstance(data, dict):  # JSON has no tuples
        data |= {name: tuple(data[name]) for name in ("accept", "reject") if isinstance(data.get(name), list)}
    return EvaluationItem(**validate_model(data, ItemLine, where).model_dump())


@functools.cache
def _embedded_tasks() -> set[str]:
    return {json.loads(line)["task"] for line in _lines(EMBEDDED) if line.strip()}


def _check_known(where: str, kind: str, name: str, project: set[str], package: set[str]) -> None:
    if name in project or name in package:
        return
    near = difflib.get_close_matches(name, project | package, n=2, cutoff=0.5)
    hint = f"Nearest: {', '.join(near)}." if near else f"The project has: {', '.join(sorted(project))}."
    raise ConfigError(f"{where}: unknown {kind} {name!r}. {hint} Correct the line, or define the {kind} in the project.")


def _check_fits(where: str, task: Task, item: EvaluationItem) -> None:
    if task.kind == "multiple_choice":
        _check_options(where, item.inputs.get("options"))
    for name, value in item.inputs.items():
        if not all(isinstance(text, str) for text in (value if isinstance(value, list) else [value])):
            raise ConfigError(f"{where}: `inputs.{name}` is {value!r:.120}; expected a text, or a list of texts.")
    try:
        render(task, item.inputs)
        check_answer(task, item.inputs, item.answer)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if task.kind == "generation" and not item.accept:
        raise ConfigError(f"{where}: `accept` is empty; a free-text item needs the phrases that a right answer contains.")
    if not is_correct(task, item, item.answer):
        raise ConfigError(f"{where}: its own answer {item.answer!r} would count as wrong: it must contain one of "
                          f"{list(item.accept)} and none of {list(item.reject)}.")


def _check_options(where: str, options: Any) -> None:
    texts = options if isinstance(options, list) and all(isinstance(option, str) for option in options) else []
    told_apart = {normalise(option) for option in texts} - {""}
    if len(told_apart) < 2 or len(told_apart) < len(texts):
        raise ConfigError(f"{where}: `options` is {options!r:.120}; expected a list of at least two texts that still differ "
                          "once case and punctuation are dropped.")
