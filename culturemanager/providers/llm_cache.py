"""Answers already paid for, kept on disk by the content of the request, and the delimiters' secret.

One JSON file an answer, written whole or not at all, so that any number of processes may share the
folder and a killed run loses only the calls in flight.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from culturemanager.errors import StorageError
from culturemanager.storage import write_atomic

SECRET_FILE = "delimiter-secret"
SECRET_BYTES = 32


@dataclass(frozen=True)
class Completion:
    """A language model's answer."""

    text: str
    """The answer; where a schema was asked for, one JSON document that fits it."""
    prompt_tokens: int
    completion_tokens: int
    """As the endpoint counts them; 0 where it does not say."""


class AnswerCache:
    """Completions by the SHA-256 of their request. A damaged or unreadable entry counts as absent."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Completion | None:
        """The answer kept under `key`, a hexadecimal digest; `None` if there is none that can be trusted."""
        try:
            entry = json.loads(self._path(key).read_bytes())
            completion = Completion(str(entry["text"]), int(entry["prompt_tokens"]), int(entry["completion_tokens"]))
            return completion if entry["sha256"] == _digest(completion.text) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, key: str, completion: Completion) -> None:
        """Keep an answer.

        Raises:
            StorageError: the disk refused.
        """
        entry = {"text": completion.text, "sha256": _digest(completion.text),
                 "prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
        write_atomic(self._path(key), json.dumps(entry, ensure_ascii=False).encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def delimiter_secret(folder: str | Path) -> bytes:
    """The workspace's 32 random bytes, made once and readable by their owner only.

    Delimiters derived from them stay the same from run to run, so the cache still answers, and
    whoever writes a page cannot foresee them.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = Path(folder, SECRET_FILE)
    beside = path.with_name(f".{SECRET_FILE}.{secrets.token_hex(4)}")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            # A link never replaces: of several processes that start together, all use the first one's secret.
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
        secret = path.read_bytes()
    except OSError as error:
        raise StorageError(f"Cannot use {path}: {error.strerror or error}. Check the folder's permissions, "
                           "then run the same command again.") from error
    finally:
        beside.unlink(missing_ok=True)
    if len(secret) != SECRET_BYTES:
        raise StorageError(f"{path} has {len(secret)} bytes, expected {SECRET_BYTES}: it is damaged. Delete it and run the "
                           "same command again; answers kept under it are asked for anew.")
    return secret
