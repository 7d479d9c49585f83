"""What lies below the lowest adapter is computed once for a row, and training ends where it would have ended anyway."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GemmaConfig, GemmaForCausalLM

from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.adapters.targets import on_last_layers
from culturemanager.base_model import load_base_model
from culturemanager.training import frozen_layers, loop
from culturemanager.training.frozen_layers import FrozenLayers
from culturemanager.training.loop import AdapterJob, PackTrainer, PlainEngine
from culturemanager.training.rows import tokenise
from culturemanager.training.states_folder import STATES
from tests.test_training import assert_same_adapter, pairs
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def build_trainer(folder, epochs: int = 3, keep_states: bool = True, checkpoints: Path | None = None,
                  products: torch.dtype = torch.float32) -> PackTrainer:
    model, tokenizer = load_base_model(folder)
    jobs = [AdapterJob(name, tokenise(tokenizer, pairs(20, seed), 64)[0], tokenise(tokenizer, pairs(6, 50 + seed), 64)[0],
                       AdapterShape(4, 8, dropout=0.1), seed, epochs, 4, 5e-3) for seed, name in enumerate(("turkey", "greece"))]
    bank = AdapterBank(model, slots=2, max_rank=4, targets=on_last_layers(model, 1))
    return PackTrainer(bank, jobs, PlainEngine, tokenizer.pad_token_id, checkpoints, products=products,
                       keep_states=keep_states)


def count_forwards(module: torch.nn.Module) -> list[int]:
    """A list that grows by the rows of every real pass through the module."""
    rows: list[int] = []
    module.mlp.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    return rows


def test_the_frozen_layers_see_an_adapter_s_rows_once(folder):
    trainer = build_trainer(folder)
    below, above = (count_forwards(layer) for layer in trainer.bank.model.model.layers)
    trainer.train_step()
    first = len(below)
    assert first > 0
    trainer.run()
    assert len(below) == first and len(above) > 2 * first


def test_the_rows_that_have_been_through_are_told_before_the_first_step(folder, monkeypatch):
    monkeypatch.setattr(frozen_layers, "TOKENS_AT_ONCE_ON_CPU", 100)
    trainer = build_trainer(folder)
    told: list[object] = []
    trainer.run(lambda state: told.append(state["step"]), lambda done, total: told.append((done, total)))
    rows = sum(len({*job.train, *job.validation}) for job in trainer.jobs.values())
    before = told[:told.index(1)]
    assert [total for _, total in before] == [rows] * len(before) and len(before) > 4
    assert [done for done, _ in before] == sorted(done for done, _ in before) and before[-1] == (rows, rows)
    assert all(isinstance(one, int) for one in told[len(before):])


def test_training_from_kept_states_ends_where_it_ends_without_them(folder):
    kept = build_trainer(folder)
    assert kept._frozen is not None
    kept.run()
    computed = build_trainer(folder, keep_states=False)
    assert computed._frozen is None
    computed.run()
    for name in ("turkey", "greece"):
        assert_same_adapter(kept, computed, name, 1e-4)
        assert kept.progress[name].validation_losses == pytest.approx(computed.progress[name].validation_losses, rel=1e-4)


def test_an_interrupted_training_goes_on_from_the_states_it_has_kept(folder, tmp_path):
    undisturbed = build_trainer(folder)
    undisturbed.run()
    interrupted = build_trainer(folder, checkpoints=tmp_path)
    for _ in range(3):
        interrupted.train_step()
    interrupted.save()
    resumed = build_trainer(folder, checkpoints=tmp_path)
    below = count_forwards(resumed.bank.model.model.layers[0])
    told: list[tuple[int, int]] = []
    resumed.run(report_frozen=lambda done, total: told.append((done, total)))
    rows = sum(len({*job.train, *job.validation}) for job in resumed.jobs.values())
    assert resumed.step_number == undisturbed.step_number and below == [] and told[-1] == (rows, rows)
    for name in ("turkey", "greece"):
        assert_same_adapter(undisturbed, resumed, name, 1e-6)
    assert not (tmp_path / STATES).exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "no sum"])
def test_states_that_are_not_whole_are_computed_again(folder, tmp_path, damage):
    first = build_trainer(folder, checkpoints=tmp_path)
    first.train_step()
    file = tmp_path / STATES / "greece.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[:-8] + b"\x01" * 8)
    else:
        file.with_suffix(".json").unlink()
    again = build_trainer(folder, checkpoints=tmp_path)
    below = count_forwards(again.bank.model.model.layers[0])
    losses = again.train_step()
    assert below and losses == pytest.approx(build_trainer(folder).train_step(), rel=1e-6)


def test_states_of_other_matrix_products_are_computed_again(folder, tmp_path):
    build_trainer(folder, checkpoints=tmp_path).train_step()
    again = build_trainer(folder, checkpoints=tmp_path, products=torch.bfloat16)
    below = count_forwards(again.bank.model.model.layers[0])
    again.train_step()
    assert below
    same = build_trainer(folder, checkpoints=tmp_path, products=torch.bfloat16)
    below = count_forwards(same.bank.model.model.layers[0])
    same.train_step()
    assert below == []


def test_states_that_one_worker_kept_are_removed_when_two_have_ended(folder, tmp_path, monkeypatch):
    first = build_trainer(folder, checkpoints=tmp_path)
    first.train_step()
    first.save()
    monkeypatch.setattr(loop, "_rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)
    build_trainer(folder, checkpoints=tmp_path).run()
    assert not (tmp_path / STATES).exists()


def test_states_that_cannot_be_written_are_kept_in_memory(folder, tmp_path):
    (tmp_path / STATES).write_text("no folder")
    trainer = build_trainer(folder, checkpoints=tmp_path)
    trainer.run()
    assert all(progress.stopped == "finished" for progress in trainer.progress.values())


def test_states_leave_room_on_the_disk(folder, tmp_path, monkeypatch):
    states, disk = tmp_path / STATES, 10**6

    def left(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=disk - sum(file.stat().st_size for file in path.iterdir()))

    monkeypatch.setattr(shutil, "disk_usage", left)
    build_trainer(folder, checkpoints=tmp_path).train_step()
    sizes = [file.stat().st_size for file in states.glob("*.safetensors")]
    shutil.rmtree(states)
    disk = 4 * sum(sizes) - 4 * min(sizes) // 2  # a quarter has room for one adapter and a half
    build_trainer(folder, checkpoints=tmp_path).train_step()
    assert [file.name for file in states.glob("*.safetensors")] == ["turkey.safetensors"]


def test_one_epoch_keeps_nothing(folder):
    assert build_trainer(folder, epochs=1)._frozen is None


def test_adapters_on_every_layer_leave_nothing_to_keep(folder):
    model, _ = load_base_model(folder)
    assert not FrozenLayers(AdapterBank(model, slots=1, max_rank=2), torch.float32, 0, 64).usable()


@pytest.mark.parametrize(("model_class", "config", "usable"), [
    (GemmaForCausalLM, GemmaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                                   num_attention_heads=2, num_key_value_heads=1, head_dim=8), True),
    (BloomForCausalLM, BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2), False),
])
def test_a_model_that_passes_on_more_than_one_tensor_is_computed_whole(model_class, config, usable):
    torch.manual_seed(0)
    model = model_class(config).eval()
    bank = AdapterBank(model, slots=1, max_rank=2, targets=on_last_layers(model, 1))
    assert FrozenLayers(bank, torch.float32, 0, 0).usable() is usable
