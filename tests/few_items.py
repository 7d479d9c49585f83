"""Evaluation items for small runs."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path

EACH = 2
"""Items of each culture and task with a cue, and as many without one."""


def write_few_items(path: Path) -> None:
    """The first of the embedded items, so that a small run also evaluates on few."""
    embedded = resources.files("culturemanager").joinpath("embedded", "items.jsonl").read_text(encoding="utf-8")
    written: Counter[tuple[str, str, bool]] = Counter()
    with path.open("w", encoding="utf-8") as file:
        for line in embedded.splitlines():
            item = json.loads(line)
            kind = item["culture"], item["task"], item["cue"]
            if written[kind] < EACH:
                written[kind] += 1
                file.write(line + "\n")
