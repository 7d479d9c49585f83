"""Training rows as token ids, and the batches an adapter sees."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from culturemanager.adapters.dropout import Parts
from culturemanager.chat import chat_ids
from culturemanager.training.costs import ATTENTION_TOKENS, PASS_TOKENS
from culturemanager.training.token_files import TokenRow

NO_LABEL = -100
"""What `cross_entropy` counts as no label."""


class Place(NamedTuple):
    """Where one row stands in a batch."""

    slot: int
    row: TokenRow
    sequence: int
    start: int


@dataclass(frozen=True)
class Batch:
    """Sequences of several adapters, right-padded; a sequence holds one row or several that do not see each other.

    `slots` is sorted.
    """

    input_ids: torch.Tensor
    """[sequences, length], int64."""
    attention_mask: torch.Tensor
    """[sequences, length], int64; with several rows in a sequence [sequences, 1, length, length], true where a token may look."""
    position_ids: torch.Tensor
    """[sequences, length], int64, counting from 0 in each row."""
    slots: tuple[int, ...]
    """The adapter slot of each sequence."""
    label_sequences: torch.Tensor
    """[labels], the sequence of each predicted token."""
    label_columns: torch.Tensor
    """[labels], the position whose output predicts it."""
    labels: torch.Tensor
    """[labels], the token to predict."""
    label_slots: torch.Tensor
    """[labels], the adapter slot of each predicted token; stays on the CPU."""
    places: tuple[Place, ...]
    states: torch.Tensor | None = None
    """[sequences, length, hidden], what the layers below the lowest adapter make of the rows; None: not known."""
    numbers: tuple[int, ...] = ()
    """Which of its adapter's rows of the step each place holds."""

    def numbered(self, first: int, stride: int) -> Batch:
        """The batch as a part of a step: an adapter's rows are, in their order, every `stride`-th from `first` on."""
        counts: Counter[int] = Counter()
        numbers = []
        for place in self.places:
            numbers.append(first + stride * counts[place.slot])
            counts[place.slot] += 1
        return replace(self, numbers=tuple(numbers))

    @property
    def parts(self) -> Parts:
        """The rows in each sequence, as the bank's dropout takes them."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.slots]
        for place, number in zip(self.places, self.numbers, strict=True):
            found[place.sequence].append((number, len(place.row.ids)))
        return found

    @property
    def label_parts(self) -> Parts:
        """Likewise for the predicted tokens, each by itself."""
        return [[(f"{number}.{label}", 1)] for place, number in zip(self.places, self.numbers, strict=True)
                for label in range(place.row.label_count)]

    def idle(self) -> Batch:
        """The same pass, with no loss and no gradient: for a worker that has to take part and has no rows left."""
        return replace(self, labels=torch.full_like(self.labels, NO_LABEL))

    def to(self, device: torch.device) -> Batch:
        """The batch on the model's device."""
        moved = {name: getattr(self, name).to(device) for name in
                 ("input_ids", "attention_mask", "position_ids", "label_sequences", "label_columns", "labels")}
        return replace(self, **moved)


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


def epoch_batches(rows: Sequence[TokenRow], batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[list[TokenRow]]:
    """One epoch's batches after the first `skip`, in an order that depends on the adapter's seed and the epoch alone."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    for start in range(skip * batch_size, len(order), batch_size):
        yield [rows[i] for i in order[start:start + batch_size].tolist()]


def collate(rows: Sequence[tuple[int, TokenRow]], pad_id: int, capacity: int = 0) -> list[Batch]:
    """(slot, row) pairs as batches with little padding, each sorted by slot and keeping each slot's order.

    Adapters with long sequences and with short ones come into different batches where that saves more
    than a further pass costs. How an adapter's rows are laid out depends on them alone.

    Args:
        capacity: tokens up to which an adapter's rows share a sequence; 0 gives every row its own.
    """
    laid_out = {slot: _filled(own, capacity) for slot, own in _by_slot(rows).items()}
    sizes = {slot: (max(map(_tokens, sequences)), len(sequences)) for slot, sequences in laid_out.items()}
    return [_padded([(slot, sequence) for slot in group for sequence in laid_out[slot]], pad_id)
            for group in _alike_in_length(sizes)]


def _alike_in_length(sizes: Mapping[int, tuple[int, int]]) -> list[list[int]]:
    """Slots in groups, so that padded tokens and the cost of passes are least in sum.

    Args:
        sizes: slot to its longest sequence in tokens, and how many sequences it has.
    """
    slots = sorted(sizes, key=lambda slot: (sizes[slot][0], slot))
    best: list[tuple[int, int]] = [(0, 0)]  # for the first so many slots: least cost, and where their last group begins
    for end in range(1, len(slots) + 1):
        longest, sequences, choices = sizes[slots[end - 1]][0], 0, []
        for start in range(end - 1, -1, -1):
            sequences += sizes[slots[start]][1]
            choices.append((best[start][0] + longest * sequences + PASS_TOKENS, start))
        best.append(min(choices))
    groups, end = [], len(slots)
    while end:
        groups.append(sorted(slots[best[end][1]:end]))
        end = best[end][1]
    return groups[::-1]


def _tokens(sequence: Sequence[TokenRow]) -> int:
    return sum(len(row.ids) for row in sequence)


def _padded(sequences: Sequence[tuple[int, list[TokenRow]]], pad_id: int) -> Batch:
    """(slot, rows) pairs, sorted by slot, as one batch."""
    length = max(_tokens(sequence) for _, sequence in sequences)
    ids = torch.full((len(sequences), length), pad_id)
    positions = torch.zeros_like(ids)
    row_numbers = torch.full_like(ids, -1)
    label_sequences, label_columns, labels, label_slots, places = [], [], [], [], []
    for number, (slot, sequence) in enumerate(sequences):
        start = 0
        for row_number, row in enumerate(sequence):
            end = start + len(row.ids)
            ids[number, start:end] = torch.tensor(row.ids)
            positions[number, start:end] = torch.arange(len(row.ids))
            row_numbers[number, start:end] = row_number
            label_sequences += [number] * row.label_count
            label_columns += range(start + row.prompt_length - 1, end - 1)
            labels += row.ids[row.prompt_length:]
            label_slots += [slot] * row.label_count
            places.append(Place(slot, row, number, start))
            start = end
    return Batch(input_ids=ids, attention_mask=_mask(row_numbers), position_ids=positions,
                 slots=tuple(slot for slot, _ in sequences),
                 label_sequences=torch.tensor(label_sequences), label_columns=torch.tensor(label_columns),
                 labels=torch.tensor(labels), label_slots=torch.tensor(label_slots), places=tuple(places))


def _by_slot(rows: Sequence[tuple[int, TokenRow]]) -> dict[int, list[TokenRow]]:
    found: dict[int, list[TokenRow]] = {slot: [] for slot in sorted({slot for slot, _ in rows})}
    for slot, row in rows:
        found[slot].append(row)
    return found


def _filled(rows: Sequence[TokenRow], capacity: int) -> list[list[TokenRow]]:
    """The rows in their order, in sequences of up to `capacity`, of a part of it, or of their own: whatever costs least."""
    return min((_even(rows, room) for room in (capacity, capacity // 2, capacity // 4, 0)), key=_cost)


def _even(rows: Sequence[TokenRow], capacity: int) -> list[list[TokenRow]]:
    """The rows in no more sequences than `capacity` needs, and these as even as that allows."""
    fewest = len(behind_each_other(rows, capacity))
    even = bisect.bisect_left(range(capacity), True, key=lambda room: len(behind_each_other(rows, room)) <= fewest)
    return behind_each_other(rows, even)


def _cost(sequences: Sequence[Sequence[TokenRow]]) -> float:
    """What these sequences cost with their padding, in tokens through the linear layers."""
    longest = max(map(_tokens, sequences))
    return len(sequences) * longest * (1 + longest / ATTENTION_TOKENS)


def behind_each_other(rows: Sequence[TokenRow], capacity: int) -> list[list[TokenRow]]:
    """The rows in their order, in sequences of up to `capacity` tokens, or of one row that has more."""
    sequences: list[list[TokenRow]] = []
    room = 0
    for row in rows:
        if len(row.ids) > room:
            sequences.append([])
            room = max(capacity, len(row.ids))
        sequences[-1].append(row)
        room -= len(row.ids)
    return sequences


def _mask(row_numbers: torch.Tensor) -> torch.Tensor:
    """Who may look where; `row_numbers` [sequences, length] counts a sequence's rows from 0, padding is -1."""
    if row_numbers.max() == 0:
        return (row_numbers == 0).long()
    same_row = row_numbers[:, :, None] == row_numbers[:, None, :]  # padding looks at padding: a token that sees nothing is NaN
    return (same_row & torch.ones_like(same_row[0]).tril())[:, None]
