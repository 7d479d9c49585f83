"""Ten adapters trained three ways, side by side: a trainer run ten times, our loop run ten times, one pack.

    python -m benchmarks.training --json benchmarks/results/training.json     # under 25 minutes on two quiet cores
    python -m benchmarks.training --quick                                     # only to see that it runs

(a) `trainer`: the Hugging Face Trainer with PEFT, once per adapter, as people do it; (b) `sequential`: our
loop with one adapter, once per adapter; (c) `packed`: all in one pack. Same rows in the same order, same
initial weights, same hyperparameters; the losses are compared step by step. Loading a model and wrapping
it is not timed for any of them. Every measurement runs in a process of its own, with the ways taken
in turns, so that memory peaks are each way's own. The embedded base, six times the random one's arithmetic a token,
is measured once and over fewer steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.circumstances import circumstances
from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.base_model import load_base_model
from culturemanager.sections.model import TrainingConfig
from culturemanager.storage import write_json
from culturemanager.training.job import AdapterJob
from culturemanager.training.loop import PackTrainer, PlainEngine
from culturemanager.training.optimizer import learning_rate
from culturemanager.training.pack_plan import plan_pack
from culturemanager.training.rows import TokenRow, epoch_batches

WAYS = ("trainer", "sequential", "packed")
ADAPTERS = 10
EMBEDDED_SHARE = 6
"""The embedded base gets this part of the steps: about the same arithmetic as the random one."""
SHAPE = AdapterShape(rank=8, alpha=16)
PEAK_RATE = 1e-3
COMPLETION = 4
"""Labelled tokens at the end of every row."""


@dataclasses.dataclass(frozen=True)
class Regime:
    """Rows per adapter and step, tokens a row, and how many steps are timed."""

    rows: int
    tokens: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.tokens}"


REGIMES = {regime.name: regime for regime in (Regime(1, 32, 24), Regime(2, 64, 16), Regime(4, 128, 8))}
PACK_SIZES = (1, 2, 5, 10, 20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument(
        "--repeats", type=int, default=3, help="times each way is measured; the median counts (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="two adapters and two steps; the figures mean nothing")
    parser.add_argument("--one", nargs=5, metavar=("MODEL", "WAY", "REGIME", "STEPS", "ADAPTERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        model, way, regime, steps, adapters = arguments.one
        print(json.dumps(measure(model, way, dataclasses.replace(REGIMES[regime], steps=int(steps)), int(adapters))))
        return
    started = time.monotonic()
    regimes, adapters, repeats, sizes = list(REGIMES.values()), ADAPTERS, arguments.repeats, PACK_SIZES
    if arguments.quick:
        regimes, adapters, repeats, sizes = [dataclasses.replace(one, steps=2) for one in regimes], 2, 1, PACK_SIZES[:2]
    short = regimes[:1] if arguments.quick else regimes
    short = [dataclasses.replace(regime, steps=max(2, regime.steps // EMBEDDED_SHARE)) for regime in short]
    figures: dict[str, Any] = {"regimes": [compare("random", regime, adapters, repeats) for regime in regimes],
                               "embedded": [compare("embedded", regime, adapters, repeats=1) for regime in short],
                               "pack_sizes": [pack_size(regimes[0], number) for number in sizes], "limits": limits()}
    largest = next(r for r in figures["regimes"] if r["name"] == "4x128")
    figures["limits"]["share_of_matmul_rate"] = round(
        largest["linear_flops"] / largest["seconds_packed"] / figures["limits"]["matmul_flops_per_second"], 3)
    figures["measured"] = circumstances(torch=torch.__version__, seconds=round(time.monotonic() - started))
    if arguments.json:
        write_json(arguments.json, figures)
    show(figures)


def compare(model: str, regime: Regime, adapters: int, repeats: int) -> dict[str, Any]:
    """One line of the table: every way measured `repeats` times in turns."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(repeats):
        for way in WAYS[turn % 3:] + WAYS[:turn % 3]:
            found[way].append(in_a_process(model, way, regime, adapters))
    seconds = {way: statistics.median(run["seconds"] for run in runs) for way, runs in found.items()}
    losses = {way: torch.tensor(runs[0]["losses"]) for way, runs in found.items()}
    return {"name": regime.name, "steps": regime.steps, "tokens": adapters * regime.rows * regime.tokens * regime.steps,
            **{f"seconds_{way}": round(value, 3) for way, value in seconds.items()},
            "speedup_vs_trainer": round(seconds["trainer"] / seconds["packed"], 2),
            "speedup_vs_sequential": round(seconds["sequential"] / seconds["packed"], 2),
            "max_abs_loss_difference": max((losses[way] - losses["packed"]).abs().max().item() for way in WAYS),
            "peak_rss_mb": {way: round(max(run["peak_rss_mb"] for run in runs)) for way, runs in found.items()},
            "grown_mb": found["packed"][0]["grown_mb"], "planned_mb": found["packed"][0]["planned_mb"],
            "linear_flops": found["packed"][0]["linear_flops"]}


def pack_size(regime: Regime, adapters: int) -> dict[str, Any]:
    """Time per adapter and step, and memory, of a pack of so many; beside it what `culturemanager train --plan` says."""
    run = in_a_process("random", "packed", regime, adapters)
    per_adapter = run["seconds"] / adapters / regime.steps
    return {"adapters": adapters, "milliseconds_per_adapter_and_step": round(1000 * per_adapter, 2),
            "peak_rss_mb": run["peak_rss_mb"], "grown_mb": run["grown_mb"], "planned_mb": run["planned_mb"]}


def in_a_process(model: str, way: str, regime: Regime, adapters: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--one", model, way, regime.name, str(regime.steps), str(adapters)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(model_name: str, way: str, regime: Regime, adapters: int) -> dict[str, Any]:
    """Seconds, the losses [adapters, steps], what the linear layers had to multiply, and memory.

    `grown_mb` is what the peak has over the memory before the model was there, `planned_mb` the plan's figure for it.
    """
    before = psutil.Process().memory_info().rss
    model = build_model(model_name)
    rows = [adapter_rows(number, regime, model.config.vocab_size) for number in range(adapters)]
    linear = sum(module.weight.numel() for name, module in model.named_modules()
                 if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings())
    if way == "trainer":
        seconds, losses = with_the_trainer(model, model_name, regime, rows)
    elif way == "sequential":
        parts = [with_our_loop(model, regime, [own], first=number) for number, own in enumerate(rows)]
        seconds, losses = sum(part[0] for part in parts), [part[1][0] for part in parts]
    else:
        seconds, losses = with_our_loop(model, regime, rows)
    tokens = adapters * regime.rows * regime.tokens * regime.steps
    # forward, and backward to the activations: two products of two operations each
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = plan_pack(model, jobs(regime, rows), None, 0, TrainingConfig(rank=SHAPE.rank, pack_size=adapters))
    return {"seconds": seconds, "losses": losses, "linear_flops": 4 * linear * tokens, "peak_rss_mb": peak >> 20,
            "grown_mb": (peak - before) >> 20, "planned_mb": plan.memory_bytes >> 20}


def build_model(name: str) -> PreTrainedModel:
    """`embedded`, or `random`: a Llama shape of 30M parameters with a vocabulary of 32,000."""
    if name == "embedded":
        model = load_base_model(name)[0]
        for module in model.modules():  # the Trainer would turn the base's own dropout on
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32_000, hidden_size=384, intermediate_size=1024, num_hidden_layers=10, num_attention_heads=6,
                         num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def adapter_rows(number: int, regime: Regime, vocabulary: int) -> list[TokenRow]:
    """Random rows of one adapter, one batch a step."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(5, vocabulary, (regime.rows * regime.steps, regime.tokens), generator=draw)
    return [TokenRow(tuple(row), regime.tokens - COMPLETION) for row in ids.tolist()]


def with_our_loop(model: PreTrainedModel, regime: Regime, rows: Sequence[list[TokenRow]],
                  first: int = 0) -> tuple[float, list[list[float]]]:
    """One pack over `rows`; adapters are numbered from `first`."""
    bank = AdapterBank(model, slots=len(rows), max_rank=SHAPE.rank)
    trainer = PackTrainer(bank, jobs(regime, rows, first), PlainEngine, pad_id=0)
    started = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - started
    losses = [progress.losses for progress in trainer.progress.values()]
    bank.detach()
    return seconds, losses


def jobs(regime: Regime, rows: Sequence[list[TokenRow]], first: int = 0) -> list[AdapterJob]:
    return [AdapterJob(str(first + i), own, (), SHAPE, first + i, 1, regime.rows, PEAK_RATE) for i, own in enumerate(rows)]


def with_the_trainer(model: PreTrainedModel, model_name: str, regime: Regime,
                     rows: Sequence[list[TokenRow]]) -> tuple[float, list[list[float]]]:
    """The Hugging Face Trainer with PEFT, one adapter after another on a fresh base."""
    from peft import LoraConfig, get_peft_model
    from peft.utils import set_peft_model_state_dict
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()

    class Losses(TrainerCallback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_log(self, args, state, control, logs=None, **_) -> None:
            if "loss" in (logs or {}):
                self.found.append(float(logs["loss"]))

    seconds, losses = 0.0, []
    for number, own in enumerate(rows):
        bank = AdapterBank(model, slots=1, max_rank=SHAPE.rank)
        bank.add(str(number), SHAPE, seed=number)
        start, targets = bank.tensors(str(number)), list(bank.targets)
        bank.detach()
        wrapped = get_peft_model(
            build_model(model_name), LoraConfig(r=SHAPE.rank, lora_alpha=SHAPE.alpha, target_modules=targets)
        )
        set_peft_model_state_dict(wrapped, {f"base_model.model.{key}.weight": value for key, value in start.items()})
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=PEAK_RATE, weight_decay=0.0,
                                      fused=True)  # as the trainer's own default is
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, regime.steps, 1.0, 0.05))
        # our loop's order, so that both see the same batches
        order = [row for batch in epoch_batches(own, regime.rows, number, 0) for row in batch]
        callback = Losses()
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=regime.rows, num_train_epochs=1, max_grad_norm=1.0,
                train_sampling_strategy="sequential", logging_steps=1, logging_nan_inf_filter=False, save_strategy="no",
                report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, remove_unused_columns=False)
            trainer = Trainer(wrapped, settings, train_dataset=[as_features(row) for row in order],
                              optimizers=(optimizer, schedule), callbacks=[callback])
            wrapped.eval()
            started = time.perf_counter()
            trainer.train()
            seconds += time.perf_counter() - started
        losses.append(callback.found)
    return seconds, losses


def as_features(row: TokenRow) -> dict[str, list[int]]:
    """A row as the Trainer takes it, its prompt masked."""
    ids = list(row.ids)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * row.prompt_length + ids[row.prompt_length:]}


def limits() -> dict[str, Any]:
    """The rate of the machine's own matrix product at the shapes of the largest regime."""
    inputs, weight = torch.randn(ADAPTERS * 4 * 128, 384), torch.randn(384, 1024)
    rates = []
    for _ in range(30):
        started = time.perf_counter()
        inputs @ weight
        rates.append(2 * inputs.numel() * weight.shape[1] / (time.perf_counter() - started))
    return {"matmul_flops_per_second": statistics.median(rates)}


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"Adapters of rank {SHAPE.rank} on all linear layers, trained in three ways; seconds")
    for column in ("model", "rows x tokens", "trainer", "sequential", "packed", "vs trainer", "vs sequential", "loss difference"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, lines in (("random 30M", figures["regimes"]), ("embedded", figures["embedded"])):
        for line in lines:
            table.add_row(model, line["name"], *(f"{line[f'seconds_{way}']:.1f}" for way in WAYS),
                          f"{line['speedup_vs_trainer']:.1f}x", f"{line['speedup_vs_sequential']:.1f}x",
                          f"{line['max_abs_loss_difference']:.1e}")
    console = Console()
    console.print(table)
    for line in figures["pack_sizes"]:
        console.print(f"{line['adapters']:3d} adapters: {line['milliseconds_per_adapter_and_step']:.1f} ms each a step, "
                      f"{line['peak_rss_mb']} MB at most, {line['grown_mb']} of them for the training "
                      f"({line['planned_mb']} planned)")
    rate = figures["limits"]
    console.print(f"matrix product {rate['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s; packed 4x128 reached "
                  f"{rate['share_of_matmul_rate']:.2f} of it in the linear layers")


if __name__ == "__main__":
    main()
