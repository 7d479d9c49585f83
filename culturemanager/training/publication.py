"""What packs have trained becomes adapter versions that serve, and what the packs needed to go on is removed."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from culturemanager.adapters.shape import AdapterShape
from culturemanager.config import Project
from culturemanager.records import AdapterVersion
from culturemanager.storage import Workspace, write_json
from culturemanager.training.pack_folder import (
    CHECKPOINTS,
    CURVES,
    RESULT,
    ROWS,
    TARGETS,
    pack_folders,
    read_plans,
    result_is_whole,
)
from culturemanager.training.plan import AdapterPlan

if TYPE_CHECKING:
    from culturemanager.adapters.registry import AdapterRegistry


class Publisher:
    """Publishes what was trained on one base, and lets it serve as far as no person has chosen otherwise.

    Args:
        base: the base model's folder or hub name.
    """

    def __init__(self, project: Project, registry: AdapterRegistry, base: str) -> None:
        self._config, self._registry, self._base = project.training, registry, base
        self._training = Workspace(project.workspace_url).local_path("training")

    @functools.cached_property
    def _base_digest(self) -> str:
        from culturemanager.base_model import content_digest

        return content_digest(self._base)

    def version(self, plan: AdapterPlan) -> AdapterVersion | None:
        """The version made from a plan; the endpoint refuses one whose base had another name, so that one does not count."""
        found = self._registry.latest_with_digest(plan.name, plan.digest)
        return found if found and PurePath(found.base_model).name == PurePath(self._base).name else None

    def missing(self, plans: Sequence[AdapterPlan]) -> list[AdapterPlan]:
        """The plans that no version was made from; the versions of the others serve from now on."""
        found = []
        for plan in plans:
            if version := self.version(plan):
                self._registry.promote_trained(version.name)
            else:
                found.append(plan)
        return found

    def publish_found(self, plans: Sequence[AdapterPlan]) -> None:
        """Publish those that an earlier call has trained and not published, because it was interrupted."""
        by_digest = {plan.digest: plan for plan in plans}
        for folder in pack_folders(self._training):
            wanted = [by_digest[trained.digest] for trained in read_plans(folder) if trained.digest in by_digest]
            if wanted and result_is_whole(folder):
                self._publish_pack(folder, wanted)

    def publish(self, packs: Mapping[Path, Sequence[AdapterPlan]]) -> dict[str, str]:
        """Publish every trained adapter; names of those that failed, with the reason."""
        failed = {}
        for folder, plans in packs.items():
            failed |= self._publish_pack(folder, plans)
        return failed

    def _publish_pack(self, folder: Path, plans: Sequence[AdapterPlan]) -> dict[str, str]:
        from safetensors.torch import load_file

        shape = AdapterShape(self._config.rank, self._config.alpha, self._config.dropout)
        curves = json.loads((folder / RESULT / CURVES).read_text())
        targets = json.loads((folder / RESULT / TARGETS).read_text())
        failed = {}
        for plan in plans:
            curve = curves[plan.name]
            if curve["stopped"] not in ("finished", "early stop"):
                failed[plan.name] = curve["stopped"]
            elif self.version(plan) is None:
                tensors = load_file(folder / RESULT / f"{plan.name}.safetensors")
                figures = {"loss": curve["losses"][-1], "validation_loss": (curve["validation_losses"] or [None])[-1],
                           "steps": curve["step"], "rows": curve["rows"],
                           "rows_too_long": len(plan.rows["train"]) - curve["rows"]}
                version = self._registry.publish(plan.name, shape, tensors, self._base, targets, plan.digest, figures,
                                                 base_digest=self._base_digest)
                self._registry.promote_trained(version.name)
        _merge_curves(self._training / CURVES, {plan.name: curves[plan.name] for plan in plans})
        return failed

    def tidy(self) -> None:
        """Remove the checkpoints and rows of packs that have nothing left to train or to publish."""
        for folder in pack_folders(self._training):
            removable = [folder / name for name in (CHECKPOINTS, ROWS) if (folder / name).exists()]
            if removable and result_is_whole(folder) and all(
                    self._registry.latest_with_digest(plan.name, plan.digest) for plan in read_plans(folder)):
                for path in removable:
                    shutil.rmtree(path, ignore_errors=True)


def _merge_curves(path: Path, curves: dict[str, Any]) -> None:
    """Keep one curve per adapter in `training/curves.json`: the newest."""
    merged = json.loads(path.read_text()) if path.exists() else {}
    for name, curve in curves.items():
        merged[name] = {"steps": curve["steps"], "loss": curve["losses"],
                        "validation_steps": curve["validation_steps"], "validation": curve["validation_losses"]}
    write_json(path, merged)
