"""How well the bare base reads: every evaluation item with the very sentence that answers it in its prompt.

    python -m benchmarks.reading --json benchmarks/results/reading.json

A rival that is handed passages is only real if the base can use a passage. The sentences are the quotes
of `tests/data/topics.json`, by which the embedded web was checked; an item whose culture has none on its
topic is left out and counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from culturemanager import artifacts, prompts
from culturemanager import project as projects
from culturemanager.adapters.bank import AdapterBank
from culturemanager.base_model import load_base_model
from culturemanager.chat import chat_ids
from culturemanager.config import Project
from culturemanager.inference.engine import Engine, GenerationRequest, ScoreRequest
from culturemanager.records import EvaluationItem
from culturemanager.storage import write_json
from culturemanager.tasks import answers, is_correct, parse_answer, render

TOPICS = Path("tests/data/topics.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="examples/etiquette.yaml", help="project file (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    figures = measure(projects.load(arguments.project))
    if arguments.json:
        write_json(arguments.json, figures)
    print(json.dumps(figures, indent=2))


def measure(project: Project) -> dict[str, Any]:
    """Share of items that the bare base answers, given the sentence: `accuracy`, `by_task`, `items`, `left_out`."""
    model, tokenizer = load_base_model(project.base_path, project.base.dtype)
    engine = Engine(model, tokenizer, AdapterBank(model, slots=1, max_rank=1))
    tasks = {task.id: task for task in artifacts.tasks(project)}
    topics = json.loads(TOPICS.read_text(encoding="utf-8"))
    closed: list[tuple[EvaluationItem, ScoreRequest]] = []
    free: list[tuple[EvaluationItem, GenerationRequest]] = []
    left_out = 0
    for item in artifacts.items(project).items:
        quote = gold_quote(topics, item)
        if not quote:
            left_out += 1
            continue
        task = tasks[item.task]
        prompt = tuple(chat_ids(tokenizer, prompts.with_passages(render(task, item.inputs), [quote])))
        allowed = tuple(answers(task, item.inputs))
        if allowed:
            closed.append((item, ScoreRequest(prompt, allowed, "")))
        else:
            free.append((item, GenerationRequest(prompt, "", project.evaluation.max_new_tokens)))
    said = [(item, request.options[scores.index(max(scores))])
            for (item, request), scores in zip(closed, engine.score([request for _, request in closed]), strict=True)]
    said += [(item, generation.text)
             for (item, _), generation in zip(free, engine.generate([request for _, request in free]), strict=True)]
    asked, right = Counter(), Counter()
    for item, text in said:
        asked[item.task] += 1
        right[item.task] += is_correct(tasks[item.task], item, parse_answer(tasks[item.task], item.inputs, text))
    return {"accuracy": round(right.total() / asked.total(), 4), "items": asked.total(), "left_out": left_out,
            "by_task": {task: round(right[task] / asked[task], 4) for task in tasks if asked[task]}}


def gold_quote(topics: dict[str, Any], item: EvaluationItem) -> str:
    """The embedded web's sentence about the item's topic in its culture; empty if there is none."""
    stated = topics.get(item.topic, {}).get("cultures", {}).get(item.culture, {}).get("stated", [])
    return stated[0]["quote"] if stated else ""


if __name__ == "__main__":
    main()
