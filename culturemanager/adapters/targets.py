"""Which linear layers of a model adapters are put on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from culturemanager.errors import AdapterError

LINEAR = (nn.Linear, Conv1D)
"""Conv1D is GPT-2's linear layer, with its weight stored [in, out]."""


def matches(name: str, target: str) -> bool:
    """PEFT's rule for one entry of `target_modules`: the full module name, or a dotted ending of it."""
    return name == target or name.endswith(f".{target}")


def find_targets(model: PreTrainedModel, targets: Sequence[str] | None) -> dict[str, nn.Module]:
    """The wrapped layers by full module name, in model order.

    Args:
        targets: full names or endings; None takes every linear layer but the output head, layers that
            share its or the embeddings' weight, and the experts of a mixture (a router hands them
            some of the tokens, so their inputs no longer tell which row a token belongs to).

    Raises:
        AdapterError: a target fits no linear layer or one of those left out above; nothing is left to wrap.
    """
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = {id(module.weight) for module in embeddings if hasattr(module, "weight")}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}
    allowed = {name: module for name, module in linear.items()
               if id(module.weight) not in tied and "experts" not in name.split(".")}
    for target in targets or ():
        for name in linear:
            if matches(name, target) and name not in allowed:
                raise AdapterError(f"{name} cannot carry adapters: it is the output head, shares the embeddings' weight or "
                                   f"is one of a mixture's experts. Take {target!r} off the targets.")
        if not any(matches(name, target) for name in allowed):
            leaves = sorted({name.rpartition(".")[2] for name in allowed})
            raise AdapterError(f"{type(model).__name__} has no linear layer {target!r}; it has {', '.join(leaves)}.")
    chosen = {name: module for name, module in allowed.items()
              if targets is None or any(matches(name, target) for target in targets)}
    if not chosen:
        raise AdapterError(f"{type(model).__name__} has no linear layer to put adapters on (nn.Linear or Conv1D).")
    for name, module in chosen.items():
        if hasattr(module, "bank_A"):
            raise AdapterError(f"{name} already carries an adapter bank; call `detach()` on that one first.")
    return chosen


def layer_number(name: str) -> int:
    """The decoder layer that a module lies in, by its full name; -1 if in none."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


def on_last_layers(model: PreTrainedModel, count: int) -> list[str]:
    """Full names of the layers that `find_targets` would wrap, as far as they lie in the last `count` decoder layers.

    Raises:
        AdapterError: the model has fewer decoder layers.
    """
    numbered = {name: layer_number(name) for name in find_targets(model, None)}
    layers = max(numbered.values()) + 1
    if count > layers:
        raise AdapterError(f"{type(model).__name__} has {layers} decoder layers, of which adapters were to lie on the last "
                           f"{count}. Lower `training.last_layers`, or set it to 0 for all.")
    return [name for name, number in numbered.items() if number >= max(0, layers - count)]
