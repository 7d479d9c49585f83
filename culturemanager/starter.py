"""A first project file with its tasks, copied from the shipped example."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from culturemanager.cultures import resolve_cultures
from culturemanager.errors import ConfigError
from culturemanager.storage import write_atomic
from culturemanager.tasks import examples_folder

EXAMPLE = "etiquette.yaml"


def write(path: Path, cultures: Sequence[str] = ()) -> list[Path]:
    """Write a project file and its `tasks` folder; nothing that exists is overwritten.

    Args:
        cultures: catalogue ids; empty for the example's.

    Returns:
        The files written.

    Raises:
        ConfigError: a culture is unknown, or a file is there already.
        StorageError: the disk refused.
    """
    resolve_cultures(cultures)
    text = (examples_folder() / EXAMPLE).read_text(encoding="utf-8")
    text = re.sub(r"\A(#.*\n)+", "# `culturemanager settings` explains every field.\n", text)
    text = re.sub(r"(?m)^workspace:.*$", "workspace: runs", text)
    if cultures:
        text = re.sub(r"(?m)^cultures:.*$", f"cultures: [{', '.join(cultures)}]", text)
    files = {path: text}
    for task in sorted((examples_folder() / "tasks").glob("*.yaml")):
        files[path.parent / "tasks" / task.name] = task.read_text(encoding="utf-8")
    for file in files:
        if file.exists():
            raise ConfigError(f"{file} is there already. Name another project file, in another folder, or delete it first.")
    for file, content in files.items():
        write_atomic(file, content.encode())
    return list(files)
