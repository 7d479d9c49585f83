"""Packs under Ray Train, side by side: prepared, trained, watched, and stopped by Ctrl-C."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culturemanager.config import Project
from culturemanager.errors import TrainingError
from culturemanager.sections.model import TrainingConfig
from culturemanager.training.pack_folder import PROGRESS, Tokenise, is_prepared, prepare, result_is_whole, texts
from culturemanager.training.plan import AdapterPlan
from culturemanager.training.worker import read_job, run_pack

if TYPE_CHECKING:
    import pyarrow as pa

ProgressReport = Callable[..., None]
"""Called with steps done, steps in all, a word for what, and the state of every adapter (`telemetry.AdapterState` as dicts)."""
TOKENISED_HERE = 20_000
"""Rows up to which the driver tokenises them itself: it does some 4,000 a second, while Ray Data's actors take 8 seconds to
start."""
TOKENISERS = 2
"""Ray Data actors that tokenise rows, at most."""
TOKENISER_CPUS = 0.5
TABLES_AT_ONCE = 100
"""Tables of texts that are handed to Ray Data together: its object store holds no more of them."""


def train_packs(project: Project, packs: dict[Path, Sequence[AdapterPlan]], workers: int,
                progress: ProgressReport | None = None) -> None:
    """Train the packs side by side; those that are trained already are left as they are.

    Args:
        packs: the plans of each pack by its folder.
        workers: of each pack.

    Raises:
        TrainingError: an adapter has no rows; or a worker group failed more often than `training.max_failures` allows, while
            the other packs were trained to the end.
        KeyboardInterrupt: Ctrl-C; the next call goes on from the newest checkpoints.
    """
    import ray

    waiting = {folder: plans for folder, plans in packs.items() if not result_is_whole(folder)}
    for folder, plans in waiting.items():
        if not is_prepared(folder):
            prepare(folder, plans, tokenised(plans, project))
        for plan in plans:
            read_job(folder, plan, project.training)  # what is wrong with the rows shows here, and not in every worker
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(PackFitter)
    fitters = [actor.remote(str(folder), project, _uses_gpus(project.training), workers) for folder in waiting]
    try:
        with _Watch([folder / PROGRESS for folder in waiting], progress):
            failures = list(filter(None, ray.get([fitter.fit.remote(train_loop_per_worker) for fitter in fitters])))
    except BaseException as error:
        for fitter in fitters:
            ray.kill(fitter)  # its workers end with it
        if isinstance(error, ray.exceptions.RayError):
            raise _failed(str(error)) from error
        raise
    if failures:
        raise _failed(failures[0])


def _failed(reason: str) -> TrainingError:
    return TrainingError(f"training failed: {reason.strip().splitlines()[-1]}. "
                         "Run the same command again: it goes on from the newest checkpoint.")


def tokenised(plans: Sequence[AdapterPlan], project: Project) -> Iterator[pa.Table]:
    """The plans' rows as tables of token ids, in their order, one after another; if they are many, from Ray Data."""
    tables = texts(plans)
    if sum(len(rows) for plan in plans for rows in plan.rows.values()) <= TOKENISED_HERE:
        yield from map(Tokenise(project.base_path, project.training.max_length), tables)
        return
    import ray.data

    while parts := list(islice(tables, TABLES_AT_ONCE)):
        dataset = ray.data.from_arrow(parts)
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        actors = ray.data.ActorPoolStrategy(size=min(TOKENISERS, len(parts)))
        yield from dataset.map_batches(
            Tokenise, fn_constructor_args=(project.base_path, project.training.max_length), batch_size=None,
            batch_format="pyarrow", num_cpus=TOKENISER_CPUS, compute=actors,
        ).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _uses_gpus(config: TrainingConfig) -> bool:
    import ray

    return config.use_gpu == "yes" or (config.use_gpu == "auto" and ray.cluster_resources().get("GPU", 0) >= config.workers)


class PackFitter:
    """Ray actor: fits one pack with a worker group of its own.

    Ray Train takes Ctrl-C over in the process that fits, and keeps it; so it gets one for that.
    """

    def __init__(self, folder: str, project: Project, use_gpu: bool, workers: int) -> None:
        self._folder, self._project = Path(folder), project
        self._use_gpu, self._workers = use_gpu, workers

    def fit(self, loop: Callable[[dict[str, Any]], None]) -> str:
        """Train to the end, every worker running `loop`; what went wrong, or nothing."""
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        logging.getLogger("ray.train").setLevel(logging.ERROR)
        config, base = self._project.training, self._project.base
        trainer = TorchTrainer(
            loop,
            train_loop_config={"folder": str(self._folder), "config": config.model_dump(), "dtype": base.dtype,
                               "base_path": self._project.base_path, "use_gpu": self._use_gpu},
            scaling_config=ray.train.ScalingConfig(num_workers=self._workers, use_gpu=self._use_gpu, resources_per_worker={
                "CPU": config.cpus_per_worker, "GPU": int(self._use_gpu)}),
            torch_config=TorchConfig(backend="nccl" if self._use_gpu else "gloo"),
            run_config=ray.train.RunConfig(name=self._folder.name, storage_path=str(self._folder.parent / "ray"),
                                           failure_config=ray.train.FailureConfig(max_failures=config.max_failures)),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return str(error)
        return ""


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs.

    Nothing is reported to Ray Train: it takes a report every two seconds, and until then it would hold all workers.
    """
    import ray.train

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    rank = ray.train.get_context().get_world_rank()
    run_pack(Path(settings["folder"]), TrainingConfig(**settings["config"]), settings["base_path"], settings["dtype"], rank,
             use_deepspeed=True, use_gpu=settings["use_gpu"])


class _Watch:
    """Passes the workers' progress files on to a progress report while the driver waits."""

    def __init__(self, paths: Sequence[Path], progress: ProgressReport | None) -> None:
        self._paths, self._progress = paths, progress
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
        states: dict[Path, dict[str, Any]] = {}
        while not self._done.wait(0.5):
            for path in self._paths:
                try:
                    states[path] = json.loads(path.read_text())
                except (OSError, ValueError):
                    continue
            if states:
                told = list(states.values())
                self._progress(sum(state["done"] for state in told), sum(state["total"] for state in told),
                               "; ".join(state["what"] for state in told),
                               [adapter for state in told for adapter in state["adapters"]])
