"""Dropout whose masks depend on one adapter alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def mix(seed: int, *parts: str | int) -> int:
    """A 63-bit seed that depends on every part, and on nothing else."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def apply_dropout(x: Tensor, layer: str, step: int | Mapping[int, int], lengths: Sequence[int] | None,
                  rows_of: Mapping[int, list[int]], settings: Mapping[int, tuple[float, int]]) -> Tensor:
    """Inverted dropout on a layer's input, one mask for each adapter.

    A mask is drawn over the adapter's own rows and its own longest row, from a generator seeded by
    the adapter's seed, the step and the layer, and then laid into the batch. It is the same whether
    the adapter trains alone or in a pack, and the same again when a checkpointed layer is recomputed.

    Args:
        x: [rows, tokens, in].
        step: one number for all, or slot to its adapter's own.
        lengths: tokens of each row, padding on the right not counted; None: every row is `tokens` long.
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
        own = x.shape[1] if lengths is None else min(x.shape[1], max(lengths[row] for row in rows))
        own_step = step if isinstance(step, int) else step[slot]
        generator = torch.Generator(device=x.device).manual_seed(mix(seed, own_step, layer))
        kept = torch.rand(len(rows), own, x.shape[2], generator=generator, device=x.device) >= rate
        factors[rows, :own] = kept.to(x.dtype) / (1 - rate)
    return x if factors is None else x * factors
