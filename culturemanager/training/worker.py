"""What a worker runs: load the base, train the pack, write the result. Needs no Ray, except to be told of progress."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import TrainingError
from culturemanager.sections.model import TrainingConfig
from culturemanager.storage import write_json
from culturemanager.training.pack_folder import CHECKPOINTS, PACK, read_plans, read_rows, write_result
from culturemanager.training.plan import SPLITS, AdapterPlan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from culturemanager.training.job import AdapterJob
    from culturemanager.training.token_files import TokenRow


def run_pack(folder: Path, config: TrainingConfig, base_path: str, dtype: str, rank: int = 0,
             report: Callable[[dict[str, Any]], None] | None = None, use_deepspeed: bool = False,
             use_gpu: bool | None = None) -> None:
    """Train the pack prepared in `folder`, going on from its newest whole checkpoint; needs no Ray.

    Args:
        report: told of every step.
        use_gpu: what `training.use_gpu` came to; None: whether this machine has one.

    Raises:
        TrainingError: an adapter has no rows, or memory does not hold one.
        StorageError: the folder's rows are not whole.
    """
    import torch

    from culturemanager import metrics
    from culturemanager.adapters.bank import AdapterBank
    from culturemanager.base_model import load_base_model
    from culturemanager.training.deepspeed import build_engine
    from culturemanager.training.loop import PackTrainer, PlainEngine
    from culturemanager.training.precision import products_of
    from culturemanager.training.recompute import recompute_layers
    from culturemanager.training.telemetry import Telemetry

    torch.set_num_threads(config.threads_per_worker or os.cpu_count() or 1)
    device = "cuda" if (torch.cuda.is_available() if use_gpu is None else use_gpu) else "cpu"
    # A base that is shared out need not fit on one device.
    model, tokenizer = load_base_model(base_path, dtype, "cpu" if config.zero_stage == 3 else device)
    plans = read_plans(folder)
    targets = adapted_layers(model, config)
    jobs = [read_job(folder, plan, config) for plan in plans]
    at_once, keep_states = _pack_shape(folder, model, jobs, targets, config, rank, device)
    bank = AdapterBank(model, slots=at_once, max_rank=config.rank, targets=targets)
    if config.activation_checkpointing:
        recompute_layers(bank)
    rows_per_step = sum(job.batch_size for job in jobs)

    def engine(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        if use_deepspeed:
            return build_engine(module, optimizer, config, rows_per_step, device)
        return PlainEngine(module, optimizer, config.accumulate)

    trainer = PackTrainer(bank, jobs, engine, tokenizer.pad_token_id, folder / CHECKPOINTS, config.checkpoint_every,
                          products_of(config.precision, device), config.accumulate, keep_states)

    telemetry = Telemetry(trainer, folder) if rank == 0 else None

    def on_step(state: dict[str, Any]) -> None:
        if telemetry:
            telemetry.step(state)
        if report:
            report(state)

    trainer.run(on_step, telemetry.frozen if telemetry else None)
    if telemetry:
        telemetry.close()
        metrics.count("culturemanager_tokens", trainer.tokens, kind="train")
        curves = {job.name: vars(trainer.progress[job.name]) | {"rows": len(job.train)} for job in jobs}
        write_result(folder, ((plan.name, trainer.tensors(plan.name)) for plan in plans), curves, trainer.bank.targets)


def adapted_layers(model: PreTrainedModel, config: TrainingConfig) -> list[str] | None:
    """The targets that `training.last_layers` means, as `AdapterBank` takes them."""
    from culturemanager.adapters.targets import on_last_layers

    return on_last_layers(model, config.last_layers) if config.last_layers else None


def read_job(folder: Path, plan: AdapterPlan, config: TrainingConfig) -> AdapterJob:
    """`make_job` with the rows that lie in the pack's folder."""
    return make_job(plan, *(read_rows(folder, plan.name, split) for split in SPLITS), config)


def make_job(plan: AdapterPlan, train: Sequence[TokenRow], validation: Sequence[TokenRow], config: TrainingConfig) -> AdapterJob:
    """A plan with its rows as token ids.

    Raises:
        TrainingError: there are none for training, since every one is longer than `max_length`.
    """
    from culturemanager.training.job import AdapterJob

    if not train:
        raise TrainingError(f"every row of adapter {plan.name!r} is longer than {config.max_length} tokens; "
                            "raise `training.max_length`.")
    return AdapterJob(plan.name, train, validation, AdapterShape(config.rank, config.alpha, config.dropout), plan.seed,
                      plan.epochs, plan.batch_size, config.learning_rate, config.warmup_share, config.weight_decay,
                      config.clip_norm, config.early_stop_patience)


def _pack_shape(folder: Path, model: PreTrainedModel, jobs: Sequence[AdapterJob], targets: Sequence[str] | None,
                config: TrainingConfig, rank: int, device: str) -> tuple[int, bool]:
    """How many adapters share a pass, and whether the states below them are kept; the same on every worker.

    A run that goes on from a checkpoint keeps to what was decided, so that it finds the adapters in the same slots.
    """
    import torch

    from culturemanager.training.checkpoint import has_whole_checkpoint
    from culturemanager.training.pack_plan import base_bytes, memory_of_a_worker, plan_pack

    path = folder / PACK
    if path.exists() and has_whole_checkpoint(folder / CHECKPOINTS):
        decided = json.loads(path.read_text())
        at_once, keep_states = decided["at_once"], decided.get("keep_states", False)  # older packs do not say
    else:
        loaded = base_bytes(model) if model.device.type == device else 0
        plan = plan_pack(model, jobs, targets, memory_of_a_worker(device, config) + loaded, config)
        at_once, keep_states = plan.at_once, plan.kept_bytes > 0
    if torch.distributed.is_initialized():
        least = torch.tensor([at_once, keep_states], device=device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        at_once, keep_states = int(least[0]), bool(least[1])
    if rank == 0:
        write_json(path, {"at_once": at_once, "keep_states": keep_states})
    return at_once, keep_states
