"""All ten systems over several seeds: the comparison that counts.

    python -m benchmarks.evidence --seeds 5 --json benchmarks/results/evidence.json
    python -m benchmarks.evidence --first 3 --seeds 1 --json benchmarks/results/evidence_seed_3.json   # one of them
    python -m benchmarks.evidence --finished benchmarks/results/evidence_seed_*.json --json benchmarks/results/evidence.json

Synthesis is deterministic and done once; each seed trains every adapter anew (its initial weights
and the order of its rows) and draws new worked examples. The intervals of the combined table come
from resampling items within each culture and seeds, so they hold both kinds of luck. An interrupted
run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.circumstances import circumstances
from benchmarks.seeds import Seed, combine
from culturemanager import cluster, console
from culturemanager import project as projects
from culturemanager.config import Project
from culturemanager.errors import CultureManagerError
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.results import Evaluation
from culturemanager.storage import write_json
from culturemanager.training.outlook import device_here
from culturemanager.training.precision import products_of

SHARED_STAGES = ("queries", "pages", "passages", "index", "examples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="benchmarks/evidence.yaml", help="project file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--workspace", default="runs/evidence", help="where the runs go (default: %(default)s)")
    parser.add_argument("--finished", type=Path, nargs="+", metavar="PATH",
                        help="seeds that have ended, each one's file of figures or its workspace: they are put together, and "
                             "nothing is run")
    parser.add_argument("--json", type=Path, required=True,
                        help="file for the figures; it has the shape of scores.json, without what belongs to one run")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        seeds = seeds_of(arguments)
        figures = combine(seeds)
    except CultureManagerError as error:
        parser.exit(1, f"{error}\n")
    if arguments.finished:
        figures["measured"] = [seed.summary["measured"] for seed in seeds if "measured" in seed.summary]
    else:
        figures["measured"] = circumstances(seconds=round(time.monotonic() - started), products=products(arguments.project))
    write_json(arguments.json, figures)
    Console().print(table(figures))


def products(path: str) -> str:
    """The type of the products that a project's training on this machine is made of."""
    training = projects.load(path).training
    return str(products_of(training.precision, device_here(training))).removeprefix("torch.")


def seeds_of(arguments: argparse.Namespace) -> list[Seed]:
    """Each seed's figures, run now or before."""
    if arguments.finished:
        return [Seed.read(path) for path in arguments.finished]
    with cluster.connect():
        return [Seed.of(run_seed(arguments.project, arguments.workspace, arguments.first + number))
                for number in range(arguments.seeds)]


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
