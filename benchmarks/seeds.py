"""What a training with one seed came to, and several of them put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from culturemanager.errors import ConfigError
from culturemanager.evaluation import metrics
from culturemanager.evaluation.results import SUBJECT, Evaluation, load
from culturemanager.storage import Workspace


class Item(NamedTuple):
    """An evaluation item."""

    culture: str
    task: str
    id: str


@dataclass(frozen=True)
class Seed:
    """One seed's figures: `summary` is the content of its `scores.json`."""

    summary: Mapping[str, Any]
    correct: Mapping[Item, Mapping[str, bool]]
    """Whether each system was right."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Seed:
        """What is compared of an evaluation."""
        correct: dict[Item, dict[str, bool]] = {}
        for score in (answer.score for answer in evaluation.answers):
            correct.setdefault(Item(score.culture, score.task, score.item_id), {})[score.system] = score.correct
        return cls(evaluation.summary, correct)

    @classmethod
    def read(cls, path: Path) -> Seed:
        """From a seed's workspace, or from its file of figures.

        Raises:
            ConfigError: the file is not there, is no JSON, or is not one seed's.
            IncompleteStageError, CorruptFileError: as `results.load`.
        """
        if path.is_dir():
            return cls.of(load(Workspace(str(path)).stage("evaluation")))
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
            [seed] = figures["seed"]
            answers = figures.pop("answers")
            correct = {Item(culture, task, item): dict(zip(figures["systems"], map("1".__eq__, marks), strict=True))
                       for culture, of_task in answers.items() for task, of_item in of_task.items()
                       for item, marks in of_item.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is neither a seed's workspace nor the figures of one seed ({type(error).__name__}: "
                              f"{error}). Name a workspace, or a file that was written with `--seeds 1`.") from None
        return cls(figures | {"seed": seed}, correct)

    def answers(self) -> dict[str, dict[str, dict[str, str]]]:
        """Culture to task to item to a mark for each system, in their order: 1 is right, 0 is wrong."""
        marks: dict[str, dict[str, dict[str, str]]] = {}
        for item, of_system in self.correct.items():
            of_task = marks.setdefault(item.culture, {}).setdefault(item.task, {})
            of_task[item.id] = "".join(str(int(of_system[name])) for name in self.summary["systems"])
        return marks


def combine(seeds: Sequence[Seed]) -> dict[str, Any]:
    """The mean over seeds in the shape of one seed's `scores.json`, with intervals over items and seeds.

    One seed's figures also hold what each system made of each item (`answers`), so that they can be put together with others.

    Raises:
        ConfigError: the seeds were not asked the same items by the same systems, or a seed is there twice.
    """
    summaries = [dict(seed.summary) for seed in seeds]
    _check_comparable(seeds)
    combined = dict(summaries[0]) | {"seed": [summary["seed"] for summary in summaries]}
    combined["systems"] = {name: _mean_of([s["systems"][name] for s in summaries]) for name in summaries[0]["systems"]}
    resamples = combined["interval"]["resamples"]
    names, tasks = list(combined["systems"]), next(iter(combined["systems"].values()))["by_task"]
    drawn = _resampled(seeds, names, resamples)
    drawn_of_task = {task: _resampled(seeds, names, resamples, task) for task in tasks}
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
    if len(seeds) == 1:
        combined["answers"] = seeds[0].answers()
    return combined


def _check_comparable(seeds: Sequence[Seed]) -> None:
    numbers = [seed.summary["seed"] for seed in seeds]
    asked = [{(system, item) for item, of_system in seed.correct.items() for system in of_system} for seed in seeds]
    for number, pairs in zip(numbers, asked, strict=True):
        if numbers.count(number) > 1:
            raise ConfigError(f"seed {number} is there {numbers.count(number)} times; give each seed's figures once.")
        if pairs != asked[0]:
            raise ConfigError(f"seed {number} has {len(pairs)} answers, seed {numbers[0]} has {len(asked[0])}, and "
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


def _resampled(seeds: Sequence[Seed], systems: Sequence[str], resamples: int, task: str = "") -> np.ndarray:
    """[systems, cultures, resamples], means of items drawn again within each culture, and of seeds drawn again.

    The draws are the same for every system, so that two systems' means can be subtracted.

    Args:
        task: only its items; all, if empty.
    """
    items = [item for item in seeds[0].correct if task in ("", item.task)]
    correct = np.array([[seed.correct[item][system] for item in items] for system in systems for seed in seeds])
    cultures = list(dict.fromkeys(item.culture for item in items))
    samples = metrics.bootstrap(correct, np.array([cultures.index(item.culture) for item in items]), resamples, seed=0)
    by_seed = samples.reshape(len(systems), len(seeds), len(cultures), resamples)
    drawn = np.random.default_rng(1).integers(len(seeds), size=(len(seeds), resamples))
    return np.take_along_axis(by_seed, drawn[None, :, None], axis=1).mean(1)
