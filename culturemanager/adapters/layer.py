"""One linear layer of the base with every adapter's A and B for it, and how a batch's deltas are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from culturemanager.adapters.compositions import Gathered
from culturemanager.adapters.dropout import Parts, apply_dropout
from culturemanager.adapters.plan import RowPlan
from culturemanager.errors import AdapterError


@dataclass(eq=False)
class Pass:
    """What the layers need to know while a `rows` block is open."""

    plan: RowPlan
    step: int | Mapping[int, int] | None
    """Number of the dropout masks, or slot to its number; None: no dropout."""
    parts: Parts | None
    """What stands in each row, for dropout."""
    dropout: Mapping[int, tuple[float, int]]
    """Slot to dropout rate and seed."""
    gathered: Gathered | None
    """The blocks' weights; None: do not keep any."""
    tokens: int | None = None
    """Positions per row of the last input with a token axis, to read inputs flattened to [rows * tokens, in]."""


class BankLayer:
    """The stacked weights beside one linear layer.

    Attributes:
        A: [slots+1, in, max_rank]; B: [slots+1, max_rank, out]; float32, zero where no adapter lies.
    """

    def __init__(self, name: str, module: nn.Module, slots: int, max_rank: int) -> None:
        self.name = name
        self.module = module
        if isinstance(module, Conv1D):
            self.fan_in, self.fan_out = module.weight.shape
        else:
            self.fan_in, self.fan_out = module.in_features, module.out_features
        self.max_rank = max_rank
        device = module.weight.device
        # Registered on the wrapped module, so that `.to(device)` and DeepSpeed find them in the model.
        module.register_parameter("bank_A", nn.Parameter(torch.zeros(slots + 1, self.fan_in, max_rank, device=device)))
        module.register_parameter("bank_B", nn.Parameter(torch.zeros(slots + 1, max_rank, self.fan_out, device=device)))
        self.A: nn.Parameter = module.bank_A
        self.B: nn.Parameter = module.bank_B

    def unregister(self) -> None:
        """Take the weights off the wrapped module, where they still are."""
        for name in ("bank_A", "bank_B"):
            self.module._parameters.pop(name, None)

    def add_delta(self, x: Tensor, output: Tensor, current: Pass, generation: int) -> Tensor:
        """The layer's output plus ``scale * x A B``, each row with the weights of its own slot.

        Args:
            x: the layer's input, [rows, ..., in], [rows, in] or [rows * tokens, in].
            output: the bare layer's output, likewise; overwritten where no gradient is recorded.
            generation: rises whenever the bank knows that weights changed; torch's own version counters tell the rest.
        """
        plan = current.plan
        kept = None if torch.is_grad_enabled() else current.gathered
        x = self._as_rows(x, current)
        if not torch.is_autocast_enabled(x.device.type):  # it brings what products take to one type
            x = x.to(self.A.dtype)
        if current.step is not None:
            x = apply_dropout(x, self.name, current.step, current.parts, plan.rows_of, current.dropout)
        # What is copied: inputs to regroup the rows, or weights for every row.
        if kept is None and not plan.is_range and plan.padded_rows * x.shape[1] < len(plan.blocks) * plan.rank:
            return output + self._grouped(x, plan).to(output.dtype).view(output.shape)
        A, B, scale = self._weights(plan, kept, generation)
        blocks = len(plan.blocks)
        if blocks == 1:
            hidden = x.reshape(-1, self.fan_in) @ A[0] * plan.scale
            return _add_product(output.reshape(-1, self.fan_out), hidden, B[0]).view(output.shape)
        hidden = torch.bmm(x.reshape(blocks, -1, self.fan_in), A)
        if scale is not None:
            hidden = hidden * scale
        return _add_product(output.reshape(blocks, -1, self.fan_out), hidden, B).view(output.shape)

    def _grouped(self, x: Tensor, plan: RowPlan) -> Tensor:
        """The deltas [rows, tokens, out] of rows in any order, with one product for each slot in use."""
        groups = plan.groups(x.device)
        A = self.A.index_select(0, groups.slots)[..., :plan.rank]
        B = self.B.index_select(0, groups.slots)[:, :plan.rank]
        regrouped = x.index_select(0, groups.together).view(len(groups.slots), -1, self.fan_in)
        delta = torch.bmm(torch.bmm(regrouped, A) * groups.scales, B)
        return delta.view(plan.padded_rows, -1, self.fan_out).index_select(0, groups.apart)

    def _weights(self, plan: RowPlan, kept: Gathered | None, generation: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The blocks' A [blocks, in, rank], B [blocks, rank, out] and scale [blocks, 1, 1], None if B has it already."""
        rank = plan.rank
        slots, scale = plan.on(self.A.device)
        if plan.is_range:
            A, B = self.A.narrow(0, plan.first, len(plan.blocks)), self.B.narrow(0, plan.first, len(plan.blocks))
            return (A, B, scale) if rank == self.max_rank else (A[..., :rank], B[:, :rank], scale)
        version = (self.A._version, self.B._version, generation)
        if kept is not None and self.name in kept and kept[self.name][2] == version:
            return (*kept[self.name][:2], None)
        A, B = self.A.index_select(0, slots)[..., :rank], self.B.index_select(0, slots)[:, :rank]
        if kept is None:
            return A, B, scale
        kept[self.name] = A.contiguous(), B * scale, version
        return (*kept[self.name][:2], None)

    def _as_rows(self, x: Tensor, current: Pass) -> Tensor:
        """A layer's input as [rows, tokens, in].

        Raises:
            AdapterError: it is none of [rows, ..., in], [rows, in] and [rows * tokens, in].
        """
        rows = len(current.plan.slots)
        if x.dim() > 2 and x.shape[0] == rows:
            x = x.reshape(rows, -1, self.fan_in)
            current.tokens = x.shape[1]
            return x
        if x.dim() == 2 and x.shape[0] == rows:
            return x.unsqueeze(1)
        if x.dim() == 2 and current.tokens is not None and x.shape[0] == rows * current.tokens:
            return x.view(rows, current.tokens, self.fan_in)
        raise AdapterError(f"{self.name} got an input of shape {list(x.shape)} in a pass over {rows} rows, so its rows "
                           "cannot be told apart. Give `rows` one slot per batch row, or leave this layer out of `targets`.")


def _add_product(output: Tensor, hidden: Tensor, B: Tensor) -> Tensor:
    """``output + hidden @ B`` in the output's type, in place where no gradient is recorded and no type is cast."""
    cast = torch.is_autocast_enabled(output.device.type)
    if output.dtype != (torch.get_autocast_dtype(output.device.type) if cast else B.dtype):
        return output + torch.matmul(hidden, B).to(output.dtype)
    batched = output.dim() == 3
    if torch.is_grad_enabled() or cast:
        return torch.baddbmm(output, hidden, B) if batched else torch.addmm(output, hidden, B)
    return output.baddbmm_(hidden, B) if batched else output.addmm_(hidden, B)
