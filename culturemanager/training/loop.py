"""Packed training: every adapter takes its own step in one shared forward and backward pass.

The loss is the sum over adapters of each one's own token mean, so no adapter's gradient depends on
who else is in the pack. Runs without Ray; `trainer.py` runs it under Ray Train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from culturemanager.adapters.bank import AdapterBank
from culturemanager.training.checkpoint import newest_whole_checkpoint, save_checkpoint
from culturemanager.training.frozen_layers import FrozenLayers
from culturemanager.training.job import AdapterJob, Progress
from culturemanager.training.loss import SEQUENCE_TOKENS, PackLoss, rows_share_sequences
from culturemanager.training.optimizer import PackedAdamW, learning_rate
from culturemanager.training.rows import Batch, TokenRow, collate, epoch_batches
from culturemanager.training.states_folder import STATES, StatesFolder

EVALUATION_ROWS = 64


class PackTrainer:
    """Trains a pack of adapters step by step.

    Args:
        bank: empty. With fewer slots than jobs the later ones wait, and take the slot of one that has stopped.
        jobs: the adapters.
        engine_factory: wraps (module, optimizer) into an engine with `__call__`, `backward` and `step`,
            DeepSpeed's interface.
        pad_id: token that fills short sequences.
        products: as in `PackLoss`.
        accumulate: passes that the rows of one step are spread over; the engine must know the same number.
        keep_states: memory holds what the layers below the adapters make of every row.
    """

    def __init__(self, bank: AdapterBank, jobs: Sequence[AdapterJob], engine_factory: Callable[[nn.Module, PackedAdamW], Any],
                 pad_id: int, checkpoint_folder: Path | None = None, checkpoint_every: int = 50,
                 products: torch.dtype = torch.float32, accumulate: int = 1, keep_states: bool = True) -> None:
        self.bank, self.pad_id = bank, pad_id
        self._accumulate = accumulate
        self._capacity = SEQUENCE_TOKENS if rows_share_sequences(bank, pad_id) else 0
        self.jobs = {job.name: job for job in jobs}
        self.progress = {job.name: Progress() for job in jobs}
        self.checkpoint_folder, self.checkpoint_every = checkpoint_folder, checkpoint_every
        self.step_number = 0
        self.tokens = 0
        self._rank, self._world = _rank_and_world()
        self._states_folder = StatesFolder(checkpoint_folder / STATES, products) if checkpoint_folder else None
        restored = newest_whole_checkpoint(checkpoint_folder) if checkpoint_folder else None
        self.origin = restored.origin if restored else ""
        """Which checkpoint the run goes on from, for whoever watches; empty at the beginning."""
        self._slots: dict[str, int] = {}
        """Where the adapters lie that train; one that has stopped stays until another one needs its place."""
        self._left: dict[str, dict[str, Tensor]] = {}
        """Weights of those that have stopped and made room."""
        self._frozen: FrozenLayers | None = None
        self._report_frozen: Callable[[int, int], None] | None = None
        self._batches: dict[str, Iterator[list[TokenRow]]] = {}
        self._updates: dict[str, tuple[float, float]] = {}
        self.optimizer = PackedAdamW(bank.parameters(), bank.slots + 1)
        if restored:
            self._restore(restored.tensors, restored.state)
        self._let_in()
        # The engine may copy the weights, so they are there before it is, and so is what the optimizer has of its own after it.
        self.engine = engine_factory(PackLoss(bank, products), self.optimizer)
        if restored:
            self.optimizer.load_tensors({key.removeprefix("optimizer."): value for key, value in restored.tensors.items()
                                         if key.startswith("optimizer.")})
        self._frozen = self.engine.module.frozen = self._frozen_layers(products) if keep_states else None

    def _let_in(self) -> bool:
        """Give waiting adapters the slots that are free, and those of adapters that have stopped.

        Returns:
            Whether a slot changed hands.
        """
        changed = False
        for name in [name for name, progress in self.progress.items() if not progress.stopped and name not in self._slots]:
            if len(self._slots) == self.bank.slots:
                stopped = next((other for other in self._slots if self.progress[other].stopped), None)
                if stopped is None:
                    break
                self._left[stopped] = self.bank.tensors(stopped)
                self.bank.remove(stopped)
                del self._slots[stopped]
            job = self.jobs[name]
            self._begin(job, self.bank.add(name, job.shape, seed=job.seed))
            self.optimizer.clear(self._slots[name])
            changed = True
        return changed

    def _begin(self, job: AdapterJob, slot: int) -> None:
        """Everything that is kept for the adapter in a slot."""
        self._slots[job.name] = slot
        self.optimizer.weight_decay[slot], self.optimizer.clip_norm[slot] = job.weight_decay, job.clip_norm
        self._batches[job.name] = self._remaining(job.name)
        if self._frozen:
            self._frozen.put(slot, job.name, [*job.train, *job.validation])

    def _frozen_layers(self, products: torch.dtype) -> FrozenLayers | None:
        """What keeps the outputs below the adapters, where that saves work.

        Every worker computes all rows once, and sees a share of them each epoch.
        """
        if max(job.epochs for job in self.jobs.values()) <= self._world:
            return None
        # Of several workers each computes all rows, and keeps them in its memory alone.
        folder = self._states_folder if self._world == 1 else None
        layers = FrozenLayers(self.bank, products, self.pad_id, self._capacity, folder)
        if not layers.usable():
            return None
        for name in self.active:
            layers.put(self._slots[name], name, [*self.jobs[name].train, *self.jobs[name].validation])
        return layers

    def _collated(self, rows: Sequence[tuple[int, TokenRow]]) -> list[Batch]:
        batches = collate(rows, self.pad_id, self._capacity)
        return [self._frozen.fill(batch) for batch in batches] if self._frozen else batches

    def _remaining(self, name: str) -> Iterator[list[TokenRow]]:
        """The adapter's batches from where it stands, epoch after epoch."""
        job = self.jobs[name]
        first_epoch, skip = divmod(self.progress[name].step, job.steps_per_epoch)
        for epoch in range(first_epoch, job.epochs):
            yield from epoch_batches(job.train, job.batch_size, job.seed, epoch, skip if epoch == first_epoch else 0)

    @property
    def active(self) -> list[str]:
        """Adapters that train now: in a slot, and not stopped."""
        return [name for name, slot in sorted(self._slots.items(), key=lambda one: one[1]) if not self.progress[name].stopped]

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done of all adapters, and how many there will be."""
        return (sum(progress.step for progress in self.progress.values()),
                sum(self.progress[name].step if self.progress[name].stopped else job.total_steps
                    for name, job in self.jobs.items()))

    def run(self, report: Callable[[dict[str, Any]], None] | None = None,
            report_frozen: Callable[[int, int], None] | None = None) -> None:
        """Train until every adapter has stopped; `progress` says why each one has.

        Args:
            report: told of every step.
            report_frozen: told how many rows, of how many, have been through the layers below the adapters.
        """
        self._report_frozen = report_frozen
        started = time.monotonic()
        while self.active:
            losses = self.train_step()
            if self.checkpoint_folder and self.step_number % self.checkpoint_every == 0:
                self.save()
            if report:
                seconds = time.monotonic() - started
                report({"step": self.step_number, "active": len(self.active), "losses": losses,
                        "tokens_per_second": self.tokens / seconds})
        if self.checkpoint_folder:
            self.save()
        if self._states_folder and self._rank == 0:  # one worker may have begun what several have ended
            self._states_folder.clear()

    def train_step(self) -> dict[str, float]:
        """One step of every active adapter.

        Returns:
            Each active adapter's loss: the mean over the tokens it predicts in this step.
        """
        names = self.active
        chosen = {name: next(self._batches[name]) for name in names}
        counts = {name: sum(row.label_count for row in rows) for name, rows in chosen.items()}
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
        losses = self._backward(chosen, per_slot)
        self.step_number += 1
        self.tokens += sum(len(row.ids) for rows in chosen.values() for row in rows)
        self._updates |= {name: (rates[self._slots[name]], self.optimizer.gradient_norms[self._slots[name]].item())
                          for name in names}
        told = {name: self._advance(name, losses[self._slots[name]].item(), chosen[name]) for name in names}
        if self._let_in() and hasattr(self.engine.optimizer, "refresh_fp32_params"):
            self.engine.optimizer.refresh_fp32_params()  # ZeRO steps on a copy of the weights
        return told

    def _backward(self, chosen: Mapping[str, Sequence[TokenRow]], tokens_per_slot: Tensor) -> Tensor:
        """Forward, backward and update; returns each slot's token mean."""
        if self._frozen:
            self._frozen.compute(self._report_frozen)
        sums = torch.zeros(self.bank.slots + 1)
        for part in range(self._accumulate):
            mine = [(self._slots[name], row) for name, rows in chosen.items()
                    for row in rows[self._rank::self._world][part::self._accumulate]]
            batches = [batch.numbered(self._rank + self._world * part, self._world * self._accumulate)
                       for batch in (self._collated(mine) if mine else [])]
            idle = self._passes_of_step(len(batches)) - len(batches)
            if idle:
                name, rows = next(iter(chosen.items()))
                batches += [self._collated([(self._slots[name], rows[0])])[0].numbered(0, 1).idle()] * idle
            steps = {slot: self.progress[name].step for name, slot in self._slots.items()}
            # the engine averages gradients over workers and parts, and the sum is wanted
            loss, own = self.engine(batches, self._world * self._accumulate / tokens_per_slot, steps)
            self.engine.backward(loss)
            self.engine.step()
            sums += own
        if self._world > 1:
            torch.distributed.all_reduce(sums)
        return sums / tokens_per_slot

    def _passes_of_step(self, own: int) -> int:
        """How many passes this worker makes that has rows for `own`: at least one, for every worker has to take part."""
        if not getattr(self.engine, "same_passes", False):
            return max(1, own)
        most = torch.tensor(max(1, own), device=self.bank.parameters()[0].device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    def _advance(self, name: str, loss: float, rows: Sequence[TokenRow]) -> float:
        job, progress = self.jobs[name], self.progress[name]
        progress.step += 1
        progress.steps.append(progress.step)
        progress.losses.append(round(loss, 6))
        if not math.isfinite(loss):
            numbers = sorted(job.train.index(row) + 1 for row in rows)
            progress.stopped = f"the loss was {loss} at step {progress.step}, on its rows {', '.join(map(str, numbers))}"
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
        order = sorted(range(len(job.validation)), key=lambda number: len(job.validation[number].ids))
        total, labels = 0.0, 0
        for start in range(0, len(order), EVALUATION_ROWS):
            rows = [job.validation[number] for number in order[start:start + EVALUATION_ROWS]]
            batches = self._collated([(slot, row) for row in rows])
            total += self.engine.module(batches, torch.ones(self.bank.slots + 1), None)[1].sum().item()
            labels += sum(row.label_count for row in rows)
        return total / labels

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One adapter's weights, as `AdapterBank.tensors`."""
        return self._left[name] if name in self._left else self.bank.tensors(name)

    def last_update(self, name: str) -> tuple[float, float]:
        """Learning rate and gradient norm (before clipping) of an adapter's last step; zeros before the first."""
        return self._updates.get(name, (0.0, 0.0))

    def save(self) -> None:
        """A checkpoint of every adapter's weights, optimizer state and position; every worker calls it, the first writes."""
        optimizer = self.optimizer.tensors()
        if self._rank != 0 or self.checkpoint_folder is None:
            return
        tensors = {f"adapter.{name}.{key}": value for name in [*self._slots, *self._left]
                   for key, value in self.tensors(name).items()}
        tensors |= {f"optimizer.{key}": value for key, value in optimizer.items()}
        state = {"step_number": self.step_number, "slots": self._slots,
                 "progress": {name: vars(p) for name, p in self.progress.items()}}
        save_checkpoint(self.checkpoint_folder, self.step_number, tensors, state)

    def _restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.step_number = state["step_number"]
        self.progress = {name: Progress(**values) for name, values in state["progress"].items()}
        for name in sorted(self.jobs, key=lambda name: state["slots"].get(name, 0)):
            prefix = f"adapter.{name}."
            weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if name in state["slots"]:
                self._begin(self.jobs[name], self.bank.load(name, self.jobs[name].shape, weights, seed=self.jobs[name].seed))
            elif weights:
                self._left[name] = weights


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class PlainEngine:
    """An engine without DeepSpeed, for one process: the interface `PackTrainer` needs.

    Args:
        accumulate: backward passes that make one step; each counts its share, as with DeepSpeed.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> None:
        self.module, self.optimizer = module, optimizer
        self._accumulate, self._passes = accumulate, 0

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        (loss / self._accumulate).backward()

    def step(self) -> None:
        self._passes += 1
        if self._passes % self._accumulate == 0:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
