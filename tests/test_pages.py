"""Searching and fetching through real Ray Data actors: what is chosen, what fails, and what is counted."""

from __future__ import annotations

import functools
import json

import pytest

from culturemanager.errors import FetchError, SearchError
from culturemanager.providers.fetch import FetchedPage, HttpFetcher
from culturemanager.providers.search import FolderSearch, SearxngSearch
from culturemanager.records import Query
from culturemanager.sections.synthesis import FetchConfig, PagesConfig
from culturemanager.storage import StageDraft
from culturemanager.synthesis.pages import BATCH, FAILURES_IN_A_ROW, FetchWork, PagesResult, SearchWork, collect_pages
from tests.loopback import Reply, site
from tests.page_providers import AnyPage, GoesDown, Listed, draft, lines


def test_a_culture_keeps_the_pages_that_most_queries_found(tmp_path) -> None:
    hits = {"one": ["a", "b", "c"], "two": ["b", "c"], "three": ["b", "d", "c"], "four": ["d"], "other": ["c"]}
    queries = [query(text, "avalon" if text == "other" else "zorland") for text in hits]
    filled = with_everything_done(draft(tmp_path), queries, Listed(hits), AnyPage())
    result = collect_pages(queries, PagesConfig(per_culture=3), unneeded, unneeded, filled)
    # b and c by three queries, of which b was first; d and a by two and one.
    assert [(page.culture, page.url, page.query_ids) for page in result.pages] == [
        ("avalon", "http://c/", ("other",)), ("zorland", "http://b/", ("one", "three", "two")),
        ("zorland", "http://c/", ("one", "three", "two")), ("zorland", "http://d/", ("four", "three"))]
    assert result.dropped == {"over_limit": 1}


def with_everything_done(draft: StageDraft, queries: list[Query], provider: Listed, fetcher: AnyPage) -> StageDraft:
    """A draft that holds what the actors would have put there."""
    found = SearchWork(provider, 8)([{"id": query.id, "text": query.text, "language": query.language} for query in queries])
    draft.append(found)
    urls = sorted({url for row in found for url, _ in json.loads(row["data"])})
    draft.append(FetchWork(fetcher)([{"url": url} for url in urls]))
    return draft


def unneeded() -> None:
    raise AssertionError("everything was done already")


def query(text: str, culture: str) -> Query:
    return Query(id=text, culture=culture, task="", text=text, language="en", source="llm")


def test_what_failed_is_counted_and_a_culture_without_pages_says_why(ray_cluster, tmp_path) -> None:
    hits = {"1": ["ok", "slow"], "2": "engine on fire", "3": [], "4": "engine on fire", "5": [], "6": ["shut", "slow"]}
    cultures = dict(zip(hits, ["fine", "fine", "barren", "refused", "refused", "closed"], strict=True))
    failures = tmp_path / "failures.json"
    failures.write_text(json.dumps({"http://slow/": "timeout", "http://shut/": "robots"}))
    result = collect_pages([query(text, culture) for text, culture in cultures.items()], PagesConfig(),
                           functools.partial(Listed, hits), functools.partial(AnyPage, failures), draft(tmp_path))
    assert [(page.culture, page.url, page.title) for page in result.pages] == [("fine", "http://ok/", "title of ok")]
    assert result.dropped == {"search_failed": 2, "search_empty": 2, "fetch_timeout": 2, "fetch_robots": 1}
    assert result.failed_cultures == {
        "barren": "none of 1 queries found a page",
        "closed": "none of 2 pages could be fetched (robots 1, timeout 1)",
        "refused": "1 of 2 queries failed, the others found nothing: engine on fire",
    }


def test_going_on_tries_again_what_may_have_passed_and_nothing_else(ray_cluster, tmp_path) -> None:
    names = [f"p{number:02d}" for number in range(20)]
    failures, log = tmp_path / "failures.json", tmp_path / "fetched.log"
    failures.write_text(json.dumps({"http://p03/": "timeout", "http://p04/": "network", "http://p05/": "robots",
                                    "http://p06/": "status"}))
    collect = functools.partial(collect_pages, [query("q", "zorland")], PagesConfig(hits_per_query=20),
                                functools.partial(Listed, {"q": names}), functools.partial(AnyPage, failures, log),
                                draft(tmp_path))
    first = collect()
    assert first.dropped == {"fetch_timeout": 1, "fetch_network": 1, "fetch_robots": 1, "fetch_status": 1}
    log.unlink()
    failures.write_text("{}")
    second = collect()
    assert sorted(lines(log)) == ["http://p03/", "http://p04/"]
    assert second.dropped == {"fetch_robots": 1, "fetch_status": 1} and len(second.pages) == 18


def test_an_engine_that_is_down_is_given_up_soon_and_asked_again_by_the_next_run(ray_cluster, tmp_path) -> None:
    down, up = {str(n): "engine is down." for n in range(40)}, {str(n): ["a"] for n in range(40)}
    log = tmp_path / "searched.log"
    queries = [query(text, "zorland") for text in down]
    with pytest.raises(SearchError, match="every query failed") as caught:
        collect_pages(queries, PagesConfig(), functools.partial(Listed, down, log), AnyPage, draft(tmp_path))
    assert "engine is down." in str(caught.value) and "\n" not in str(caught.value)
    assert len(lines(log)) == FAILURES_IN_A_ROW
    result = collect_pages(queries, PagesConfig(), functools.partial(Listed, up), AnyPage, draft(tmp_path))
    assert [page.url for page in result.pages] == ["http://a/"] and not result.dropped


def test_an_engine_that_goes_down_midway_is_asked_the_rest_by_the_next_run(ray_cluster, tmp_path) -> None:
    hits = {str(n): ["a"] for n in range(40)}
    queries, log = [query(text, "zorland") for text in hits], tmp_path / "searched.log"
    for answers in (20, 12, 0, 0):  # to the last eight
        with pytest.raises(SearchError, match=r"went down before \d+ of 40 queries were searched: engine is down\. Run the same"):
            collect_pages(queries, PagesConfig(actors=1), functools.partial(GoesDown, answers, hits, log), AnyPage,
                          draft(tmp_path))
    answered = set(lines(log))
    log.unlink()
    result = collect_pages(queries, PagesConfig(), functools.partial(Listed, hits, log), AnyPage, draft(tmp_path))
    assert len(answered) == 32 and set(lines(log)) == hits.keys() - answered and not result.dropped


def test_queries_that_fail_for_good_keep_no_other_from_being_asked(ray_cluster, tmp_path) -> None:
    hits = {str(n): "no engine answered." if n < FAILURES_IN_A_ROW + 2 else ["a"] for n in range(BATCH - 1)}
    collect = functools.partial(collect_pages, [query(text, "zorland") for text in hits], PagesConfig(actors=1),
                                functools.partial(Listed, hits), AnyPage, draft(tmp_path))
    with pytest.raises(SearchError, match="every query failed"):  # eight failed, and nothing was ever answered
        collect()
    result = collect()
    assert [page.url for page in result.pages] == ["http://a/"]
    assert result.dropped == {"search_failed": FAILURES_IN_A_ROW + 2}


def test_many_queries_that_fail_in_a_row_are_no_engine_that_is_down(ray_cluster, tmp_path) -> None:
    hits = {str(n): ["a"] if n < 5 else "language not supported." for n in range(40)}
    queries = [query(text, "zorland") for text in hits]
    for asked in (queries[:5], queries):
        result = collect_pages(asked, PagesConfig(actors=1), functools.partial(Listed, hits), AnyPage, draft(tmp_path))
    assert len(result.pages) == 1 and result.dropped == {"search_failed": 35}


def test_more_pages_out_of_reach_than_may_be_is_an_error_that_says_how_to_go_on(ray_cluster, tmp_path) -> None:
    def collect(**config: float) -> PagesResult:
        hits = {"q": ["a", "b", "c", "d"]}
        return collect_pages([query("q", "zorland")], PagesConfig(**config), functools.partial(Listed, hits),
                             functools.partial(AnyPage, failures), draft(tmp_path))

    failures = tmp_path / "failures.json"
    failures.write_text(json.dumps(dict.fromkeys(["http://a/", "http://b/", "http://c/"], "network")))
    with pytest.raises(FetchError, match=r"3 of 4 pages could not be fetched.*run the same command again.*`pages\.may_fail`"):
        collect()
    assert len(collect(may_fail=0.75).pages) == 1
    failures.write_text(json.dumps(dict.fromkeys(["http://a/", "http://b/"], "network")))
    assert len(collect().pages) == 2


def test_no_network_is_an_error_and_not_an_empty_stage(ray_cluster, tmp_path) -> None:
    failures = tmp_path / "failures.json"
    failures.write_text(json.dumps({"http://a/": "network", "http://b/": "timeout"}))
    with pytest.raises(FetchError, match=r"run the same command again\.$"):
        collect_pages([query("q", "zorland")], PagesConfig(may_fail=0.99), functools.partial(Listed, {"q": ["a", "b"]}),
                      functools.partial(AnyPage, failures), draft(tmp_path))


def test_a_folder_that_is_missing_is_told_in_one_line(ray_cluster, tmp_path) -> None:
    with pytest.raises(SearchError, match=r"pages\.search\.path") as caught:
        collect_pages([query("tea", "zorland")], PagesConfig(), functools.partial(FolderSearch, tmp_path / "missing"),
                      AnyPage, draft(tmp_path))
    assert type(caught.value) is SearchError and "\n" not in str(caught.value)


def test_an_address_that_cannot_be_read_is_counted_and_the_others_go_on(tmp_path) -> None:
    hits = {"one": ["example℀.com", "a"]}
    filled = with_everything_done(draft(tmp_path), [query("one", "zorland")], Listed(hits), RefusesNoAddress())
    result = collect_pages([query("one", "zorland")], PagesConfig(), unneeded, unneeded, filled)
    assert [page.url for page in result.pages] == ["http://a/"] and result.dropped == {"fetch_address": 1}


class RefusesNoAddress(AnyPage):
    """Leaves to the real fetcher what is no address."""

    def fetch(self, url: str) -> FetchedPage:
        return super().fetch(url) if url.isascii() else HttpFetcher(FetchConfig()).fetch(url)


def test_no_queries_give_no_pages(tmp_path) -> None:
    assert collect_pages([], PagesConfig(), unneeded, unneeded, draft(tmp_path)) == PagesResult([])


def test_pages_come_over_http_from_what_an_engine_found(ray_cluster, tmp_path) -> None:
    with site({}) as web:
        web.routes |= {f"/{name}": Reply(f"<title>About {name}</title><p>{name}") for name in ("tea", "rice")}
        web.routes["/photo"] = Reply("x", headers={"Content-Type": "image/png"})
        web.routes["/robots.txt"] = Reply("User-agent: *\nDisallow: /rice")
        found = [{"url": f"{web.url}/{name}", "title": name} for name in ("tea", "rice", "photo", "gone")]
        web.routes["/search"] = Reply(json.dumps({"results": found}))
        limits = FetchConfig(allow_private_addresses=True)
        result = collect_pages([query("tea in Zorland", "zorland")], PagesConfig(),
                               functools.partial(SearxngSearch, web.url, 10),
                               functools.partial(HttpFetcher, limits), draft(tmp_path))
        assert web.asked("/robots.txt") == 1 and web.asked("/rice") == 0
    page, = result.pages
    assert (page.url, page.title, page.content) == (f"{web.url}/tea", "About tea", "<title>About tea</title><p>tea")
    assert result.dropped == {"fetch_robots": 1, "fetch_type": 1, "fetch_status": 1}
