"""Texts to train on: made anew each time they are gone through, so that no process holds them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

Pair = tuple[str, str]
"""A prompt and its completion."""


class TextRows:
    """The rows of one adapter and split.

    Args:
        make: gives the rows from the first to the last, the same ones at every call. It is called here once.
    """

    def __init__(self, make: Callable[[], Iterator[Pair]]) -> None:
        self._make = make
        self._count = 0
        self.characters = 0
        """Of all prompts and completions."""
        digest = hashlib.sha256()
        for prompt, completion in make():
            self._count += 1
            self.characters += len(prompt) + len(completion)
            digest.update(json.dumps([prompt, completion]).encode())
        self.digest = digest.hexdigest()
        """SHA-256 over every row, in their order."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Pair]:
        return self._make()
