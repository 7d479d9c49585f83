"""What training would do: which adapters, how many at once, how much memory and arithmetic."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from culturemanager.config import Project
from culturemanager.storage import Workspace
from culturemanager.training.pack_folder import Tokenise, prepare, texts
from culturemanager.training.plan import Retrieve
from culturemanager.training.publication import Publisher
from culturemanager.training.trainer import divided, plans_of
from culturemanager.training.worker import adapted_layers, read_job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from culturemanager.sections.model import TrainingConfig
    from culturemanager.training.pack_plan import PackPlan

PRODUCT_SHARE = 0.4
"""What a whole training reaches of the rate of one matrix product: measured with the embedded example on two cores."""


@dataclass(frozen=True)
class AdapterOutlook:
    """One adapter's work, and the version that makes it unnecessary, if there is one."""

    name: str
    rows: int
    tokens: int
    longest: int
    """Tokens of its longest row."""
    steps: int
    version: str


@dataclass(frozen=True)
class Outlook:
    """What `train` would do."""

    adapters: tuple[AdapterOutlook, ...]
    packs: tuple[PackPlan, ...]
    """Those that would train side by side; none if no adapter needs training."""
    workers: int
    """Of each pack."""
    free_bytes: int
    """Of one worker."""
    seconds: float
    """About how long it takes here, from the rate of a matrix product measured just now."""


def outlook(project: Project, only: Sequence[str] = (), extra: Sequence[str] = (), retrieve: Retrieve | None = None) -> Outlook:
    """Plan as `train` does, without training: which adapters, how many at once, how much memory and arithmetic.

    Raises:
        IncompleteStageError: the examples are not there yet.
        TrainingError: not even one adapter fits into memory.
    """
    with tempfile.TemporaryDirectory() as folder:  # the rows as token ids: files, for memory might not hold them
        return _outlook(Path(folder), project, only, extra, retrieve)


def _outlook(folder: Path, project: Project, only: Sequence[str], extra: Sequence[str], retrieve: Retrieve | None) -> Outlook:
    import torch

    from culturemanager.adapters.registry import AdapterRegistry
    from culturemanager.base_model import load_outline, resolve_base_model
    from culturemanager.training.pack_plan import memory_of_a_worker, plan_pack

    config = project.training
    base = resolve_base_model(project.base_path)
    plans = plans_of(project, only, extra, base, retrieve)
    publisher = Publisher(project, AdapterRegistry(Workspace(project.workspace_url).local_path("adapters")), base)
    model = load_outline(project.base_path).to(getattr(torch, project.base.dtype))
    prepare(folder, plans, map(Tokenise(project.base_path, config.max_length), texts(plans)))
    jobs = {plan.name: read_job(folder, plan, config) for plan in plans}
    known = {plan.name: publisher.version(plan) for plan in plans}
    adapters = tuple(AdapterOutlook(name, len(job.train), sum(len(row.ids) for row in job.train),
                                    max(len(row.ids) for row in job.train), job.total_steps,
                                    known[name].name if known[name] else "") for name, job in jobs.items())
    device = device_here(config)
    free = memory_of_a_worker(device, config)
    missing = [plan for plan in plans if known[plan.name] is None]
    if not missing:
        return Outlook(adapters, (), config.workers, free, 0.0)
    parts, workers = divided(missing, project)
    targets = adapted_layers(model, config)
    packs = tuple(plan_pack(model, [jobs[plan.name] for plan in part], targets, free, config) for part in parts.values())
    operations = max(pack.operations for pack in packs) / workers
    return Outlook(adapters, packs, workers, free, operations / (PRODUCT_SHARE * _products_per_second(model, device)))


def device_here(config: TrainingConfig) -> str:
    """Where a worker on this machine would train: `cuda` or `cpu`."""
    import torch

    return "cuda" if config.use_gpu != "no" and torch.cuda.is_available() else "cpu"


def _products_per_second(model: PreTrainedModel, device: str) -> float:
    """Floating-point operations a second of a matrix product like the model's, in its precision on this machine."""
    import torch

    width = model.config.get_text_config(decoder=True).hidden_size
    inputs = torch.randn(1024, width, device=device, dtype=model.dtype)
    weight = torch.randn(width, 4 * width, device=device, dtype=model.dtype)
    rates = []
    for _ in range(10):
        started = time.perf_counter()
        (inputs @ weight).sum().item()
        rates.append(2 * inputs.numel() * weight.shape[1] / (time.perf_counter() - started))
    return max(rates)
