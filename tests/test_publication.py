"""What was trained serves: settings that come back, a base that moves, and a run that is killed before or while it publishes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from culturemanager import cli, console
from culturemanager import project as assembly
from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.config import Project
from culturemanager.errors import TrainingError
from culturemanager.training import trainer
from culturemanager.training.outlook import outlook
from culturemanager.training.pack_folder import CHECKPOINTS, CURVES, RESULT, ROWS, TARGETS, result_is_whole, write_result
from culturemanager.training.plan import AdapterPlan
from culturemanager.training.worker import run_pack
from tests.test_ray_training import make_project, pack_folders
from tests.test_training import prepared
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def trained(monkeypatch) -> list[Path]:
    """Packs are trained in this process, one after another; the folders in which that was done."""
    done: list[Path] = []

    def train_here(project: Project, packs: Mapping[Path, Sequence[AdapterPlan]], *_: object) -> None:
        for pack, plans in packs.items():
            if not result_is_whole(pack):
                train_pack(project, pack, plans)
                done.append(pack)

    monkeypatch.setattr(trainer, "train_packs", train_here)
    return done


def train_pack(project: Project, pack: Path, plans: Sequence[AdapterPlan], stop_at: int = 0) -> None:
    """Train a pack to the end, or up to a step at which Ctrl-C is pressed."""
    def report(state: Mapping[str, int]) -> None:
        if state["step"] == stop_at:
            raise KeyboardInterrupt

    prepared(pack, plans, Path(project.base_path))
    run_pack(pack, project.training, project.base_path, project.base.dtype, report=report)


def registry_of(project: Project) -> AdapterRegistry:
    return AdapterRegistry(Path(project.workspace_url, "adapters"))


def test_settings_that_come_back_serve_again(folder, tmp_path, trained):
    first, second = (make_project(tmp_path, folder, f"training.rank={rank}") for rank in (4, 2))
    registry = registry_of(first)
    for project, serving in ((first, "v0001"), (second, "v0002"), (first, "v0001")):
        versions = trainer.train(project)
        assert [version.name for version in versions] == [f"turkey-{serving}", f"greece-{serving}"]
        assert registry.aliases() == {"turkey": f"turkey-{serving}", "greece": f"greece-{serving}"}
        assert assembly.passed_over(project, versions) == []
    assert len(trained) == 2


def test_a_diverging_adapter_does_not_keep_the_others_from_serving(folder, tmp_path, trained, monkeypatch):
    project = make_project(tmp_path, folder)
    train_here = trainer.train_packs

    def diverge(project: Project, packs: Mapping[Path, Sequence[AdapterPlan]], *others: object) -> None:
        train_here(project, packs, *others)
        for pack in packs:
            result = pack / RESULT
            curves = json.loads((result / CURVES).read_text())
            curves["turkey"]["stopped"] = "the loss was nan"
            weights = [(name, load_file(result / f"{name}.safetensors")) for name in curves]
            write_result(pack, weights, curves, json.loads((result / TARGETS).read_text()))

    monkeypatch.setattr(trainer, "train_packs", diverge)
    with pytest.raises(TrainingError, match=r"1 adapters failed: turkey: the loss was nan\. The others are published"):
        trainer.train(project)
    assert registry_of(project).aliases() == {"greece": "greece-v0001"}
    assert (trained[0] / ROWS).exists() and (trained[0] / CHECKPOINTS).exists()  # to look at what went wrong


@pytest.mark.parametrize("method", ["publish", "promote_trained"])
def test_a_run_killed_while_it_publishes_is_ended_without_training(folder, tmp_path, trained, monkeypatch, method):
    project = make_project(tmp_path, folder)
    real, calls = getattr(AdapterRegistry, method), []

    def killed(self: AdapterRegistry, *arguments: object, **named: object) -> object:
        calls.append(method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AdapterRegistry, method, killed)
        trainer.train(project)
    registry = registry_of(project)
    assert registry.aliases() == {"turkey": "turkey-v0001"}
    trainer.train(project)
    assert registry.aliases() == {"turkey": "turkey-v0001", "greece": "greece-v0001"}
    assert len(trained) == 1 and not (trained[0] / ROWS).exists()


def test_an_interrupted_pack_is_gone_on_with_though_the_one_beside_it_is_published(folder, tmp_path, trained):
    project = make_project(tmp_path, folder, "training.workers=2", "training.packs=2", "training.epochs=4")
    plans = trainer.plans_of(project, (), (), str(folder), None)
    (whole, begun), _ = trainer.divided(plans, project)
    train_pack(project, whole, plans[:1])
    with pytest.raises(KeyboardInterrupt):
        train_pack(project, begun, plans[1:], stop_at=10)
    only = trainer.train(project, only=["turkey"])
    assert [version.name for version in only] == ["turkey-v0001"] and trained == []
    trainer.train(project)
    assert trained == [begun]
    assert registry_of(project).aliases() == {"turkey": "turkey-v0001", "greece": "greece-v0001"}


def test_what_a_person_chose_goes_on_serving_and_the_commands_say_so(folder, tmp_path, trained, monkeypatch, capsys):
    first, second = (make_project(tmp_path, folder, f"training.rank={rank}") for rank in (4, 2))
    for project in (first, second):
        trainer.train(project)
    registry = registry_of(second)
    registry.rollback("turkey")
    versions = trainer.train(second)
    assert versions[0].name == "turkey-v0002"
    assert registry.aliases() == {"turkey": "turkey-v0001", "greece": "greece-v0002"}
    found = assembly.passed_over(second, versions)
    path = tmp_path / "project.yaml"
    monkeypatch.setattr(assembly, "load", lambda *_: second)
    monkeypatch.setattr(assembly, "train", lambda *_: versions)
    monkeypatch.setattr(assembly, "run", lambda *_: assembly.Outcome(None, None, found))
    monkeypatch.setattr(cli, "_say_no_items", lambda _: None)
    for command in ("train", "run"):
        capsys.readouterr()
        assert cli.execute([command, str(path)]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("turkey-v0002 is trained and does not serve, since turkey-v0001 was chosen by hand.")
        assert line.endswith(f"culturemanager adapters promote turkey-v0002 {path}")
    newer = make_project(tmp_path, folder, "training.rank=3")
    trainer.train(newer)
    assert registry.aliases()["turkey"] == "turkey-v0003"


def test_other_weights_in_the_base_s_folder_are_trained_on_anew_and_a_folder_that_moved_is_not(folder, tmp_path, trained):
    here, there, renamed = (tmp_path / place for place in ("here/base", "there/base", "there/other"))
    shutil.copytree(folder, here)
    project = make_project(tmp_path, here)
    versions = trainer.train(project)
    there.parent.mkdir()
    here.rename(there)
    assert trainer.train(make_project(tmp_path, there)) == versions and len(trained) == 1
    there.rename(renamed)  # the endpoint refuses a version whose base has another name
    anew = trainer.train(make_project(tmp_path, renamed))
    assert [version.name for version in anew] == ["turkey-v0002", "greece-v0002"] and len(trained) == 1
    build_tiny_model(renamed, seed=1)
    trainer.train(make_project(tmp_path, renamed))
    assert len(trained) == 2
    trainer.train(make_project(tmp_path, renamed, "base.dtype=bfloat16"))
    assert len(trained) == 3


def test_a_published_pack_leaves_its_result_and_neither_checkpoints_nor_rows(folder, tmp_path, trained, capsys):
    project = make_project(tmp_path, folder)
    versions = trainer.train(project)
    (pack,) = pack_folders(project)
    assert sorted(path.name for path in pack.iterdir()) == ["pack.json", "plan.json", "progress.json", "result"]
    console.training_plan(outlook(project))
    assert "there is nothing to do" in capsys.readouterr().out
    assert trainer.train(project) == versions and len(trained) == 1
    shutil.rmtree(Path(project.workspace_url, "adapters", "turkey-v0001"))
    assert [version.name for version in trainer.train(project)] == ["turkey-v0002", "greece-v0001"] and len(trained) == 1
