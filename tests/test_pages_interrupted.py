"""A whole run of searching and fetching, and the same run interrupted: nothing lost, nothing asked for twice."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from culturemanager.providers.fetch import FolderFetcher
from culturemanager.providers.search import FolderSearch
from culturemanager.records import Page, Query, stable_id
from culturemanager.sections.synthesis import PagesConfig
from culturemanager.synthesis import streaming
from culturemanager.synthesis.pages import BATCH, PagesResult, collect_pages
from culturemanager.synthesis.streaming import stream
from tests.page_providers import LoggedFetcher, LoggedSearch, draft, hold, let_go_soon, lines, wait_until_held

DISHES = ("soup", "bread", "tea", "rice", "fish")
PLACES = ("zorland", "avalon")
PAGES_EACH = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pages about two places, each place with its own and each page with one dish, and a file that is no page."""
    for place in PLACES:
        (tmp_path / "web" / place).mkdir(parents=True)
        for number in range(PAGES_EACH):
            dish = DISHES[number % len(DISHES)]
            (tmp_path / "web" / place / f"page{number:02d}.html").write_text(
                f"<title>{place} {number}</title><p>{place} {dish} is eaten slowly on day {number}.")
    (tmp_path / "web" / "photo.html").write_bytes(b"\0\1")
    return tmp_path / "web"


QUERIES = [Query(id=stable_id(place, dish, str(copy)), culture=place, task="", text=f"{place} {dish} day {copy}",
                 language="en", source="template") for place in PLACES for dish in DISHES for copy in range(4)]


class Run:
    """One project's calls of `collect_pages`, with what was searched and fetched over all of them."""

    def __init__(self, web: Path, workspace: Path, **config: object) -> None:
        self.searched, self.fetched = workspace / "searched.log", workspace / "fetched.log"
        self.config = PagesConfig(**{"hits_per_query": 8, **config})
        self.search_factory = functools.partial(LoggedSearch, web, self.searched)
        self.fetcher_factory = functools.partial(LoggedFetcher, web, self.fetched)
        self.workspace = workspace

    def __call__(self, progress: Callable[[int, int, str], None] | None = None) -> PagesResult:
        return collect_pages(QUERIES, self.config, self.search_factory, self.fetcher_factory, draft(self.workspace),
                             progress)


@pytest.fixture
def expected(folder: Path) -> list[Page]:
    """What the queries find, computed in this process without Ray."""
    search, fetcher = FolderSearch(folder), FolderFetcher(folder)
    found: dict[tuple[str, str], list[str]] = {}
    for query in QUERIES:
        for hit in search.search(query.text, language="en", limit=8):
            found.setdefault((query.culture, hit.url), []).append(query.id)
    pages = []
    for (culture, url), query_ids in sorted(found.items()):
        page = fetcher.fetch(url)
        name, number = url.removeprefix("folder:").removesuffix(".html").split("/page")
        pages.append(Page(id=stable_id(culture, url), culture=culture, query_ids=tuple(sorted(query_ids)), url=url,
                          final_url=url, title=f"{name} {int(number)}", content_type="text/html", content=page.text,
                          fetched_at=page.fetched_at, sha256=page.sha256))
    return pages


def test_the_result_is_what_the_queries_find_in_an_order_of_its_own(ray_cluster, folder, tmp_path, expected) -> None:
    run = Run(folder, tmp_path, actors=2)
    seen: list[tuple[int, int, str]] = []
    result = run(lambda *told: seen.append(told))
    assert result.pages == expected and not result.failed_cultures
    assert result.dropped == {"file_binary": 1}  # once, though each actor read the folder
    urls = {page.url for page in expected}
    assert len(urls) > 2 * BATCH and {page.culture for page in expected} == set(PLACES)
    assert Counter(lines(run.searched)) == Counter(query.text for query in QUERIES)
    assert Counter(lines(run.fetched)) == Counter(urls)  # once, though two cultures found some of them
    searches, fetches = ([told for told in seen if what in told[2]] for what in ("queries", "pages"))
    assert searches[-1][:2] == (len(QUERIES),) * 2 and fetches[-1][:2] == (len(urls),) * 2
    assert [told[0] for told in fetches] == sorted(told[0] for told in fetches)


class Stop(Exception):
    """Raised by a callback."""


def stop_when(what: str, log: Path) -> Callable[[int, int, str], None]:
    """A progress callback that raises once something was done."""
    def progress(done: int, total: int, doing: str) -> None:
        if what in doing:
            wait_until_held(log)
            let_go_soon(log)
            raise Stop
    return progress


def test_interrupted_again_and_again_a_run_asks_for_nothing_twice(ray_cluster, folder, tmp_path, expected) -> None:
    run = Run(folder, tmp_path)
    all_urls = {page.url for page in expected}

    hold(run.searched, BATCH + 4)  # the second batch is under way when the first one is reported
    with pytest.raises(Stop):
        run(stop_when("queries", run.searched))
    assert BATCH + 4 <= len(lines(run.searched)) == len(kept(tmp_path, "search")) < len(QUERIES)
    assert lines(run.fetched) == []

    hold(run.fetched, BATCH + 4)
    with pytest.raises(Stop):
        run(stop_when("pages", run.fetched))
    assert len(lines(run.searched)) == len(QUERIES)
    first = len(lines(run.fetched))
    assert BATCH + 4 <= first < len(all_urls) and sorted(lines(run.fetched)) == kept(tmp_path, "fetch")

    hold(run.fetched, first + 4)
    with pytest.raises(KeyboardInterrupt), ctrl_c_at(first + 4, run.fetched):
        run()
    second = len(lines(run.fetched))
    assert first + 4 <= second < len(all_urls) and sorted(lines(run.fetched)) == kept(tmp_path, "fetch")

    assert run().pages == expected
    assert Counter(lines(run.searched)) == Counter(query.text for query in QUERIES)
    assert Counter(lines(run.fetched)) == Counter(all_urls)
    assert run().pages == expected and len(lines(run.fetched)) == len(all_urls)  # complete: nothing is left to do


def kept(workspace: Path, kind: str) -> list[str]:
    """The keys of a draft's rows."""
    return sorted(row["key"] for row in draft(workspace).rows() if row["kind"] == kind)


@contextlib.contextmanager
def ctrl_c_at(number: int, log: Path) -> Iterator[None]:
    """Presses Ctrl-C when `log` has `number` lines."""
    def press() -> None:
        while len(lines(log)) < number:
            time.sleep(0.02)
        let_go_soon(log)
        os.kill(os.getpid(), signal.SIGINT)

    # A test run in the background of a shell ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    finger = threading.Thread(target=press, daemon=True)
    finger.start()
    try:
        yield
    finally:
        finger.join(60)
        signal.signal(signal.SIGINT, before)


class SwallowsTheEnd(queue.SimpleQueue):
    """Ctrl-C comes just when the last event has left the queue."""

    def get(self, *arguments, **more):
        event = super().get(*arguments, **more)
        if event is None:
            raise KeyboardInterrupt
        return event


def test_ctrl_c_with_the_last_event_in_hand_does_not_wait_for_another(ray_cluster, monkeypatch) -> None:
    monkeypatch.setattr(streaming.queue, "SimpleQueue", SwallowsTheEnd)
    kept: list[dict] = []
    with pytest.raises(KeyboardInterrupt):
        stream([{"n": 1}, {"n": 2}], lambda: list, kept.extend, lambda rows: None, actors=1, batch_size=1)
    assert sorted(row["n"] for row in kept) == [1, 2]


def test_after_kill_9_nothing_kept_is_asked_for_again(ray_cluster, folder, tmp_path, expected) -> None:
    program = f"""
import sys
from pathlib import Path
import ray
from tests import test_pages_interrupted
ray.init(address={ray_cluster.address_info["gcs_address"]!r}, log_to_driver=False, logging_level="error")
test_pages_interrupted.Run(Path({str(folder)!r}), Path({str(tmp_path)!r}))()
"""
    run = Run(folder, tmp_path)
    root = str(Path(__file__).parent.parent)
    hold(run.fetched, BATCH + 4)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env={**os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": root})
    try:
        while not kept(tmp_path, "fetch"):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    done = set(kept(tmp_path, "fetch"))
    assert 0 < len(done) < len({page.url for page in expected})
    (tmp_path / "again").mkdir()  # for its logs; the killed run's actor may still write to the old ones
    again = Run(folder, tmp_path / "again")
    again.workspace = tmp_path
    assert again().pages == expected
    assert lines(again.searched) == [] and set(lines(again.fetched)) == {page.url for page in expected} - done
