"""A folder of documents as a small web: each file has a url, and no url reaches outside.

``folder:turkey/eating-out.html`` is the file ``turkey/eating-out.html`` below the folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path, PurePosixPath

from culturemanager.config import Project
from culturemanager.errors import FetchError, SearchError
from culturemanager.sections.synthesis import FolderSearch
from culturemanager.storage import Workspace

SCHEME = "folder:"
CONTENT_TYPES = {".html": "text/html", ".htm": "text/html", ".md": "text/markdown", ".txt": "text/plain"}


def folder_path(config: FolderSearch, project: Project) -> Path:
    """The folder that a project file names: its own, or the embedded web."""
    if config.path == "embedded":
        return Path(str(resources.files("culturemanager.embedded") / "web"))
    return project.resolve(config.path)


def outputs(project: Project) -> list[Path]:
    """Folders that a project writes; a searched folder may hold them, and nothing in them is a document."""
    return Workspace(project.workspace_url).folders()


def require_folder(folder: Path) -> Path:
    """The folder, its links resolved.

    Raises:
        SearchError: there is no such folder.
    """
    if not folder.is_dir():
        raise SearchError(f"{folder} is not a folder. Expected one with .html, .md or .txt files, or `embedded`: "
                          "set `pages.search.path`.")
    return folder.resolve()


def require_documents(folder: Path, without: Collection[Path] = ()) -> None:
    """Look for one document below a folder, as `documents` does.

    Raises:
        SearchError: there is no such folder, or it holds none.
    """
    if next(_found(require_folder(folder), without), None) is None:
        raise SearchError(f"{folder} holds no document. Expected files that end in {', '.join(CONTENT_TYPES)}: put some there, "
                          "or set `pages.search.path` to another folder.")


def documents(folder: Path, without: Collection[Path] = ()) -> Iterator[tuple[str, Path]]:
    """Every document below `folder` as (url, path), in the order of the urls.

    Links are not followed; names that start with a full stop and the folders `without` are left out.
    """
    yield from ((SCHEME + name, path) for name, path in sorted((path.relative_to(folder).as_posix(), path)
                                                               for path in _found(folder, without)))


def _found(folder: Path, without: Collection[Path]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(place, name) not in without]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in CONTENT_TYPES and not path.is_symlink() and path.is_file():
                yield path


def read_document(path: Path, max_bytes: int) -> bytes:
    """The bytes of a document.

    Raises:
        FetchError: it is too large (`too_large`), no text (`decode`), or cannot be read (`status`).
    """
    try:
        with open(path, "rb") as file:
            body = file.read(max_bytes + 1)
    except OSError as error:
        raise FetchError(f"Cannot read {path}: {error.strerror or error}.", reason="status") from error
    if len(body) > max_bytes:
        raise FetchError(f"{path} has more than {max_bytes} bytes. Raise `pages.fetch.max_bytes` to use it.",
                         reason="too_large")
    if b"\0" in body and not body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FetchError(f"{path} is not text. Expected HTML, Markdown or plain text.", reason="decode")
    return body


def locate(folder: Path, url: str) -> Path:
    """The file that a `folder:` url names; `folder` has its links resolved.

    Raises:
        FetchError: the url leaves the folder, or names no document in it.
    """
    name = url.removeprefix(SCHEME)
    parts = PurePosixPath(name).parts
    if not url.startswith(SCHEME) or not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise FetchError(f"{url!r} is no url of a document. Expected `{SCHEME}path/in/the/folder.html`.", reason="address")
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # missing, a ring of links, a name no disk can hold
        raise FetchError(f"{url!r} names no file in {folder}.", reason="status") from error
    if not path.is_relative_to(folder):
        raise FetchError(f"{url!r} leads out of {folder}.", reason="address")
    if not path.is_file() or path.suffix.lower() not in CONTENT_TYPES:
        raise FetchError(f"{url!r} is not a document. Expected one of {', '.join(CONTENT_TYPES)}.", reason="type")
    return path
