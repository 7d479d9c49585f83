"""Dropout whose masks depend on one adapter and the row's number in its step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Parts = Sequence[Sequence[tuple[int | str, int]]]
"""What stands in each row of a batch, one behind the other: (number, tokens). A number is its adapter's own in a step."""


def mix(seed: int, *parts: str | int) -> int:
    """A 63-bit seed that depends on every part, and on nothing else."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def apply_dropout(x: Tensor, layer: str, step: int | Mapping[int, int], parts: Parts | None,
                  rows_of: Mapping[int, list[int]], settings: Mapping[int, tuple[float, int]]) -> Tensor:
    """Inverted dropout on a layer's input, one mask for each part.

    A mask is drawn from a generator seeded by the adapter's seed, the step, the layer and the part's number, and then
    laid into the batch. It is the same whether the adapter trains alone or in a pack and however the rows of a step are
    spread over workers and passes, and the same again when a checkpointed layer is recomputed.

    Args:
        x: [rows, tokens, in].
        step: one number for all, or slot to its adapter's own.
        parts: padding on the right not counted; None: every row is one part, numbered among its adapter's rows.
        rows_of: slot to the positions of its rows.
        settings: slot to dropout rate and seed; slots without an entry are left alone.
    """
    factors = None
    for slot, rows in rows_of.items():
        rate, seed = settings.get(slot, (0.0, 0))
        if not rate:
            continue
        if factors is None:
            factors = torch.ones_like(x)
        own_step = step if isinstance(step, int) else step[slot]
        for position, row in enumerate(rows):
            start = 0
            for number, tokens in [(position, x.shape[1])] if parts is None else parts[row]:
                place = factors[row, start:start + tokens]
                generator = torch.Generator(device=x.device).manual_seed(mix(seed, own_step, layer, number))
                kept = torch.rand(place.shape, generator=generator, device=x.device) >= rate
                place.copy_(kept.to(x.dtype) / (1 - rate))
                start += tokens
    return x if factors is None else x * factors
