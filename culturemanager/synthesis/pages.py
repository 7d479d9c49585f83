"""Queries to pages: search everything, choose per culture, fetch each url once.

Every finished batch goes to the stage's draft at once, so an interrupted run goes on where it
stopped. A draft row is ``{"kind", "key", "reason", "data"}``: kind `search` (key: query id), `fetch`
(key: url) or `skipped` (key: why a searched folder left files out); `reason` is empty on success.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from culturemanager.errors import FetchError, SearchError
from culturemanager.providers.document import shown_title, title_and_text
from culturemanager.providers.fetch import PageFetcher
from culturemanager.providers.search import SearchHit, SearchProvider
from culturemanager.records import Page, Query, stable_id
from culturemanager.sections.synthesis import PagesConfig
from culturemanager.storage import StageDraft
from culturemanager.synthesis.streaming import Row, stream

BATCH = 16
"""Queries or urls done between two writes to the draft."""
FETCH_THREADS = 8
"""Sites read at the same time by one actor; each site gets one request at a time."""
FAILURES_IN_A_ROW = 8
"""After so many, an actor asks again what was answered before: without an answer to that either, the engine is down."""
PASSING = frozenset({"timeout", "network"})
"""Reasons for which a page is tried again when an interrupted stage goes on."""
DOWN = "engine_down"
"""Why a query failed with which the engine was found to be down, or that it was not asked any more."""

Item = TypeVar("Item")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PagesResult:
    """What searching and fetching came to."""

    pages: list[Page]
    """Sorted by culture and url, whatever order they arrived in."""
    dropped: Counter[str] = field(default_factory=Counter)
    """`search_failed` and `search_empty` count queries; `over_limit` and `fetch_<reason>` pages of a culture;
    `file_<reason>` files of a searched folder."""
    failed_cultures: Mapping[str, str] = field(default_factory=dict)
    """Cultures without any page, and why."""


@dataclass(frozen=True)
class Choice:
    """A url that a culture's queries found."""

    culture: str
    url: str
    title: str
    query_ids: tuple[str, ...]


def collect_pages(queries: Sequence[Query], config: PagesConfig, search_factory: Callable[[], SearchProvider],
                  fetcher_factory: Callable[[], PageFetcher], draft: StageDraft,
                  progress: Progress | None = None) -> PagesResult:
    """Search and fetch through Ray Data actors; only what `draft` does not hold yet is done.

    Args:
        search_factory: makes the search provider, once in each actor.
        fetcher_factory: likewise.
        draft: keeps every finished batch.
        progress: called with (done, total, what) after each batch; what it raises interrupts, once
            batches under way are kept.

    Raises:
        SearchError: the provider cannot be used, failed on every query, or went down before all were searched.
        FetchError: more pages than may fail did not come, for reasons that may pass (no network).
    """
    results = _Results(draft)
    answered = next((_asked(query) for query in queries if results.is_final("search", query.id)), None)
    results.complete("search", _taking_turns(queries, lambda query: query.culture), lambda query: query.id, _asked,
                     _Factory(SearchWork, search_factory, config.hits_per_query, answered), config.actors, progress,
                     "queries searched")
    results.require_searched()

    choices, dropped = _choose(queries, results.done["search"], config.per_culture)
    urls = sorted({choice.url for choice in choices})
    results.complete("fetch", _taking_turns(urls, _site), lambda url: url, lambda url: {"url": url},
                     _Factory(FetchWork, fetcher_factory), config.actors, progress, "pages fetched")
    results.require_fetched(config.may_fail)

    pages = []
    for choice in choices:
        row = results.done["fetch"][choice.url]
        if row["reason"]:
            dropped[f"fetch_{row['reason']}"] += 1
        else:
            pages.append(_page(choice, json.loads(row["data"])))
    dropped.update({f"file_{reason}": int(row["data"]) for reason, row in results.done["skipped"].items()})
    pages.sort(key=lambda page: (page.culture, page.url))
    return PagesResult(pages, dropped, _failed_cultures(queries, choices, pages, results.done))


class _Results:
    """The draft's rows by kind and key; of two rows with one key the later counts."""

    def __init__(self, draft: StageDraft) -> None:
        self._draft = draft
        self.done: dict[str, dict[str, Row]] = {"search": {}, "fetch": {}, "skipped": {}}
        self._failures: Counter[str] = Counter()
        self._add(draft.rows())

    def _add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.done[row["kind"]][row["key"]] = row
            self._failures[row["key"]] += row["reason"] not in {"", DOWN}

    def _keep(self, rows: list[Row]) -> None:
        self._draft.append(rows)
        self._add(rows)

    def is_final(self, kind: str, key: str) -> bool:
        """Whether that is done and not to be tried again."""
        row = self.done[kind].get(key)
        return row is not None and not (row["reason"] and (kind == "search" or row["reason"] in PASSING))

    def complete(self, kind: str, items: Sequence[Item], key: Callable[[Item], str], row: Callable[[Item], Row],
                 make_work: Callable[[], Callable[[list[Row]], list[Row]]], actors: int, progress: Progress | None,
                 what: str) -> None:
        """Do what is left of `items`, what failed before last: a query that fails for good keeps no other from being asked."""
        left = [item for item in items if not self.is_final(kind, key(item))]
        left.sort(key=lambda item: self._failures[key(item)])
        done = len(items) - len(left)

        def report(rows: list[Row]) -> None:
            nonlocal done
            done += sum(row["kind"] == kind for row in rows)
            if progress:
                progress(done, len(items), what)

        stream([row(item) for item in left], make_work, self._keep, report, actors=actors, batch_size=BATCH)

    def require_searched(self) -> None:
        """Raise when the search engine was seen to be down: the stage must not count as complete with what it answered before.

        Other failures count as these queries' own (`search_failed`).
        """
        failed, rows = self._passing("search")
        if rows and len(failed) == rows:
            raise SearchError(f"every query failed. The first time: {failed[0]['data']}")
        down = [row for row in failed if row["reason"] == DOWN]
        if down:
            raise SearchError(f"the search engine went down before {len(down)} of {rows} queries were searched: "
                              f"{down[0]['data']} Run the same command again once it is back; what was found is kept.")

    def require_fetched(self, may_fail: float) -> None:
        """Raise when more than this share of the pages did not come for reasons that may pass."""
        failed, rows = self._passing("fetch")
        if not failed or len(failed) / rows <= may_fail:
            return
        what, advice = "no page could", ""
        if len(failed) < rows:
            what = f"{len(failed)} of {rows} pages could not"
            advice = " If these servers never answer, raise `pages.may_fail` to go on without them; what was fetched is kept."
        raise FetchError(f"{what} be fetched. The first that failed: {failed[0]['data']} Check the network, then run the same "
                         f"command again.{advice}")

    def _passing(self, kind: str) -> tuple[list[Row], int]:
        """Rows that failed for reasons that may pass, by key, and the number of all rows."""
        rows = sorted(self.done[kind].values(), key=lambda row: row["key"])
        return [row for row in rows if not self.is_final(kind, row["key"])], len(rows)


class _Factory:
    """Makes work out of a provider's factory; pickles where a closure would not."""

    def __init__(self, work: Callable[..., Any], factory: Callable[[], Any], *arguments: Any) -> None:
        self._work, self._factory, self._arguments = work, factory, arguments

    def __call__(self) -> Any:
        return self._work(self._factory(), *self._arguments)


class SearchWork:
    """Searches one query after another: an engine that is asked too fast shuts its door.

    Args:
        answered: a query that the engine answered before.
    """

    def __init__(self, provider: SearchProvider, limit: int, answered: Row | None = None) -> None:
        self._provider, self._limit, self._answered = provider, limit, answered
        self._failures: list[str] = []
        self._down = ""

    def __call__(self, rows: list[Row]) -> list[Row]:
        skipped = getattr(self._provider, "skipped", {})
        return [self._search(row) for row in rows] + [_row("skipped", reason, "", str(n)) for reason, n in skipped.items()]

    def _search(self, row: Row) -> Row:
        if self._down:
            return _row("search", row["id"], DOWN, self._down)
        try:
            hits = self._ask(row)
        except SearchError as error:
            self._failures.append(str(error))
            if len(self._failures) == FAILURES_IN_A_ROW:
                self._down = "" if self._still_answers() else self._failures[0]
                self._failures.clear()
            return _row("search", row["id"], DOWN if self._down else "failed", str(error))
        self._failures.clear()
        self._answered = row
        return _row("search", row["id"], "", json.dumps([[hit.url, hit.title] for hit in hits], ensure_ascii=False))

    def _ask(self, row: Row) -> Sequence[SearchHit]:
        return self._provider.search(row["text"], language=row["language"], limit=self._limit)

    def _still_answers(self) -> bool:
        """Whether it is the queries that fail, and not the engine."""
        if self._answered is None:
            return False
        try:
            self._ask(self._answered)
        except SearchError:
            return False
        return True


class FetchWork:
    """Fetches from several sites at a time, from each one page after another."""

    def __init__(self, fetcher: PageFetcher) -> None:
        self._fetcher = fetcher

    def __call__(self, rows: list[Row]) -> list[Row]:
        by_site: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            by_site[_site(row["url"])].append(row["url"])
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            fetched = pool.map(lambda urls: [self._fetch(url) for url in urls], by_site.values())
            return [row for site in fetched for row in site]

    def _fetch(self, url: str) -> Row:
        try:
            page = self._fetcher.fetch(url)
        except FetchError as error:
            return _row("fetch", url, error.reason, str(error))
        values = {"final_url": page.final_url, "content_type": page.content_type, "content": page.text,
                  "fetched_at": page.fetched_at, "sha256": page.sha256,
                  "title": title_and_text(page.text, page.content_type)[0]}
        return _row("fetch", url, "", json.dumps(values, ensure_ascii=False))


def _asked(query: Query) -> Row:
    return {"id": query.id, "text": query.text, "language": query.language}


def _row(kind: str, key: str, reason: str, data: str) -> Row:
    return {"kind": kind, "key": key, "reason": reason, "data": data}


def _site(url: str) -> str:
    try:
        return "://".join(urlsplit(url)[:2])
    except ValueError:  # no address; the fetcher says so
        return url


def _taking_turns(items: Sequence[Item], group: Callable[[Item], str]) -> list[Item]:
    """The items of every group in turn, so that a batch spreads over cultures or sites."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[group(item)].append(item)
    turns = [(turn, name, item) for name, members in groups.items() for turn, item in enumerate(members)]
    return [item for _, _, item in sorted(turns, key=lambda entry: entry[:2])]


def _choose(queries: Sequence[Query], searched: Mapping[str, Row], per_culture: int) -> tuple[list[Choice], Counter[str]]:
    """The pages worth fetching: those found by most of a culture's queries first, then by best rank, then by url."""
    ranks: dict[str, dict[str, list[tuple[int, str, str]]]] = defaultdict(lambda: defaultdict(list))
    dropped: Counter[str] = Counter()
    for query in queries:
        row = searched[query.id]
        if row["reason"]:
            dropped["search_failed"] += 1
            continue
        hits = json.loads(row["data"])
        dropped["search_empty"] += not hits
        for rank, (url, title) in enumerate(hits):
            ranks[query.culture][url].append((rank, query.id, title))
    choices = []
    for culture, found in sorted(ranks.items()):
        best = sorted(found.items(), key=lambda entry: (-len(entry[1]), min(entry[1])[0], entry[0]))
        dropped["over_limit"] += max(0, len(best) - per_culture)
        choices += [Choice(culture, url, min(hits)[2], tuple(sorted({query_id for _, query_id, _ in hits})))
                    for url, hits in best[:per_culture]]
    return choices, +dropped


def _page(choice: Choice, fetched: Mapping[str, str]) -> Page:
    return Page(id=stable_id(choice.culture, choice.url), culture=choice.culture, query_ids=choice.query_ids, url=choice.url,
                final_url=fetched["final_url"], title=fetched["title"] or shown_title(choice.title),
                content_type=fetched["content_type"],
                content=fetched["content"], fetched_at=fetched["fetched_at"], sha256=fetched["sha256"])


def _failed_cultures(queries: Sequence[Query], choices: Sequence[Choice], pages: Sequence[Page],
                     done: Mapping[str, Mapping[str, Row]]) -> dict[str, str]:
    failed: dict[str, str] = {}
    for culture in sorted({query.culture for query in queries} - {page.culture for page in pages}):
        rows = [done["search"][query.id] for query in queries if query.culture == culture]
        reasons = Counter(done["fetch"][choice.url]["reason"] for choice in choices if choice.culture == culture)
        errors = [row["data"] for row in rows if row["reason"]]
        if reasons:
            told = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
            failed[culture] = f"none of {sum(reasons.values())} pages could be fetched ({told})"
        elif errors:
            failed[culture] = f"{len(errors)} of {len(rows)} queries failed, the others found nothing: {min(errors)}"
        else:
            failed[culture] = f"none of {len(rows)} queries found a page"
    return failed
