"""How well the bare base reads: questions with the very sentence that answers them in the prompt.

    python -m benchmarks.reading --json benchmarks/results/reading.json
    python -m benchmarks.reading --rows wording
    python -m benchmarks.reading --rows validation                 # after `make demo`
    python -m benchmarks.reading --rows wording --passages 2       # likewise: how many passages suit `retrieval` best

A rival that is handed passages is only real if the base can use a passage. `items` are the evaluation
items with the quotes of `tests/data/topics.json`, by which the embedded web was checked; `wording` are the questions of
`benchmarks.wording`, and `validation` the rows that synthesis held back, both with their own quotes: on these a warm-up is
chosen, and never on the items. A validation row's free text is right if its words and the row's overlap by half (F1).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.circumstances import circumstances
from culturemanager import artifacts, prompts
from culturemanager import project as projects
from culturemanager.adapters.bank import AdapterBank
from culturemanager.base_model import load_base_model
from culturemanager.chat import chat_ids
from culturemanager.config import Project
from culturemanager.evaluation.baselines import SYSTEMS, compose
from culturemanager.evaluation.retrieval import question_text
from culturemanager.inference.engine import Engine, GenerationRequest, ScoreRequest
from culturemanager.records import EvaluationItem, Task
from culturemanager.storage import write_json
from culturemanager.tasks import answers, is_correct, normalise, parse_answer, render

TOPICS = Path("tests/data/topics.json")
WORDING = Path("benchmarks/wording.jsonl")
"""Evaluation items with a `quote` each, the sentence of a page that answers."""


@dataclass(frozen=True)
class Question:
    """One question, the sentence that answers it, and what counts as right."""

    task: Task
    inputs: Mapping[str, Any]
    quote: str
    right: Callable[[str], bool]
    culture: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="examples/etiquette.yaml", help="project file (default: %(default)s)")
    parser.add_argument("--rows", choices=ROWS, default="items", help="what is asked (default: %(default)s)")
    parser.add_argument("--passages", type=int, default=0, metavar="N",
                        help="in place of the sentence, the N passages that are found for the question, as `retrieval` asks")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    project = projects.load(arguments.project)
    model, tokenizer = load_base_model(project.base_path, project.base.dtype)
    figures = ask(Engine(model, tokenizer, AdapterBank(model, slots=1, max_rank=1)), tokenizer,
                  list(ROWS[arguments.rows](project)),
                  with_found(project, arguments.passages) if arguments.passages else with_quote,
                  project.evaluation.max_new_tokens)
    figures["measured"] = circumstances()
    if arguments.json:
        write_json(arguments.json, figures)
    print(json.dumps(figures, indent=2))


def from_items(project: Project) -> Iterator[Question]:
    """The evaluation items whose topic the embedded web speaks of in their culture: all of the embedded ones."""
    tasks = {task.id: task for task in artifacts.tasks(project)}
    topics = json.loads(TOPICS.read_text(encoding="utf-8"))
    for item in artifacts.items(project).items:
        stated = topics.get(item.topic, {}).get("cultures", {}).get(item.culture, {}).get("stated")
        if stated:
            task = tasks[item.task]
            yield _of_item(task, item, stated[0]["quote"])


def from_wording(project: Project) -> Iterator[Question]:
    """The questions in other people's words on the project's cultures."""
    tasks = {task.id: task for task in artifacts.tasks(project)}
    cultures = {culture.id for culture in artifacts.cultures(project)}
    for line in map(json.loads, WORDING.read_text(encoding="utf-8").splitlines()):
        quote = line.pop("quote")
        item = EvaluationItem(**line)
        if item.task in tasks and item.culture in cultures:
            yield _of_item(tasks[item.task], item, quote)


def _of_item(task: Task, item: EvaluationItem, quote: str) -> Question:
    return Question(task, item.inputs, quote, lambda text: is_correct(task, item, parse_answer(task, item.inputs, text)),
                    item.culture)


def from_validation_rows(project: Project) -> Iterator[Question]:
    tasks = {task.id: task for task in artifacts.tasks(project)}
    for row in artifacts.examples(project):
        if row.split == "validation":
            free = not answers(tasks[row.task], row.inputs)
            yield Question(tasks[row.task], row.inputs, row.quote,
                           lambda text, row=row, free=free: (text == row.completion
                                                             or (free and overlap(text, row.completion) >= 0.5)),
                           row.culture)


def overlap(text: str, wanted: str) -> float:
    """F1 of the two texts' words."""
    said, meant = Counter(normalise(text).split()), Counter(normalise(wanted).split())
    return 2 * (said & meant).total() / max(1, said.total() + meant.total())


def bare_prompt(question: Question) -> str:
    return render(question.task, question.inputs)


def with_quote(question: Question) -> str:
    return prompts.with_passages(bare_prompt(question), [question.quote])


def with_found(project: Project, limit: int) -> Callable[[Question], str]:
    """The prompt of the system `retrieval`, with at most so many passages."""
    retriever = artifacts.open_retriever(project, artifacts.open_embedder(project))
    cultures = {culture.id: culture for culture in artifacts.cultures(project)}

    def prompt(question: Question) -> str:
        (texts,) = retriever.texts([question_text(question.inputs, question.task.fields)], question.culture, limit)
        return compose(SYSTEMS["retrieval"], bare_prompt(question), cultures[question.culture], texts)[0]

    return prompt


def ask(engine: Engine, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], prompt: Callable[[Question], str],
        max_new_tokens: int, adapter: Callable[[Question], str] = lambda _: "") -> dict[str, Any]:
    """Share of the questions answered right: `accuracy`, `by_task`, and how many were `asked` by task.

    Args:
        adapter: name in the engine's bank of the one that is asked; empty for the bare base.
    """

    def ids(question: Question) -> tuple[int, ...]:
        return tuple(chat_ids(tokenizer, prompt(question)))

    closed = [question for question in questions if answers(question.task, question.inputs)]
    free = [question for question in questions if not answers(question.task, question.inputs)]
    scored = [ScoreRequest(ids(question), answers(question.task, question.inputs), adapter(question)) for question in closed]
    said = [request.options[scores.index(max(scores))] for request, scores in zip(scored, engine.score(scored), strict=True)]
    said += [generation.text for generation in engine.generate(
        [GenerationRequest(ids(question), adapter(question), max_new_tokens) for question in free])]
    asked, right = Counter(), Counter()
    for question, text in zip([*closed, *free], said, strict=True):
        asked[question.task.id] += 1
        right[question.task.id] += question.right(text)
    return {"accuracy": round(right.total() / asked.total(), 4), "asked": dict(asked),
            "by_task": {task: round(right[task] / number, 4) for task, number in asked.items()}}


ROWS: Mapping[str, Callable[[Project], Iterator[Question]]] = {
    "items": from_items, "wording": from_wording, "validation": from_validation_rows}

if __name__ == "__main__":
    main()
