"""Providers for tests of searching and fetching: they write down what they are asked, in whatever process that is."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path

import ray.cloudpickle

from culturemanager.errors import FetchError, SearchError
from culturemanager.providers.fetch import FetchedPage, FolderFetcher
from culturemanager.providers.search import FolderSearch, SearchHit
from culturemanager.storage import StageDraft, Workspace

# Actors get this file's classes by value: whether they could import it depends on how the tests were started.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class LoggedSearch:
    """A folder search that writes down each query it is asked."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._provider, self._log = FolderSearch(folder), log
        self.skipped = self._provider.skipped

    def search(self, text: str, *, language: str, limit: int) -> list[SearchHit]:
        note(self._log, text)
        return self._provider.search(text, language=language, limit=limit)


class LoggedFetcher:
    """A folder fetcher that writes down each url it is asked for."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._fetcher, self._log = FolderFetcher(folder), log

    def fetch(self, url: str) -> FetchedPage:
        note(self._log, url)
        return self._fetcher.fetch(url)


def note(log: Path, line: str) -> None:
    """Add a line; wait while the log is held at this many lines."""
    with open(log, "a") as file:
        file.write(line + "\n")
    with contextlib.suppress(FileNotFoundError):
        while len(lines(log)) >= int(log.with_suffix(".hold").read_text()):
            time.sleep(0.02)


def hold(log: Path, number: int) -> None:
    """Let an actor come no further than the `number`-th line."""
    log.with_suffix(".hold").write_text(str(number))


def wait_until_held(log: Path) -> None:
    """Until an actor has come as far as `hold` lets it; half a minute at most."""
    until = time.monotonic() + 30
    while len(lines(log)) < int(log.with_suffix(".hold").read_text()) and time.monotonic() < until:
        time.sleep(0.02)


def let_go_soon(log: Path) -> None:
    """End `hold`, a few seconds from now: time for what happens now to reach the actors."""
    threading.Timer(3, log.with_suffix(".hold").unlink).start()


def lines(log: Path) -> list[str]:
    """What was written down so far."""
    return log.read_text().splitlines() if log.exists() else []


def draft(folder: Path) -> StageDraft:
    """The draft of a stage, with all rows of the calls before."""
    return StageDraft(Workspace(folder / "workspace").stage("pages"), "0" * 64)


class Listed:
    """Finds what a table says; a query whose entry is a text fails with it."""

    def __init__(self, hits: dict[str, list[str] | str], log: Path | None = None) -> None:
        self._hits, self._log = hits, log

    def search(self, text: str, *, language: str, limit: int) -> list[SearchHit]:
        if self._log:
            note(self._log, text)
        found = self._hits[text]
        if isinstance(found, str):
            raise SearchError(found)
        return [SearchHit(f"http://{name}/", f"title of {name}", "") for name in found]


class GoesDown:
    """A `Listed` that answers so many queries, and then none."""

    def __init__(self, answers: int, hits: dict[str, list[str] | str], log: Path) -> None:
        self._answers, self._listed = answers, Listed(hits, log)

    def search(self, text: str, *, language: str, limit: int) -> list[SearchHit]:
        if not self._answers:
            raise SearchError("engine is down.")
        self._answers -= 1
        return self._listed.search(text, language=language, limit=limit)


class AnyPage:
    """Fetches whatever is asked for, but for the urls in a file: those fail for the reason it gives."""

    def __init__(self, failures: Path | None = None, log: Path | None = None) -> None:
        self._failures = json.loads(failures.read_text()) if failures else {}
        self._log = log

    def fetch(self, url: str) -> FetchedPage:
        if self._log:
            note(self._log, url)
        if url in self._failures:
            raise FetchError(f"{url} failed.", reason=self._failures[url])
        return FetchedPage(url, url, "text/plain", b"x", "x", "2026-01-01T00:00:00+00:00", "0")
