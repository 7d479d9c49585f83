"""Training rows as token ids, and the batches an adapter sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from culturemanager.chat import chat_ids


@dataclass(frozen=True)
class TokenRow:
    """One prompt and completion; the loss counts the completion's tokens only."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def label_count(self) -> int:
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True)
class Batch:
    """Rows of several adapters, right-padded. `slots` is sorted."""

    input_ids: torch.Tensor
    """[rows, length], int64."""
    attention_mask: torch.Tensor
    """[rows, length], int64."""
    position_ids: torch.Tensor
    """[rows, length], int64."""
    slots: tuple[int, ...]
    """The adapter slot of each row."""
    lengths: tuple[int, ...]
    """Tokens of each row."""
    label_rows: torch.Tensor
    """[labels], the row of each predicted token."""
    label_columns: torch.Tensor
    """[labels], the position whose output predicts it."""
    labels: torch.Tensor
    """[labels], the token to predict."""
    label_slots: torch.Tensor
    """[labels], the adapter slot of each predicted token."""


def tokenise(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], max_length: int) -> tuple[list[TokenRow], int]:
    """Tokenise (prompt, completion) pairs; the completion ends with the end-of-sequence token.

    Returns:
        The rows, and the number dropped because they are longer than `max_length` tokens.
    """
    rows, dropped = [], 0
    for prompt, completion in pairs:
        head = chat_ids(tokenizer, prompt)
        tail = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if len(head) + len(tail) > max_length:
            dropped += 1
            continue
        rows.append(TokenRow(tuple(head + tail), len(head)))
    return rows, dropped


def epoch_batches(rows: Sequence[TokenRow], batch_size: int, seed: int, epoch: int) -> Iterator[list[TokenRow]]:
    """One epoch's batches, in an order that depends on the adapter's seed and the epoch alone."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    for start in range(0, len(order), batch_size):
        yield [rows[i] for i in order[start:start + batch_size]]


def collate(rows: Sequence[tuple[int, TokenRow]], pad_id: int) -> Batch:
    """Pad (slot, row) pairs into one batch, sorted by slot and keeping each slot's order."""
    ordered = sorted(rows, key=lambda pair: pair[0])
    length = max(len(row.ids) for _, row in ordered)
    ids = torch.full((len(ordered), length), pad_id)
    mask = torch.zeros_like(ids)
    label_rows, label_columns, labels, label_slots = [], [], [], []
    for number, (slot, row) in enumerate(ordered):
        ids[number, :len(row.ids)] = torch.tensor(row.ids)
        mask[number, :len(row.ids)] = 1
        label_rows += [number] * row.label_count
        label_columns += range(row.prompt_length - 1, len(row.ids) - 1)
        labels += row.ids[row.prompt_length:]
        label_slots += [slot] * row.label_count
    return Batch(input_ids=ids, attention_mask=mask, position_ids=torch.arange(length).expand_as(ids),
                 slots=tuple(slot for slot, _ in ordered), lengths=tuple(len(row.ids) for _, row in ordered),
                 label_rows=torch.tensor(label_rows), label_columns=torch.tensor(label_columns),
                 labels=torch.tensor(labels), label_slots=torch.tensor(label_slots))
