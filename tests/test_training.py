"""Adapters trained together end where each would end alone, and an interrupted run ends where an undisturbed one does."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from culturemanager import base_model, hub
from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.adapters.targets import on_last_layers
from culturemanager.base_model import content_digest, load_base_model
from culturemanager.errors import AdapterError, StorageError, TrainingError
from culturemanager.sections.model import TrainingConfig
from culturemanager.training import deepspeed
from culturemanager.training.checkpoint import newest_whole_checkpoint, save_checkpoint
from culturemanager.training.job import AdapterJob
from culturemanager.training.loop import PackTrainer, PlainEngine
from culturemanager.training.loss import PackLoss, rows_share_sequences
from culturemanager.training.optimizer import learning_rate
from culturemanager.training.pack_folder import Tokenise, prepare, result_is_whole, texts
from culturemanager.training.pack_plan import KEPT_SHARE, MEMORY_SHARE, plan_pack
from culturemanager.training.plan import AdapterPlan
from culturemanager.training.recompute import recompute_layers
from culturemanager.training.rows import Batch, TokenRow, collate, epoch_batches, tokenise
from culturemanager.training.text_rows import TextRows
from culturemanager.training.worker import run_pack
from tests.tiny_model import WORDS, bank_of_two, build_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [(" ".join(draw.choices(WORDS, k=draw.randint(3, 9))), " ".join(draw.choices(WORDS, k=draw.randint(1, 4))))
            for _ in range(count)]


def plan_of(name: str, train: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]] = (), **settings) -> AdapterPlan:
    rows = {"train": TextRows(lambda: iter(train)), "validation": TextRows(lambda: iter(validation))}
    return AdapterPlan(name, digest="", rows=rows, **settings)


def prepared(pack: Path, plans: Sequence[AdapterPlan], model: Path) -> None:
    """The folder of a pack, its rows tokenised here."""
    prepare(pack, plans, map(Tokenise(str(model), 64), texts(plans)))


def make_jobs(tokenizer) -> list[AdapterJob]:
    """Three adapters that differ in everything an adapter may own."""
    settings = [{"shape": AdapterShape(4, 8), "seed": 1, "epochs": 4, "batch_size": 4, "learning_rate": 5e-3},
                {"shape": AdapterShape(2, 8, dropout=0.2), "seed": 2, "epochs": 3, "batch_size": 2, "learning_rate": 1e-2,
                 "weight_decay": 0.1},
                {"shape": AdapterShape(4, 4), "seed": 3, "epochs": 8, "batch_size": 8, "learning_rate": 2e-3, "clip_norm": 0.1}]
    return [
        AdapterJob(
            f"adapter{n}", tokenise(tokenizer, pairs(20, n), 64)[0], tokenise(tokenizer, pairs(6, 50 + n), 64)[0], **values
        )
        for n, values in enumerate(settings)
    ]


def train(folder, choose=lambda jobs: jobs, stop_after: int = 0, checkpoints=None, every: int = 5):
    model, tokenizer = load_base_model(folder)
    jobs = choose(make_jobs(tokenizer))
    trainer = PackTrainer(
        AdapterBank(model, slots=len(jobs), max_rank=4), jobs, PlainEngine, tokenizer.pad_token_id, checkpoints, every
    )
    if not stop_after:
        trainer.run()
    while stop_after and trainer.step_number < stop_after:
        trainer.train_step()
        if checkpoints and trainer.step_number % every == 0:
            trainer.save()
    return trainer


def assert_same_adapter(one: PackTrainer, other: PackTrainer, name: str, tolerance: float) -> None:
    theirs = other.tensors(name)
    for key, weights in one.tensors(name).items():
        torch.testing.assert_close(weights, theirs[key], rtol=tolerance, atol=tolerance * weights.abs().max().item() + 1e-9)


def test_an_adapter_in_a_pack_ends_where_it_ends_alone(folder):
    pack = train(folder)
    for number in range(3):
        alone = train(folder, lambda jobs, n=number: [jobs[n]])
        name = f"adapter{number}"
        assert pack.progress[name].step == alone.progress[name].step >= 20
        assert_same_adapter(pack, alone, name, 1e-4)
        torch.testing.assert_close(
            torch.tensor(pack.progress[name].losses), torch.tensor(alone.progress[name].losses), rtol=1e-4, atol=1e-5
        )
        assert pack.progress[name].losses[-1] < pack.progress[name].losses[0]


@pytest.mark.parametrize("base", ["tiny", "embedded"])
def test_rows_that_share_a_sequence_are_computed_as_alone(folder, base):
    model, tokenizer = load_base_model(folder if base == "tiny" else base)
    bank = bank_of_two(model)
    assert rows_share_sequences(bank, tokenizer.pad_token_id)
    rows = [(number % 2 + 1, row) for number, row in enumerate(tokenise(tokenizer, pairs(12, 9), 64)[0])]
    losses = []
    for capacity in (0, 40):
        batches = collate(rows, tokenizer.pad_token_id, capacity)
        sequences = [length for batch in batches for length in lengths_of(batch)]
        assert len(sequences) == 12 if capacity == 0 else len(sequences) < 12 and max(sequences) <= 40
        losses.append(PackLoss(bank)(batches, torch.ones(3), None)[1])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def lengths_of(batch: Batch) -> tuple[int, ...]:
    """Tokens of each sequence."""
    return tuple(sum(len(place.row.ids) for place in batch.places if place.sequence == number)
                 for number in range(len(batch.slots)))


def row_of(tokens: int) -> tuple[int, TokenRow]:
    return 1, TokenRow(tuple(range(tokens)), tokens - 1)


@pytest.mark.parametrize("tokens, lengths", [
    ([128] * 4, (128,) * 4),  # nothing to fill: together they would only have more to look at
    ([10, 60] * 4, (70,) * 4),
    ([60, 50, 40, 90, 20, 30], (150, 140)),  # even: not 240 and 50
    ([250, 40], (250, 40)),
])
def test_an_adapter_s_rows_share_sequences_where_that_saves_padding(tokens, lengths):
    (batch,) = collate([row_of(number) for number in tokens], pad_id=0, capacity=256)
    assert lengths_of(batch) == lengths


def test_without_capacity_every_row_has_its_own_sequence():
    (alone,) = collate([row_of(30)] * 9, pad_id=0, capacity=0)
    assert lengths_of(alone) == (30,) * 9


def test_adapters_with_short_and_long_sequences_are_computed_apart():
    rows = [(slot, TokenRow(tuple(range(10)), 8)) for slot in range(1, 9)] + [(9, TokenRow(tuple(range(250)), 240))]
    short, long = collate(rows, pad_id=0, capacity=256)
    assert short.slots == tuple(range(1, 9)) and short.input_ids.shape == (8, 10)
    assert long.slots == (9,) and long.input_ids.shape == (1, 250)
    (together,) = collate(rows[:8], pad_id=0, capacity=256)
    assert together.slots == tuple(range(1, 9))


def test_bfloat16_products_end_near_float32(folder):
    model, tokenizer = load_base_model(folder)
    trainer = PackTrainer(AdapterBank(model, slots=3, max_rank=4), make_jobs(tokenizer), PlainEngine, tokenizer.pad_token_id,
                          products=torch.bfloat16)
    trainer.run()
    exact = train(folder)
    for name, progress in trainer.progress.items():
        assert progress.losses[-1] == pytest.approx(exact.progress[name].losses[-1], rel=0.1)
        assert all(tensor.dtype == torch.float32 for tensor in trainer.tensors(name).values())


def test_a_resumed_run_ends_with_the_same_weights(folder, tmp_path):
    undisturbed = train(folder)
    train(folder, stop_after=13, checkpoints=tmp_path)
    resumed = train(folder, checkpoints=tmp_path)
    assert newest_whole_checkpoint(tmp_path) is not None
    for name in undisturbed.jobs:
        assert resumed.progress[name].losses == pytest.approx(undisturbed.progress[name].losses, rel=1e-4)
        assert_same_adapter(resumed, undisturbed, name, 1e-5)


def test_a_torn_checkpoint_is_passed_over_for_the_last_whole_one(tmp_path):
    save_checkpoint(tmp_path, 5, {"a": torch.ones(4)}, {"note": "whole"})
    torn = save_checkpoint(tmp_path, 10, {"a": torch.zeros(4)}, {"note": "torn"})
    data = bytearray((torn / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (torn / "tensors.safetensors").write_bytes(data)
    (tmp_path / "step-00000015").mkdir()
    found = newest_whole_checkpoint(tmp_path)
    assert found.state["note"] == "whole" and found.tensors["a"].sum() == 4
    assert found.origin == "gone on from step 5 (step-00000015, step-00000010 not whole)"


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond `size` bytes, as it refuses on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_run_and_the_checkpoint_before_is_gone_on_from(folder, tmp_path):
    plan = plan_of("turkey", pairs(20, 1), seed=0, batch_size=2, epochs=2)
    for name in ("quiet", "full"):
        prepared(tmp_path / name, [plan], folder)
    config = TrainingConfig(rank=2, checkpoint_every=4, threads_per_worker=1)
    run_pack(tmp_path / "quiet", config, str(folder), "float32")

    def fill_the_disk(report: dict[str, int]) -> None:
        if report["step"] == 10:
            limit.enter_context(files_up_to(20_000))

    with contextlib.ExitStack() as limit, pytest.raises(StorageError, match=r"Cannot write.*step-00000012.*Free space"):
        run_pack(tmp_path / "full", config, str(folder), "float32", report=fill_the_disk)
    assert [path.name for path in sorted((tmp_path / "full" / "checkpoints").iterdir())] == ["step-00000004", "step-00000008"]
    run_pack(tmp_path / "full", config, str(folder), "float32")
    assert json.loads((tmp_path / "full" / "progress.json").read_text())["what"].endswith("gone on from step 8")
    expected, found = (load_file(tmp_path / name / "result" / "turkey.safetensors") for name in ("quiet", "full"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_diverging_adapter_stops_alone(folder):
    model, tokenizer = load_base_model(folder)
    jobs = make_jobs(tokenizer)
    bank = AdapterBank(model, slots=3, max_rank=4)
    trainer = PackTrainer(bank, jobs, PlainEngine, tokenizer.pad_token_id)
    trainer.train_step()
    with torch.no_grad():
        bank.parameters()[0][bank.names["adapter1"]] = float("nan")
    trainer.run()
    assert re.fullmatch(r"the loss was nan at step 2, on its rows \d+, \d+", trainer.progress["adapter1"].stopped)
    healthy = train(folder, lambda every: [every[0], every[2]])
    for name in ("adapter0", "adapter2"):
        assert trainer.progress[name].stopped == "finished"
        assert_same_adapter(trainer, healthy, name, 1e-4)


def test_when_every_adapter_fails_training_ends_and_says_why(folder):
    model, tokenizer = load_base_model(folder)
    bank = AdapterBank(model, slots=1, max_rank=4)
    trainer = PackTrainer(bank, make_jobs(tokenizer)[:1], PlainEngine, tokenizer.pad_token_id)
    with torch.no_grad():
        bank.parameters()[0][1] = float("nan")
    trainer.run()
    assert re.fullmatch(r"the loss was nan at step 1, on its rows .+", trainer.progress["adapter0"].stopped)


def test_adapters_on_the_last_layers_only(folder, tmp_path):
    plan = plan_of("turkey", pairs(6, 1), seed=0, batch_size=3, epochs=1)
    prepared(tmp_path, [plan], folder)
    run_pack(tmp_path, TrainingConfig(last_layers=1, rank=2), str(folder), "float32")
    adapted = {key.rpartition(".")[0] for key in load_file(tmp_path / "result" / "turkey.safetensors")}
    assert len(adapted) == 7 and all(name.startswith("model.layers.1.") for name in adapted)
    with pytest.raises(AdapterError, match=r"has 2 decoder layers.*the last 3.*training\.last_layers"):
        run_pack(tmp_path, TrainingConfig(last_layers=3), str(folder), "float32")


@pytest.mark.parametrize("file, where", [("model.safetensors", 0), ("model.safetensors", 2048), ("model.safetensors", -1),
                                         ("config.json", -2), ("chat_template.jinja", 0)])
def test_a_base_is_known_by_what_it_holds_and_not_by_its_place(folder, tmp_path, monkeypatch, file, where):
    monkeypatch.setattr(base_model, "SAMPLE_BYTES", 16)
    monkeypatch.setattr(base_model, "SAMPLED_BYTES", 1024)
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(folder, here)
    shutil.copytree(here, there)
    (there / file).touch()
    assert content_digest(str(here)) == content_digest(str(there))
    with open(there / file, "r+b") as opened:
        opened.seek(where, os.SEEK_END if where < 0 else os.SEEK_SET)
        opened.write(b"!")
    assert content_digest(str(here)) != content_digest(str(there))


def test_a_base_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    digests = []
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        monkeypatch.setattr(hub, "cached", lambda _, file, commit=commit: tmp_path / commit / file)
        digests.append(content_digest("owner/name"))
    assert digests[0] == digests[2] != digests[1]


def test_early_stop_ends_one_adapter_and_not_the_others(folder):
    model, tokenizer = load_base_model(folder)
    jobs = make_jobs(tokenizer)
    patient = AdapterJob(**{**vars(jobs[0]), "epochs": 40, "patience": 2, "learning_rate": 5e-2})
    trainer = PackTrainer(AdapterBank(model, slots=2, max_rank=4), [patient, jobs[1]], PlainEngine, tokenizer.pad_token_id)
    trainer.run()
    assert trainer.progress["adapter0"].stopped == "early stop"
    assert trainer.progress["adapter0"].step < patient.total_steps
    assert trainer.progress["adapter1"].stopped == "finished"


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[9] == 1.0 and rates[0] == 0.1 and rates[-1] < 0.02
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_batches_depend_on_seed_and_epoch_alone(folder):
    _, tokenizer = load_base_model(folder)
    rows = make_jobs(tokenizer)[0].train
    assert list(epoch_batches(rows, 4, 1, 0)) == list(epoch_batches(rows, 4, 1, 0)) != list(epoch_batches(rows, 4, 1, 1))
    assert sorted(row.ids for batch in epoch_batches(rows, 3, 1, 0) for row in batch) == sorted(row.ids for row in rows)


def test_rows_longer_than_the_limit_are_dropped_and_counted(folder):
    _, tokenizer = load_base_model(folder)
    rows, dropped = tokenise(tokenizer, [("tip", "yes"), ("tip " * 100, "no")], 64)
    assert len(rows) == 1 and dropped == 1
    assert tokenizer.decode(rows[0].ids[rows[0].prompt_length:]) == "yes <end>"


def test_adapters_that_wait_for_a_slot_end_as_they_do_at_once(folder, tmp_path):
    at_once = train(folder)
    tokenizer = load_base_model(folder)[1]

    def two_slots() -> PackTrainer:
        base = load_base_model(folder)[0]
        return PackTrainer(AdapterBank(base, slots=2, max_rank=4), make_jobs(tokenizer), PlainEngine, tokenizer.pad_token_id,
                           tmp_path, 5)

    waiting = two_slots()
    assert waiting.active == ["adapter0", "adapter1"]
    while "adapter2" not in waiting.active:
        waiting.train_step()
    waiting.train_step()
    waiting.save()
    resumed = two_slots()
    resumed.run()
    for name in at_once.jobs:
        assert resumed.progress[name].stopped == "finished"
        assert_same_adapter(resumed, at_once, name, 1e-4)


def test_a_pack_holds_as_many_adapters_as_memory_does(folder):
    model, tokenizer = load_base_model(folder)
    jobs = make_jobs(tokenizer)
    whole = plan_pack(model, jobs, None, 2**40, TrainingConfig())
    assert whole.at_once == 3 and whole.adapters == 3
    bank = AdapterBank(model, slots=3, max_rank=4)
    assert whole.adapter_bytes == pytest.approx(4 * bank.memory_bytes * 3 / 4)  # slot 0 holds no adapter
    bank.detach()
    tight = int((whole.memory_bytes - 1) / MEMORY_SHARE)
    assert plan_pack(model, jobs, None, tight, TrainingConfig()).at_once == 2
    assert plan_pack(model, jobs, None, 2**40, TrainingConfig(pack_size=1)).at_once == 1
    assert plan_pack(model, jobs, None, 0, TrainingConfig(pack_size=2)).at_once == 2  # the user's word
    with pytest.raises(TrainingError, match=r"Training 1 adapter at once takes.*batch_size"):
        plan_pack(model, jobs, None, whole.base_bytes, TrainingConfig())
    shared_out = plan_pack(model, jobs, None, 2**40, TrainingConfig(zero_stage=3, workers=2))
    assert shared_out.base_bytes == whole.base_bytes // 2
    fewer_layers = plan_pack(model, jobs, on_last_layers(model, 1), 2**40, TrainingConfig())
    assert fewer_layers.operations < whole.operations and fewer_layers.step_bytes < whole.step_bytes
    assert plan_pack(model, jobs, None, 2**40, TrainingConfig(accumulate=2)).step_bytes < whole.step_bytes
    recomputed = plan_pack(model, jobs, None, 2**40, TrainingConfig(activation_checkpointing=True))
    assert recomputed.step_bytes < whole.step_bytes and recomputed.operations > whole.operations


def test_states_below_the_adapters_are_kept_in_a_part_of_the_memory(folder):
    model, tokenizer = load_base_model(folder)
    jobs, config = make_jobs(tokenizer), TrainingConfig(pack_size=3)
    states = sum(len(row.ids) for job in jobs for row in [*job.train, *job.validation]) * model.config.hidden_size * 4
    enough = int(states / KEPT_SHARE)
    assert plan_pack(model, jobs, on_last_layers(model, 1), enough, config).kept_bytes == states
    assert plan_pack(model, jobs, on_last_layers(model, 1), enough - 4, config).kept_bytes == 0
    assert plan_pack(model, jobs, None, enough, config).kept_bytes == 0  # nothing lies below


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [0, 1])
def test_recomputed_layers_give_the_same_adapters(folder, layers, products):
    def trained(recompute: bool) -> PackTrainer:
        model, tokenizer = load_base_model(folder)
        bank = AdapterBank(model, slots=3, max_rank=4, targets=on_last_layers(model, layers) if layers else None)
        if recompute:
            recompute_layers(bank)
        trainer = PackTrainer(bank, make_jobs(tokenizer), PlainEngine, tokenizer.pad_token_id, products=products)
        assert (trainer._frozen is not None) == bool(layers)
        trainer.run()
        return trainer

    kept, recomputed = trained(False), trained(True)
    for name in kept.jobs:
        assert_same_adapter(recomputed, kept, name, 1e-5)


def test_a_step_spread_over_passes_is_the_same_step(folder):
    def dropped(jobs: list[AdapterJob]) -> list[AdapterJob]:
        return [replace(job, shape=replace(job.shape, dropout=0.2)) for job in jobs]

    whole = train(folder, dropped)
    model, tokenizer = load_base_model(folder)
    spread = PackTrainer(AdapterBank(model, slots=3, max_rank=4), dropped(make_jobs(tokenizer)),
                         lambda module, optimizer: PlainEngine(module, optimizer, 3), tokenizer.pad_token_id, accumulate=3)
    spread.run()
    for name in whole.jobs:
        assert spread.progress[name].step == whole.progress[name].step
        assert_same_adapter(spread, whole, name, 1e-3)  # sums in another order, through 24 steps of Adam


def test_the_pack_s_size_is_kept_for_a_resumed_run(folder, tmp_path):
    plans = [plan_of(name, pairs(6, seed), seed=seed, batch_size=3, epochs=1)
             for seed, name in enumerate(("turkey", "greece"))]
    prepared(tmp_path, plans, folder)
    run_pack(tmp_path, TrainingConfig(rank=2, pack_size=1), str(folder), "float32")
    assert json.loads((tmp_path / "pack.json").read_text()) == {"at_once": 1, "keep_states": False}
    run_pack(tmp_path, TrainingConfig(rank=2), str(folder), "float32")
    assert json.loads((tmp_path / "pack.json").read_text()) == {"at_once": 1, "keep_states": False}
    assert {path.stem for path in (tmp_path / "result").glob("*.safetensors")} == {"turkey", "greece"}


def test_a_pack_without_a_checkpoint_takes_another_size(folder, tmp_path):
    plans = [plan_of(name, pairs(6, seed), seed=seed, batch_size=3, epochs=1)
             for seed, name in enumerate(("turkey", "greece"))]
    prepared(tmp_path, plans, folder)
    (tmp_path / "pack.json").write_text('{"at_once": 2, "keep_states": false}')
    run_pack(tmp_path, TrainingConfig(rank=2, pack_size=1), str(folder), "float32")
    assert json.loads((tmp_path / "pack.json").read_text()) == {"at_once": 1, "keep_states": False}


@pytest.mark.parametrize("damage", ["cut", "gone", "no sums"])
def test_a_result_that_is_not_whole_is_written_again_from_the_checkpoint(folder, tmp_path, damage):
    prepared(tmp_path, [plan_of("turkey", pairs(6, 1), seed=0, batch_size=3, epochs=2)], folder)
    config = TrainingConfig(rank=2, threads_per_worker=1)
    assert not result_is_whole(tmp_path)
    run_pack(tmp_path, config, str(folder), "float32")
    assert result_is_whole(tmp_path)
    weights = tmp_path / "result" / "turkey.safetensors"
    expected = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(expected[:-8])
    else:
        (weights if damage == "gone" else weights.with_name("manifest.json")).unlink()
    assert not result_is_whole(tmp_path)
    steps: list[int] = []
    run_pack(tmp_path, config, str(folder), "float32", report=lambda state: steps.append(state["step"]))
    assert result_is_whole(tmp_path) and steps == []
    assert weights.read_bytes() == expected


def test_without_leave_no_gpu_is_used_though_the_machine_has_one(folder, tmp_path, monkeypatch):
    prepared(tmp_path, [plan_of("turkey", pairs(6, 1), seed=0, batch_size=3, epochs=1)], folder)
    devices: list[str] = []

    def build(module: torch.nn.Module, optimizer: torch.optim.Optimizer, *others: object) -> PlainEngine:
        devices.extend([others[-1], module.model.device.type])
        return PlainEngine(module, optimizer)

    monkeypatch.setattr(deepspeed, "build_engine", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run_pack(tmp_path, TrainingConfig(rank=2), str(folder), "float32", use_deepspeed=True, use_gpu=False)
    assert devices == ["cpu", "cpu"] and result_is_whole(tmp_path)


def test_a_pack_that_does_not_say_whether_states_are_kept_goes_on(folder, tmp_path):
    plans = [plan_of("turkey", pairs(6, 0), seed=0, batch_size=3, epochs=2)]
    prepared(tmp_path, plans, folder)
    run_pack(tmp_path, TrainingConfig(rank=2, last_layers=1), str(folder), "float32")
    (tmp_path / "pack.json").write_text('{"at_once": 1}')
    run_pack(tmp_path, TrainingConfig(rank=2, last_layers=1), str(folder), "float32")
    assert json.loads((tmp_path / "pack.json").read_text()) == {"at_once": 1, "keep_states": False}
    assert (tmp_path / "result" / "turkey.safetensors").exists()


def test_training_is_seen_adapter_by_adapter(folder, tmp_path):
    plans = [plan_of(name, pairs(6, seed), pairs(3, 9), seed=seed, batch_size=3, epochs=2)
             for seed, name in enumerate(("turkey", "greece"))]
    pack = tmp_path / "pack"
    prepared(pack, plans, folder)
    run_pack(pack, TrainingConfig(rank=2), str(folder), "float32")
    told = json.loads((pack / "progress.json").read_text())
    assert told["done"] == told["total"] == 8
    turkey, greece = told["adapters"]
    assert (turkey["name"], turkey["step"], turkey["steps"], turkey["state"]) == ("turkey", 4, 4, "finished")
    assert greece["rows_per_second"] > 0 and greece["gradient_norm"] > 0 and greece["validation_loss"] > 0
    curves = list(read_scalars(tmp_path / "tensorboard" / "turkey"))
    assert [step for name, step, _ in curves if name == "loss"] == [1, 2, 3, 4]
    assert [step for name, step, _ in curves if name == "validation_loss"] == [2, 4]
    assert {name for name, _, _ in curves} == {"loss", "validation_loss", "learning_rate", "gradient_norm", "rows_per_second"}
    assert next(value for name, step, value in curves if (name, step) == ("loss", 4)) == pytest.approx(turkey["loss"], rel=1e-5)


def read_scalars(run: Path) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of every scalar in a TensorBoard run: records of length, checksum, event, checksum."""
    (file,) = run.iterdir()
    data = file.read_bytes()
    start = 0
    while start < len(data):
        length = int.from_bytes(data[start:start + 8], "little")
        event = Event.FromString(data[start + 12:start + 12 + length])
        yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)
        start += length + 16
