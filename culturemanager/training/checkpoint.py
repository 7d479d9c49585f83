"""Training checkpoints: whole or absent, safetensors and JSON only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from culturemanager.errors import StorageError
from culturemanager.storage import sha256_file, write_json

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 2
WEIGHTS = "tensors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    passed_over: tuple[str, ...]
    """Newer checkpoints that are not whole, the newest first."""

    @property
    def origin(self) -> str:
        """Where the run goes on from, in a few words."""
        torn = f" ({', '.join(self.passed_over)} not whole)" if self.passed_over else ""
        return f"gone on from step {self.state['step']}{torn}"


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write ``step-<number>`` beside the others; its `state.json`, with the weights' SHA-256, comes last.

    Only the newest two checkpoints stay: the one before is there in case a kill tore the newest.

    Raises:
        StorageError: the disk refused, for one because it is full; the checkpoints before stay whole.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        weights = target / WEIGHTS
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, weights)
        write_json(target / "state.json", {"step": step, "sha256": sha256_file(weights), **state})
    except StorageError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise StorageError(f"Cannot write the checkpoint {target}: {error} Free space or check permissions, then run the same "
                           "command again: it goes on from the newest whole checkpoint.") from error
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_whole_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose weights have the sum its state names; a torn one is passed over."""
    from safetensors.torch import load_file

    torn: list[str] = []
    for target in sorted(folder.glob("step-*"), reverse=True):
        if (state := _whole_state(target)) is not None:
            return Checkpoint(load_file(target / WEIGHTS), state, tuple(torn))
        torn.append(target.name)
    return None


def has_whole_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from; no weights are loaded."""
    return any(_whole_state(target) is not None for target in sorted(folder.glob("step-*"), reverse=True))


def _whole_state(target: Path) -> dict[str, Any] | None:
    """What `state.json` says; None if it or the weights are torn."""
    try:
        state = json.loads((target / "state.json").read_text())
        return state if sha256_file(target / WEIGHTS) == state["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None
