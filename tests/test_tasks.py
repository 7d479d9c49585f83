"""Answers are compared by their words, in any script, and a task's metric fits its kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from culturemanager.errors import ConfigError
from culturemanager.ngrams import WordRuns
from culturemanager.records import Task
from culturemanager.tasks import contains_phrase, load_task, normalise, parse_answer


@pytest.mark.parametrize(("one", "other"), [("খান", "খুন"), ("নি", "না"), ("की", "कि"), ("ดี", "ดู"), ("脱鞋", "穿鞋")])
def test_words_that_differ_in_one_sign_differ(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)
    assert not contains_phrase(one, other)


@pytest.mark.parametrize(("one", "other"), [("İZMİR", "izmir"), ("CAFÉ", "cafe\u0301"), ("Don't!", "don t"), ("  A\nB ", "a b")])
def test_words_that_are_written_in_two_ways_are_the_same(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("text", "phrase", "found"), [
    ("请脱鞋进屋。", "脱鞋", True), ("请脱鞋进屋。", "鞋脱", False), ("靴を脱いでください", "脱いで", True),
    ("ถอดรองเท้าก่อน", "รองเท้า", True), ("জুতা খুলে রাখুন", "জুতা", True),
    ("Take your shoes off.", "shoes", True), ("Take your horseshoes off.", "shoes", False),
])
def test_a_phrase_is_found_where_no_spaces_are_written_too(text: str, phrase: str, found: bool) -> None:
    assert contains_phrase(text, phrase) is found


def test_a_label_of_another_script_is_read_and_its_denial_is_not_it() -> None:
    task = Task("t", "classification", "?", ("q",), "{{ q }}", labels=("好", "不好"), metric="accuracy")
    assert [parse_answer(task, {"q": ""}, text) for text in ("好", "好的", "不好", "很好")] == ["好", "好", "不好", None]


def test_leakage_is_seen_where_no_spaces_are_written() -> None:
    held_out = WordRuns(["进屋之前请先脱鞋再说话"])
    assert held_out.shared_with("他说进屋之前请先脱鞋，谢谢") and not held_out.shared_with("请先脱鞋")


@pytest.mark.parametrize(("kind", "more", "metric"), [
    ("generation", {"fields": ["q"]}, "keyphrases"), ("multiple_choice", {"fields": ["q", "options"]}, "accuracy"),
    ("classification", {"fields": ["q"], "labels": ["yes", "no"]}, "accuracy")])
def test_a_task_that_names_no_metric_gets_its_kinds(tmp_path: Path, kind: str, more: dict, metric: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump({"id": "t", "kind": kind, "instruction": "?", "template": "{{ q }}"} | more))
    assert load_task(file).metric == metric


def test_a_wrong_kind_is_the_one_thing_told(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump({"id": "t", "kind": "essay", "instruction": "?", "template": "{{ q }}", "fields": ["q"]}))
    with pytest.raises(ConfigError, match="kind") as caught:
        load_task(file)
    assert "metric" not in str(caught.value)


@pytest.mark.parametrize(("kind", "more"), [("multiple_choice", {"fields": ["q", "options"]}), ("generation", {"fields": ["q"]})])
def test_macro_f1_is_for_tasks_whose_items_share_their_labels(tmp_path: Path, kind: str, more: dict) -> None:
    file = tmp_path / "task.yaml"
    task = {"id": "t", "kind": kind, "instruction": "?", "template": "{{ q }}", "metric": "macro_f1"} | more
    file.write_text(yaml.safe_dump(task))
    with pytest.raises(ConfigError, match=f"'macro_f1' does not fit kind '{kind}'"):
        load_task(file)
