"""ZeRO 3 and offloading under Ray Train: the base lies in pieces on the workers, and adapters end as in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.base_model import load_base_model
from culturemanager.config import Project
from culturemanager.sections.model import TrainingConfig
from culturemanager.training import packs, trainer
from culturemanager.training.deepspeed import held_bytes
from culturemanager.training.precision import products_of, round_weights
from tests.test_ray_training import assert_published, make_project, pack_folders, trained_quietly
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"), layers=8)


def loop_that_looks() -> Callable[[dict[str, Any]], None]:
    """The worker's own loop, which also writes to a file what the base takes there: at most, and in the end.

    It is looked at before each module's pass. Defined in here so that it travels to the workers with its code.
    """
    def loop(settings: dict[str, Any]) -> None:
        import ray.train

        from culturemanager.training import deepspeed, packs

        build, seen = deepspeed.build_engine, {}

        def build_and_look(module, *others):
            engine = build(module, *others)
            seen["model"], seen["most"] = module.model, 0

            def look(*_: object) -> None:
                seen["most"] = max(seen["most"], deepspeed.held_bytes(module.model))

            for part in module.model.modules():
                part.register_forward_pre_hook(look)
            return engine

        deepspeed.build_engine = build_and_look
        packs.train_loop_per_worker(settings)
        rank = ray.train.get_context().get_world_rank()
        Path(settings["folder"], f"held-{rank}.json").write_text(
            json.dumps([seen["most"], deepspeed.held_bytes(seen["model"])]))

    return loop


@pytest.mark.parametrize("settings", [
    ("training.activation_checkpointing=true",),
    ("training.last_layers=2", "training.pack_size=1", "training.accumulate=2", "training.offload_base=cpu"),
    ("training.activation_checkpointing=true", "training.precision=bfloat16"),
])
def test_with_zero_3_every_worker_holds_half_of_the_base(folder, tmp_path, ray_cluster, monkeypatch, settings):
    project = make_project(tmp_path, folder, "training.workers=2", "training.zero_stage=3", *settings)
    monkeypatch.setattr(packs, "train_loop_per_worker", loop_that_looks())
    trainer.train(project)
    model = load_base_model(folder)[0]
    round_weights(model, products_of(project.training.precision, "cpu"))
    whole = held_bytes(model)
    vectors = sum(parameter.nbytes for parameter in model.parameters() if parameter.dim() == 1)
    (pack,) = pack_folders(project)
    for rank in range(2):
        most, left = json.loads((pack / f"held-{rank}.json").read_text())
        assert whole / 2 <= left <= whole / 2 + vectors
        assert left < most < 0.7 * whole
    quiet = trained_quietly(project, tmp_path / "quiet")
    if project.training.precision == "float32":
        assert_published(project, quiet, 1e-3)
    else:  # a worker's share of the rows is rounded otherwise than all of them
        assert_near(project, quiet, 0.1)


def assert_near(project: Project, expected: dict[str, dict[str, torch.Tensor]], share: float) -> None:
    """Every matrix that was published is off by at most this share of it."""
    registry = AdapterRegistry(Path(project.workspace_url, "adapters"))
    for culture, weights in expected.items():
        published = registry.load(f"{culture}-v0001")[1]
        for key, tensor in weights.items():
            assert (published[key] - tensor).norm() <= share * tensor.norm(), key


def test_the_optimizer_s_state_may_lie_in_main_memory(folder, tmp_path, ray_cluster):
    project = make_project(tmp_path, folder, "training.workers=2", "training.packs=1", "training.zero_stage=2",
                           "training.offload_optimizer=cpu")
    trainer.train(project)
    assert_published(project, trained_quietly(project, tmp_path / "quiet"), 1e-3)


def test_offloading_what_is_not_shared_out_is_an_error():
    with pytest.raises(ValidationError, match="`offload_base: cpu` needs `zero_stage: 3`, not 2"):
        TrainingConfig(zero_stage=2, offload_base="cpu")
    with pytest.raises(ValidationError, match="`offload_optimizer: cpu` needs `zero_stage` 1 or 2, not 3"):
        TrainingConfig(zero_stage=3, offload_optimizer="cpu")
