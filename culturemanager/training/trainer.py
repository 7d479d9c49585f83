"""Trains a project's adapters under Ray Train, and publishes them.

One worker group trains the whole pack: starting a group per culture would cost more than the
training. The rows travel as a file in the workspace, so a restarted worker reads the same ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from culturemanager.config import Project, TrainingConfig
from culturemanager.cultures import resolve_cultures
from culturemanager.errors import ConfigError, TrainingError
from culturemanager.records import AdapterVersion, Example
from culturemanager.storage import Workspace, fingerprint, write_json
from culturemanager.training.plan import AdapterPlan, Retrieve, plan_adapters
from culturemanager.training.worker import CURVES, PLAN, PROGRESS, RESULT, run_pack

ProgressReport = Callable[..., None]
"""Called with steps done, steps in all, a word for what, and the state of every adapter (`telemetry.AdapterState` as dicts)."""


def train(project: Project, only: Sequence[str] = (), extra: Sequence[str] = (), progress: ProgressReport | None = None,
          retrieve: Retrieve | None = None) -> list[AdapterVersion]:
    """Train what changed and publish it; adapters whose rows and settings did not change keep their version.

    Args:
        only: culture ids to train; empty for all of the project's.
        extra: comparison adapters to train too, such as ``joint``.
        retrieve: gives the passages for the ``retrieval_<culture>`` adapters.

    Returns:
        The current version of every adapter asked for, in that order.

    Raises:
        IncompleteStageError: the examples are not there yet.
        TrainingError: the worker group failed more often than `training.max_failures` allows.
        KeyboardInterrupt: Ctrl-C; the next call goes on from the newest checkpoint.
    """
    from culturemanager.adapters.registry import AdapterRegistry
    from culturemanager.base_model import resolve_base_model

    workspace = Workspace(project.workspace_url)
    registry = AdapterRegistry(workspace.local_path("adapters"))
    base = resolve_base_model(project.base_path)
    plans = plans_of(project, only, extra, base, retrieve)
    missing = [plan for plan in plans if registry.latest_with_digest(plan.name, plan.digest) is None]
    if missing:
        folder = workspace.local_path("training") / fingerprint(*sorted(plan.digest for plan in missing))[:16]
        _train_pack(project, missing, folder, progress)
        _publish(registry, project, missing, folder, base)
    versions = [registry.latest_with_digest(plan.name, plan.digest) for plan in plans]
    trained = {plan.name for plan in missing}
    for version in versions:
        if version.culture in trained or version.culture not in registry.aliases():
            registry.promote(version.name)
    return versions


def plans_of(project: Project, only: Sequence[str], extra: Sequence[str], base: str,
             retrieve: Retrieve | None) -> list[AdapterPlan]:
    """The plans of all adapters asked for, trained before or not."""
    cultures = resolve_cultures(project.cultures)
    names = [*(_chosen(only, [culture.id for culture in cultures])), *extra]
    examples = [Example.from_row(row) for row in Workspace(project.workspace_url).stage("examples").read_rows()]
    return plan_adapters(names, examples, cultures, project.training, project.seed, fingerprint(base), retrieve)


def _chosen(only: Sequence[str], cultures: Sequence[str]) -> list[str]:
    unknown = [name for name in only if name not in cultures]
    if unknown:
        raise ConfigError(f"--only {unknown[0]!r}: not one of the project's cultures ({', '.join(cultures)}).")
    return [culture for culture in cultures if not only or culture in only]


def _train_pack(project: Project, plans: Sequence[AdapterPlan], folder: Path, progress: ProgressReport | None) -> None:
    if (folder / RESULT / CURVES).exists():
        return
    write_json(folder / PLAN, [vars(plan) for plan in plans])
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    config = project.training
    use_gpu = config.use_gpu == "yes" or (config.use_gpu == "auto" and ray.cluster_resources().get("GPU", 0) >= config.workers)
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"folder": str(folder), "config": config.model_dump(), "base": project.base.model_dump(),
                           "base_path": project.base_path},
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=use_gpu,
                                               resources_per_worker={"CPU": config.cpus_per_worker, "GPU": int(use_gpu)}),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=ray.train.RunConfig(name=folder.name, storage_path=str(folder.parent / "ray"),
                                       failure_config=ray.train.FailureConfig(max_failures=config.max_failures)),
    )
    with _own_ctrl_c(), _Watch(folder / PROGRESS, progress):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(f"training failed: {str(error).strip().splitlines()[-1]}. "
                                "Run the same command again: it goes on from the newest checkpoint.") from error


@contextlib.contextmanager
def _own_ctrl_c() -> Iterator[None]:
    """Ctrl-C as everywhere else, while Ray Train fits and after it.

    Ray Train takes the signal over: it ends its run and then the process without a word, and keeps
    the handler when the run is over, so that a later Ctrl-C goes to a controller that is gone.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


class _Watch:
    """Passes the workers' progress file on to a progress report while the driver waits."""

    def __init__(self, path: Path, progress: ProgressReport | None) -> None:
        self._path, self._progress = path, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        if self._progress:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._progress:
            self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(0.5):
            try:
                state = json.loads(self._path.read_text())
            except (OSError, ValueError):
                continue
            self._progress(state["done"], state["total"], state["what"], state["adapters"])


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray.train

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    folder = Path(settings["folder"])
    rank = ray.train.get_context().get_world_rank()
    run_pack(folder, TrainingConfig(**settings["config"]), settings["base_path"], settings["base"]["dtype"], rank,
             report=lambda metrics: ray.train.report(metrics), use_deepspeed=True)


def _publish(registry: Any, project: Project, plans: Sequence[AdapterPlan], folder: Path, base: str) -> None:
    from safetensors.torch import load_file

    from culturemanager.adapters.bank import AdapterShape

    config = project.training
    shape = AdapterShape(config.rank, config.alpha, config.dropout)
    curves = json.loads((folder / RESULT / CURVES).read_text())
    targets = json.loads((folder / RESULT / "targets.json").read_text())
    failed = {}
    for plan in plans:
        curve = curves[plan.name]
        if curve["stopped"] not in ("finished", "early stop"):
            failed[plan.name] = curve["stopped"]
        elif registry.latest_with_digest(plan.name, plan.digest) is None:
            tensors = load_file(folder / RESULT / f"{plan.name}.safetensors")
            figures = {"loss": curve["losses"][-1], "validation_loss": (curve["validation_losses"] or [None])[-1],
                       "steps": curve["step"], "rows": len(plan.train)}
            registry.publish(plan.name, shape, tensors, base, targets, plan.digest, figures)
    _merge_curves(folder.parent / CURVES, curves)
    if failed:
        raise TrainingError(f"{len(failed)} adapters failed: "
                            + "; ".join(f"{name}: {reason}" for name, reason in failed.items())
                            + ". The others are published. Look at the rows, or lower `training.learning_rate`.")


def _merge_curves(path: Path, curves: dict[str, Any]) -> None:
    """Keep one curve per adapter in `training/curves.json`: the newest."""
    merged = json.loads(path.read_text()) if path.exists() else {}
    for name, curve in curves.items():
        merged[name] = {"steps": curve["steps"], "loss": curve["losses"],
                        "validation_steps": curve["validation_steps"], "validation": curve["validation_losses"]}
    write_json(path, merged)
