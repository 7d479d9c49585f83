"""AdamW over stacked adapters, each with a learning rate, step count and gradient clip of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PackedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on tensors stacked by adapter slot.

    Every parameter is [slots, ...]. Before each step the caller sets `learning_rates`; a slot whose
    rate is `None` is not touched at all: neither weights nor moments nor its step count. The gradient
    of each slot is clipped to its own norm over all parameters.

    Args:
        parameters: stacked tensors, the first dimension being the slot.
        slots: size of that dimension.

    Attributes:
        weight_decay: [slots], decoupled decay of each adapter; 0 until the caller sets it.
        clip_norm: [slots], largest gradient norm of each adapter; 1 until the caller sets it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], slots: int, betas: tuple[float, float] = (0.9, 0.999),
                 epsilon: float = 1e-8) -> None:
        super().__init__(list(parameters), {"lr": 0.0})
        self.betas, self.epsilon = betas, epsilon
        self.weight_decay = torch.zeros(slots)
        self.clip_norm = torch.ones(slots)
        self.steps = torch.zeros(slots)
        self.learning_rates: list[float | None] = [None] * slots
        self.gradient_norms = torch.zeros(slots)
        """[slots], before clipping, of the step taken last."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        device = parameters[0].device
        active = torch.tensor([rate is not None for rate in self.learning_rates])
        rates = torch.tensor([rate or 0.0 for rate in self.learning_rates])
        self.steps += active
        self.gradient_norms = self._norms([p.grad for p in parameters]).cpu()
        clip = (self.clip_norm / (self.gradient_norms + 1e-6)).clamp(max=1.0)

        first, second = self.betas
        steps = self.steps.clamp(min=1)
        keep_first = torch.where(active, first, 1.0)
        keep_second = torch.where(active, second, 1.0)
        size = rates / (1 - first ** steps)
        root = (1 - second ** steps).sqrt()
        decay = 1 - rates * self.weight_decay

        for parameter in parameters:
            shape = (-1,) + (1,) * (parameter.dim() - 1)

            def of(vector: Tensor, shape: tuple[int, ...] = shape, like: Tensor = parameter) -> Tensor:
                return vector.to(device=device, dtype=like.dtype).view(shape)

            state = self.state[parameter]
            if not state:
                state["first"] = torch.zeros_like(parameter)
                state["second"] = torch.zeros_like(parameter)
            gradient = parameter.grad * of(clip)
            state["first"].mul_(of(keep_first)).addcmul_(gradient, of(1 - keep_first))
            state["second"].mul_(of(keep_second)).addcmul_(gradient * gradient, of(1 - keep_second))
            denominator = state["second"].sqrt().div_(of(root)).add_(self.epsilon)
            parameter.mul_(of(decay)).sub_(of(size) * state["first"] / denominator)

    @staticmethod
    def _norms(gradients: Sequence[Tensor]) -> Tensor:
        return torch.stack([g.float().flatten(1).pow(2).sum(1) for g in gradients]).sum(0).sqrt()

    def clear(self, slot: int) -> None:
        """Forget what a slot's adapter has gathered; a new one begins there."""
        self.steps[slot] = 0
        for state in self.state.values():
            for moments in state.values():
                moments[slot] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as named tensors, for a safetensors checkpoint."""
        named = {"steps": self.steps}
        for number, parameter in enumerate(p for group in self.param_groups for p in group["params"]):
            for name, value in self.state[parameter].items():
                named[f"{number}.{name}"] = value
        return named

    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Restore what `tensors` gave."""
        self.steps = named["steps"].clone()
        for number, parameter in enumerate(p for group in self.param_groups for p in group["params"]):
            for name in ("first", "second"):
                if f"{number}.{name}" in named:
                    self.state[parameter][name] = named[f"{number}.{name}"].to(parameter.device).clone()


def learning_rate(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear rise over the first `warmup_share` of `total` steps, then linear fall towards zero.

    Args:
        step: 0 for the first step.
    """
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total - step) / max(1, total - warmup)
