"""Queries to urls: a folder of documents, a SearXNG instance, a MediaWiki such as Wikipedia.

    SearchProvider (protocol)
    ├── FolderSearch      BM25 over .html, .md and .txt files: no network
    ├── SearxngSearch     a SearXNG instance's JSON API
    └── WikipediaSearch   the MediaWiki action API
"""

from __future__ import annotations

import html
import re
import urllib.parse
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from culturemanager import config
from culturemanager.errors import FetchError, SearchError
from culturemanager.providers.document import decode, title_and_text
from culturemanager.providers.folder import CONTENT_TYPES, documents, folder_path, outputs, read_document, require_folder
from culturemanager.providers.json_api import ATTEMPTS, get_json, shown
from culturemanager.sections import synthesis as settings

__all__ = ["FolderSearch", "SearchHit", "SearchProvider", "SearxngSearch", "WikipediaSearch", "build_search", "folder_path"]

SNIPPET_CHARACTERS = 200
SKIPPED = {"too_large": "too_large", "decode": "binary", "status": "unreadable"}
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*", re.I)
# A run of letters is a word, except in scripts that put no spaces between words: there every character is one.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


@dataclass(frozen=True)
class SearchHit:
    """One result; its place in the list is its rank."""

    url: str
    title: str
    snippet: str


class SearchProvider(Protocol):
    """Finds pages for a query."""

    def search(self, text: str, *, language: str, limit: int) -> list[SearchHit]:
        """At most `limit` hits, best first, each url once; `language` is an ISO 639-1 code.

        Raises:
            SearchError: the provider could not answer. No hit is an empty list.
        """
        ...


class FolderSearch:
    """Okapi BM25 (Robertson et al. 1994, in Lucene's variant) over the documents below a folder.

    Equal folders give equal answers: ties go to the url that sorts first. `skipped` counts files left
    out, by reason: `too_large`, `binary`, `unreadable`, `empty`.

    Args:
        folder: read once, when the object is made.
        max_bytes: larger files are skipped.
        without: folders below it that are not searched.

    Raises:
        SearchError: there is no such folder, or no document in it.
    """

    def __init__(self, folder: Path, max_bytes: int = settings.FetchConfig().max_bytes,
                 without: Collection[Path] = ()) -> None:
        import bm25s

        folder = require_folder(folder)
        self.skipped: Counter[str] = Counter()
        self._hits: list[SearchHit] = []
        corpus: list[list[str]] = []
        for url, path in documents(folder, without):
            content_type = CONTENT_TYPES[path.suffix.lower()]
            if not url.isprintable():  # line breaks, or bytes that are no text
                self.skipped["unreadable"] += 1
                continue
            try:
                title, text = title_and_text(decode(read_document(path, max_bytes), content_type), content_type)
            except FetchError as error:
                self.skipped[SKIPPED[error.reason]] += 1
                continue
            # A file's name and folder say what it is about as often as its title does.
            words = _words(f"{url.partition(':')[2]} {title} {text}")
            if not text.strip():
                self.skipped["empty"] += 1
                continue
            self._hits.append(SearchHit(url, title, " ".join(text.split())[:SNIPPET_CHARACTERS]))
            corpus.append(words)
        if not corpus:
            raise SearchError(f"{folder} holds no readable document (skipped: {dict(self.skipped)}). "
                              "Expected .html, .md or .txt files: set `pages.search.path`.")
        self._ranker = bm25s.BM25()
        self._ranker.index(corpus, show_progress=False)

    def search(self, text: str, *, language: str, limit: int) -> list[SearchHit]:
        """Documents that share a word with `text`; `language` is not used, words tell."""
        words = [word for word in dict.fromkeys(_words(text)) if word in self._ranker.vocab_dict]
        if not words:
            return []
        scores = self._ranker.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:limit]
        return [self._hits[i] for i in best if scores[i] > 0]


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


class SearxngSearch:
    """The JSON API of a SearXNG instance.

    Args:
        url: root of the instance.
        timeout_s: for one answer.
        user_agent: sent along.
        attempts: tries of one query.
    """

    def __init__(self, url: str, timeout_s: float, user_agent: str = settings.FetchConfig().user_agent,
                 attempts: int = ATTEMPTS) -> None:
        self._url = url.rstrip("/") + "/search"
        self._timeout_s, self._user_agent, self._attempts = timeout_s, user_agent, attempts

    def search(self, text: str, *, language: str, limit: int) -> list[SearchHit]:
        """The instance's first page of results; it merges its engines' ranks itself."""
        answer = get_json(self._url, {"q": text, "format": "json", "language": language or "all"}, timeout_s=self._timeout_s,
                          user_agent=self._user_agent, explain=_explain_searxng, attempts=self._attempts)
        results = answer.get("results")
        if not isinstance(results, list):
            raise SearchError(f"{shown(self._url)} answered without `results`. Expected SearXNG's JSON API: check "
                              "`pages.search.url`.")
        if not results and answer.get("unresponsive_engines"):
            raise SearchError(f"No engine behind {shown(self._url)} answered: {answer['unresponsive_engines']!r:.200}. "
                              "Wait, or enable other engines in the instance's settings.yml.")
        return _web_hits(results, limit, "content")


def _explain_searxng(status: int) -> str:
    if status == 403:
        return ("SearXNG's JSON format is off by default: add `json` to `search.formats` in the instance's settings.yml "
                "and restart it.")
    if status == 429:
        return "Its limiter is on: set `server.limiter: false` in the instance's settings.yml, or allow this address."
    return "Check `pages.search.url`."


class WikipediaSearch:
    """Full-text search of a MediaWiki through `action=query&list=search`.

    Args:
        url_template: address of its `api.php`; `{language}` is replaced by the query's language.
        timeout_s: for one answer.
        user_agent: Wikimedia asks clients to name themselves.
        attempts: tries of one query.
    """

    def __init__(self, url_template: str, timeout_s: float, user_agent: str = settings.FetchConfig().user_agent,
                 attempts: int = ATTEMPTS) -> None:
        self._url_template = url_template
        self._timeout_s, self._user_agent, self._attempts = timeout_s, user_agent, attempts

    def search(self, text: str, *, language: str, limit: int) -> list[SearchHit]:
        """Articles that hold the query's words, by the wiki's own ranking."""
        language = language or "en"
        if not LANGUAGE.fullmatch(language):
            raise SearchError(f"{language!r} is no language code. Expected ISO 639-1, such as `tr`.")
        url = self._url_template.replace("{language}", language.lower())
        answer = get_json(url, {"action": "query", "list": "search", "srsearch": text, "srlimit": str(min(limit, 50)),
                                "srprop": "snippet", "meta": "siteinfo", "siprop": "general", "format": "json",
                                "formatversion": "2"},
                          timeout_s=self._timeout_s, user_agent=self._user_agent,
                          explain=lambda status: "Check `pages.search.url`.", attempts=self._attempts)
        if "error" in answer:
            raise SearchError(f"{shown(url)} refused the query {text!r}: {answer['error']!r:.200}.")
        try:
            general = answer["query"]["general"]
            article = urllib.parse.urljoin(url, general["server"]) + general["articlepath"]
            results = [{"url": article.replace("$1", urllib.parse.quote(hit["title"].replace(" ", "_"), safe="/:(),'!*@")),
                        "title": hit["title"], "snippet": hit.get("snippet", "")} for hit in answer["query"]["search"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise SearchError(f"{shown(url)} did not answer as MediaWiki's action API does (no {error}). Expected the address "
                              "of an `api.php`: check `pages.search.url`.") from error
        return _web_hits(results, limit, "snippet")


def _web_hits(results: Sequence[Any], limit: int, snippet_field: str) -> list[SearchHit]:
    """Hits out of a web API's results: http(s) addresses only, each once, without fragments and markup."""
    hits: dict[str, SearchHit] = {}
    for result in results:
        if not isinstance(result, Mapping) or not str(result.get("url", "")).startswith(("http://", "https://")):
            continue
        try:
            url = urllib.parse.urldefrag(str(result["url"])).url
            urllib.parse.urlsplit(url)
        except ValueError:  # `http://[x/` only looks like an address
            continue
        if not url.isprintable():
            continue
        hits.setdefault(url, SearchHit(url, _plain(result.get("title")), _plain(result.get(snippet_field))))
    return list(hits.values())[:limit]


def _plain(text: Any) -> str:
    plain = html.unescape(re.sub(r"<[^>]*>", "", str(text or "")))
    return " ".join(plain.encode("utf-8", "replace").decode("utf-8").split())  # JSON can hold half a character


def build_search(search: settings.SearchConfig, project: config.Project, attempts: int = ATTEMPTS) -> SearchProvider:
    """The search provider a project file asks for.

    Args:
        attempts: tries of one query, where it goes over the network.

    Raises:
        SearchError: its folder is missing or empty.
    """
    user_agent = project.pages.fetch.user_agent
    if isinstance(search, settings.FolderSearch):
        return FolderSearch(folder_path(search, project), project.pages.fetch.max_bytes, outputs(project))
    if isinstance(search, settings.SearxngSearch):
        return SearxngSearch(search.url, search.timeout_s, user_agent, attempts)
    return WikipediaSearch(search.url, search.timeout_s, user_agent, attempts)
