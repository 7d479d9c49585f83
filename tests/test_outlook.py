"""`train --plan` says what training would do, and does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from culturemanager import console
from culturemanager.errors import TrainingError
from culturemanager.training.outlook import outlook
from tests.test_ray_training import make_project
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("packs", "told"), [
    (1, ["Pack 1 of 1, on 2 workers: 2 to train, 2 at once"]),
    (2, ["Pack 1 of 2, on 1 worker: 1 to train, 1 at once", "Pack 2 of 2, on 1 worker: 1 to train, 1 at once"]),
])
def test_the_plan_names_packs_memory_and_time(folder, tmp_path, capsys, packs, told):
    project = make_project(tmp_path, folder, "training.workers=2", f"training.packs={packs}")
    found = outlook(project)
    assert [one.name for one in found.adapters] == ["turkey", "greece"]
    assert {(one.rows, one.steps, one.version) for one in found.adapters} == {(16, 8, "")}
    assert all(one.tokens > one.rows and one.longest <= 32 for one in found.adapters)
    assert found.seconds > 0 and all(0 < pack.memory_bytes < found.free_bytes for pack in found.packs)
    console.training_plan(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert all(line in printed for line in [*told, "GiB free", "Time: about 1 min"])
    assert not Path(project.workspace_url, "training").exists()


def test_without_leave_a_gpu_counts_for_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 1))
    assert outlook(make_project(tmp_path, folder, "training.use_gpu=no")).free_bytes > 1


def test_rows_that_are_all_too_long_are_said_before_training(folder, tmp_path):
    project = make_project(tmp_path, folder)  # the settings refuse so small a limit, and the rows are short
    with pytest.raises(TrainingError, match=r"every row of adapter 'turkey' is longer than 2 tokens.*training\.max_length"):
        outlook(project.model_copy(update={"training": project.training.model_copy(update={"max_length": 2})}))
