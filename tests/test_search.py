"""Search providers: a folder on disk, and web APIs over real HTTP on loopback."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import pytest

from culturemanager import config
from culturemanager.errors import SearchError
from culturemanager.providers.json_api import get_json
from culturemanager.providers.search import FolderSearch, SearxngSearch, WikipediaSearch, build_search
from tests.loopback import Reply, site


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def search(provider, text: str, limit: int = 8, language: str = "en") -> list[str]:
    return [hit.url for hit in provider.search(text, language=language, limit=limit)]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write(tmp_path,
                 zorland__tipping_dot_html="<title>Tips in Zorland</title><script>ferry ferry</script><p>Leave a tip of 5.",
                 zorland__ferries_dot_md="# Ferry rides\n\nTie a blue ribbon to the rail of the ferry.",
                 avalon_dot_txt="In Avalon nobody leaves a tip. Nobody at all, not on a boat either.")


def test_the_document_about_the_query_comes_first_with_its_path_as_url(documents: Path) -> None:
    provider = FolderSearch(documents)
    assert search(provider, "ferry ribbon") == ["folder:zorland/ferries.md"]
    hits = provider.search("tip in Zorland", language="en", limit=8)
    assert [hit.url for hit in hits] == ["folder:zorland/tipping.html", "folder:avalon.txt", "folder:zorland/ferries.md"]
    assert hits[0].title == "Tips in Zorland" and hits[0].snippet.startswith("Leave a tip")
    assert hits[2].title == "Ferry rides"


def test_scripts_are_not_read(documents: Path) -> None:
    assert "folder:zorland/tipping.html" not in search(FolderSearch(documents), "ferry")


def test_no_more_hits_than_asked_for_and_none_without_a_shared_word(documents: Path) -> None:
    provider = FolderSearch(documents)
    assert len(search(provider, "tip nobody zorland", limit=1)) == 1
    assert search(provider, "quantum chromodynamics") == []
    assert search(provider, "?!") == []


def test_equal_scores_are_ordered_by_url_and_every_run_answers_alike(tmp_path: Path) -> None:
    write(tmp_path, b_dot_txt="same words here", a_dot_txt="same words here", c__a_dot_txt="same words here",
          d_dot_txt="something else")
    first = search(FolderSearch(tmp_path), "same words")
    assert first[:2] == ["folder:a.txt", "folder:b.txt"] and set(first) == {*first[:2], "folder:c/a.txt"}
    assert first == search(FolderSearch(tmp_path), "same words")


def test_words_are_found_in_scripts_without_spaces(tmp_path: Path) -> None:
    write(tmp_path, tea_dot_txt="客人应该用双手接过茶杯。", shoes_dot_txt="进门之前请脱鞋。")
    assert search(FolderSearch(tmp_path), "茶杯", language="zh") == ["folder:tea.txt"]


def test_files_that_cannot_be_used_are_skipped_and_counted(documents: Path) -> None:
    (documents / "photo.html").write_bytes(b"\x89PNG\0\0tip")
    (documents / "huge.txt").write_text("tip " * 1000)
    (documents / "blank.md").write_text(" \n ")
    (documents / "odd\nname.txt").write_text("tip")
    (documents / "picture.png").write_bytes(b"tip")
    provider = FolderSearch(documents, max_bytes=2000)
    assert dict(provider.skipped) == {"binary": 1, "too_large": 1, "empty": 1, "unreadable": 1}
    assert set(search(provider, "tip")) == {"folder:zorland/tipping.html", "folder:avalon.txt"}


def test_links_and_hidden_names_are_not_searched(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = write(tmp_path_factory.mktemp("outside"), secret_dot_txt="tip secret")
    (documents / "linked").symlink_to(outside, target_is_directory=True)
    (documents / "link.txt").symlink_to(outside / "secret.txt")
    (documents / ".git").mkdir()
    (documents / ".git" / "notes.md").write_text("secret")
    assert search(FolderSearch(documents), "secret") == []


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_documents_is_refused_with_the_next_step(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SearchError, match=r"pages\.search\.path") as caught:
        FolderSearch(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def project(**pages: object) -> config.Project:
    return config.Project(name="n", workspace="w", cultures=("turkey",), tasks=("t.yaml",), pages=pages)


def test_the_embedded_web_answers_for_every_culture() -> None:
    with_defaults = project()
    provider = build_search(with_defaults.pages.search, with_defaults)
    for culture, name in {"turkey": "Turkey", "south_korea": "South Korea", "mexico": "Mexico"}.items():
        found = search(provider, f"visiting a home in {name}", limit=5)
        assert sum(url.startswith(f"folder:{culture}/") for url in found) >= 3


def test_a_project_names_its_own_folder(documents: Path) -> None:
    mine = project(search={"kind": "folder", "path": str(documents)})
    assert search(build_search(mine.pages.search, mine), "ribbon") == ["folder:zorland/ferries.md"]


def results(*entries: dict, **more: object) -> Reply:
    return Reply(json.dumps({"results": list(entries), **more}), headers={"Content-Type": "application/json"})


def test_searxng_is_asked_in_its_json_format_and_its_results_cleaned() -> None:
    answer = results({"url": "https://a.example/x#part", "title": "A &amp; <b>B</b>", "content": "some  text"},
                     {"url": "https://a.example/x", "title": "again"}, {"url": "ftp://b.example/"}, {"title": "no url"},
                     {"url": "http://c.example/", "title": None}, {"url": "https://d.example/"})
    with site({"/base/search": answer}) as engine:
        chosen = project(search={"kind": "searxng", "url": f"{engine.url}/base/"}, fetch={"user_agent": "Tester/1"})
        hits = build_search(chosen.pages.search, chosen).search("tea & ferries", language="tr", limit=2)
        assert engine.query(0) == {"q": "tea & ferries", "format": "json", "language": "tr"}
        assert engine.headers[0]["user-agent"] == "Tester/1"
    assert [(hit.url, hit.title, hit.snippet) for hit in hits] == [("https://a.example/x", "A & B", "some text"),
                                                                   ("http://c.example/", "", "")]


def test_searxng_with_json_switched_off_is_told_which_setting_to_change() -> None:
    with site({"/search": Reply("Forbidden", 403)}) as engine, pytest.raises(SearchError, match="403") as caught:
        SearxngSearch(engine.url, 5).search("tea", language="en", limit=3)
    assert "search.formats" in str(caught.value) and "json" in str(caught.value) and "off by default" in str(caught.value)
    assert engine.asked("/search") == 1  # asking again would not help


def test_searxng_whose_engines_all_failed_is_an_error_not_an_empty_answer() -> None:
    with site({"/search": results(unresponsive_engines=[["duckduckgo", "CAPTCHA"]])}) as engine:
        with pytest.raises(SearchError, match="CAPTCHA"):
            SearxngSearch(engine.url, 5).search("tea", language="en", limit=3)
    with site({"/search": results()}) as engine:
        assert SearxngSearch(engine.url, 5).search("tea", language="en", limit=3) == []


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"results": 3}'])
def test_an_answer_that_is_no_searxng_answer_is_an_error(body: str) -> None:
    with site({"/search": Reply(body)}) as engine, pytest.raises(SearchError, match=r"pages\.search\.url"):
        SearxngSearch(engine.url, 5).search("tea", language="en", limit=3)


def test_half_a_character_in_an_answer_does_no_harm() -> None:
    with site({"/search": results({"url": "https://a.example/", "title": "tea \ud83c"})}) as engine:
        hit, = SearxngSearch(engine.url, 5).search("tea", language="en", limit=3)
    assert hit.title.encode() and hit.title.startswith("tea")


def test_results_whose_address_cannot_be_read_are_left_out() -> None:
    answer = results({"url": "http://[x/"}, {"url": "http://example℀.com/"}, {"url": "https://a.example/"})
    with site({"/search": answer}) as engine:
        assert search(SearxngSearch(engine.url, 5), "tea") == ["https://a.example/"]


WIKI = {"query": {"general": {"server": "//tr.wiki.example", "articlepath": "/wiki/$1"},
                  "search": [{"title": "Türk kahvesi & çay", "snippet": 'strong <span class="searchmatch">tea</span>'},
                             {"title": "What is AC/DC?", "snippet": ""}]}}


def test_wikipedia_is_asked_in_the_language_and_article_addresses_come_from_the_wiki() -> None:
    with site({"/tr/w/api.php": Reply(json.dumps(WIKI))}) as wiki:
        chosen = project(search={"kind": "wikipedia", "url": wiki.url + "/{language}/w/api.php"})
        hits = build_search(chosen.pages.search, chosen).search("çay", language="tr", limit=5)
        asked = wiki.query(0)
    assert (asked["action"], asked["list"], asked["srsearch"], asked["srlimit"]) == ("query", "search", "çay", "5")
    assert [hit.url for hit in hits] == ["http://tr.wiki.example/wiki/T%C3%BCrk_kahvesi_%26_%C3%A7ay",
                                         "http://tr.wiki.example/wiki/What_is_AC/DC%3F"]
    assert hits[0].snippet == "strong tea"


@pytest.mark.parametrize(("answer", "language", "said"), [
    ({"error": {"code": "badquery", "info": "too long"}}, "en", "badquery"),
    ({"batchcomplete": True}, "en", "api.php"),
    (WIKI, "../../x", "language code"),
    (WIKI, "en.evil.example/", "language code"),
])
def test_what_wikipedia_cannot_answer_is_said_in_one_line(answer: dict, language: str, said: str) -> None:
    with site({"/w/api.php": Reply(json.dumps(answer))}) as wiki, pytest.raises(SearchError, match=said) as caught:
        WikipediaSearch(f"{wiki.url}/w/api.php", 5).search("tea", language=language, limit=5)
    assert "\n" not in str(caught.value)


def ask(url: str, *, timeout_s: float = 5.0, backoff_s: float = 0.01) -> dict:
    return get_json(url, {}, timeout_s=timeout_s, user_agent="t", explain=lambda status: "Next step.", backoff_s=backoff_s)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_service_is_asked_again(status: int) -> None:
    with site({"/": [Reply(status=status), Reply(status=status), Reply('{"a": 1}')]}) as service:
        assert ask(f"{service.url}/") == {"a": 1}
        assert service.asked("/") == 3


def test_a_service_that_stays_busy_is_given_up_after_four_attempts() -> None:
    with site({"/": Reply(status=503)}) as service, pytest.raises(SearchError, match=r"answered 503\. Next step\."):
        ask(f"{service.url}/")
    assert service.asked("/") == 4


def test_retry_after_is_obeyed() -> None:
    with site({"/": [Reply(status=429, headers={"Retry-After": "1"}), Reply("{}")]}) as service:
        start = time.monotonic()
        assert ask(f"{service.url}/") == {}
        assert time.monotonic() - start >= 1.0  # not the 0.01 s of its own


def test_a_long_retry_after_is_reported_instead_of_waited_for() -> None:
    with site({"/": Reply(status=429, headers={"Retry-After": "3600"})}) as service:
        with pytest.raises(SearchError, match="wait 3600 s"):
            ask(f"{service.url}/")
        assert service.asked("/") == 1


def test_a_service_that_does_not_answer_in_time_is_named() -> None:
    hang = Reply(send=lambda handler: time.sleep(3))
    with site({"/": hang}) as service, pytest.raises(SearchError, match=r"within 1 s"):
        ask(f"{service.url}/", timeout_s=1)
    assert service.asked("/") == 4


def test_a_service_that_is_not_there_is_named() -> None:
    with site({}) as service:
        port = service.port
    with pytest.raises(SearchError, match=r"cannot be reached.*pages\.search\.url"):
        ask(f"http://127.0.0.1:{port}/")
    for wrong in ("search.example", "htp://x/", "http://[x/"):
        with pytest.raises(SearchError, match=r"pages\.search\.url"):
            ask(wrong)


def test_providers_travel_to_ray_actors_by_their_settings(documents: Path) -> None:
    mine = project(search={"kind": "folder", "path": str(documents)})
    again = pickle.loads(pickle.dumps(mine))
    assert again.resolve(os.curdir) == mine.resolve(os.curdir)
    assert search(build_search(again.pages.search, again), "ribbon") == ["folder:zorland/ferries.md"]
