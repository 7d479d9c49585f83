"""All ten systems over several seeds: the comparison that counts.

    python -m benchmarks.evidence --seeds 5 --json benchmarks/results/evidence.json
    python -m benchmarks.evidence --first 3 --seeds 2 --json two.json      # seeds 3 and 4, on another machine
    python -m benchmarks.evidence --finished runs/evidence/seed-* --json benchmarks/results/evidence.json   # put together

Synthesis is deterministic and done once; each seed trains every adapter anew (its initial weights
and the order of its rows) and draws new worked examples. The intervals of the combined table come
from resampling items within each culture and seeds, so they hold both kinds of luck. An interrupted
run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.circumstances import circumstances
from culturemanager import cluster, console
from culturemanager import project as projects
from culturemanager.config import Project
from culturemanager.errors import ConfigError, CultureManagerError
from culturemanager.evaluation import metrics
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.runner import SUBJECT, Evaluation, load
from culturemanager.storage import Workspace, write_json

SHARED_STAGES = ("queries", "pages", "passages", "index", "examples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="benchmarks/evidence.yaml", help="project file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--workspace", default="runs/evidence", help="where the runs go (default: %(default)s)")
    parser.add_argument("--finished", type=Path, nargs="+", metavar="WORKSPACE",
                        help="workspaces of seeds that have ended, each one's own: they are put together, and nothing is run")
    parser.add_argument("--json", type=Path, required=True,
                        help="file for the figures; it has the shape of scores.json, without what belongs to one run")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        figures = combine(evaluations_of(arguments))
    except CultureManagerError as error:
        parser.exit(1, f"{error}\n")
    figures["measured"] = circumstances(seconds=round(time.monotonic() - started))
    write_json(arguments.json, figures)
    Console().print(table(figures))


def evaluations_of(arguments: argparse.Namespace) -> list[Evaluation]:
    """Each seed's, run now or before."""
    if arguments.finished:
        return [load(Workspace(str(folder)).stage("evaluation")) for folder in arguments.finished]
    with cluster.connect():
        return [run_seed(arguments.project, arguments.workspace, arguments.first + number) for number in range(arguments.seeds)]


def run_seed(path: str, workspace: str, seed: int) -> Evaluation:
    """One seed's whole run in a workspace of its own; synthesis is copied from seed 0's, if that has been run here."""
    own = Path(workspace, f"seed-{seed}").resolve()
    first = Path(workspace, "seed-0").resolve()
    for stage in SHARED_STAGES:
        if (first / stage / "manifest.json").exists() and not (own / stage / "manifest.json").exists():
            shutil.copytree(first / stage, own / stage, dirs_exist_ok=True)
    project = load_project(path, own, seed)
    with console.progress() as report:
        return projects.run(project, report).evaluation


def load_project(path: str, workspace: Path, seed: int) -> Project:
    """The project with every system, this seed and this workspace."""
    return projects.load(path, [f"seed={seed}", f"workspace={workspace}", f"evaluation.systems=[{', '.join(SYSTEMS)}]"])


def combine(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The mean over seeds in the shape of one seed's `scores.json`, with intervals over items and seeds.

    Raises:
        ConfigError: the seeds were not asked the same items by the same systems, or a seed is there twice.
    """
    summaries = [dict(evaluation.summary) for evaluation in evaluations]
    _check_comparable(evaluations)
    combined = dict(summaries[0]) | {"seed": [summary["seed"] for summary in summaries]}
    combined["systems"] = {name: _mean_of([s["systems"][name] for s in summaries]) for name in summaries[0]["systems"]}
    resamples = combined["interval"]["resamples"]
    names, tasks = list(combined["systems"]), next(iter(combined["systems"].values()))["by_task"]
    drawn = _resampled(evaluations, names, resamples)
    drawn_of_task = {task: _resampled(evaluations, names, resamples, task) for task in tasks}
    means = {name: of_system.mean(0) for name, of_system in zip(names, drawn, strict=True)}
    for row, (name, system) in enumerate(combined["systems"].items()):
        system["interval"] = metrics.interval(means[name])
        system["by_seed"] = [s["systems"][name]["accuracy"] for s in summaries]
        system["by_culture_interval"] = {culture: metrics.interval(of_culture)
                                         for culture, of_culture in zip(system["by_culture"], drawn[row], strict=True)}
        system["by_task_interval"] = {task: metrics.interval(of_task[row].mean(0)) for task, of_task in drawn_of_task.items()}
    combined["differences"] = {name: {"difference": _mean_of([s["differences"][name]["difference"] for s in summaries]),
                                      "interval": metrics.interval(means[SUBJECT] - means[name])}
                               for name in means if name != SUBJECT}
    for key in ("router", "interference"):
        combined[key] = _mean_of([s[key] for s in summaries])
    combined["interval"] = {"method": "percentile bootstrap, items resampled within culture, and seeds", "level": metrics.LEVEL,
                            "resamples": resamples}
    combined.pop("adapters", None)
    return combined


def _check_comparable(evaluations: Sequence[Evaluation]) -> None:
    seeds = [evaluation.summary["seed"] for evaluation in evaluations]
    asked = [{(answer.score.system, answer.score.item_id) for answer in evaluation.answers} for evaluation in evaluations]
    for seed, pairs in zip(seeds, asked, strict=True):
        if seeds.count(seed) > 1:
            raise ConfigError(f"seed {seed} is there {seeds.count(seed)} times; give each seed's workspace once.")
        if pairs != asked[0]:
            raise ConfigError(f"seed {seed} has {len(pairs)} answers, seed {seeds[0]} has {len(asked[0])}, and "
                              f"{len(pairs ^ asked[0])} of them are in one only. Evaluate every seed with the same systems "
                              "and items.")


def _mean_of(values: Sequence[Any]) -> Any:
    """Numbers averaged over the seeds that have one, mappings entered, anything else as the first has it.

    What a mapping of counts lacks was counted no time.
    """
    values = [value for value in values if value is not None]
    if not values:
        return None
    if isinstance(values[0], dict):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _mean_of([value.get(key, _nothing_like(values, key)) for value in values]) for key in keys}
    if isinstance(values[0], list) and values[0] and all(isinstance(v, (int, float)) for v in values[0]):
        return [_mean_of(list(column)) for column in zip(*values, strict=True)]
    if isinstance(values[0], (int, float)) and not isinstance(values[0], bool):
        return round(sum(values) / len(values), 6)
    return values[0]


def _nothing_like(values: Sequence[dict[str, Any]], key: str) -> Any:
    there = next(value[key] for value in values if key in value)
    return {} if isinstance(there, dict) else 0


def _resampled(evaluations: Sequence[Evaluation], systems: Sequence[str], resamples: int, task: str = "") -> np.ndarray:
    """[systems, cultures, resamples], means of items drawn again within each culture, and of seeds drawn again.

    The draws are the same for every system, so that two systems' means can be subtracted.

    Args:
        task: only its items; all, if empty.
    """
    scores = [{(answer.score.system, answer.score.item_id): answer.score for answer in evaluation.answers}
              for evaluation in evaluations]
    items = [(item, score.culture) for (system, item), score in scores[0].items()
             if system == systems[0] and task in ("", score.task)]
    correct = np.array([[of[system, item].correct for item, _ in items] for system in systems for of in scores])
    cultures = list(dict.fromkeys(culture for _, culture in items))
    samples = metrics.bootstrap(correct, np.array([cultures.index(culture) for _, culture in items]), resamples, seed=0)
    by_seed = samples.reshape(len(systems), len(scores), len(cultures), resamples)
    drawn = np.random.default_rng(1).integers(len(scores), size=(len(scores), resamples))
    return np.take_along_axis(by_seed, drawn[None, :, None], axis=1).mean(1)


def table(figures: dict[str, Any]) -> Table:
    """Systems with mean accuracy, its interval, the lowest and the highest seed, and each task, in percent."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline", caption_justify="left",
                  caption=f"accuracy in percent, {len(figures['cultures'])} cultures, seeds: {len(figures['seed'])}")
    for column in ("system", "all", "95%", "seeds", *figures["tasks"]):
        shown.add_column(column, justify="left" if column == "system" else "right", no_wrap=True)
    for name, system in figures["systems"].items():
        shown.add_row(name, f"{100 * system['accuracy']:.1f}", _percents(*system["interval"]),
                      _percents(min(system["by_seed"]), max(system["by_seed"])),
                      *[f"{100 * system['by_task'][task]:.0f}" for task in figures["tasks"]])
    return shown


def _percents(low: float, high: float) -> str:
    return f"{100 * low:.0f}\u2013{100 * high:.0f}"


if __name__ == "__main__":
    main()
