"""Under Ray Train with a DeepSpeed engine: the same adapters as in one quiet process, also after a worker is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from culturemanager import config
from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.config import Project
from culturemanager.errors import TrainingError
from culturemanager.records import Example, to_rows
from culturemanager.storage import Workspace
from culturemanager.training import packs, trainer
from culturemanager.training.pack_folder import PLAN, RESULT, read_plans
from culturemanager.training.worker import run_pack
from tests.ray_processes import worker_processes
from tests.test_training import pairs, prepared
from tests.tiny_model import build_tiny_model
from tests.training_driver import wait_for_a_checkpoint

CULTURES = ("turkey", "greece")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def make_project(place: Path, model: Path, *overrides: str) -> Project:
    """A project of two cultures whose examples are there."""
    (place / "project.yaml").write_text(f"""
name: tiny
workspace: work
cultures: [{", ".join(CULTURES)}]
tasks: [unused.yaml]
base: {{path: {model}}}
training: {{epochs: 2, batch_size: 4, rank: 4, cpus_per_worker: 0.5, threads_per_worker: 1, learning_rate: 0.005,
            checkpoint_every: 3, precision: float32}}
""")
    project = config.load(place / "project.yaml", overrides)
    examples = [Example(f"{culture}{n}", culture, "t", {}, prompt, completion, ("p",), "u", "d", "q", "g",
                        split="train" if n % 5 else "validation")
                for seed, culture in enumerate(CULTURES) for n, (prompt, completion) in enumerate(pairs(20, seed))]
    with Workspace(project.workspace_url).stage("examples").writing("x") as draft:
        draft.write_rows(to_rows(examples))
    return project


def pack_folders(project: Project) -> list[Path]:
    """Where the project's packs were trained."""
    return [path.parent for path in Path(project.workspace_url, "training").glob(f"*/{PLAN}")]


def trained_quietly(project: Project, place: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The same plan trained in this process, without Ray and DeepSpeed and without a disturbance."""
    threads = torch.get_num_threads()
    weights = {}
    plans = {plan.name: plan for plan in trainer.plans_of(project, (), (), project.base_path, None)}
    for pack in pack_folders(project):
        own = place / pack.name
        prepared(own, [plans[plan.name] for plan in read_plans(pack)], Path(project.base_path))
        run_pack(own, project.training, project.base_path, project.base.dtype)
        weights |= {file.stem: load_file(file) for file in (own / RESULT).glob("*.safetensors")}
    torch.set_num_threads(threads)
    return weights


def assert_published(project: Project, expected: dict[str, dict[str, torch.Tensor]], tolerance: float) -> None:
    registry = AdapterRegistry(Path(project.workspace_url, "adapters"))
    for culture in CULTURES:
        weights = registry.load(f"{culture}-v0001")[1]
        for key, tensor in expected[culture].items():
            torch.testing.assert_close(weights[key], tensor, rtol=tolerance, atol=tolerance * tensor.abs().max().item())


@pytest.mark.parametrize("settings", [("training.packs=1",), ("training.packs=2",),
                                      ("training.packs=1", "training.zero_stage=2", "training.pack_size=1",
                                       "training.accumulate=2", "training.dropout=0.2")])
def test_two_workers_train_publish_and_end_as_one_process_does(folder, tmp_path, ray_cluster, settings):
    project = make_project(tmp_path, folder, "training.workers=2", *settings)
    ctrl_c = signal.getsignal(signal.SIGINT)
    versions = trainer.train(project)
    assert signal.getsignal(signal.SIGINT) is ctrl_c  # Ray Train would keep it
    assert [version.name for version in versions] == ["turkey-v0001", "greece-v0001"]
    assert trainer.train(project) == versions
    assert len(pack_folders(project)) == project.training.packs
    curves = json.loads(Path(project.workspace_url, "training", "curves.json").read_text())
    assert curves["turkey"]["loss"][-1] < curves["turkey"]["loss"][0]
    assert_published(project, trained_quietly(project, tmp_path / "quiet"), 1e-3)


def test_rows_that_ray_data_tokenises_are_those_of_the_driver(folder, tmp_path, ray_cluster, monkeypatch):
    project = make_project(tmp_path, folder)
    plans = trainer.plans_of(project, (), (), project.base_path, None)
    here = list(packs.tokenised(plans, project))
    assert sum(len(table) for table in here) == 40
    monkeypatch.setattr(packs, "TOKENISED_HERE", 39)
    monkeypatch.setattr(packs.Tokenise, "__call__", None)  # in this process; the actors have their own
    assert list(packs.tokenised(plans, project)) == here


def test_when_every_adapter_fails_training_says_so_and_publishes_none(folder, tmp_path, ray_cluster):
    project = make_project(tmp_path, folder, "training.learning_rate=1e30")
    with pytest.raises(TrainingError, match=r"every adapter failed: turkey: the loss was .*greece: .*learning_rate"):
        trainer.train(project)
    assert AdapterRegistry(Path(project.workspace_url, "adapters")).versions() == []


def test_packs_that_were_begun_are_gone_on_with_by_another_number_of_workers(folder, tmp_path):
    project, more = (make_project(tmp_path, folder, f"training.workers={workers}") for workers in (1, 2))
    plans = trainer.plans_of(project, (), (), str(folder), None)
    (begun,), one = trainer.divided(plans, project)
    packs, _ = trainer.divided(plans, more)
    assert one == 1 and len(packs) == 2
    begun.mkdir(parents=True)
    assert [list(packs) for packs, _ in (trainer.divided(plans, project), trainer.divided(plans, more))] == [[begun], [begun]]


def test_a_killed_worker_is_replaced_and_ends_with_the_same_weights(folder, tmp_path, ray_cluster):
    project = make_project(tmp_path, folder, "training.epochs=60")
    killed: list[int] = []

    def kill_the_first_worker() -> None:
        wait_for_a_checkpoint(project)
        killed.extend(worker_processes("ray::RayTrainWorker"))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first_worker, daemon=True)
    killer.start()
    trainer.train(project)
    killer.join(timeout=1)
    assert len(killed) == 1
    with contextlib.suppress(ProcessLookupError):
        pytest.fail(f"worker {killed[0]} is alive: {os.kill(killed[0], 0)}")
    assert_published(project, trained_quietly(project, tmp_path / "quiet"), 1e-4)


def test_ctrl_c_ends_the_workers_and_the_next_call_goes_on_to_the_same_weights(folder, tmp_path, ray_cluster):
    project = make_project(tmp_path, folder, "training.epochs=60")
    working: list[psutil.Process] = []
    over = threading.Event()

    def press() -> None:
        wait_for_a_checkpoint(project)
        working.extend(map(psutil.Process, worker_processes("ray::RayTrainWorker")))
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            trainer.train(project)
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
    assert working and psutil.wait_procs(working, timeout=30)[1] == []
    trainer.train(project)
    (pack,) = pack_folders(project)
    assert "gone on from step" in json.loads((pack / "progress.json").read_text())["what"]
    assert_published(project, trained_quietly(project, tmp_path / "quiet"), 1e-4)
