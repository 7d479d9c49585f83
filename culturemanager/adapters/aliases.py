"""Which version serves a culture: small JSON files beside the versions, changed under one lock.

    aliases.json    culture -> the versions promoted so far, the serving one last
    canaries.json   culture -> a version on trial and its share of the culture's conversations
    choices.json    culture -> the highest number its versions had when a person last chose among them
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from culturemanager.errors import CorruptFileError, StorageError
from culturemanager.storage import write_json

ALIASES_FILE = "aliases.json"
CANARIES_FILE = "canaries.json"
CHOICES_FILE = "choices.json"
VERSION_NAME = re.compile(r"(?P<culture>[a-z][a-z0-9_]*)-v(?P<number>[0-9]{4,})")


class Aliases:
    """The files in one local folder; they hold names and never look at the versions themselves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def history(self) -> dict[str, list[str]]:
        """Culture to the versions promoted so far, the serving one last.

        Raises:
            CorruptFileError: `aliases.json` is damaged.
        """
        path = self._folder / ALIASES_FILE
        try:
            history = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{path} is not readable ({error}). Delete it and promote the versions again.") from error
        rows = history.items() if isinstance(history, dict) else [("", None)]
        for culture, names in rows:
            if not isinstance(names, list) or not all(isinstance(name, str) and VERSION_NAME.fullmatch(name) for name in names):
                raise CorruptFileError(f"{path}: {culture!r} has {names!r}, expected a list of version names. "
                                       "Delete the file and promote the versions again.")
        return history

    def trials(self) -> dict[str, tuple[str, float]]:
        """Culture to the version on trial and its share of the conversations.

        Raises:
            CorruptFileError: `canaries.json` is damaged.
        """
        path = self._folder / CANARIES_FILE
        try:
            trials = {culture: (str(name), float(share)) for culture, (name, share) in json.loads(path.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path} is not readable ({error}). Delete it and start the trials again.") from error
        wrong = [name for name, share in trials.values() if not VERSION_NAME.fullmatch(name) or not 0 < share < 1]
        if wrong:
            raise CorruptFileError(f"{path} holds {wrong[0]!r}, expected versions with a share between 0 and 1. "
                                   "Delete it and start the trials again.")
        return trials

    def choices(self) -> dict[str, int]:
        """Culture to the highest number its versions had when a person last chose what serves.

        Raises:
            CorruptFileError: `choices.json` is damaged.
        """
        path = self._folder / CHOICES_FILE
        try:
            return {culture: int(number) for culture, number in json.loads(path.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path} is not readable ({error}). Delete it and promote the versions that were chosen by "
                                   "hand again.") from error

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, list[str]]]:
        """The history, to change; written back in one piece, with other processes kept out."""
        with storage_errors(self._folder / ALIASES_FILE), contextlib.ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(self._folder / ".aliases.lock", "a"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
            history = self.history()
            before = copy.deepcopy(history)
            yield history
            if history != before:
                self._write(ALIASES_FILE, history)

    def begin_trial(self, culture: str, name: str, share: float) -> None:
        """Note the culture's canary. Called inside `changing`, as what follows."""
        self._write(CANARIES_FILE, self.trials() | {culture: (name, share)})

    def end_trial(self, culture: str) -> bool:
        """Forget the culture's canary; whether there was one."""
        trials = self.trials()
        if culture not in trials:
            return False
        del trials[culture]
        self._write(CANARIES_FILE, trials)
        return True

    def note_choice(self, culture: str, last_number: int) -> None:
        """A person has chosen what serves, from the culture's versions up to this number."""
        self._write(CHOICES_FILE, self.choices() | {culture: last_number})

    def _write(self, file: str, content: dict[str, Any]) -> None:
        write_json(self._folder / file, dict(sorted(content.items())))


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """What the disk refuses in the block is told as a failure to write `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror or error}. Free space or check permissions, "
                           "then run the same command again.") from error
