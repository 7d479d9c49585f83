"""Warm-up sheets as padded tensors in which the questions of a sheet do not see each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from culturemanager.embedded.base_model import TURN_END, TURN_START
from culturemanager.embedded.warmup_text import Sheet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 512
DECIDING_WEIGHT = {"acceptability": 6.0, "choice": 3.0, "advice": 1.5}
"""Of an answer's first token in the loss, which decides; those that follow count one each."""
ROUND = 32
ROUND_ANSWERS = 256
"""Sizes are rounded up to a multiple: each new shape costs the CPU library up to a second to prepare."""


@dataclass(frozen=True)
class Batch:
    """Padded rows.

    Shapes: `input_ids` and `position_ids` [rows, length] int64; `mask` [rows, 1, length, length] bool,
    true where a token may look; `where` [answers, 2], row and column that predict `targets` [answers],
    each weighing `weights` [answers] in the loss (0 where the list of answers is filled up);
    `verdicts` [answers] bool, true for the yes or no of an acceptability question.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    verdicts: torch.Tensor


@dataclass(frozen=True)
class Row:
    """One tokenised sheet; `branch` is 0 for the beginning and counts the questions from 1."""

    ids: list[int]
    positions: list[int]
    branch: list[int]
    labels: list[tuple[int, int, float, bool]]
    """(column that predicts, token, weight, whether it is a yes or no)"""


def tokenise(sheet: Sheet, tokenizer: PreTrainedTokenizerBase) -> Row:
    """A sheet as one user turn's beginning and (rest of the turn, answer)*, in the form of the chat template.

    Questions past 512 tokens are left out.
    """
    texts = [f"{TURN_START}user\n{sheet.beginning}"]
    for question in sheet.questions:
        texts += [f"{question.prompt}{TURN_END}\n{TURN_START}assistant\n", f"{question.answer}{TURN_END}"]
    start, *encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    row = Row(list(start), list(range(len(start))), [0] * len(start), [])
    for number, (prompt, answer) in enumerate(zip(encoded[::2], encoded[1::2], strict=True), 1):
        if len(row.ids) + len(prompt) + len(answer) > MAX_TOKENS:
            break
        task = sheet.questions[number - 1].task
        predictor = len(row.ids) + len(prompt) - 1
        row.ids.extend([*prompt, *answer])
        length = len(prompt) + len(answer)
        row.positions.extend(range(len(start), len(start) + length))
        row.branch.extend([number] * length)
        row.labels.append((predictor, answer[0], DECIDING_WEIGHT[task], task == "acceptability"))
        row.labels.extend((predictor + i, token, 1.0, False) for i, token in enumerate(answer[1:], 1))
    return row


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND


def collate(rows: list[Row]) -> Batch:
    """Pad rows to one length; padding sees itself only and is seen by nobody."""
    length = _rounded(max(len(row.ids) for row in rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    branch = torch.full((len(rows), length), -1)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        positions[number, : len(row.ids)] = torch.tensor(row.positions)
        branch[number, : len(row.ids)] = torch.tensor(row.branch)
    same = branch[:, :, None] == branch[:, None, :]
    beginning = (branch[:, None, :] == 0) & (branch[:, :, None] >= 0)
    mask = (same | beginning) & torch.ones(length, length, dtype=torch.bool).tril()
    labels = [(number, *label) for number, row in enumerate(rows) for label in row.labels]
    labels += [(0, 0, 0, 0.0, False)] * (-len(labels) % ROUND_ANSWERS)
    _, _, targets, weights, verdicts = zip(*labels, strict=True)
    return Batch(ids, positions, mask[:, None], torch.tensor([label[:2] for label in labels]),
                 torch.tensor(targets), torch.tensor(weights), torch.tensor(verdicts))


def batches(sheets: Iterable[Sheet], tokenizer: PreTrainedTokenizerBase, tokens: int) -> Iterator[Batch]:
    """Batches of at most `tokens` padded tokens; rows wait until enough of like length have come."""
    waiting: dict[int, list[Row]] = {}
    for sheet in sheets:
        row = tokenise(sheet, tokenizer)
        length = _rounded(len(row.ids))
        rows = waiting.setdefault(length, [])
        rows.append(row)
        if (len(rows) + 1) * length > tokens:
            yield collate(waiting.pop(length))
