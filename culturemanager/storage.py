"""Where stages keep their output: whole or absent, and checked when read.

A stage directory holds data files and one `manifest.json`. Every file is written beside its
final name, synced and renamed; the manifest, with the SHA-256 of each file, comes last. A
directory without a manifest is therefore unfinished, and a file that differs from its sum is
damaged; both are errors that name the file and the command to rerun.

The workspace may be a local path or any fsspec URL (``s3://bucket/run``). On an object store a
rename does not exist; there each object is put whole and the manifest still comes last.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from culturemanager.errors import CorruptFileError, IncompleteStageError, StorageError

ROWS_AT_ONCE = 1000
"""Rows that `iter_rows` makes objects of together."""
MANIFEST = "manifest.json"
REPLACED = ".partial-manifest.json"
"""The manifest of the output that is being replaced: it names the files that are the stage's own."""
FOLDERS = ("queries", "pages", "passages", "index", "examples", "adapters", "training", "router", "evaluation", "llm-cache")
"""What is written into a workspace, a folder each."""


def fingerprint(*parts: Any) -> str:
    """SHA-256 over JSON values: what a stage was computed from."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a local file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a local file beside its name, sync it and rename it into place.

    Raises:
        StorageError: the disk refused; whatever stood at `path` before still stands.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # there may be no such folder
            beside.unlink()
        raise StorageError(f"Cannot write {path}: {error.strerror or error}. Free space or check permissions, "
                           "then run the same command again.") from error


def write_json(path: str | Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Manifest:
    """What a finished stage directory holds."""

    stage: str
    fingerprint: str
    created_at: str
    files: Mapping[str, Mapping[str, Any]]
    """File name to ``{"sha256": ..., "bytes": ...}``."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the stage wants to tell: row counts, drops by reason, the index kind."""


STAGE_COMMANDS = {"evaluation": "evaluate"}
"""Stages whose command is called otherwise."""


class Workspace:
    """The root folder of one project's outputs, with one directory a stage.

    Raises:
        StorageError: the URL's kind of storage is unknown, or its library is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        try:
            self.filesystem, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StorageError(f"The workspace {self.url} cannot be opened: {error}. Expected a folder, or a URL of a kind that "
                               "fsspec knows, with its library installed (`pip install s3fs` for s3://).") from error
        self.is_local = "file" in _protocols(self.filesystem)

    def stage(self, name: str) -> StageDirectory:
        return StageDirectory(self, name)

    def require_usable(self) -> None:
        """Raise `StorageError` if the root cannot be a folder, since a file is in its place or above it."""
        if not self.is_local:
            return
        found = next(path for path in (Path(self.root), *Path(self.root).parents) if path.exists())
        if not found.is_dir():
            raise StorageError(f"{found} is a file, and the workspace is a folder. Name another.")

    def local_path(self, *names: str) -> Path:
        """The path of something that must lie on a local disk (adapters, training checkpoints).

        Raises:
            StorageError: the workspace is not local.
        """
        if not self.is_local:
            raise StorageError(f"The workspace {self.url} is not a local path, and {'/'.join(names)} has to be. "
                               "Set `workspace` to a folder on a shared disk.")
        return Path(self.root, *names)

    def folders(self) -> list[Path]:
        """Where outputs go, whether or not they are there yet; empty if the workspace is not local."""
        return [Path(self.root).resolve() / name for name in FOLDERS] if self.is_local else []


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


class StageDirectory:
    """One stage's directory. Read with `read_table` and friends, write inside `writing`."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.name = name
        self.path = f"{workspace.root.rstrip('/')}/{name}"
        self._filesystem = workspace.filesystem

    def manifest(self) -> Manifest:
        """The manifest of the finished stage.

        Raises:
            IncompleteStageError: there is none.
            CorruptFileError: it is not readable as a manifest.
        """
        path = f"{self.path}/{MANIFEST}"
        if not self._filesystem.exists(path):
            raise IncompleteStageError(f"The stage {self.name!r} is not complete in {self.workspace.url}. Run everything that is "
                                       "missing with this project file (`culturemanager run`), or this stage alone "
                                       f"(`culturemanager {STAGE_COMMANDS.get(self.name, self.name)}`).")
        try:
            return Manifest(**json.loads(self._filesystem.cat_file(path)))
        except (ValueError, TypeError) as error:
            raise CorruptFileError(f"{path} is damaged ({error}). Delete {self.path} and run the stage again.") from error

    def is_complete(self, expected_fingerprint: str | None = None) -> bool:
        """Whether the stage finished, and (if given) was computed from `expected_fingerprint`."""
        try:
            manifest = self.manifest()
        except (IncompleteStageError, CorruptFileError):
            return False
        return expected_fingerprint in (None, manifest.fingerprint)

    def read_bytes(self, name: str) -> bytes:
        """One file of the finished stage, its SHA-256 checked.

        Raises:
            IncompleteStageError: the stage did not finish, or has no such file.
            CorruptFileError: the file is gone or has another sum.
        """
        expected = self.manifest().files.get(name)
        if expected is None:
            raise IncompleteStageError(f"The stage {self.name!r} has no file {name!r}. Run the stage again.")
        try:
            data = self._filesystem.cat_file(f"{self.path}/{name}")
        except FileNotFoundError as error:
            raise CorruptFileError(self._damage(name, "is missing")) from error
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CorruptFileError(self._damage(name, "does not have the SHA-256 of its manifest"))
        return data

    def _damage(self, name: str, what: str) -> str:
        return f"{self.path}/{name} {what}. Delete {self.path} and run the stage {self.name!r} again."

    def read_table(self, name: str = "data.parquet") -> pa.Table:
        """A Parquet file of the finished stage, checked."""
        return pq.read_table(pa.BufferReader(self.read_bytes(name)))

    def read_rows(self, name: str = "data.parquet") -> list[dict[str, Any]]:
        """`read_table` as a list of rows."""
        return self.read_table(name).to_pylist()

    def iter_rows(self, name: str = "data.parquet", **equal: str) -> Iterator[dict[str, Any]]:
        """`read_rows` a few at a time, and of these only the ones whose columns have the given values.

        The file is held as it is on disk, compressed; its SHA-256 is checked each time.
        """
        file = pq.ParquetFile(pa.BufferReader(self.read_bytes(name)))
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            for column, value in equal.items():
                batch = batch.filter(pc.equal(batch.column(column), value))
            yield from batch.to_pylist()

    def read_json(self, name: str) -> Any:
        """A JSON file of the finished stage, checked."""
        return json.loads(self.read_bytes(name))

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A checked local file, for readers that need a path (FAISS)."""
        data = self.read_bytes(name)
        if self.workspace.is_local:
            yield Path(self.path, name)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            path.write_bytes(data)
            yield path

    @contextlib.contextmanager
    def writing(self, expected_fingerprint: str) -> Iterator[StageDraft]:
        """A draft to fill; leaving the block without an exception writes the manifest.

        After an exception (Ctrl-C too) the rows appended so far stay, and the next draft with the
        same fingerprint goes on from them.
        """
        draft = StageDraft(self, expected_fingerprint)
        yield draft
        draft.commit()


class StageDraft:
    """A stage being written: rows are appended in parts, so that an interrupted run keeps them."""

    def __init__(self, stage: StageDirectory, expected_fingerprint: str) -> None:
        self.stage = stage
        self.fingerprint = expected_fingerprint
        self.details: dict[str, Any] = {}
        self._filesystem = stage._filesystem
        self._files: dict[str, dict[str, Any]] = {}
        self._parts = f"{stage.path}/.partial-{expected_fingerprint[:16]}"
        self._begun = False

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows safe on disk until `commit`; call it once per finished batch."""
        if not rows:
            return
        number = len(self._part_names())
        self._put(f"{self._parts}/part-{number:06d}.parquet", _parquet(pa.Table.from_pylist(list(rows))))

    def rows(self) -> list[dict[str, Any]]:
        """Every row appended so far, this run's and an interrupted one's."""
        rows: list[dict[str, Any]] = []
        for name in self._part_names():
            rows += pq.read_table(pa.BufferReader(self._filesystem.cat_file(name))).to_pylist()
        return rows

    def _part_names(self) -> list[str]:
        if not self._filesystem.exists(self._parts):
            return []
        self._filesystem.invalidate_cache()
        return sorted(n for n in self._filesystem.ls(self._parts, detail=False) if n.endswith(".parquet"))

    def write_table(self, table: pa.Table, name: str = "data.parquet") -> None:
        self.write_bytes(name, _parquet(table))

    def write_rows(self, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None,
                   name: str = "data.parquet") -> None:
        """Write the stage's final rows, in the order given."""
        self.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), name)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one final file; it counts once the manifest is there."""
        self._begin()
        self._put(f"{self.stage.path}/{name}", data)
        self._files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    def commit(self) -> None:
        """Write the manifest, then remove what runs before this one left."""
        self._begin()
        manifest = {
            "stage": self.stage.name,
            "fingerprint": self.fingerprint,
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "files": self._files,
            "details": self.details,
        }
        self._put(f"{self.stage.path}/{MANIFEST}", (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
        self._sweep()

    def _begin(self) -> None:
        """The old output stops being complete before the first new file lands."""
        if not self._begun:
            path = f"{self.stage.path}/{MANIFEST}"
            if self._filesystem.exists(path):
                self._filesystem.mv(path, f"{self.stage.path}/{REPLACED}")
            self._begun = True

    def _sweep(self) -> None:
        """Remove drafts, broken-off writes and the files of the output replaced; whatever else lies there is the user's."""
        self._filesystem.invalidate_cache()
        old = self._replaced_files() - self._files.keys()
        beside = re.compile(rf"\.({'|'.join(map(re.escape, (MANIFEST, *self._files, *old)))})\.[0-9a-f]{{8}}")
        for path in self._filesystem.ls(self.stage.path, detail=False):
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if name in old or name.startswith(".partial-") or beside.fullmatch(name):
                self._filesystem.rm(path, recursive=True)

    def _replaced_files(self) -> set[str]:
        path = f"{self.stage.path}/{REPLACED}"
        if not self._filesystem.exists(path):
            return set()
        with contextlib.suppress(ValueError, TypeError):  # a damaged manifest names nothing
            return set(Manifest(**json.loads(self._filesystem.cat_file(path))).files)
        return set()

    def _put(self, path: str, data: bytes) -> None:
        if self.stage.workspace.is_local:
            write_atomic(path, data)
        else:
            self._filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._filesystem.pipe_file(path, data)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def free_bytes(path: str | Path) -> int:
    """Free disk space, in bytes, where `path` lies or will lie."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
