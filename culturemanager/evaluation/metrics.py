"""From single answers to figures: one aggregation rule for every system, and intervals.

Accuracy is the mean over cultures of each culture's share of right items, so a culture with many
items weighs no more than one with few. Intervals are percentile bootstrap intervals (Efron 1979):
items are drawn with replacement within each culture. All systems share the draws, so the interval of
a difference between two systems is a paired one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from culturemanager.records import EvaluationItem, Route, Score, Task
from culturemanager.tasks import answers

AGGREGATION = ("accuracy = mean over cultures of (right items of the culture / items of the culture), over all its tasks; "
               "by_task the same over one task's items; an unparsable answer is wrong; one rule for every system")
LEVEL = 0.95
ABSTAINED = "abstained"
_BLOCK = 100
"""Resamples drawn at once; bounds memory to 100 integers an item."""


def culture_means(values: np.ndarray, cultures: np.ndarray) -> np.ndarray:
    """Means within each culture, [systems, cultures], of `values` [systems, items].

    Args:
        cultures: [items], numbers 0..C-1; every number occurs.
    """
    counts = np.bincount(cultures)
    return np.stack([np.bincount(cultures, weights=row) for row in values.astype(float)]) / counts


def bootstrap(values: np.ndarray, cultures: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Culture means of resampled items, [systems, cultures, resamples], arguments as `culture_means`.

    Resample b of every system is made of the same items.
    """
    generator = np.random.default_rng(seed)
    samples = np.empty((len(values), cultures.max() + 1, resamples))
    for culture in range(samples.shape[1]):
        own = values[:, cultures == culture].astype(float)
        size = own.shape[1]
        for start in range(0, resamples, _BLOCK):
            drawn = generator.multinomial(size, np.full(size, 1 / size), size=min(_BLOCK, resamples - start))
            samples[:, culture, start : start + len(drawn)] = own @ drawn.T / size
    return samples


def interval(samples: np.ndarray) -> list[float]:
    """The central 95% of resampled values, [low, high]."""
    tail = (1 - LEVEL) / 2
    return [_rounded(value) for value in np.quantile(samples, [tail, 1 - tail])]


def _rounded(value: float) -> float:
    return round(float(value), 6)


def macro_f1(pairs: Sequence[tuple[str, str | None]], labels: Sequence[str]) -> float:
    """Mean F1 over the labels that occur as expected or as answered.

    Args:
        pairs: (expected, answered); an answer that is no label, or `None`, is right for none.
    """
    f1 = []
    for label in labels:
        expected = sum(pair[0] == label for pair in pairs)
        answered = sum(pair[1] == label for pair in pairs)
        if expected + answered:
            f1.append(2 * sum(pair == (label, label) for pair in pairs) / (expected + answered))
    return sum(f1) / len(f1)


def summarise(scores: Sequence[Score], items: Sequence[EvaluationItem], tasks: Sequence[Task], resamples: int,
              seed: int) -> dict[str, dict[str, Any]]:
    """Every system's figures: accuracy, interval, by_culture, by_task and the rest of a `systems` entry.

    Args:
        scores: one for each system and item.
    """
    names = list(dict.fromkeys(score.system for score in scores))
    table = _correct_table(scores, items, names)
    overall = _Aggregate(table, items, resamples, seed)
    summaries = {name: overall.entry(row) for row, name in enumerate(names)}
    for name in names:
        summaries[name]["unparsed"] = sum(score.unparsed for score in scores if score.system == name)
        summaries[name]["by_task"], summaries[name]["by_task_interval"] = {}, {}
        summaries[name]["by_cue"] = {}
    for task in tasks:
        part = _part(table, items, [item.task == task.id for item in items], resamples, seed)
        for row, name in enumerate(names if part else ()):
            summaries[name]["by_task"][task.id] = part.accuracy[row]
            summaries[name]["by_task_interval"][task.id] = part.interval(row)
    for cue, label in ((True, "with_cue"), (False, "without_cue")):
        part = _part(table, items, [item.cue is cue for item in items], resamples, seed)
        for row, name in enumerate(names if part else ()):
            summaries[name]["by_cue"][label] = part.accuracy[row]
    for task in tasks:
        if task.metric == "macro_f1":
            for name, value in _macro_f1_by_system(scores, items, task).items():
                summaries[name].setdefault("macro_f1", {})[task.id] = value
    return summaries


class _Aggregate:
    """The one aggregation rule over some items."""

    def __init__(self, table: np.ndarray, items: Sequence[EvaluationItem], resamples: int, seed: int) -> None:
        self.cultures = list(dict.fromkeys(item.culture for item in items))
        numbers = np.array([self.cultures.index(item.culture) for item in items])
        self.means = culture_means(table, numbers)
        self.accuracy = [_rounded(value) for value in self.means.mean(1)]
        self.samples = bootstrap(table, numbers, resamples, seed)

    def interval(self, row: int) -> list[float]:
        return interval(self.samples[row].mean(0))

    def entry(self, row: int) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy[row],
            "interval": self.interval(row),
            "by_culture": {name: _rounded(self.means[row, i]) for i, name in enumerate(self.cultures)},
            "by_culture_interval": {name: interval(self.samples[row, i]) for i, name in enumerate(self.cultures)},
        }


def _correct_table(scores: Sequence[Score], items: Sequence[EvaluationItem], names: Sequence[str]) -> np.ndarray:
    """Whether each system is right on each item, bool [systems, items]."""
    columns = {item.id: column for column, item in enumerate(items)}
    rows = {name: row for row, name in enumerate(names)}
    table = np.zeros((len(names), len(items)), dtype=bool)
    for score in scores:
        table[rows[score.system], columns[score.item_id]] = score.correct
    return table


def _part(table: np.ndarray, items: Sequence[EvaluationItem], chosen: Sequence[bool], resamples: int,
          seed: int) -> _Aggregate | None:
    part = [item for item, keep in zip(items, chosen, strict=True) if keep]
    return _Aggregate(table[:, np.array(chosen)], part, resamples, seed) if part else None


def _macro_f1_by_system(scores: Sequence[Score], items: Sequence[EvaluationItem], task: Task) -> dict[str, float]:
    """Macro-F1 within each culture, averaged over cultures."""
    by_id = {item.id: item for item in items}
    pairs: dict[str, dict[str, list[tuple[str, str | None]]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        if score.task == task.id:
            answer = None if score.unparsed else score.answer
            pairs[score.system][score.culture].append((by_id[score.item_id].answer, answer))
    return {name: _rounded(np.mean([macro_f1(own, task.labels) for own in by_culture.values()]))
            for name, by_culture in pairs.items()}


def differences(scores: Sequence[Score], items: Sequence[EvaluationItem], subject: str, resamples: int,
                seed: int) -> dict[str, dict[str, Any]]:
    """`subject`'s accuracy minus each other system's, with the paired interval; empty without `subject`."""
    names = list(dict.fromkeys(score.system for score in scores))
    if subject not in names:
        return {}
    overall = _Aggregate(_correct_table(scores, items, names), items, resamples, seed)
    own = names.index(subject)
    return {name: {"difference": _rounded(overall.means[own].mean() - overall.means[row].mean()),
                   "interval": interval(overall.samples[own].mean(0) - overall.samples[row].mean(0))}
            for row, name in enumerate(names) if row != own}


def chance(items: Sequence[EvaluationItem], tasks: Sequence[Task]) -> dict[str, Any]:
    """`accuracy` and `by_task` expected of a blind guess among the allowed answers; free text counts 0."""
    by_id = {task.id: task for task in tasks}
    values = np.array([[1 / max(len(answers(by_id[item.task], item.inputs)), 1) if by_id[item.task].kind != "generation"
                        else 0.0 for item in items]])
    by_task = {}
    for task in tasks:
        chosen = np.array([item.task == task.id for item in items])
        if chosen.any():
            by_task[task.id] = _mean([item for item in items if item.task == task.id], values[:, chosen])
    return {"accuracy": _mean(items, values), "by_task": by_task}


def _mean(items: Sequence[EvaluationItem], values: np.ndarray) -> float:
    cultures = list(dict.fromkeys(item.culture for item in items))
    return _rounded(culture_means(values, np.array([cultures.index(item.culture) for item in items])).mean())


def router_figures(items: Sequence[EvaluationItem], routes: Sequence[Route]) -> dict[str, Any]:
    """How the router does on the items' texts alone, whether or not a request would carry its culture.

    Returns:
        `accuracy_with_cue`: share of the items whose text shows its culture that go there; an abstention is
        wrong. `abstention_without_cue`: share of the other items on which it rightly abstains. Both `None`
        without such items. Also the counts behind them, precision where it decides, reasons, and the
        confusion: true culture to {routed culture or `abstained`: items}, with and without cue.
    """
    figures: dict[str, Any] = {}
    for cue, suffix in ((True, "with_cue"), (False, "without_cue")):
        own = [(item, route) for item, route in zip(items, routes, strict=True) if item.cue is cue]
        routed = [(item, route) for item, route in own if route.culture]
        right = sum(item.culture == route.culture for item, route in routed)
        confusion: dict[str, Counter[str]] = defaultdict(Counter)
        for item, route in own:
            confusion[item.culture][route.culture or ABSTAINED] += 1
        figures |= {
            f"items_{suffix}": len(own),
            f"coverage_{suffix}": _share(len(routed), len(own)),
            f"precision_{suffix}": _share(right, len(routed)),
            f"reasons_{suffix}": dict(Counter(route.reason for _, route in own)),
            f"confusion_{suffix}": {culture: dict(counts) for culture, counts in confusion.items()},
        }
        if cue:
            figures["accuracy_with_cue"] = _share(right, len(own))
        else:
            figures["abstention_without_cue"] = _share(len(own) - len(routed), len(own))
    return figures


def _share(part: int, whole: int) -> float | None:
    return _rounded(part / whole) if whole else None


def interference(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Accuracy of every culture's items (rows) under every culture's adapter (columns).

    Args:
        scores: answers with the adapter forced; `routed_to` is the adapter's culture.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        right[score.culture][score.routed_to].append(score.correct)
    return {culture: {adapter: _rounded(np.mean(values)) for adapter, values in row.items()}
            for culture, row in right.items()}
