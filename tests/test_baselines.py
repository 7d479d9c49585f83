"""The systems as data: what each is told, what it is asked, and fairness among them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from culturemanager.errors import ConfigError
from culturemanager.evaluation.baselines import (
    SYSTEMS,
    compose,
    culture_gone_by,
    pick_shots,
    required_adapters,
    select_systems,
)
from culturemanager.evaluation.retrieval import PassageRetriever
from culturemanager.records import EvaluationItem, Example, Route
from culturemanager.sections.model import EvaluationConfig
from tests.evaluation_world import examples, world

WORLD = world()
TURKEY = WORLD.cultures[0]
CUED = EvaluationItem("1", "turkey", "acceptability", {"behaviour": "..."}, "yes", cue=True)
PLAIN = EvaluationItem("2", "turkey", "acceptability", {"behaviour": "..."}, "yes", cue=False)


def test_there_are_the_ten_systems():
    assert list(SYSTEMS) == ["base", "base_culture_prompt", "few_shot", "retrieval", "joint", "joint_culture_prompt",
                             "task_agnostic", "culturemanager", "culturemanager_retrieval", "oracle"]


def test_the_default_project_compares_seven_of_them():
    assert len(select_systems(EvaluationConfig().systems)) == 7


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.knows == "request"])
def test_every_system_that_can_use_a_culture_is_told_the_same_one(name):
    system = SYSTEMS[name]
    assert culture_gone_by(system, PLAIN, Route("germany", 0.99, "classifier")) == "turkey"  # metadata before the router
    assert culture_gone_by(system, CUED, Route("germany", 0.99, "classifier")) == "germany"
    assert culture_gone_by(system, CUED, Route("", 0.1, "abstained")) == ""


def test_only_the_oracle_is_told_the_true_culture_of_a_cued_item():
    wrong = Route("germany", 0.99, "classifier")
    told = [name for name, system in SYSTEMS.items() if culture_gone_by(system, CUED, wrong) == "turkey"]
    assert told == ["oracle"]


def test_base_and_joint_are_told_no_culture():
    for name in ("base", "joint"):
        assert culture_gone_by(SYSTEMS[name], PLAIN, Route("turkey", 1.0, "named")) == ""


@pytest.mark.parametrize(("name", "expected"), [
    ("base", ("Q?", "")),
    ("base_culture_prompt", ("In Turkey: Q?", "")),
    ("few_shot", ("S?\nyes\n\nIn Turkey: Q?", "")),
    ("retrieval", ("Notes: P.\nIn Turkey: Q?", "")),
    ("joint", ("Q?", "joint")),
    ("joint_culture_prompt", ("In Turkey: Q?", "joint_culture_prompt")),
    ("task_agnostic", ("Q?", "agnostic_turkey")),
    ("culturemanager", ("Q?", "turkey")),
    ("culturemanager_retrieval", ("Notes: P.\nIn Turkey: Q?", "retrieval_turkey")),
    ("oracle", ("Q?", "turkey")),
])
def test_what_each_system_is_asked(name, expected):
    assert compose(SYSTEMS[name], "Q?", TURKEY, ["P."], [("S?", "yes")]) == expected


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if "{culture}" in system.adapter])
def test_without_a_culture_the_bare_base_answers(name):
    prompt, adapter = compose(SYSTEMS[name], "Q?", None)
    assert (prompt, adapter) == ("Q?", "")


def test_required_adapters_follow_from_the_systems():
    assert required_adapters(["base", "few_shot", "retrieval"], ["a", "b"]) == []
    assert required_adapters(["culturemanager", "oracle", "joint"], ["a", "b"]) == ["a", "b", "joint"]
    assert required_adapters(["task_agnostic", "culturemanager_retrieval"], ["a"]) == ["agnostic_a", "retrieval_a"]


def test_required_adapters_are_names_that_training_can_plan():
    from culturemanager.sections.model import TrainingConfig
    from culturemanager.training.plan import plan_adapters

    names = required_adapters(list(SYSTEMS), [culture.id for culture in WORLD.cultures])
    rows = examples(WORLD.cultures)

    def read(culture, split):
        return (row for row in rows if row.split == split and culture in ("", row.culture))

    plans = plan_adapters(names, read, WORLD.cultures, TrainingConfig(), 0, "base", lambda asked: [["A passage."] for _ in asked])
    assert [plan.name for plan in plans] == names


@pytest.mark.parametrize(("names", "message"), [
    (["culturemanger"], "unknown system 'culturemanger'. Nearest: culturemanager"),
    (["base", "base"], "'base' is listed twice"),
    ([], "evaluation.systems is empty"),
])
def test_a_wrong_choice_of_systems_names_the_value_and_what_was_expected(names, message):
    with pytest.raises(ConfigError, match=message):
        select_systems(names)


def test_shots_are_of_the_task_and_the_culture_and_from_the_training_rows():
    rows = examples(WORLD.cultures)
    for task in WORLD.tasks:
        shots = pick_shots(rows, task, "germany", 3, 0, "item-1")
        assert len(shots) == 3
        assert {(shot.task, shot.culture, shot.split) for shot in shots} == {(task.id, "germany", "train")}


def test_shots_come_from_any_culture_where_the_culture_has_none():
    rows = [row for row in examples(WORLD.cultures) if row.culture != "germany"]
    for culture in ("germany", ""):
        assert {shot.culture for shot in pick_shots(rows, WORLD.tasks[0], culture, 8, 0, "item-1")} == {"turkey", "brazil"}


def test_shots_depend_on_seed_and_item_alone():
    rows = examples(WORLD.cultures)
    ids = [[shot.id for shot in pick_shots(rows, WORLD.tasks[1], "germany", 3, seed, one)]
           for seed, one in ((0, "x"), (0, "x"), (1, "x"), (0, "y"))]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2] and ids[0] != ids[3]


@pytest.mark.parametrize("count", [1, 3, 6])
def test_shots_have_the_labels_in_the_candidates_proportion(count):
    rows = examples(WORLD.cultures)
    candidates = Counter(row.completion for row in rows
                         if (row.task, row.culture, row.split) == ("acceptability", "turkey", "train"))
    share = candidates["no"] / candidates.total()
    for one in range(20):
        shots = pick_shots(rows, WORLD.tasks[0], "turkey", count, 0, str(one))
        assert len(shots) == count
        assert sum(shot.completion == "no" for shot in shots) == round(share * count)


def test_more_shots_than_rows_takes_every_row():
    rows = examples(WORLD.cultures, per_task=3)
    assert len(pick_shots(rows, WORLD.tasks[0], "turkey", 50, 0, "x")) == 2


class FoundFor:
    """An index that returns what it was asked, to see the question."""

    def search(self, texts, *, culture, limit):
        return [[SimpleNamespace(passage_id=f"{number}/{culture}|{text}") for number in range(limit)] for text in texts]


class Echo(dict):
    def __missing__(self, key):
        return SimpleNamespace(text=key.rpartition("/")[2])


class OftenFound:
    """An index that holds the passage `a` three times, and `b` once."""

    def search(self, texts, *, culture, limit):
        return [[SimpleNamespace(passage_id=name) for name in "aaab"[:limit]] for _ in texts]


def test_a_passage_that_several_cultures_found_stands_in_a_prompt_once():
    retriever = PassageRetriever(OftenFound(), Echo())
    assert retriever.texts(["q", "r"], "", 2) == [["a", "b"]] * 2
    assert retriever.texts(["q"], "", 3) == [["a", "b"]]


def test_training_rows_and_evaluated_items_are_searched_alike():
    retriever = PassageRetriever(FoundFor(), Echo())
    tasks = {task.id: task.fields for task in WORLD.tasks}
    # as they are read back: a row's inputs come in the order of their names
    rows = [Example.from_row(row.to_row()) for row in examples(WORLD.cultures, per_task=2)]
    found = retriever.for_examples(rows, 2, tasks)
    assert len(found) == len(rows)
    for row, texts in zip(rows, found, strict=True):
        words = row.inputs.get("behaviour") or " ".join([row.inputs["question"], *row.inputs.get("options", [])])
        assert texts == [f"{row.culture}|{words}"] * 2
    assert retriever.texts(["q"], "", 1) == [["None|q"]]
