"""Trains a project's adapters under Ray Train, and publishes them.

One worker group trains a whole pack: starting a group per culture would cost more than the
training. The rows travel as files in the workspace, so a restarted worker reads the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from culturemanager.base_model import content_digest, resolve_base_model
from culturemanager.config import Project
from culturemanager.cultures import resolve_cultures
from culturemanager.errors import ConfigError, TrainingError
from culturemanager.records import AdapterVersion, Example
from culturemanager.sections.model import TrainingConfig
from culturemanager.storage import Workspace, fingerprint
from culturemanager.training.checkpoint import has_whole_checkpoint
from culturemanager.training.division import Work, divide
from culturemanager.training.pack_folder import CHECKPOINTS, pack_folders, read_plans, result_is_whole
from culturemanager.training.packs import ProgressReport, train_packs
from culturemanager.training.plan import AdapterPlan, Retrieve, plan_adapters
from culturemanager.training.publication import Publisher


def train(project: Project, only: Sequence[str] = (), extra: Sequence[str] = (), progress: ProgressReport | None = None,
          retrieve: Retrieve | None = None, connect: Callable[[], None] | None = None) -> list[AdapterVersion]:
    """Train what changed and publish it; adapters whose rows and settings did not change keep their version.

    Every version asked for serves afterwards, also one made long ago, unless a person has chosen another one since.

    Args:
        only: culture ids to train; empty for all of the project's.
        extra: comparison adapters to train too, such as ``joint``.
        retrieve: gives the passages for the ``retrieval_<culture>`` adapters.
        connect: called before Ray is used, if anything is to be trained.

    Returns:
        The current version of every adapter asked for, in that order.

    Raises:
        IncompleteStageError: the examples are not there yet.
        TrainingError: a worker group failed more often than `training.max_failures` allows, or an adapter's loss is not finite.
        KeyboardInterrupt: Ctrl-C; the next call goes on from the newest checkpoint.
    """
    from culturemanager.adapters.registry import AdapterRegistry

    base = resolve_base_model(project.base_path)
    publisher = Publisher(project, AdapterRegistry(Workspace(project.workspace_url).local_path("adapters")), base)
    plans = plans_of(project, only, extra, base, retrieve)
    failed: dict[str, str] = {}
    if missing := publisher.missing(plans):
        publisher.publish_found(missing)
        missing = publisher.missing(missing)
    if missing:
        if connect:
            connect()
        packs, workers = divided(missing, project)
        train_packs(project, packs, workers, progress)
        failed = publisher.publish(packs)
    publisher.tidy()
    if failed:
        raise _failure(failed, len(missing))
    return [publisher.version(plan) for plan in plans]


def plans_of(project: Project, only: Sequence[str], extra: Sequence[str], base: str,
             retrieve: Retrieve | None) -> list[AdapterPlan]:
    """The plans of all adapters asked for, trained before or not."""
    cultures = resolve_cultures(project.cultures)
    names = [*(_chosen(only, [culture.id for culture in cultures])), *extra]
    stage = Workspace(project.workspace_url).stage("examples")

    def read(culture: str, split: str) -> Iterator[Example]:
        return map(Example.from_row, stage.iter_rows(split=split, **({"culture": culture} if culture else {})))

    base_digest = fingerprint(content_digest(base), project.base.dtype)
    return plan_adapters(names, read, cultures, project.training, project.seed, base_digest, retrieve)


def divided(plans: Sequence[AdapterPlan], project: Project) -> tuple[dict[Path, list[AdapterPlan]], int]:
    """Which of these adapters train together: each pack's plans by its folder, and the workers of each pack.

    Packs that have been begun are gone on with, also where another division would be done sooner by now.
    """
    training = Workspace(project.workspace_url).local_path("training")
    works = [Work(plan.name, len(plan.rows["train"]), plan.rows["train"].characters, plan.batch_size, plan.epochs)
             for plan in plans]
    found = []
    for division in divide(works, project.training):
        parts = [[plan for plan in plans if plan.name in names] for names in division.packs]
        packs = {training / fingerprint(*sorted(plan.digest for plan in part))[:16]: part for part in parts}
        found.append((packs, division.workers))
    begun = next((one for one in found if all(folder.exists() for folder in one[0])), None)
    return begun or _interrupted(plans, training, project.training) or found[0]


def _interrupted(plans: Sequence[AdapterPlan], training: Path,
                 config: TrainingConfig) -> tuple[dict[Path, list[AdapterPlan]], int] | None:
    """Packs with checkpoints that hold just these adapters together: what was trained beside them is published by now."""
    left, packs = {plan.digest: plan for plan in plans}, {}
    for folder in pack_folders(training):
        digests = [plan.digest for plan in read_plans(folder)]
        if left.keys() >= set(digests) and not result_is_whole(folder) and has_whole_checkpoint(folder / CHECKPOINTS):
            packs[folder] = [left.pop(digest) for digest in digests]
    if left or len(packs) > (1 if config.zero_stage == 3 else config.workers):
        return None
    return packs, config.workers // len(packs)


def _failure(failed: Mapping[str, str], trained: int) -> TrainingError:
    every = len(failed) == trained
    return TrainingError(f"{'every adapter' if every else f'{len(failed)} adapters'} failed: "
                         + "; ".join(f"{name}: {reason}" for name, reason in failed.items())
                         + (". " if every else ". The others are published. ")
                         + "Look at the rows, or lower `training.learning_rate`.")


def _chosen(only: Sequence[str], cultures: Sequence[str]) -> list[str]:
    unknown = [name for name in only if name not in cultures]
    if unknown:
        raise ConfigError(f"--only {unknown[0]!r}: not one of the project's cultures ({', '.join(cultures)}).")
    return [culture for culture in cultures if not only or culture in only]
