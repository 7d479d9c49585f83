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
SHARE_OF_DISK = 0.25
"""Of what is free and what they take; checkpoints need room beside them."""


class StatesFolder:
    """One safetensors file for each adapter, and beside it, written last, its SHA-256 and what it was computed with.

    Nothing depends on these files: what is not there, not whole, or computed otherwise, is computed, and what cannot be
    written, or would bring all of them to more than a quarter of the disk that they and the free space take, is not kept.

    Args:
        products: type of the matrix products: states of another one are not taken.
    """

    def __init__(self, path: Path, products: torch.dtype) -> None:
        self._path, self._products = path, str(products)

    def save(self, name: str, states: Sequence[Tensor]) -> None:
        """Keep an adapter's states, each [tokens, hidden]."""
        file = self._file(name)
        try:
            self.remove(name)
            self._path.mkdir(parents=True, exist_ok=True)
            taken = sum(path.stat().st_size for path in self._path.iterdir())
            room = SHARE_OF_DISK * (shutil.disk_usage(self._path).free + taken)
            if taken + sum(one.nbytes for one in states) > room:
                return
            save_file({STATES: torch.cat([one.cpu() for one in states])}, file)
            write_json(self._sum(name), {"sha256": sha256_file(file), "products": self._products})
        except (OSError, safetensors.SafetensorError, StorageError):
            self.remove(name)

    def load(self, name: str, lengths: Sequence[int], device: torch.device) -> list[Tensor] | None:
        """An adapter's states in their order; None if they are not there for rows of these lengths and these products."""
        file = self._file(name)
        try:
            told = json.loads(self._sum(name).read_text())
            if told["products"] != self._products or told["sha256"] != sha256_file(file):
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
