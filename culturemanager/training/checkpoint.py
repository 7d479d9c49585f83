"""Training checkpoints: whole or absent, safetensors and JSON only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from culturemanager.storage import sha256_file, write_json

KEEP = 2


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write ``step-<number>`` beside the others; its `state.json`, with the weights' SHA-256, comes last.

    Only the newest two checkpoints stay: the one before is there in case a kill tore the newest.

    Raises:
        StorageError: the disk is full; the checkpoints before stay whole.
    """
    target = folder / f"step-{step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    weights = target / "tensors.safetensors"
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, weights)
    write_json(target / "state.json", {"step": step, "sha256": sha256_file(weights), **state})
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_whole_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose weights have the sum its state names; a torn one is passed over."""
    for target in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = json.loads((target / "state.json").read_text())
            weights = target / "tensors.safetensors"
            if sha256_file(weights) == state["sha256"]:
                return load_file(weights), state
        except (OSError, ValueError, KeyError, safetensors.SafetensorError):
            continue
    return None
