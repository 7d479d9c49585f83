"""Trains a project's adapters under Ray Train, and publishes them.

One worker group trains a whole pack: starting a group per culture would cost more than the
training. The rows travel as files in the workspace, so a restarted worker reads the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culturemanager.config import Project
from culturemanager.cultures import resolve_cultures
from culturemanager.errors import ConfigError, TrainingError
from culturemanager.records import AdapterVersion, Example
from culturemanager.storage import Workspace, fingerprint, write_json
from culturemanager.training.division import Work, divide
from culturemanager.training.pack_folder import CURVES, RESULT, read_rows
from culturemanager.training.packs import ProgressReport, train_packs
from culturemanager.training.plan import AdapterPlan, Retrieve, plan_adapters

if TYPE_CHECKING:
    from culturemanager.adapters.registry import AdapterRegistry


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
        TrainingError: a worker group failed more often than `training.max_failures` allows, or an adapter's loss is not finite.
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
        packs, workers = divided(missing, project)
        train_packs(project, packs, workers, progress)
        _publish(registry, project, packs, base)
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
    stage = Workspace(project.workspace_url).stage("examples")

    def read(culture: str, split: str) -> Iterator[Example]:
        return map(Example.from_row, stage.iter_rows(split=split, **({"culture": culture} if culture else {})))

    return plan_adapters(names, read, cultures, project.training, project.seed, fingerprint(base), retrieve)


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
    return next((one for one in found if all(folder.exists() for folder in one[0])), found[0])


def _chosen(only: Sequence[str], cultures: Sequence[str]) -> list[str]:
    unknown = [name for name in only if name not in cultures]
    if unknown:
        raise ConfigError(f"--only {unknown[0]!r}: not one of the project's cultures ({', '.join(cultures)}).")
    return [culture for culture in cultures if not only or culture in only]


def _publish(registry: AdapterRegistry, project: Project, packs: Mapping[Path, Sequence[AdapterPlan]], base: str) -> None:
    """Every trained adapter as a version of its own.

    Raises:
        TrainingError: names the adapters that failed; the others are published.
    """
    failed = {}
    for folder, plans in packs.items():
        failed |= _publish_pack(registry, project, plans, folder, base)
    if failed:
        every = len(failed) == sum(map(len, packs.values()))
        raise TrainingError(f"{'every adapter' if every else f'{len(failed)} adapters'} failed: "
                            + "; ".join(f"{name}: {reason}" for name, reason in failed.items())
                            + (". " if every else ". The others are published. ")
                            + "Look at the rows, or lower `training.learning_rate`.")


def _publish_pack(registry: AdapterRegistry, project: Project, plans: Sequence[AdapterPlan], folder: Path,
                  base: str) -> dict[str, str]:
    """Names of the adapters that failed, with the reason."""
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
            rows = len(read_rows(folder, plan.name, "train"))
            figures = {"loss": curve["losses"][-1], "validation_loss": (curve["validation_losses"] or [None])[-1],
                       "steps": curve["step"], "rows": rows, "rows_too_long": len(plan.rows["train"]) - rows}
            registry.publish(plan.name, shape, tensors, base, targets, plan.digest, figures)
    _merge_curves(folder.parent / CURVES, curves)
    return failed


def _merge_curves(path: Path, curves: dict[str, Any]) -> None:
    """Keep one curve per adapter in `training/curves.json`: the newest."""
    merged = json.loads(path.read_text()) if path.exists() else {}
    for name, curve in curves.items():
        merged[name] = {"steps": curve["steps"], "loss": curve["losses"],
                        "validation_steps": curve["validation_steps"], "validation": curve["validation_losses"]}
    write_json(path, merged)
