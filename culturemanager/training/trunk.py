"""One pass of the base below its head, and two rows to try on a model what it can do."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from culturemanager.training.rows import Batch, TokenRow

SAME_OUTPUT = 0.02
"""Largest relative difference that rounding makes (bfloat16) between two ways to compute the same."""


def trunk_output(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The last hidden states [sequences, length, hidden]."""
    return model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                            position_ids=batch.position_ids, use_cache=False).last_hidden_state


def probe_rows(model: PreTrainedModel) -> list[tuple[int, TokenRow]]:
    """Two rows of different length for the bare base, as `rows.collate` takes them."""
    vocabulary = model.get_input_embeddings().num_embeddings
    return [(0, TokenRow(tuple((7 * number + 11 * i) % vocabulary for i in range(6 + number)), 1)) for number in range(2)]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ by rounding alone."""
    return bool((one - other).abs().max() <= SAME_OUTPUT * one.abs().max())
