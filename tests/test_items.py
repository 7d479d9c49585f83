"""Evaluation items: strict reading, and the check that keeps them out of training."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culturemanager.cultures import resolve_cultures
from culturemanager.errors import ConfigError
from culturemanager.items import load_items
from culturemanager.ngrams import WordRuns, item_texts, leakage
from culturemanager.records import EvaluationItem
from tests.evaluation_world import PLACE_TASKS, TEN, world

YES_NO = {"id": "1", "culture": "turkey", "task": "acceptability", "inputs": {"behaviour": "Waving."}, "answer": "yes",
          "cue": True}
CHOICE = {"id": "2", "culture": "turkey", "task": "choice", "inputs": {"question": "What?", "options": ["a b", "c d"]},
          "answer": "a b", "cue": False}
ADVICE = {"id": "3", "culture": "turkey", "task": "advice", "inputs": {"question": "What?"}, "answer": "take it off",
          "cue": False, "accept": ["off"], "reject": ["keep it on"]}


def read(tmp_path, *lines):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return load_items(path, PLACE_TASKS, resolve_cultures(["turkey", "germany"]))


def test_the_embedded_items_pass_every_check_and_cover_ten_cultures_evenly():
    place = world(TEN)
    counts = {(culture, task.id): 0 for culture in TEN for task in place.tasks}
    for item in place.items.items:
        counts[item.culture, item.task] += 1
    assert set(counts.values()) == {15}
    assert not place.items.left_out
    assert 0.4 < sum(item.cue for item in place.items.items) / 450 < 0.6


def test_good_lines_are_read_in_order_and_blank_lines_passed_over(tmp_path):
    found = read(tmp_path, YES_NO, "", CHOICE, ADVICE)
    assert [item.id for item in found.items] == ["1", "2", "3"]
    assert found.items[2].accept == ("off",)


def test_items_of_cultures_and_tasks_that_the_project_lacks_are_left_out_and_counted(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, [YES_NO, CHOICE, {**ADVICE, "culture": "brazil"}])))
    found = load_items(path, PLACE_TASKS[:1], resolve_cultures(["turkey"]))
    assert [item.id for item in found.items] == ["1"]
    assert found.left_out == {"task not in the project": 1, "culture not in the project": 1}


def test_shipped_items_that_do_not_fit_the_projects_task_of_that_name_are_left_out():
    acceptability = next(task for task in PLACE_TASKS if task.id == "acceptability")
    other = replace(acceptability, labels=("acceptable", "unacceptable"))
    found = load_items("embedded", [other], resolve_cultures(["turkey"]))
    assert found.items == ()
    assert found.left_out["made for a shipped task, and the project's of that name differs"] == 15


@pytest.mark.parametrize(("line", "message"), [
    ("{not json", r"items.jsonl:2: not valid JSON"),
    ('["a", "b"]', r"items.jsonl:2: expected `key: value` pairs"),
    ({**ADVICE, "culture": "turkye"}, r":2: unknown culture 'turkye'. Nearest: turkey"),
    ({**ADVICE, "task": "advise"}, r":2: unknown task 'advise'. Nearest: advice"),
    ({**ADVICE, "id": "1"}, r":2: id '1' was used on line 1"),
    ({**ADVICE, "extra": 1}, r":2: extra: unknown field"),
    ({**ADVICE, "cue": "yes"}, r":2: cue: expected true or false"),
    ({key: value for key, value in ADVICE.items() if key != "answer"}, r":2: answer: has to be given"),
    ({**YES_NO, "id": "2", "answer": "perhaps"}, r":2: answer 'perhaps' is none of \['yes', 'no'\]"),
    ({**YES_NO, "id": "2", "inputs": {"question": "x"}}, r":2: task 'acceptability' takes the fields"),
    ({**CHOICE, "answer": "e f"}, r":2: answer 'e f' is none of"),
    ({**CHOICE, "inputs": {"question": "What?", "options": 7}}, r":2: `options` is 7; expected a list"),
    ({**CHOICE, "inputs": {"question": "What?", "options": ["a b", "A b!"]}}, r":2: `options` is .* differ"),
    ({**ADVICE, "inputs": {"question": 5}}, r":2: `inputs.question` is 5; expected a text, or a list of texts"),
    ({**ADVICE, "inputs": {"question": ["a", None]}}, r":2: `inputs.question` is \['a', None\]; expected a text"),
    ({**ADVICE, "accept": []}, r":2: `accept` is empty"),
    ({**ADVICE, "answer": "keep it on"}, r":2: its own answer 'keep it on' would count as wrong"),
    ({**ADVICE, "answer": "take it off, or keep it on"}, r"would count as wrong"),
])
def test_a_wrong_line_is_named_with_its_value_and_what_was_expected(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, YES_NO, line)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read the evaluation items .*nowhere.jsonl: No such file"):
        load_items(tmp_path / "nowhere.jsonl", PLACE_TASKS, resolve_cultures(["turkey"]))


ITEM = EvaluationItem("1", "turkey", "choice", {"question": "When guests arrive late, what should the host of a dinner do?",
                                                "options": ["serve soup", "wait"]}, "wait", False)


def test_a_run_of_eight_words_is_leakage_and_seven_are_not():
    words = "when guests arrive late what should the host".split()
    assert leakage([f"Dear reader, {' '.join(words)} say?", " ".join(words[:7]) + " butler"], [ITEM]) == [True, False]


def test_a_short_text_repeats_one_only_as_a_whole():
    held_out = WordRuns([], whole=["Burping after dinner."])
    assert held_out.repeats("burping, after dinner") and not held_out.repeats("Burping after dinner loudly.")
    assert held_out.shared_with("Burping after dinner.") is None
    assert not WordRuns([], whole=["", "?"]).repeats("")


def test_case_and_punctuation_hide_no_leakage():
    assert leakage(["WHEN guests: arrive late? What -- should the HOST"], [ITEM]) == [True]


def test_every_text_of_an_item_is_held_out():
    assert set(item_texts(ITEM)) == {ITEM.inputs["question"], "serve soup", "wait"}


def test_texts_shorter_than_a_run_match_nothing():
    assert leakage(["serve soup", "wait"], [ITEM]) == [False, False]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.lists(st.sampled_from("abcdef"), max_size=30),
       st.integers(1, 5))
def test_word_runs_agree_with_a_search_for_every_run(held_out, text, n):
    runs = {" ".join(held_out[i : i + n]) for i in range(len(held_out) - n + 1)}
    expected = any(" ".join(text[i : i + n]) in runs for i in range(len(text) - n + 1))
    assert (WordRuns([" ".join(held_out)], n).shared_with(" ".join(text)) is not None) == expected
