"""How many adapters train at once, and what that takes: memory and arithmetic, known before anything is trained.

Memory is the base, what belongs to each adapter (weights, gradient and the optimizer's two moments), what the
backward pass needs of a step's tokens, and the kept outputs of the layers below. It grows with the number of
adapters, so a pack holds as many as fit; the others wait for a slot.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from culturemanager.adapters.targets import find_targets
from culturemanager.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from culturemanager.config import TrainingConfig
    from culturemanager.training.loop import AdapterJob

MEMORY_SHARE = 0.8
"""Of the free memory; the rest is for what an estimate does not see."""
STATES = 4
"""Copies of an adapter's weights: themselves, gradient, two moments."""
LOGIT_COPIES = 3
FLOAT_BYTES = 4


@dataclass(frozen=True)
class PackPlan:
    """What one pack takes. Sizes in bytes, arithmetic in floating-point operations."""

    adapters: int
    """In all."""
    at_once: int
    """How many of them share a pass; the others wait."""
    base_bytes: int
    adapter_bytes: int
    """Of all that train at once."""
    step_bytes: int
    """What one step's tokens leave for the backward pass, and their logits."""
    step_tokens: int
    """Most tokens of one step."""
    operations: int
    """Of the linear layers, over the whole training."""

    @property
    def memory_bytes(self) -> int:
        return self.base_bytes + self.adapter_bytes + self.step_bytes


def plan_pack(model: PreTrainedModel, jobs: Sequence[AdapterJob], targets: Sequence[str] | None, available_bytes: int,
              config: TrainingConfig) -> PackPlan:
    """Plan a pack.

    Args:
        model: the base; its weights are not read, so it may lie on the `meta` device.
        targets: as `AdapterBank` takes them.
        available_bytes: free memory where it will train, the base not yet loaded.
        config: `pack_size`, `accumulate` and `activation_checkpointing` of it.

    Raises:
        TrainingError: not even one adapter fits.
    """
    sizes = [min(config.pack_size, len(jobs))] if config.pack_size else range(1, len(jobs) + 1)
    plans = [_plan(model, jobs, targets, size, config) for size in sizes]
    fitting = [plan for plan in plans if plan.memory_bytes <= MEMORY_SHARE * available_bytes]
    if not fitting:
        needed, free = plans[0].memory_bytes / 2**30, available_bytes / 2**30
        number = f"{plans[0].at_once} adapter{'s' * (plans[0].at_once > 1)}"
        raise TrainingError(f"Training {number} at once takes about {needed:.1f} GiB, and "
                            f" {MEMORY_SHARE:.0%} of {free:.1f} GiB may be used. Lower `training.batch_size` or "
                            "`training.pack_size`, or adapt fewer layers with `training.last_layers`.")
    return fitting[-1]


def free_memory(device: str) -> int:
    """Bytes that are free on the GPU, or on this machine within the limit of its container."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def _plan(model: PreTrainedModel, jobs: Sequence[AdapterJob], targets: Sequence[str] | None, at_once: int,
          config: TrainingConfig) -> PackPlan:
    wrapped = find_targets(model, targets)
    linear = find_targets(model, None)
    fans = {name: sum(module.weight.shape) for name, module in wrapped.items()}
    rank = max(job.shape.rank for job in jobs)
    # The longest rows and the largest batches may meet in one step.
    rows = [-(-min(job.batch_size, len(job.train)) // config.accumulate) for job in jobs]
    longest = [max(len(row.ids) for row in job.train) for job in jobs]
    most_labels = [max(row.label_count for row in job.train) for job in jobs]
    step_tokens = _largest(at_once, map(operator.mul, rows, longest))
    labels = _largest(at_once, map(operator.mul, rows, most_labels))
    vocabulary = model.get_input_embeddings().num_embeddings
    lowest = min(_layer_number(name) for name in wrapped)
    forward = sum(module.weight.numel() for module in linear.values())
    backward = sum(module.weight.numel() for name, module in linear.items() if _layer_number(name) >= lowest)
    kept = sum(fans.values())
    if config.activation_checkpointing:  # every layer's input, and one layer's insides
        layers = len({_layer_number(name) for name in wrapped})
        kept = kept // layers + layers * model.config.get_text_config(decoder=True).hidden_size
        backward += forward
    seen = sum(job.epochs * len(row.ids) for job in jobs for row in job.train)
    return PackPlan(
        adapters=len(jobs), at_once=at_once,
        base_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        adapter_bytes=at_once * STATES * FLOAT_BYTES * rank * sum(fans.values()),
        step_bytes=FLOAT_BYTES * (step_tokens * kept + LOGIT_COPIES * labels * vocabulary),
        step_tokens=step_tokens, operations=2 * seen * (forward + backward))


def _largest(count: int, values: Iterable[int]) -> int:
    """Sum of the `count` largest."""
    return sum(sorted(values, reverse=True)[:count])


def _layer_number(name: str) -> int:
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else 0
