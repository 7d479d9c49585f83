"""The loss of a pack in one forward pass: each adapter's rows with its own weights, logits at label positions only."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from culturemanager.adapters.bank import AdapterBank
from culturemanager.training.frozen_layers import FrozenLayers
from culturemanager.training.precision import attention, autocast, round_weights
from culturemanager.training.rows import Batch, collate
from culturemanager.training.trunk import probe_rows, same, trunk_output

SEQUENCE_TOKENS = 256
"""An adapter's short rows share sequences up to this length."""


class PackLoss(nn.Module):
    """The forward pass of a pack: logits at label positions only, summed token means.

    Args:
        bank: its model's trunk and head are called apart, so that no logits are computed for prompts.
        products: type of the matrix products, and from now on of the base's matrices; the adapters' weights and the losses
            stay float32.
    """

    def __init__(self, bank: AdapterBank, products: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = bank.model
        self.bank = bank
        self._products = products
        round_weights(self.model, products)
        self.frozen: FrozenLayers | None = None
        """Needed for batches that have states."""

    def forward(self, batches: Sequence[Batch], weights: Tensor, step: Mapping[int, int] | None) -> tuple[Tensor, Tensor]:
        """The pack's loss.

        Args:
            batches: rows of every active adapter, numbered for training; an adapter's stand in one batch.
            weights: [slots], one over the number of tokens that the slot's adapter predicts in this step.
            step: each slot's step, which numbers its dropout masks; None for evaluation.

        Returns:
            The weighted sum of token losses, and each slot's sum of token losses [slots], detached.
        """
        loss, sums = torch.zeros(()), torch.zeros_like(weights)
        step = step if self.bank.has_dropout else None  # nothing else needs the rows' numbers
        for batch in batches:
            losses = self._token_losses(batch.to(self.model.device), step).to(weights.device)
            loss = loss + (losses * weights[batch.label_slots]).sum()
            sums.index_add_(0, batch.label_slots, losses.detach())
        return loss, sums

    def _token_losses(self, batch: Batch, step: Mapping[int, int] | None) -> Tensor:
        """[labels], float32."""
        device = self.model.device
        with autocast(device, self._products), attention(device, self._products):
            hidden = self._hidden(batch, step)[batch.label_sequences, batch.label_columns]
            parts = None if step is None else batch.label_parts
            with self.bank.rows(tuple(batch.label_slots.tolist()), step=step, parts=parts):
                logits = head(self.model)(hidden)
        return nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")

    def _hidden(self, batch: Batch, step: Mapping[int, int] | None) -> Tensor:
        start = contextlib.nullcontext() if batch.states is None else self.frozen.above(batch.states)
        with self.bank.rows(batch.slots, step=step, parts=None if step is None else batch.parts), start:
            return trunk_output(self.model, batch)


@torch.no_grad()
def rows_share_sequences(bank: AdapterBank, pad_id: int) -> bool:
    """Whether the model computes a row behind another one as it does alone, given positions and a mask.

    Models with a state in place of attention do not, and rows of theirs must not share a sequence.
    """
    outputs = []
    for capacity in (0, SEQUENCE_TOKENS):
        batch = collate(probe_rows(bank.model), pad_id, capacity)[0].to(bank.model.device)
        outputs.append(trunk_output(bank.model, batch)[batch.label_sequences, batch.label_columns].float())
    return same(*outputs)


def head(model: PreTrainedModel) -> nn.Module:
    """The module that turns hidden states into logits."""
    return model.cls if hasattr(model, "cls") else model.get_output_embeddings()
