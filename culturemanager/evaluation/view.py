"""What the report's template prints, section by section: labels, formatted figures, shaded cells, charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from culturemanager.evaluation import charts
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.charts import Chart, Curve, Mark
from culturemanager.evaluation.findings import percent, points, sample, span
from culturemanager.evaluation.metrics import ABSTAINED
from culturemanager.evaluation.provenance import Sources
from culturemanager.evaluation.results import Answer, Evaluation

SAMPLES = 12
PAGES_SHOWN = 12
"""Source pages listed for each culture."""


def shown(share: float | None) -> str:
    """A share in percent, or a dash."""
    return "\u2013" if share is None else percent(share)


def cell(share: float | None) -> dict[str, Any]:
    """A shaded table cell."""
    if share is None:
        return {"text": "\u2013", "level": None}
    return {"text": f"{100 * share:.0f}", "level": charts.heat_level(share)}


class View:
    """One evaluation and its sources, as the template wants them."""

    def __init__(self, evaluation: Evaluation, sources: Sources) -> None:
        self.summary, self.sources, self.answers = evaluation.summary, sources, evaluation.answers
        self.figures: Mapping[str, Any] = self.summary["systems"]
        self.culture_names: Mapping[str, str] = self.summary["cultures"]
        self.measured = [culture for culture in self.culture_names if culture in self.summary["items_by_culture"]]
        self.ranked = sorted(self.figures, key=lambda name: -self.figures[name]["accuracy"])

    def culture(self, name: str) -> str:
        """A culture as a label: without the article that a sentence needs."""
        return self.culture_names.get(name, name).removeprefix("the ")

    def systems(self) -> list[dict[str, Any]]:
        """The comparison's table."""
        rows = []
        for name in self.ranked:
            figures, difference = self.figures[name], self.summary["differences"].get(name)
            rows.append({
                "id": name, "label": SYSTEMS[name].label, "description": SYSTEMS[name].description,
                "family": SYSTEMS[name].family,
                "accuracy": percent(figures["accuracy"]), "interval": span(figures["interval"]),
                "with_cue": shown(figures["by_cue"].get("with_cue")),
                "without_cue": shown(figures["by_cue"].get("without_cue")),
                # shown from the other system's side: how far it is from CultureManager
                "difference": points(-difference["difference"]) if difference else "",
                "difference_interval": span([-difference["interval"][1], -difference["interval"][0]]) if difference else "",
                "unparsed": figures["unparsed"],
            })
        return rows

    def comparison(self) -> Chart:
        marks = [self._mark(name, self.figures[name]["accuracy"], self.figures[name]["interval"]) for name in self.ranked]
        return charts.comparison({"all": marks}, {"all": self.summary["chance"]["accuracy"]},
                                 "Accuracy of each system with its 95% interval; the numbers stand in the table below.")

    def _mark(self, name: str, value: float, interval: Sequence[float]) -> Mark:
        return Mark(SYSTEMS[name].label, SYSTEMS[name].family, value, *interval)

    def by_culture(self) -> dict[str, Any]:
        return {"columns": [self.culture(culture) for culture in self.measured],
                "rows": [{"label": SYSTEMS[name].label, "family": SYSTEMS[name].family,
                          "cells": [cell(self.figures[name]["by_culture"].get(culture)) for culture in self.measured]}
                         for name in self.ranked]}

    def by_task(self) -> dict[str, Any]:
        tasks = [task for task in self.summary["tasks"] if task in self.summary["chance"]["by_task"]]
        panels = {task: [self._mark(name, self.figures[name]["by_task"][task], self.figures[name]["by_task_interval"][task])
                         for name in self.ranked] for task in tasks}
        f1 = [task for task in tasks if any(task in figures.get("macro_f1", {}) for figures in self.figures.values())]
        return {"chart": charts.comparison(panels, self.summary["chance"]["by_task"],
                                           "Accuracy of each system on each task; the numbers stand in the table below."),
                "columns": tasks, "f1_columns": f1,
                "rows": [{"label": SYSTEMS[name].label, "family": SYSTEMS[name].family,
                          "cells": [f"{percent(self.figures[name]['by_task'][task])} "
                                    f"({span(self.figures[name]['by_task_interval'][task])})" for task in tasks],
                          "f1": [f"{self.figures[name]['macro_f1'][task]:.3f}" for task in f1]} for name in self.ranked]}

    def interference(self) -> dict[str, Any] | None:
        matrix = self.summary["interference"]
        rows = [culture for culture in self.measured if matrix.get(culture)]
        columns = [culture for culture in self.culture_names if any(culture in matrix[row] for row in rows)]
        if not rows:
            return None
        values = [[matrix[row].get(column) for column in columns] for row in rows]
        outlined = [(y, columns.index(row)) for y, row in enumerate(rows) if row in columns]
        alt = ("Accuracy of each culture's closed questions under each culture's adapter; the numbers stand in the table "
               "below.")
        return {"chart": charts.heat_map(values, list(map(self.culture, rows)), list(map(self.culture, columns)),
                                         "adapter of", "questions of", alt, outlined),
                "items": self.summary["interference_items"],
                "columns": list(map(self.culture, columns)),
                "rows": [{"label": self.culture(row), "cells": [cell(value) for value in own]}
                         for row, own in zip(rows, values, strict=True)]}

    def router(self) -> dict[str, Any]:
        """The confusion as shares of each culture's items, and what became of items with and without cue."""
        router = self.summary["router"]
        bars = {}
        for suffix, label in (("with_cue", "text shows its culture"), ("without_cue", "text does not")):
            total, coverage = router[f"items_{suffix}"], router[f"coverage_{suffix}"] or 0
            right = total * coverage * (router[f"precision_{suffix}"] or 0)
            if total:
                bars[label] = {"sent to the right culture": round(right), "abstained": round(total * (1 - coverage)),
                               "sent to a wrong culture": round(total * coverage - right)}
        parts = {"sent to the right culture": "own", "abstained": "prompt", "sent to a wrong culture": "wrong"}
        return {"bars": bars, "parts": list(parts),
                "decisions": charts.stacked(bars, parts, "questions",
                                            "What the router decides; the numbers stand in the table below."),
                "confusion": self._confusion(router["confusion_with_cue"]),
                "figures": [(label, shown(router[key])) for key, label in (
                    ("accuracy_with_cue", "of the questions that show their culture are sent to it"),
                    ("precision_with_cue", "of those sent anywhere are sent to the right culture"),
                    ("abstention_without_cue", "of the questions that do not show it are left to the bare base"))]}

    def _confusion(self, confusion: Mapping[str, Mapping[str, int]]) -> dict[str, Any] | None:
        rows = [culture for culture in self.measured if confusion.get(culture)]
        if not rows:
            return None
        columns = [*(culture for culture in self.culture_names if any(culture in own for own in confusion.values())),
                   *([ABSTAINED] if any(ABSTAINED in own for own in confusion.values()) else [])]
        shares = [[confusion[row].get(column, 0) / sum(confusion[row].values()) for column in columns] for row in rows]
        outlined = [(y, columns.index(row)) for y, row in enumerate(rows) if row in columns]
        names = [self.culture(column) for column in columns]
        alt = "Where the router sends questions that show their culture; the counts stand in the table below."
        return {"chart": charts.heat_map(shares, list(map(self.culture, rows)), names, "routed to (share of the row, %)",
                                         "question's culture", alt, outlined),
                "columns": names,
                "rows": [{"label": self.culture(row), "cells": [confusion[row].get(column, 0) for column in columns]}
                         for row in rows]}

    def losses(self) -> list[dict[str, Any]]:
        """One block for the cultures' adapters, one for those trained for comparison only."""
        used = {name: curve for name, curve in self.sources.curves.items() if name in self.summary["adapters"]}
        blocks = []
        for title, names in (("Culture adapters", [n for n in self.culture_names if n in used]),
                             ("Adapters trained for comparison", [n for n in used if n not in self.culture_names])):
            panels: dict[str, list[Curve]] = defaultdict(list)
            for name in names:
                panels[self._panel_of(name)].append(used[name])
            if panels:
                alt = f"{title}: training and validation loss by step; first, last and best stand in the table below."
                blocks.append({"title": title, "chart": charts.losses(panels, alt),
                               "rows": [self._loss_row(used[name]) for name in names]})
        return blocks

    def _panel_of(self, adapter: str) -> str:
        """A culture's name, or for a comparison adapter its kind: `agnostic_turkey` goes with the other agnostic ones."""
        if adapter in self.culture_names:
            return self.culture(adapter)
        kinds = [adapter.removesuffix(f"_{culture}") for culture in self.culture_names if adapter.endswith(f"_{culture}")]
        return (kinds or [adapter])[0].replace("_", " ")

    def _loss_row(self, curve: Curve) -> list[str]:
        validation = [loss for _, loss in curve.validation]
        values = [curve.training[0][1], curve.training[-1][1], min(validation, default=None), (validation or [None])[-1]]
        return [self.culture(curve.label), f"{curve.training[-1][0]:,.0f}",
                *("\u2013" if value is None else f"{value:.3f}" for value in values)]

    def provenance(self) -> dict[str, Any]:
        rows = self.sources.rows
        cultures = [*(c for c in self.culture_names if c in rows), *(c for c in rows if c not in self.culture_names)]
        tasks = sorted({task for own in rows.values() for task in own})
        chart = None
        if cultures:
            colours = {task: f"c{number % charts.CATEGORIES}" for number, task in enumerate(tasks)}
            chart = charts.stacked({self.culture(culture): rows[culture] for culture in cultures}, colours, "training rows",
                                   "Training rows of each culture by task; the numbers stand in the table below.")
        return {"chart": chart, "tasks": tasks, "stages": self.sources.stages, "generators": self.sources.generators,
                "rows": [{"label": self.culture(culture), "cells": [rows[culture].get(task, 0) for task in tasks],
                          "total": sum(rows[culture].values()), "pages": len(self.sources.pages[culture])}
                         for culture in cultures],
                "pages": [{"label": self.culture(culture), "rest": len(self.sources.pages[culture]) - PAGES_SHOWN,
                           "urls": [{"url": url, "link": urlsplit(url).scheme in ("http", "https"), "rows": number}
                                    for url, number in self.sources.pages[culture][:PAGES_SHOWN]]} for culture in cultures]}

    def samples(self) -> list[dict[str, Any]]:
        return [{"question": own[0].question, "culture": self.culture(own[0].score.culture), "task": own[0].score.task,
                 "expected": own[0].expected, "answers": [self._sample_row(answer) for answer in own]}
                for own in sample(self.answers, SAMPLES, self.summary["seed"])]

    def _sample_row(self, answer: Answer) -> dict[str, Any]:
        score = answer.score
        return {"label": SYSTEMS[score.system].label, "correct": score.correct, "answer": score.answer.strip(),
                "unparsed": score.unparsed, "adapter": answer.adapter or "bare base",
                "for": self.culture(score.routed_to) if score.routed_to else "\u2013"}
