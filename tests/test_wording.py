"""The questions in other people's words that settings are chosen on: whole, grounded, and apart from the evaluation items."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.reading import WORDING
from culturemanager.cultures import catalogue
from culturemanager.items import load_items
from culturemanager.ngrams import item_texts, leakage
from culturemanager.tasks import load_task

ROOT = Path(__file__).parents[1]
TASKS = [load_task(ROOT / f"examples/tasks/{name}.yaml") for name in ("acceptability", "choice", "advice")]


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return [json.loads(line) for line in (ROOT / WORDING).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def items(lines, tmp_path_factory):
    """Read with every check that evaluation items go through."""
    file = tmp_path_factory.mktemp("wording") / "items.jsonl"
    file.write_text("".join(json.dumps({key: value for key, value in line.items() if key != "quote"}) + "\n" for line in lines))
    return load_items(file, TASKS, list(catalogue().values())).items


def test_three_cultures_have_twenty_questions_a_task(items):
    assert Counter((item.culture, item.task) for item in items) == {
        (culture, task.id): 20 for culture in ("jordan", "germany", "south_korea") for task in TASKS}
    assert all(0.4 < sum(item.cue for item in items if item.culture == culture) / 60 < 0.6
               for culture in ("jordan", "germany", "south_korea"))


def test_every_answer_stands_in_a_page(lines):
    pages = " ".join(_text(path.read_text(encoding="utf-8"))
                     for path in (ROOT / "culturemanager/embedded/web").rglob("*.html"))
    assert [line["id"] for line in lines if " ".join(line["quote"].split()) not in pages] == []


def test_no_question_shares_its_words_with_an_evaluation_item(items):
    held_out = load_items("embedded", TASKS, list(catalogue().values())).items
    texts = [text for item in items for text in item_texts(item)]
    assert [text for text, leaks in zip(texts, leakage(texts, held_out), strict=True) if leaks] == []


def _text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
