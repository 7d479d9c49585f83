"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): decoder layers are computed again in the backward pass.

Between the two passes a layer keeps its input only, so a step's memory falls to about one layer's, for
another forward pass through it: about half more arithmetic there, since a frozen base's backward pass stops at the
activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from culturemanager.adapters.bank import AdapterBank
from culturemanager.errors import TrainingError
from culturemanager.training.frozen_layers import decoder_layers
from culturemanager.training.precision import attention_is_plain, plain_attention


def recompute_layers(bank: AdapterBank) -> None:
    """From now on, the layers that need a gradient are computed again instead of kept.

    Raises:
        TrainingError: the model's layers are not found by their names.
    """
    layers, below = decoder_layers(bank)
    if not layers:
        raise TrainingError(f"{type(bank.model).__name__} has no list of decoder layers that is known by its name, so they "
                            "cannot be computed twice. Set `training.activation_checkpointing: false`.")
    for layer in layers[below:]:
        layer.forward = functools.partial(_recomputed, bank, layer.forward)


def _recomputed(bank: AdapterBank, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    if attention_is_plain():  # the backward pass is made outside of what is open now
        forward = plain_attention()(forward)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=bank.again, **named)
