"""How well a model reads: questions about invented customs that it has never seen."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from culturemanager import prompts, tasks
from culturemanager.base_model import position_ids
from culturemanager.chat import chat_ids
from culturemanager.embedded.warmup_sheets import Sheets
from culturemanager.embedded.warmup_text import TASKS_FOLDER, Question, Writer
from culturemanager.tasks import contains_phrase, normalise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARAGRAPHS_FILE = Path(__file__).with_name("warmup_reading.yaml")
MAX_NEW_TOKENS = 24
CLOSE_ENOUGH = 0.8


@dataclass(frozen=True)
class ReadingItem:
    """One question with everything the model sees."""

    passages: int
    prompt: str
    question: Question


def reading_items(writer: Writer, passages: int, count: int) -> list[ReadingItem]:
    """Questions of all three tasks, each about its own `passages` passages, one of which answers it."""
    sheets = islice(Sheets(writer).with_passages(passages), count)
    return [ReadingItem(passages, sheet.beginning + sheet.questions[0].prompt, sheet.questions[0]) for sheet in sheets]


@torch.inference_mode()
def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str],
             max_new_tokens: int = MAX_NEW_TOKENS, batch_size: int = 32) -> list[str]:
    """Greedy answers, in the order of the prompts."""
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [chat_ids(tokenizer, prompts[i]) for i in rows]}, padding_side="left",
                              return_tensors="pt")
        output = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                                max_new_tokens=max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text.strip()
    return answers


@torch.inference_mode()
def best_option(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, options: Sequence[str]) -> str:
    """The option with the highest mean log-probability of its tokens."""
    start = chat_ids(tokenizer, prompt)
    rows = [start + tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                   position_ids=position_ids(batch["attention_mask"]), use_cache=False).logits
    logprobs = logits.float().log_softmax(-1)
    means = []
    for number, row in enumerate(rows):
        columns = torch.arange(len(start) - 1, len(row) - 1)
        means.append(logprobs[number, columns, torch.tensor(row[len(start) :])].mean().item())
    return options[max(range(len(options)), key=means.__getitem__)]


def close(said: str, expected: str) -> bool:
    """Whether two short texts share nearly all their words (F1 of at least 0.8), or one contains the other's."""
    a, b = (collections.Counter(normalise(text).split()) for text in (said, expected))
    if not a or not b:
        return False
    shared = sum((a & b).values())
    return 2 * shared / (sum(a.values()) + sum(b.values())) >= CLOSE_ENOUGH or shared == sum(b.values())


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Iterable[ReadingItem]) -> dict[str, float]:
    """Accuracy for each task; `advice_exact` counts only word-for-word answers."""
    items = list(items)
    right: dict[str, list[bool]] = collections.defaultdict(list)
    written = [item for item in items if item.question.task != "choice"]
    for item, said in zip(written, generate(model, tokenizer, [item.prompt for item in written]), strict=True):
        expected = item.question.answer
        if item.question.task == "acceptability":
            right["acceptability"].append(normalise(said) == expected)
        else:
            right["advice"].append(close(said, expected))
            right["advice_exact"].append(normalise(said) == normalise(expected))
    for item in items:
        if item.question.task == "choice":
            said = best_option(model, tokenizer, item.prompt, item.question.options)
            right["choice"].append(said == item.question.answer)
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}


def score_paragraphs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Accuracy for each task on `warmup_reading.yaml`: paragraphs unlike the warm-up's own patterns."""
    acceptability, choice, advice = (tasks.load_task(TASKS_FOLDER / f"{name}.yaml")
                                     for name in ("acceptability", "choice", "advice"))
    asked: list[tuple[str, str, tuple[str, ...]]] = []
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for paragraph in yaml.safe_load(PARAGRAPHS_FILE.read_text(encoding="utf-8")):
        notes = [paragraph["passage"]]
        for answer in ("yes", "no"):
            if paragraph[answer]:
                prompt = tasks.render(acceptability, {"behaviour": paragraph[answer]})
                asked.append(("acceptability", prompts.with_passages(prompt, notes), (answer,)))
        if paragraph["advice"]:
            prompt = tasks.render(advice, {"question": paragraph["advice"]})
            asked.append(("advice", prompts.with_passages(prompt, notes), tuple(paragraph["accept"])))
        options = paragraph["options"]
        prompt = prompts.with_passages(tasks.render(choice, {"question": paragraph["question"], "options": options}), notes)
        right["choice"].append(best_option(model, tokenizer, prompt, options) == paragraph["right"])
    said = generate(model, tokenizer, [prompt for _, prompt, _ in asked])
    for (task, _, accept), text in zip(asked, said, strict=True):
        right[task].append(any(contains_phrase(text, phrase) for phrase in accept))
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}
