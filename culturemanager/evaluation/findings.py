"""What the figures say: the sentences at the top of the report, and the sample answers below."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.results import SUBJECT, Answer


def percent(share: float) -> str:
    """0.7812 gives "78.1%"."""
    return f"{100 * share:.1f}%"


def points(share: float, sign: bool = True) -> str:
    """0.0812 gives "+8.1"; percentage points."""
    return f"{100 * share:+z.1f}".replace("-", "\u2212") if sign else f"{100 * abs(share):.1f}"


def span(interval: Sequence[float]) -> str:
    """An interval of shares in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}".replace("-", "\u2212")


def best_rival(summary: Mapping[str, Any]) -> str | None:
    """The most accurate system that is neither CultureManager, its variant, nor told the truth; `None` if there is none."""
    rivals = [name for name in summary["systems"] if SYSTEMS[name].family in ("prompt", "rival")]
    return max(rivals, key=lambda name: summary["systems"][name]["accuracy"], default=None)


def headline(summary: Mapping[str, Any]) -> str:
    """The outcome in one sentence, computed from the figures, whichever way it went."""
    systems, rival = summary["systems"], best_rival(summary)
    if SUBJECT not in systems or rival is None:
        best = max(systems, key=lambda name: systems[name]["accuracy"])
        return (f"{SYSTEMS[best].label} answers {percent(systems[best]['accuracy'])} of the questions right (95% interval "
                f"{span(systems[best]['interval'])}), the most of the {len(systems)} systems compared.")
    own, other = systems[SUBJECT]["accuracy"], systems[rival]["accuracy"]
    difference, interval = summary["differences"][rival]["difference"], summary["differences"][rival]["interval"]
    label = SYSTEMS[rival].label
    paired = f"95% interval of the difference {span(interval)}"
    if interval[0] > 0:
        return (f"CultureManager answers {percent(own)} of the questions right, {points(difference, False)} points more "
                f"than the best rival, \u201c{label}\u201d, with {percent(other)} ({paired}).")
    if interval[1] < 0:
        return (f"CultureManager is not the best system here: \u201c{label}\u201d answers {percent(other)} of the questions "
                f"right, {points(difference, False)} points more than CultureManager with {percent(own)} "
                f"({paired.replace('difference', 'difference, CultureManager minus rival,')}).")
    lead = "ahead of" if difference > 0 else "behind" if difference < 0 else "level with"
    return (f"CultureManager and its best rival cannot be told apart on these items: it answers {percent(own)} of the "
            f"questions right, {points(difference, False)} points {lead} \u201c{label}\u201d with {percent(other)} "
            f"({paired}).")


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on what else the comparison shows."""
    systems, said = summary["systems"], []
    if SUBJECT in systems:
        for name in ("culturemanager_retrieval", "oracle"):
            if name in systems:
                what = {"culturemanager_retrieval": "With retrieved passages in the prompt",
                        "oracle": "Told the true culture of every question"}[name]
                change = systems[name]["accuracy"] - systems[SUBJECT]["accuracy"]
                said.append(f"{what}, it answers {percent(systems[name]['accuracy'])} right ({points(change)} points).")
    own, others = diagonal(summary["interference"])
    if own is not None and others is not None:
        said.append(f"On {summary['interference_items']} closed questions of each culture at most, its own adapter is right on "
                    f"{percent(own)}, another culture\u2019s adapter on {percent(others)}.")
    router = summary["router"]
    if router["accuracy_with_cue"] is not None:
        said.append(f"The router sends {percent(router['accuracy_with_cue'])} of the questions that show their culture "
                    "to it.")
    if router["abstention_without_cue"] is not None:
        said.append(f"It abstains on {percent(router['abstention_without_cue'])} of those that do not.")
    return said


def diagonal(matrix: Mapping[str, Mapping[str, float]]) -> tuple[float | None, float | None]:
    """Mean accuracy under the own adapter, and under the others; `None` without such cells."""
    own = [row[culture] for culture, row in matrix.items() if culture in row]
    others = [value for culture, row in matrix.items() for adapter, value in row.items() if adapter != culture]
    return (sum(own) / len(own) if own else None), (sum(others) / len(others) if others else None)


def sample(answers: Sequence[Answer], count: int, seed: int) -> list[list[Answer]]:
    """Items on which the systems differ, drawn at random and spread evenly over cultures and tasks.

    Returns:
        For each item the answers of all systems, in their order.
    """
    by_item: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_item[answer.score.item_id].append(answer)
    differing = [own for own in by_item.values() if len({answer.score.correct for answer in own}) == 2]
    random.Random(seed).shuffle(differing)
    chosen: list[list[Answer]] = []
    cultures: dict[str, int] = defaultdict(int)
    tasks: dict[str, int] = defaultdict(int)
    while differing and len(chosen) < count:
        next_one = min(differing, key=lambda own: (cultures[own[0].score.culture], tasks[own[0].score.task]))
        differing.remove(next_one)
        cultures[next_one[0].score.culture] += 1
        tasks[next_one[0].score.task] += 1
        chosen.append(next_one)
    return chosen
