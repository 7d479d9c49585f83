"""What the frozen layers made of each adapter's rows, on disk: an interrupted training goes on without computing it again."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from culturemanager.errors import StorageError
from culturemanager.storage import sha256_file, write_json

STATES = "states"
SHARE_OF_FREE_DISK = 0.25
"""Checkpoints need room beside them."""


class StatesFolder:
    """One safetensors file for each adapter, and beside it, written last, its SHA-256.

    Nothing depends on these files: what is not there, or not whole, is computed, and what cannot be written, or would
    take more than a quarter of the free disk, is not kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, name: str, states: Sequence[Tensor]) -> None:
        """Keep an adapter's states, each [tokens, hidden]."""
        file = self._file(name)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            if sum(one.nbytes for one in states) > SHARE_OF_FREE_DISK * shutil.disk_usage(self._path).free:
                return
            save_file({STATES: torch.cat([one.cpu() for one in states])}, file)
            write_json(self._sum(name), {"sha256": sha256_file(file)})
        except (OSError, safetensors.SafetensorError, StorageError):
            self.remove(name)

    def load(self, name: str, lengths: Sequence[int], device: torch.device) -> list[Tensor] | None:
        """An adapter's states in their order; None if they are not there for rows of these lengths."""
        file = self._file(name)
        try:
            if json.loads(self._sum(name).read_text())["sha256"] != sha256_file(file):
                return None
            states = load_file(file, device=str(device))[STATES]
        except (OSError, ValueError, KeyError, safetensors.SafetensorError):
            return None
        return list(states.split(list(lengths))) if len(states) == sum(lengths) else None

    def remove(self, name: str) -> None:
        """Let go of an adapter's states: it needs them no longer."""
        for path in (self._sum(name), self._file(name)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Let go of all."""
        shutil.rmtree(self._path, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self._path / f"{name}.safetensors"

    def _sum(self, name: str) -> Path:
        return self._path / f"{name}.json"
