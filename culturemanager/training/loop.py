"""Packed training: every adapter takes its own step in one shared forward and backward pass.

The loss is the sum over adapters of each one's own token mean, so no adapter's gradient depends on
who else is in the pack. Runs without Ray; `trainer.py` runs it under Ray Train.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PreTrainedModel

from culturemanager.adapters.bank import AdapterBank, AdapterShape
from culturemanager.errors import TrainingError
from culturemanager.training.checkpoint import newest_whole_checkpoint, save_checkpoint
from culturemanager.training.frozen_layers import FrozenLayers
from culturemanager.training.optimizer import PackedAdamW, learning_rate
from culturemanager.training.rows import Batch, TokenRow, collate, epoch_batches

EVALUATION_ROWS = 64
SEQUENCE_TOKENS = 256
"""An adapter's short rows share sequences up to this length."""
SAME_OUTPUT = 0.02
"""Largest relative difference that rounding makes (bfloat16) between a row alone and one in a shared sequence."""


@dataclass(frozen=True)
class AdapterJob:
    """One adapter's training: rows and hyperparameters of its own."""

    name: str
    train: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    shape: AdapterShape
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    patience: int = 0
    """Epochs without a better validation loss before it stops; 0 trains to the end."""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs


@dataclass
class Progress:
    """Where one adapter stands, and its curves."""

    step: int = 0
    stopped: str = ""
    """Empty while it trains; then "finished", "early stop" or the reason of a failure."""
    best_validation: float = math.inf
    epochs_without_gain: int = 0
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)


class PackLoss(nn.Module):
    """The forward pass of a pack: logits at label positions only, summed token means.

    Args:
        bank: its model's trunk and head are called apart, so that no logits are computed for prompts.
        products: type of the matrix products; the adapters' weights and the losses stay float32.
    """

    def __init__(self, bank: AdapterBank, products: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = bank.model
        self._bank = bank
        self._products = products
        self.frozen: FrozenLayers | None = None
        """Needed for batches that have states."""

    def forward(self, batches: Sequence[Batch], weights: Tensor, step: int | None) -> tuple[Tensor, Tensor]:
        """The pack's loss.

        Args:
            batches: rows of every active adapter; an adapter's stand in one batch.
            weights: [slots], one over the number of tokens that the slot's adapter predicts in this step.
            step: numbers the dropout masks; None for evaluation.

        Returns:
            The weighted sum of token losses, and each slot's sum of token losses [slots], detached.
        """
        loss, sums = torch.zeros(()), torch.zeros_like(weights)
        for batch in batches:
            losses = self._token_losses(batch.to(self.model.device), step).to(weights.device)
            loss = loss + (losses * weights[batch.label_slots]).sum()
            sums.index_add_(0, batch.label_slots, losses.detach())
        return loss, sums

    def _token_losses(self, batch: Batch, step: int | None) -> Tensor:
        """[labels], float32."""
        with torch.autocast(self.model.device.type, self._products, enabled=self._products != torch.float32):
            hidden = self._hidden(batch, step)[batch.label_sequences, batch.label_columns]
            with self._bank.rows(tuple(batch.label_slots.tolist()), step=step):
                logits = head(self.model)(hidden)
        return nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")

    def _hidden(self, batch: Batch, step: int | None) -> Tensor:
        start = contextlib.nullcontext() if batch.states is None else self.frozen.above(batch.states)
        with self._bank.rows(batch.slots, step=step, lengths=batch.lengths), start:
            return self.model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                                         position_ids=batch.position_ids, use_cache=False).last_hidden_state


@torch.no_grad()
def rows_share_sequences(bank: AdapterBank, pad_id: int) -> bool:
    """Whether the model computes a row behind another one as it does alone, given positions and a mask.

    Models with a state in place of attention do not, and rows of theirs must not share a sequence.
    """
    vocabulary = bank.model.get_input_embeddings().num_embeddings
    rows = [(0, TokenRow(tuple((7 * number + 11 * i) % vocabulary for i in range(6 + number)), 1)) for number in range(2)]
    outputs = []
    for capacity in (0, SEQUENCE_TOKENS):
        batch = collate(rows, pad_id, capacity)[0].to(bank.model.device)
        hidden = bank.model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                                       position_ids=batch.position_ids, use_cache=False).last_hidden_state
        outputs.append(hidden[batch.label_sequences, batch.label_columns].float())
    alone, together = outputs
    return bool((alone - together).abs().max() <= SAME_OUTPUT * alone.abs().max())


def head(model: PreTrainedModel) -> nn.Module:
    """The module that turns hidden states into logits."""
    return model.cls if hasattr(model, "cls") else model.get_output_embeddings()


class PackTrainer:
    """Trains a pack of adapters step by step.

    Args:
        bank: holds a free slot for every job.
        jobs: the adapters.
        engine_factory: wraps (module, optimizer) into an engine with `__call__`, `backward` and `step`,
            DeepSpeed's interface.
        pad_id: token that fills short sequences.
        products: as in `PackLoss`.
    """

    def __init__(self, bank: AdapterBank, jobs: Sequence[AdapterJob], engine_factory: Callable[[nn.Module, PackedAdamW], Any],
                 pad_id: int, checkpoint_folder: Path | None = None, checkpoint_every: int = 50,
                 products: torch.dtype = torch.float32) -> None:
        self.bank, self.pad_id = bank, pad_id
        self._capacity = SEQUENCE_TOKENS if rows_share_sequences(bank, pad_id) else 0
        self.jobs = {job.name: job for job in jobs}
        self.progress = {job.name: Progress() for job in jobs}
        self.checkpoint_folder, self.checkpoint_every = checkpoint_folder, checkpoint_every
        self.step_number = 0
        self.tokens = 0
        self._rank, self._world = _rank_and_world()
        restored = newest_whole_checkpoint(checkpoint_folder) if checkpoint_folder else None
        self._slots = {job.name: self._place(job, restored) for job in jobs}
        self.optimizer = PackedAdamW(bank.parameters(), bank.slots + 1, self._per_slot("weight_decay", 0.0),
                                     self._per_slot("clip_norm", 1.0))
        self.engine = engine_factory(PackLoss(bank, products), self.optimizer)
        if restored:
            self._restore(*restored)
        self._frozen = self.engine.module.frozen = self._frozen_layers(products)
        self._batches = {name: self._remaining(name) for name in self.jobs}

    def _frozen_layers(self, products: torch.dtype) -> FrozenLayers | None:
        """What keeps the outputs below the adapters, where that saves work.

        Every worker computes all rows once, and sees a share of them each epoch. Parameters that DeepSpeed has
        partitioned (ZeRO 3) are there inside its own passes only.
        """
        sharded = any(hasattr(parameter, "ds_id") for parameter in self.bank.model.parameters())
        if sharded or max(job.epochs for job in self.jobs.values()) <= self._world:
            return None
        rows = {self._slots[name]: [*job.train, *job.validation] for name, job in self.jobs.items()}
        layers = FrozenLayers(self.bank, rows, products, self.pad_id, self._capacity)
        return layers if layers.usable else None

    def _collated(self, rows: Sequence[tuple[int, TokenRow]]) -> list[Batch]:
        batches = collate(rows, self.pad_id, self._capacity)
        return [self._frozen.fill(batch) for batch in batches] if self._frozen else batches

    def _place(self, job: AdapterJob, restored: tuple | None) -> int:
        if restored is None:
            return self.bank.add(job.name, job.shape, seed=job.seed)
        prefix = f"adapter.{job.name}."
        tensors = {key.removeprefix(prefix): value for key, value in restored[0].items() if key.startswith(prefix)}
        return self.bank.load(job.name, job.shape, tensors, seed=job.seed)

    def _per_slot(self, attribute: str, default: float) -> list[float]:
        values = [default] * (self.bank.slots + 1)
        for name, job in self.jobs.items():
            values[self._slots[name]] = getattr(job, attribute)
        return values

    def _remaining(self, name: str) -> Iterator[list[TokenRow]]:
        """The adapter's batches from where it stands, epoch after epoch."""
        job = self.jobs[name]
        first_epoch, skip = divmod(self.progress[name].step, job.steps_per_epoch)
        for epoch in range(first_epoch, job.epochs):
            batches = list(epoch_batches(job.train, job.batch_size, job.seed, epoch))
            yield from batches[skip if epoch == first_epoch else 0:]

    @property
    def active(self) -> list[str]:
        """Adapters that still train."""
        return [name for name, progress in self.progress.items() if not progress.stopped]

    def run(self, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Train until every adapter has stopped.

        Raises:
            TrainingError: every adapter failed.
        """
        started = time.monotonic()
        while self.active:
            losses = self.train_step()
            if self.checkpoint_folder and self.step_number % self.checkpoint_every == 0:
                self.save()
            if report:
                seconds = time.monotonic() - started
                report({"step": self.step_number, "done": sum(p.step for p in self.progress.values()),
                        "total": sum(job.total_steps if not self.progress[n].stopped else self.progress[n].step
                                     for n, job in self.jobs.items()),
                        "active": len(self.active), "losses": losses, "tokens_per_second": self.tokens / seconds})
        failed = {name: p.stopped for name, p in self.progress.items() if p.stopped not in ("finished", "early stop")}
        if len(failed) == len(self.jobs):
            raise TrainingError(f"every adapter failed: {failed}. Lower `training.learning_rate` and run again.")
        if self.checkpoint_folder:
            self.save()

    def train_step(self) -> dict[str, float]:
        """One step of every active adapter.

        Returns:
            Each active adapter's loss: the mean over the tokens it predicts in this step.
        """
        names = self.active
        chosen = {name: next(self._batches[name]) for name in names}
        counts = {name: sum(row.label_count for row in rows) for name, rows in chosen.items()}
        everything = [(self._slots[name], row) for name, rows in chosen.items() for row in rows]
        mine = [(self._slots[name], row) for name, rows in chosen.items() for row in rows[self._rank::self._world]]
        # A worker without rows still takes part, with weight zero.
        batches = self._collated(mine or everything[:1])
        rates: list[float | None] = [None] * (self.bank.slots + 1)
        for name in names:
            job = self.jobs[name]
            rates[self._slots[name]] = learning_rate(
                self.progress[name].step, job.total_steps, job.learning_rate, job.warmup_share
            )
        self.optimizer.learning_rates = rates
        per_slot = torch.ones(self.bank.slots + 1)
        for name in names:
            per_slot[self._slots[name]] = counts[name]
        losses = self._backward(batches, per_slot, share=1.0 if mine else 0.0)
        self.step_number += 1
        self.tokens += sum(len(row.ids) for rows in chosen.values() for row in rows)
        return {name: self._advance(name, losses[self._slots[name]].item()) for name in names}

    def _backward(self, batches: Sequence[Batch], tokens_per_slot: Tensor, share: float) -> Tensor:
        """Forward, backward and update; returns each slot's token mean."""
        # the engine averages gradients over the workers, and the sum is wanted
        loss, sums = self.engine(batches, share * self._world / tokens_per_slot, self.step_number)
        self.engine.backward(loss)
        self.engine.step()
        sums = share * sums
        if self._world > 1:
            torch.distributed.all_reduce(sums)
        return sums / tokens_per_slot

    def _advance(self, name: str, loss: float) -> float:
        job, progress = self.jobs[name], self.progress[name]
        progress.step += 1
        progress.steps.append(progress.step)
        progress.losses.append(round(loss, 6))
        if not math.isfinite(loss):
            progress.stopped = f"the loss was {loss} at step {progress.step}"
            return loss
        if progress.step % job.steps_per_epoch == 0:
            self._end_epoch(name)
        return loss

    def _end_epoch(self, name: str) -> None:
        job, progress = self.jobs[name], self.progress[name]
        if job.validation:
            validation = self.evaluate(name)
            progress.validation_steps.append(progress.step)
            progress.validation_losses.append(round(validation, 6))
            gained = validation < progress.best_validation
            progress.best_validation = min(validation, progress.best_validation)
            progress.epochs_without_gain = 0 if gained else progress.epochs_without_gain + 1
        if progress.step >= job.total_steps:
            progress.stopped = "finished"
        elif job.patience and progress.epochs_without_gain >= job.patience:
            progress.stopped = "early stop"

    @torch.no_grad()
    def evaluate(self, name: str) -> float:
        """Token mean of the loss on the adapter's validation rows."""
        job, slot = self.jobs[name], self._slots[name]
        rows = sorted(job.validation, key=lambda row: len(row.ids))
        total = 0.0
        for start in range(0, len(rows), EVALUATION_ROWS):
            batches = self._collated([(slot, row) for row in rows[start:start + EVALUATION_ROWS]])
            total += self.engine.module(batches, torch.ones(self.bank.slots + 1), None)[1].sum().item()
        return total / sum(row.label_count for row in rows)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One adapter's weights, as `AdapterBank.tensors`."""
        return self.bank.tensors(name)

    def save(self) -> None:
        """A checkpoint of every adapter's weights, optimizer state and position."""
        if self._rank != 0 or self.checkpoint_folder is None:
            return
        tensors = {f"adapter.{name}.{key}": value for name in self.jobs for key, value in self.bank.tensors(name).items()}
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.tensors().items()}
        state = {"step_number": self.step_number, "progress": {name: vars(p) for name, p in self.progress.items()}}
        save_checkpoint(self.checkpoint_folder, self.step_number, tensors, state)

    def _restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.step_number = state["step_number"]
        self.progress = {name: Progress(**values) for name, values in state["progress"].items()}
        self.optimizer.load_tensors({key.removeprefix("optimizer."): value for key, value in tensors.items()
                                     if key.startswith("optimizer.")})


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class PlainEngine:
    """An engine without DeepSpeed, for one process: the interface `PackTrainer` needs."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self._optimizer = module, optimizer

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
