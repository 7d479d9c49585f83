"""Rows to train on are gone through as often as needed, and never all held."""

from __future__ import annotations

import tracemalloc

import pytest

from culturemanager import storage
from culturemanager.records import Example, to_rows
from culturemanager.storage import Workspace
from culturemanager.training import pack_folder, trainer
from culturemanager.training.pack_folder import texts
from culturemanager.training.text_rows import TextRows
from tests.test_ray_training import make_project
from tests.tiny_model import build_tiny_model

PAIRS = [("How many?", "two"), ("Really?", "yes")]


def test_rows_are_the_same_at_every_visit_and_counted_once():
    rows = TextRows(lambda: iter(PAIRS))
    assert list(rows) == list(rows) == PAIRS
    assert (len(rows), rows.characters) == (2, 22)


@pytest.mark.parametrize("other", [PAIRS[::-1], PAIRS[:1], [("How many", "?two"), PAIRS[1]]])
def test_other_rows_and_another_order_have_another_digest(other):
    assert TextRows(lambda: iter(PAIRS)).digest == TextRows(lambda: iter(PAIRS)).digest
    assert TextRows(lambda: iter(other)).digest != TextRows(lambda: iter(PAIRS)).digest


def test_planning_and_handing_out_the_rows_hold_a_small_part_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(pack_folder, "TEXTS_AT_ONCE", 100)
    model = build_tiny_model(tmp_path / "model")
    project = make_project(tmp_path, model)
    examples = [Example(f"{n}", culture, "t", {}, f"{n} " + "word " * 1600, "yes", ("p",), "u", "d", f"{n}", "g", split="train")
                for culture in project.cultures for n in range(2000)]
    with Workspace(project.workspace_url).stage("examples").writing("y") as draft:
        draft.write_rows(to_rows(examples))
    characters = sum(len(example.prompt) for example in examples)
    del examples
    tracemalloc.start()
    try:
        plans = trainer.plans_of(project, (), ("joint",), str(model), None)
        told = sum(table.num_rows for table in texts(plans))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert told == 2 * 4000
    assert peak < characters / 3
