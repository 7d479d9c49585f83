"""What is seen of a training while it runs: a progress file for the terminal, TensorBoard's curves, Ray's metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboardX import SummaryWriter

from culturemanager import metrics
from culturemanager.storage import write_json
from culturemanager.training.pack_folder import PROGRESS

if TYPE_CHECKING:
    from culturemanager.training.loop import PackTrainer

EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class AdapterState:
    """One adapter at one moment."""

    name: str
    step: int
    steps: int
    loss: float | None
    """Mean over the tokens of its last step, in nats; None before the first."""
    validation_loss: float | None
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    rows_per_second: float
    state: str
    """`waiting`, `training`, or why it stopped."""


class Telemetry:
    """Follows one worker's trainer; only the first worker should have one.

    Args:
        folder: where the progress file goes, and `tensorboard/<adapter>` beside the pack's folder.
    """

    def __init__(self, trainer: PackTrainer, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._began = time.monotonic()
        self._told_at = 0.0
        self._first = {name: progress.step for name, progress in trainer.progress.items()}
        self._writers = {name: SummaryWriter(str(folder.parent / "tensorboard" / name), purge_step=step + 1)
                         for name, step in self._first.items()}

    def step(self, state: dict[str, Any]) -> None:
        """Take note of a step; `state` as `PackTrainer.run` reports it."""
        adapters = list(self._adapters())
        for adapter in adapters:
            if adapter.name in state["losses"]:
                self._write_curves(adapter)
        if state["active"] and not self._due():
            return
        losses = state["losses"].values()
        what = (f"steps, {len(losses)} adapter{'s' * (len(losses) != 1)}, mean loss {sum(losses) / len(losses):.3f}, "
                f"{state['tokens_per_second']:,.0f} tokens/s{self._trainer.origin and ', ' + self._trainer.origin}")
        self._tell(what, adapters)
        for adapter in adapters:
            if adapter.name in state["losses"]:
                metrics.gauge("culturemanager_adapter_loss", adapter.loss, adapter=adapter.name)
                metrics.gauge("culturemanager_adapter_learning_rate", adapter.learning_rate, adapter=adapter.name)
                metrics.gauge("culturemanager_adapter_gradient_norm", adapter.gradient_norm, adapter=adapter.name)
                metrics.gauge("culturemanager_adapter_rows_per_second", adapter.rows_per_second, adapter=adapter.name)

    def frozen(self, done: int, total: int) -> None:
        """Take note of the rows that have been through the layers below the adapters."""
        if done == total or self._due():
            self._tell(f"steps, {done:,} of {total:,} rows through the layers below the adapters", list(self._adapters()))

    def _due(self) -> bool:
        """Whether it is time to write again; counted from the last yes."""
        due = time.monotonic() - self._told_at >= EVERY_SECONDS
        if due:
            self._told_at = time.monotonic()
        return due

    def _tell(self, what: str, adapters: Sequence[AdapterState]) -> None:
        done, total = self._trainer.steps
        write_json(self._folder / PROGRESS, {"done": done, "total": total, "what": what,
                                             "adapters": [asdict(adapter) for adapter in adapters]})

    def close(self) -> None:
        """Write what TensorBoard has not been given yet."""
        for writer in self._writers.values():
            writer.close()

    def _write_curves(self, adapter: AdapterState) -> None:
        writer, progress = self._writers[adapter.name], self._trainer.progress[adapter.name]
        for name in ("loss", "learning_rate", "gradient_norm", "rows_per_second"):
            writer.add_scalar(name, getattr(adapter, name), adapter.step)
        if progress.validation_steps and progress.validation_steps[-1] == adapter.step:
            writer.add_scalar("validation_loss", adapter.validation_loss, adapter.step)

    def _adapters(self) -> Iterator[AdapterState]:
        trainer, seconds = self._trainer, max(1e-9, time.monotonic() - self._began)
        for name, progress in trainer.progress.items():
            job = trainer.jobs[name]
            rate, norm = trainer.last_update(name)
            rows = min(len(job.train) * job.epochs, (progress.step - self._first[name]) * job.batch_size)
            yield AdapterState(name, progress.step, job.total_steps, progress.losses[-1] if progress.losses else None,
                               progress.validation_losses[-1] if progress.validation_losses else None, rate, norm,
                               round(rows / seconds, 2), progress.stopped or ("training" if progress.step else "waiting"))
