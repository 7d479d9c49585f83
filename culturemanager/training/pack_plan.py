"""How many adapters train at once, and what that takes: memory and arithmetic, known before anything is trained.

Memory is the base, what belongs to each adapter (weights, gradient and the optimizer's two moments), what the
backward pass needs of a step's tokens, and the kept outputs of the layers below. It grows with the number of
adapters, so a pack holds as many as fit; the others wait for a slot.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from culturemanager.adapters.targets import find_targets, layer_number
from culturemanager.errors import TrainingError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from culturemanager.sections.model import TrainingConfig
    from culturemanager.training.job import AdapterJob

MEMORY_SHARE = 0.8
"""Of the free memory; the rest is for what an estimate does not see."""
KEPT_SHARE = 0.25
"""Of the free memory, for what the layers below the adapters make of the rows; where it takes more it is not kept."""
STATES = 4
"""Copies of an adapter's weights: themselves, gradient, two moments."""
LOGIT_COPIES = 3
BACKWARD_SHARE = 1.8
"""Memory that a step takes at its peak, as a multiple of the layers' inputs and outputs: `benchmarks.training` measured 1.9
on a random model of 30M parameters and 1.5 on the embedded base."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class PackPlan:
    """What one pack takes. Sizes in bytes, arithmetic in floating-point operations."""

    adapters: int
    """In all."""
    at_once: int
    """How many of them share a pass; the others wait."""
    base_bytes: int
    """With ZeRO 3, a worker's piece."""
    adapter_bytes: int
    """Of all that train at once."""
    step_bytes: int
    """What one step's tokens leave for the backward pass, and their logits."""
    kept_bytes: int
    """Outputs of the layers below the adapters, if they are kept."""
    step_tokens: int
    """Most tokens of one step."""
    operations: int
    """Of the linear layers, over the whole training, without what kept outputs save."""

    @property
    def memory_bytes(self) -> int:
        return self.base_bytes + self.adapter_bytes + self.step_bytes + self.kept_bytes


def plan_pack(model: PreTrainedModel, jobs: Sequence[AdapterJob], targets: Sequence[str] | None, available_bytes: int,
              config: TrainingConfig) -> PackPlan:
    """Plan a pack.

    Args:
        model: the base; its weights are not read, so it may lie on the `meta` device.
        targets: as `AdapterBank` takes them.
        available_bytes: free memory where it will train, the base not yet loaded.
        config: `pack_size`, which is taken as it is, and how the workers share the work.

    Raises:
        TrainingError: not even one adapter fits.
    """
    wrapped, linear = find_targets(model, targets), find_targets(model, None)
    states = _states_bytes(model, jobs) if min(map(layer_number, wrapped)) > 0 else 0
    kept = states if states <= KEPT_SHARE * available_bytes else 0

    def plan(at_once: int) -> PackPlan:
        return _plan(model, jobs, wrapped, linear, at_once, kept, config)

    if config.pack_size:
        return plan(min(config.pack_size, len(jobs)))
    fitting = [size for size in range(1, len(jobs) + 1) if plan(size).memory_bytes <= MEMORY_SHARE * available_bytes]
    if not fitting:
        raise TrainingError(f"Training 1 adapter at once takes about {plan(1).memory_bytes / 2**30:.1f} GiB, and "
                            f"{MEMORY_SHARE:.0%} of {available_bytes / 2**30:.1f} GiB may be used. Lower `training.batch_size`, "
                            "adapt fewer layers with `training.last_layers`, or set `training.pack_size: 1` to try all the same.")
    return plan(fitting[-1])


def memory_of_a_worker(device: str, config: TrainingConfig) -> int:
    """Bytes that one worker may take: a GPU is its own, a machine's memory is shared by all workers that may be on it."""
    return free_memory(device) // (config.workers if device == "cpu" else 1)


def free_memory(device: str) -> int:
    """Bytes that are free on the GPU, or on this machine within the limit of its container."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()).isdigit():
        figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(figures["inactive_file"]) + int(figures["active_file"])  # given back when it is asked for
        free = min(free, int(limit) - int((group / "memory.current").read_text()) + cached)
    return free


def base_bytes(model: PreTrainedModel) -> int:
    """What the base's own weights take."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _plan(model: PreTrainedModel, jobs: Sequence[AdapterJob], wrapped: Mapping[str, nn.Module],
          linear: Mapping[str, nn.Module], at_once: int, kept_bytes: int, config: TrainingConfig) -> PackPlan:
    fans = {name: sum(module.weight.shape) for name, module in wrapped.items()}
    rank = max(job.shape.rank for job in jobs)
    # The longest rows and the largest batches may meet in one step.
    rows = [-(-min(job.batch_size, len(job.train)) // config.accumulate) for job in jobs]
    longest = [max(len(row.ids) for row in job.train) for job in jobs]
    most_labels = [max(row.label_count for row in job.train) for job in jobs]
    step_tokens = _largest(at_once, map(operator.mul, rows, longest))
    labels = _largest(at_once, map(operator.mul, rows, most_labels))
    vocabulary = model.get_input_embeddings().num_embeddings
    lowest = min(layer_number(name) for name in wrapped)
    forward = sum(module.weight.numel() for module in linear.values())
    backward = sum(module.weight.numel() for name, module in linear.items() if layer_number(name) >= lowest)
    kept = sum(fans.values())
    if config.activation_checkpointing:  # every layer's input, and one layer's insides
        layers = len({layer_number(name) for name in wrapped})
        kept = kept // layers + layers * model.config.get_text_config(decoder=True).hidden_size
        backward *= 2
    seen = sum(job.epochs * len(row.ids) for job in jobs for row in job.train)
    return PackPlan(
        adapters=len(jobs), at_once=at_once,
        base_bytes=base_bytes(model) // (config.workers // max(1, config.packs) if config.zero_stage == 3 else 1),
        kept_bytes=kept_bytes,
        adapter_bytes=at_once * STATES * FLOAT_BYTES * rank * sum(fans.values()),
        step_bytes=int(FLOAT_BYTES * (BACKWARD_SHARE * step_tokens * kept + LOGIT_COPIES * labels * vocabulary)),
        step_tokens=step_tokens, operations=2 * seen * (forward + backward))


def _states_bytes(model: PreTrainedModel, jobs: Sequence[AdapterJob]) -> int:
    """What the hidden states of every row take, of each adapter apart."""
    tokens = sum(len(row.ids) for job in jobs for row in chain(job.train, job.validation))
    return tokens * model.config.get_text_config(decoder=True).hidden_size * model.dtype.itemsize


def _largest(count: int, values: Iterable[int]) -> int:
    """Sum of the `count` largest."""
    return sum(sorted(values, reverse=True)[:count])
