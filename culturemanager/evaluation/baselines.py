"""The ten systems, as data, and the one function that puts an item's prompt to any of them.

    prompt only        base, base_culture_prompt, few_shot, retrieval
    one adapter        joint, joint_culture_prompt
    adapter a culture  task_agnostic, culturemanager, culturemanager_retrieval
    upper bound        oracle (is told the true culture of every item)

Every system gets the same metadata. Where a request carries its culture, each system that can use a
culture is told; where it does not, each goes by the router's decision on the text.
"""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from culturemanager import prompts
from culturemanager.errors import ConfigError
from culturemanager.records import Culture, EvaluationItem, Example, Route, Task

Family = Literal["prompt", "rival", "own", "bound"]
"""How a report groups systems: prompts on the bare base, rival adapters, CultureManager, what no user can have."""


@dataclass(frozen=True)
class System:
    """What one system knows and how it asks."""

    label: str
    description: str
    family: Family
    knows: Literal["nothing", "request", "truth"]
    """Which culture it goes by: none, the request's (metadata, else the router's), or the item's true one."""
    adapter: str = ""
    """Adapter, with `{culture}` for the culture gone by; empty for the bare base. Without a culture: the bare base."""
    names_culture: bool = False
    """The prompt names the culture."""
    passages: bool = False
    """Retrieved passages stand in the prompt."""
    shots: bool = False
    """Worked examples stand in the prompt."""


SYSTEMS: Mapping[str, System] = {
    "base": System("Base", "the bare base model, the prompt as it is", "prompt", "nothing"),
    "base_culture_prompt": System("Base + culture in the prompt", "the bare base model, the culture named in the prompt",
                                  "prompt", "request", names_culture=True),
    "few_shot": System("Few-shot", "the bare base model after worked examples of the same task and culture",
                       "prompt", "request", names_culture=True, shots=True),
    "retrieval": System("Retrieval", "the bare base model with passages of the culture in the prompt",
                        "prompt", "request", names_culture=True, passages=True),
    "joint": System("Joint adapter", "one adapter trained on all cultures' rows", "rival", "nothing", adapter="joint"),
    "joint_culture_prompt": System("Joint adapter + culture in the prompt",
                                   "one adapter trained and asked with the culture named in the prompt",
                                   "rival", "request", adapter="joint_culture_prompt", names_culture=True),
    "task_agnostic": System("Task-agnostic adapters", "one adapter per culture, trained on general statements",
                            "rival", "request", adapter="agnostic_{culture}"),
    "culturemanager": System("CultureManager", "one adapter per culture, picked by the request or the router",
                             "own", "request", adapter="{culture}"),
    "culturemanager_retrieval": System("CultureManager + retrieval",
                                       "one adapter per culture, trained and asked with culture and passages in the prompt",
                                       "own", "request", adapter="retrieval_{culture}", names_culture=True, passages=True),
    "oracle": System("CultureManager, true culture", "the same adapters, always told the true culture: an upper bound",
                     "bound", "truth", adapter="{culture}"),
}


def select_systems(names: Sequence[str]) -> dict[str, System]:
    """The systems named, in that order.

    Raises:
        ConfigError: none is named, one is unknown, or one is named twice.
    """
    for name in names:
        if name not in SYSTEMS:
            near = difflib.get_close_matches(name, SYSTEMS, n=2, cutoff=0.5)
            hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(SYSTEMS)}."
            raise ConfigError(f"evaluation.systems: unknown system {name!r}. {hint}")
        if names.count(name) > 1:
            raise ConfigError(f"evaluation.systems: {name!r} is listed twice; remove one.")
    if not names:
        raise ConfigError(f"evaluation.systems is empty; name at least one of {', '.join(SYSTEMS)}.")
    return {name: SYSTEMS[name] for name in names}


def adapters_of(system: System, cultures: Sequence[str]) -> list[str]:
    """Names of the adapters one system needs for these culture ids."""
    if "{culture}" in system.adapter:
        return [system.adapter.format(culture=culture) for culture in cultures]
    return [system.adapter] if system.adapter else []


def required_adapters(systems: Sequence[str], cultures: Sequence[str]) -> list[str]:
    """Names of the adapters that these systems need for these culture ids, each once, in a stable order."""
    chosen = select_systems(systems).values()
    return list(dict.fromkeys(name for system in chosen for name in adapters_of(system, cultures)))


def culture_gone_by(system: System, item: EvaluationItem, route: Route | None) -> str:
    """Id of the culture a system answers for; empty if it knows none.

    Args:
        route: the router's decision on the item's text, for an item whose text is all there is.
    """
    if system.knows == "nothing":
        return ""
    if system.knows == "truth" or not item.cue:
        return item.culture
    return route.culture if route else ""


def compose(system: System, prompt: str, culture: Culture | None, passages: Sequence[str] = (),
            shots: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
    """What one system is asked: the whole prompt, and the name of the adapter that answers it.

    Args:
        prompt: the rendered task, the same for every system.
        culture: the culture gone by, if any.
        passages, shots: used by the systems that have them.
    """
    if system.names_culture and culture:
        prompt = prompts.with_culture(prompt, culture)
    if system.shots:
        prompt = prompts.with_shots(prompt, shots)
    if system.passages:
        prompt = prompts.with_passages(prompt, passages)
    if "{culture}" in system.adapter and not culture:
        return prompt, ""
    return prompt, system.adapter.format(culture=culture.id if culture else "")


def pick_shots(examples: Sequence[Example], task: Task, culture: str, count: int, seed: int, item_id: str) -> list[Example]:
    """Worked examples for one item: of its task, of the culture gone by, or of any culture if that has none.

    The draw depends on the seed and the item alone. For a classification task the labels stand in the
    proportion they have among the candidates, so that no prompt suggests an answer by its mix.
    """
    candidates = [example for example in examples if example.task == task.id and example.split == "train"]
    candidates = [example for example in candidates if example.culture == culture] or candidates
    draw = random.Random(f"{seed}/{item_id}")
    draw.shuffle(candidates)
    if task.kind == "classification":
        left = _label_quota(Counter(example.completion for example in candidates), count)
        chosen = []
        for example in candidates:
            if left[example.completion] > 0:
                left[example.completion] -= 1
                chosen.append(example)
        return chosen
    return candidates[:count]


def _label_quota(labels: Counter[str], count: int) -> Counter[str]:
    """`count` places shared out in proportion to `labels`: whole shares first, then the largest remainders."""
    total = sum(labels.values())
    count = min(count, total)
    quota = Counter({label: count * number // total for label, number in labels.items()})
    remainders = sorted(labels, key=lambda label: (-(count * labels[label] % total), label))
    for label in remainders[: count - sum(quota.values())]:
        quota[label] += 1
    return quota
