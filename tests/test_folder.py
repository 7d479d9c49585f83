"""A folder of documents as a web: every document by its url, nothing outside, nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from culturemanager import config
from culturemanager.errors import FetchError, SearchError
from culturemanager.providers.fetch import FolderFetcher, HttpFetcher, build_fetcher
from culturemanager.providers.search import build_search
from culturemanager.synthesis.pipeline import Synthesis

TASK = str(Path(__file__).parents[1] / "examples" / "tasks" / "acceptability.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret")
    web = tmp_path / "web"
    (web / "turkey").mkdir(parents=True)
    (web / "turkey" / "tea.html").write_bytes("<meta charset=latin-1><title>Tea</title>é".encode("latin-1"))
    os.utime(web / "turkey" / "tea.html", (1_700_000_000, 1_700_000_000.9))
    (web / "notes.md").write_text("# Notes")
    (web / "photo.png").write_bytes(b"\x89PNG")
    (web / "binary.txt").write_bytes(b"a\0b")
    (web / "huge.txt").write_text("x" * 5000)
    (web / "out.txt").symlink_to(tmp_path / "secret.txt")
    (web / "up").symlink_to(tmp_path, target_is_directory=True)
    (web / "ring.txt").symlink_to(web / "ring.txt")
    (web / "in.md").symlink_to(web / "notes.md")
    os.mkfifo(web / "pipe.txt")
    return web


def test_a_document_comes_out_of_the_folder_with_the_time_of_its_last_change(folder: Path) -> None:
    page = FolderFetcher(folder).fetch("folder:turkey/tea.html")
    assert (page.url, page.final_url, page.content_type) == ("folder:turkey/tea.html", "folder:turkey/tea.html", "text/html")
    assert page.text.endswith("é") and page.fetched_at == "2023-11-14T22:13:20+00:00"
    assert page.sha256 == hashlib.sha256((folder / "turkey" / "tea.html").read_bytes()).hexdigest()
    assert FolderFetcher(folder).fetch("folder:notes.md").content_type == "text/markdown"
    assert FolderFetcher(folder).fetch("folder:in.md").text == "# Notes"


@pytest.mark.parametrize(("url", "expected"), [
    ("folder:../secret.txt", "address"), ("folder:turkey/../../secret.txt", "address"),
    ("folder:turkey/../notes.md", "address"),
    ("folder:/etc/passwd", "address"), ("folder://etc/passwd", "address"), ("folder:", "address"), ("folder:.", "address"),
    ("folder:notes.md\0.html", "address"), ("folder:..\\secret.txt", "address"), ("notes.md", "address"),
    ("/etc/passwd", "address"), ("file:///etc/passwd", "address"), ("http://127.0.0.1/", "address"),
    ("folder:out.txt", "address"), ("folder:up/secret.txt", "address"),
    ("folder:ring.txt", "status"), ("folder:missing.html", "status"),
    ("folder:" + "x" * 5000 + ".txt", "status"), ("folder:turkey", "type"), ("folder:photo.png", "type"),
    ("folder:pipe.txt", "type"), ("folder:binary.txt", "decode"), ("folder:huge.txt", "too_large"),
    ("folder:%2e%2e/secret.txt", "status"),
])
def test_no_url_leaves_the_folder_or_reads_what_is_no_document(folder: Path, url: str, expected: str) -> None:
    with pytest.raises(FetchError) as caught:
        FolderFetcher(folder, max_bytes=4000).fetch(url)
    assert caught.value.reason == expected


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"pages\.search\.path"):
        FolderFetcher(tmp_path / "missing")


def test_the_fetcher_goes_with_the_search_provider(folder: Path) -> None:
    def built(search: dict):
        project = config.Project(name="n", workspace="w", cultures=("turkey",), tasks=("t.yaml",), pages={"search": search})
        return build_fetcher(project.pages.search, project.pages.fetch, project)

    assert built({"kind": "folder", "path": str(folder)}).fetch("folder:notes.md").text == "# Notes"
    assert "<html" in built({"kind": "folder"}).fetch("folder:turkey/eating-out.html").text
    web = built({"kind": "searxng", "url": "http://127.0.0.1:1"})
    assert isinstance(web, HttpFetcher)
    with pytest.raises(FetchError) as caught:
        web.fetch("folder:notes.md")
    assert caught.value.reason == "address"


def test_only_a_changed_document_makes_the_pages_out_of_date(folder: Path) -> None:
    project = config.Project(name="n", workspace=str(folder / "runs"), cultures=("turkey",), tasks=(TASK,),
                             pages={"search": {"kind": "folder", "path": str(folder)}})

    def key() -> str:
        return Synthesis(project, None).fingerprint("pages")

    before = key()
    for name in ("photo.png", ".notes.md.swp", ".git/notes.md", "runs/evaluation/report.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("anything")
    assert key() == before
    assert build_search(project.pages.search, project).search("anything", language="en", limit=5) == []
    (folder / "notes.md").write_text("# Other notes")
    assert key() != before


def test_a_file_name_that_is_no_text_does_no_harm(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("Coffee.")
    project = config.Project(name="n", workspace="w", cultures=("turkey",), tasks=(TASK,),
                             pages={"search": {"kind": "folder", "path": str(folder)}})
    assert Synthesis(project, None).fingerprint("pages")
    assert build_search(project.pages.search, project).skipped["unreadable"] == 1
