"""Adapter versions on disk: immutable directories, and aliases (`aliases.py`) that say which one serves a culture.

    adapters/turkey-v0001/   adapter_config.json adapter_model.safetensors version.json

A version is written beside its name and renamed, so it is whole or absent. Its `version.json` is the
manifest: the SHA-256 of the other files and of itself. Training and serving meet only here.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culturemanager.adapters.aliases import VERSION_NAME, Aliases, storage_errors
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError, CorruptFileError
from culturemanager.records import AdapterVersion
from culturemanager.storage import fingerprint, sha256_file, write_json

if TYPE_CHECKING:
    from torch import Tensor

VERSION_FILE = "version.json"

_CULTURE = re.compile(r"[a-z][a-z0-9_]*")
_ABANDONED_AFTER_S = 24 * 3600
"""A draft this old belongs to a process that died; publishing takes seconds."""


class AdapterRegistry:
    """The adapter versions in one local folder; any number of processes may use it at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._aliases = Aliases(self.folder)

    def publish(self, culture: str, shape: AdapterShape, tensors: Mapping[str, Tensor], base_model: str,
                targets: Sequence[str], data_digest: str, metrics: Mapping[str, Any], *,
                module_names: Iterable[str] | None = None, base_digest: str = "") -> AdapterVersion:
        """Write the culture's next version. It serves nobody until it is promoted.

        Args:
            culture: the culture's id, or another lower-case word (``joint``).
            data_digest: SHA-256 over the training rows and hyperparameters.
            metrics: JSON values worth keeping with the version: losses, rows, seconds.
            base_digest: the base model's `content_digest`.
            shape, tensors, base_model, targets, module_names: as `peft_format.save` takes them.

        Raises:
            AdapterError: the culture is no such word, or the weights cannot be saved.
            StorageError: the disk refused; no version appears.
        """
        from culturemanager.adapters import peft_format  # brings torch, which nobody needs who lists or promotes versions

        if not _CULTURE.fullmatch(culture):
            raise AdapterError(f"{culture!r} cannot name an adapter; expected lower-case letters, digits and underscores.")
        draft = self.folder / f".tmp-{culture}-{uuid.uuid4().hex}"
        with storage_errors(draft):
            self._sweep()
            draft.mkdir(parents=True)
        try:
            peft_format.save(draft, tensors, shape, base_model, targets, module_names)
            files = {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in draft.iterdir()}
            version = AdapterVersion(
                name="", culture=culture, version=0, base_model=base_model, rank=shape.rank, data_digest=data_digest,
                base_digest=base_digest, content_digest=files[peft_format.WEIGHTS_FILE]["sha256"], metrics=dict(metrics),
                created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
            return self._place(draft, version, files)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _place(self, draft: Path, version: AdapterVersion, files: Mapping[str, Any]) -> AdapterVersion:
        """Rename the draft to the first free number; a number that another process took meanwhile is passed over."""
        number = self._last_number(version.culture)
        while True:
            number += 1
            version = replace(version, name=f"{version.culture}-v{number:04d}", version=number)
            manifest = {"version": version.to_row() | {"metrics": version.metrics}, "files": files}
            write_json(draft / VERSION_FILE, manifest | {"fingerprint": fingerprint(manifest)})
            with storage_errors(self.folder / version.name):
                try:
                    os.rename(draft, self.folder / version.name)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    continue
                _sync(self.folder)
            return version

    def _last_number(self, culture: str) -> int:
        """The highest number ever used: a deleted version that once served or was turned down does not give its name away."""
        used = [_number(name) for name in self._names() if name.rpartition("-v")[0] == culture]
        # Damaged aliases must not cost a finished training run.
        with contextlib.suppress(CorruptFileError):
            used += map(_number, self._aliases.history().get(culture, []))
        with contextlib.suppress(CorruptFileError):
            used.append(self._aliases.choices().get(culture, 0))
        return max(used, default=0)

    def _sweep(self) -> None:
        for draft in self.folder.glob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too, or has just renamed its draft
                if time.time() - draft.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(draft, ignore_errors=True)

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if VERSION_NAME.fullmatch(path.name) and path.is_dir())

    # ---- reading

    def versions(self, culture: str | None = None) -> list[AdapterVersion]:
        """Every version, or one culture's, by culture and number.

        Raises:
            CorruptFileError: a `version.json` is missing or damaged.
        """
        found = [self.get(name) for name in self._names() if culture in (None, name.rpartition("-v")[0])]
        return sorted(found, key=lambda version: (version.culture, version.version))

    def readable(self) -> list[AdapterVersion]:
        """Every version whose `version.json` can be read: a damaged one does not hide the others."""
        found = []
        for name in self._names():
            with contextlib.suppress(AdapterError, CorruptFileError):  # deleted meanwhile, or damaged
                found.append(self.get(name))
        return found

    def get(self, name: str) -> AdapterVersion:
        """What `version.json` says; the weights are not read.

        Raises:
            AdapterError: there is no such version, or `name` is no version's name.
            CorruptFileError: its `version.json` is missing or damaged.
        """
        return self._manifest(name)[0]

    def load(self, name: str) -> tuple[AdapterShape, dict[str, Tensor]]:
        """The version's shape and weights, its files checked against their SHA-256.

        Raises:
            AdapterError: as `get`, or the files are no plain LoRA adapter.
            CorruptFileError: a file is missing or damaged.
        """
        from culturemanager.adapters import peft_format

        self._verify(name)
        shape, tensors, _ = peft_format.load(self._directory(name))
        return shape, tensors

    def latest_with_digest(self, culture: str, data_digest: str) -> AdapterVersion | None:
        """The newest whole version made from just these rows and settings.

        A damaged version counts as absent, so that training the culture again replaces it.
        """
        for name in sorted(self._names(), key=_number, reverse=True):
            if name.rpartition("-v")[0] == culture:
                with contextlib.suppress(CorruptFileError):
                    version = self._verify(name)
                    if version.data_digest == data_digest:
                        return version
        return None

    def _directory(self, name: str) -> Path:
        if not VERSION_NAME.fullmatch(name):
            raise AdapterError(f"{name!r} is no adapter version; expected a name such as 'turkey-v0001'.")
        return self.folder / name

    def _manifest(self, name: str) -> tuple[AdapterVersion, Mapping[str, Any]]:
        folder = self._directory(name)
        if not folder.is_dir():
            culture = name.rpartition("-v")[0]
            known = [other for other in self._names() if other.rpartition("-v")[0] == culture] or "none"
            raise AdapterError(f"There is no adapter version {name!r} in {self.folder}; of {culture} there are: {known}.")
        try:
            manifest = json.loads((folder / VERSION_FILE).read_bytes())
            claimed = manifest.pop("fingerprint")
            version = AdapterVersion.from_row(manifest["version"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._corrupt(folder / VERSION_FILE, f"is not readable ({error!r})") from error
        if claimed != fingerprint(manifest) or version.name != name:
            raise self._corrupt(folder / VERSION_FILE, "was changed after publishing")
        return version, manifest["files"]

    def _verify(self, name: str) -> AdapterVersion:
        version, files = self._manifest(name)
        for file, facts in files.items():
            path = self._directory(name) / file
            try:
                whole = sha256_file(path) == facts["sha256"]
            except OSError as error:
                raise self._corrupt(path, f"cannot be read ({error.strerror})") from error
            if not whole:
                raise self._corrupt(path, "does not have the SHA-256 of its version.json")
        return version

    def _corrupt(self, path: Path, what: str) -> CorruptFileError:
        return CorruptFileError(f"{path} {what}. Run `culturemanager train` to make a new version, or roll back to an older one.")

    # ---- aliases

    def aliases(self) -> dict[str, str]:
        """Culture to the name of its serving version.

        Raises:
            CorruptFileError: `aliases.json` is damaged.
        """
        return {culture: names[-1] for culture, names in self._aliases.history().items() if names}

    def promote(self, name: str) -> None:
        """Let the version serve its culture, as a person wishes: training does not undo it with a version there is by now.

        Raises:
            AdapterError: there is no such version.
            CorruptFileError: one of its files, or `aliases.json`, is damaged.
        """
        culture = self._verify(name).culture
        with self._aliases.changing() as history:
            if history.get(culture, [])[-1:] != [name]:
                history.setdefault(culture, []).append(name)
            self._aliases.end_trial(culture)
            self._aliases.note_choice(culture, self._last_number(culture))

    def promote_trained(self, name: str) -> bool:
        """Let a version that training wants serve its culture, unless a person has chosen since it was made.

        Returns:
            Whether it serves.

        Raises:
            AdapterError, CorruptFileError: as `promote`.
        """
        version = self.get(name)
        culture = version.culture
        with self._aliases.changing() as history:
            names = history.get(culture, [])
            if names[-1:] == [name]:
                return True
            if names and version.version <= self._aliases.choices().get(culture, 0):
                return False
            self._verify(name)
            history[culture] = [*names, name]
            self._aliases.end_trial(culture)
        return True

    def try_out(self, name: str, share: float) -> None:
        """Let the version answer a share of its culture's conversations beside the serving one (a canary).

        `promote` gives it all of them, `rollback` none.

        Raises:
            AdapterError: as `promote`; the share is not between 0 and 1; or nothing serves the culture yet.
        """
        if not 0 < share < 1:
            raise AdapterError(f"a share of {share}: expected more than 0 and less than 1, such as 0.1; without a share "
                               "the version gets every conversation.")
        culture = self._verify(name).culture
        with self._aliases.changing() as history:
            serving = history.get(culture, [])[-1:]
            if serving in ([], [name]):
                raise AdapterError(f"{name} cannot get a share: {'it serves already' if serving else 'nothing serves yet'}. "
                                   "Promote it without one, or name another version.")
            self._aliases.begin_trial(culture, name, share)
            self._aliases.note_choice(culture, self._last_number(culture))

    def rollback(self, culture: str) -> str:
        """End the culture's trial; without one, let the version promoted before serve again. Returns what serves now.

        Raises:
            AdapterError: no other version was promoted before, or it was deleted.
            CorruptFileError: it is damaged.
        """
        with self._aliases.changing() as history:
            names = history.get(culture, [])
            if names and self._aliases.end_trial(culture):
                self._aliases.note_choice(culture, self._last_number(culture))
                return names[-1]
            if not names:
                others = f"those that do are of {', '.join(sorted(history))}" if history else "`culturemanager train` makes one"
                raise AdapterError(f"{culture!r} has no adapter that serves; {others}.")
            if len(names) < 2:
                raise AdapterError(f"{culture!r} has no version promoted before {names[-1]}; "
                                   "promote one by its name.")
            self._verify(names[-2])
            self._aliases.note_choice(culture, self._last_number(culture))
            names.pop()
            return names[-1]

    def history(self, culture: str) -> list[str]:
        """The versions promoted so far, the serving one last."""
        return list(self._aliases.history().get(culture, []))

    def canaries(self) -> dict[str, tuple[str, float]]:
        """Culture to the version on trial and its share of the conversations.

        Raises:
            CorruptFileError: `canaries.json` is damaged.
        """
        return self._aliases.trials()


def _number(name: str) -> int:
    return int(name.rpartition("-v")[2])


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
