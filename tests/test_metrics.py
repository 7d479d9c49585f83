"""Figures: one aggregation rule, paired seeded intervals, honest counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from culturemanager.evaluation import metrics
from culturemanager.records import EvaluationItem, Route, Score, Task

YES_NO = Task("ok", "classification", "Decide.", ("text",), "{{ text }}", "accuracy", ("yes", "no"))
PICK = Task("pick", "multiple_choice", "Pick.", ("text", "options"), "{{ text }}", "accuracy")
SAY = Task("say", "generation", "Say.", ("text",), "{{ text }}", "keyphrases")


def item(number: int, culture: str, task: Task = YES_NO, cue: bool = False, answer: str = "yes") -> EvaluationItem:
    inputs = {"text": str(number)} | ({"options": ["a", "b", "c", "d"]} if task is PICK else {})
    return EvaluationItem(str(number), culture, task.id, inputs, answer, cue)


def score(system: str, of: EvaluationItem, correct: bool, answer: str = "yes", unparsed: bool = False,
          routed_to: str = "") -> Score:
    return Score(system, of.id, of.culture, of.task, answer, correct, unparsed, routed_to)


def test_accuracy_is_the_mean_over_cultures_not_over_items():
    items = [item(n, "a") for n in range(10)] + [item(10, "b")]
    scores = [score("base", one, correct=one.culture == "b") for one in items]
    entry = metrics.summarise(scores, items, [YES_NO], 100, 0)["base"]
    assert entry["accuracy"] == 0.5
    assert entry["by_culture"] == {"a": 0.0, "b": 1.0}
    assert entry["by_task"] == {"ok": 0.5}


def test_an_unparsed_answer_counts_as_wrong_and_is_counted():
    items = [item(n, "a") for n in range(4)]
    scores = [score("base", one, correct=n > 0, unparsed=n == 0) for n, one in enumerate(items)]
    entry = metrics.summarise(scores, items, [YES_NO], 100, 0)["base"]
    assert (entry["accuracy"], entry["unparsed"]) == (0.75, 1)


def test_a_system_without_an_answer_to_an_item_is_wrong_on_it():
    items = [item(0, "a"), item(1, "a")]
    assert metrics.summarise([score("base", items[0], True)], items, [YES_NO], 100, 0)["base"]["accuracy"] == 0.5


def test_the_order_of_items_changes_no_accuracy():
    items = [item(n, "ab"[n % 2], cue=n % 3 == 0) for n in range(20)]
    scores = [score("base", one, int(one.id) % 4 != 0) for one in items]
    forward = metrics.summarise(scores, items, [YES_NO], 100, 0)["base"]
    backward = metrics.summarise(scores[::-1], items[::-1], [YES_NO], 100, 0)["base"]
    for key in ("accuracy", "by_culture", "by_task", "by_cue"):
        assert forward[key] == backward[key]


def test_intervals_depend_on_the_seed_alone():
    values = np.random.default_rng(1).random((3, 60)) < 0.6
    cultures = np.arange(60) % 4
    first, again, other = (metrics.bootstrap(values, cultures, 150, seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_items_are_resampled_within_their_culture():
    values = np.array([[True] * 10 + [False] * 30])
    cultures = np.array([0] * 10 + [1] * 30)
    samples = metrics.bootstrap(values, cultures, 200, 0)
    assert (samples[0, 0] == 1).all() and (samples[0, 1] == 0).all()


def test_all_systems_share_the_resampled_items():
    values = np.random.default_rng(2).random(50) < 0.5
    samples = metrics.bootstrap(np.stack([values, values]), np.arange(50) % 5, 120, 3)
    assert np.array_equal(samples[0], samples[1])


def test_the_interval_has_the_width_that_theory_expects():
    values = (np.arange(400) % 2 == 0)[None]
    low, high = metrics.interval(metrics.bootstrap(values, np.arange(400) // 100, 2000, 0)[0].mean(0))
    expected = 2 * 1.96 * (0.25 / 400) ** 0.5
    assert high - low == pytest.approx(expected, rel=0.1)
    assert low < 0.5 < high


def test_a_difference_and_its_interval_are_paired():
    items = [item(n, "ab"[n % 2]) for n in range(40)]
    scores = [score("culturemanager", one, True) for one in items]
    scores += [score("base", one, int(one.id) % 4 > 1) for one in items]
    same = [score("twin", one, True) for one in items]
    found = metrics.differences(scores + same, items, "culturemanager", 300, 0)
    assert found["twin"] == {"difference": 0.0, "interval": [0.0, 0.0]}
    assert found["base"]["difference"] == 0.5
    assert found["base"]["interval"][0] < 0.5 < found["base"]["interval"][1]
    assert "culturemanager" not in found
    assert metrics.differences(same, items, "culturemanager", 100, 0) == {}


def test_macro_f1_agrees_with_scikit_learn():
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(4)
    expected = generator.choice(["yes", "no", "maybe"], 80, p=[0.6, 0.3, 0.1]).tolist()
    answered = generator.choice(["yes", "no", "maybe"], 80).tolist()
    ours = metrics.macro_f1(list(zip(expected, answered, strict=True)), ["yes", "no", "maybe"])
    assert ours == pytest.approx(f1_score(expected, answered, average="macro"))


def test_macro_f1_counts_an_unparsed_answer_against_its_label():
    assert metrics.macro_f1([("yes", "yes"), ("yes", None)], ["yes", "no"]) == pytest.approx(2 / 3)


def test_macro_f1_is_reported_for_the_tasks_that_ask_for_it():
    task = Task("ok", "classification", "Decide.", ("text",), "{{ text }}", "macro_f1", ("yes", "no"))
    items = [item(0, "a", answer="yes"), item(1, "a", answer="no")]
    entry = metrics.summarise([score("base", one, one.answer == "yes") for one in items], items, [task], 100, 0)["base"]
    assert entry["macro_f1"]["ok"] == pytest.approx((2 / 3 + 0) / 2, abs=1e-6)


def test_chance_is_that_of_a_blind_guess_among_the_allowed_answers():
    items = [item(0, "a"), item(1, "a", PICK, answer="a"), item(2, "b", SAY)]
    assert metrics.chance(items, [YES_NO, PICK, SAY]) == {"accuracy": (0.5 + 0.25) / 2 / 2,
                                                          "by_task": {"ok": 0.5, "pick": 0.25, "say": 0.0}}


def test_router_figures_keep_items_with_and_without_cue_apart():
    items = [item(0, "a", cue=True), item(1, "a", cue=True), item(2, "b", cue=True), item(3, "a"), item(4, "b")]
    routes = [Route("a", 0.9, "named"), Route("", 0.2, "abstained"), Route("a", 0.8, "classifier"),
              Route("", 0.1, "abstained"), Route("a", 0.7, "classifier")]
    found = metrics.router_figures(items, routes)
    assert found["accuracy_with_cue"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["precision_with_cue"] == 0.5
    assert found["abstention_without_cue"] == 0.5
    assert found["confusion_with_cue"] == {"a": {"a": 1, "abstained": 1}, "b": {"a": 1}}
    assert found["reasons_without_cue"] == {"abstained": 1, "classifier": 1}


def test_router_figures_without_such_items_are_none_not_zero():
    found = metrics.router_figures([item(0, "a", cue=True)], [Route("a", 1.0, "named")])
    assert found["abstention_without_cue"] is None
    assert found["accuracy_with_cue"] == 1.0


def test_interference_has_cultures_as_rows_and_adapters_as_columns():
    a, b = item(0, "a"), item(1, "b")
    scores = [score("forced", a, True, routed_to="a"), score("forced", a, False, routed_to="b"),
              score("forced", b, False, routed_to="a"), score("forced", b, True, routed_to="b")]
    assert metrics.interference(scores) == {"a": {"a": 1.0, "b": 0.0}, "b": {"a": 0.0, "b": 1.0}}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=40))
def test_every_figure_lies_between_0_and_1_and_inside_its_interval_s_reach(rows):
    items = [item(n, culture) for n, (culture, _) in enumerate(rows)]
    scores = [score("base", one, right) for one, (_, right) in zip(items, rows, strict=True)]
    entry = metrics.summarise(scores, items, [YES_NO], 100, 0)["base"]
    low, high = entry["interval"]
    assert 0 <= low <= high <= 1
    assert 0 <= entry["accuracy"] <= 1
    assert entry["accuracy"] == pytest.approx(sum(entry["by_culture"].values()) / len(entry["by_culture"]), abs=1e-5)
