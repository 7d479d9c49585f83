"""What the `extractive` generator needs of a task, known before anything runs."""

from __future__ import annotations

from culturemanager.errors import ConfigError
from culturemanager.records import Task

APPROVING_LABELS = frozenset({"yes", "acceptable", "ok", "okay", "polite", "allowed", "appropriate", "fine", "safe", "true"})


def require_extractable(task: Task) -> None:
    """Raise `ConfigError` unless the generator's rules can fill the task."""
    text_field(task)
    if task.kind == "classification":
        yes_and_no(task)


def yes_and_no(task: Task) -> tuple[str, str]:
    """A classification task's label that approves, and the other one.

    Raises:
        ConfigError: there are other than two, or not exactly one is known to approve.
    """
    approving = [label for label in task.labels if label.lower() in APPROVING_LABELS]
    if len(task.labels) != 2 or len(approving) != 1:
        raise ConfigError(f"task {task.id!r} has the labels {list(task.labels)}; the extractive generator needs two, one of them "
                          f"approving ({', '.join(sorted(APPROVING_LABELS))}). Use `examples.generator.kind: openai` for other "
                          "labels.")
    return approving[0], next(label for label in task.labels if label not in approving)


def text_field(task: Task) -> str:
    """The one input field that takes a text.

    Raises:
        ConfigError: there are several, or none.
    """
    fields = [field for field in task.fields if field != "options"]
    if len(fields) != 1:
        raise ConfigError(f"task {task.id!r} has the text fields {fields}; the extractive generator fills exactly one. "
                          "Use `examples.generator.kind: openai` for richer inputs.")
    return fields[0]
