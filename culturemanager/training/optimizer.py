"""AdamW over stacked adapters, each with a learning rate, step count and gradient clip of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor, nn

from culturemanager.errors import TrainingError


class PackedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on tensors stacked by adapter slot.

    Every parameter is [slots, ...]. Before each step the caller sets `learning_rates`; a slot whose
    rate is `None` is not touched at all: neither weights nor moments nor its step count. The gradient
    of each slot is clipped to its own norm over all parameters.

    DeepSpeed's ZeRO 1 and 2 put one flat piece of all parameters, this worker's share, in their place; `share_out`
    says so, and then every element still goes by its own slot.

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
        self._shapes = [parameter.shape for parameter in parameters]
        self._slot_of: Tensor | None = None
        """[elements of this worker's piece], the slot of each; None: the parameters are whole."""

    def share_out(self, rank: int, world: int) -> None:
        """From now on the only parameter is the `rank`-th of `world` equal pieces of all, flat and one behind the other.

        Raises:
            TrainingError: the piece is not as large as that makes it; DeepSpeed lays it out in another way.
        """
        (piece,) = self._parameters()
        every = torch.cat([torch.arange(shape[0]).repeat_interleave(math.prod(shape[1:])) for shape in self._shapes])
        padding = piece.numel() * world - len(every)
        if not 0 <= padding < 1024 * world:
            raise TrainingError(f"DeepSpeed gave a worker {piece.numel()} of {len(every)} elements, expected {world} equal "
                                "pieces. Use `training.zero_stage: 0`, or the DeepSpeed release of requirements.lock.")
        self._slot_of = nn.functional.pad(every, (0, padding))[rank * piece.numel():(rank + 1) * piece.numel()].to(piece.device)
        self._rank, self._world = rank, world

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure=None) -> None:
        parameters = [p for p in self._parameters() if p.grad is not None]
        if not parameters:
            return
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
            def of(vector: Tensor, like: Tensor = parameter) -> Tensor:
                return self._spread(vector, like)

            state = self.state[parameter]
            if not state:
                state["first"] = torch.zeros_like(parameter)
                state["second"] = torch.zeros_like(parameter)
            gradient = parameter.grad * of(clip)
            state["first"].mul_(of(keep_first)).addcmul_(gradient, of(1 - keep_first))
            state["second"].mul_(of(keep_second)).addcmul_(gradient * gradient, of(1 - keep_second))
            denominator = state["second"].sqrt().div_(of(root)).add_(self.epsilon)
            parameter.mul_(of(decay)).sub_(of(size) * state["first"] / denominator)

    def _spread(self, vector: Tensor, like: Tensor) -> Tensor:
        """One value a slot as a tensor that broadcasts over a parameter."""
        vector = vector.to(device=like.device, dtype=like.dtype)
        return vector.view(-1, *[1] * (like.dim() - 1)) if self._slot_of is None else vector[self._slot_of]

    def _norms(self, gradients: Sequence[Tensor]) -> Tensor:
        if self._slot_of is None:
            return torch.stack([g.float().flatten(1).pow(2).sum(1) for g in gradients]).sum(0).sqrt()
        squares = torch.zeros(len(self.steps), device=gradients[0].device)
        squares.index_add_(0, self._slot_of, gradients[0].float().pow(2))
        torch.distributed.all_reduce(squares)
        return squares.sqrt()

    def clear(self, slot: int) -> None:
        """Forget what a slot's adapter has gathered; a new one begins there."""
        self.steps[slot] = 0
        for state in self.state.values():
            for moments in state.values():
                moments[slot if self._slot_of is None else self._slot_of == slot] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as named tensors, for a safetensors checkpoint; every worker calls it, each gets the whole."""
        named = {"steps": self.steps}
        for number, parameter in enumerate(self._parameters()):
            for name, value in self.state[parameter].items():
                for whole_number, whole in self._whole(number, value):
                    named[f"{whole_number}.{name}"] = whole
        return named

    def _whole(self, number: int, value: Tensor) -> Iterator[tuple[int, Tensor]]:
        """A parameter's moments; those of every parameter, if `value` is this worker's piece of them all."""
        if self._slot_of is None:
            yield number, value
            return
        pieces = [torch.empty_like(value) for _ in range(self._world)]
        torch.distributed.all_gather(pieces, value)
        sizes = [math.prod(shape) for shape in self._shapes]
        flat = torch.cat(pieces)[:sum(sizes)]
        yield from enumerate(part.view(shape) for part, shape in zip(flat.split(sizes), self._shapes, strict=True))

    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Restore what `tensors` gave, whatever the number of workers was."""
        self.steps = named["steps"].clone()
        for name in ("first", "second"):
            if f"0.{name}" not in named:
                continue
            whole = [named[f"{number}.{name}"] for number in range(len(self._shapes))]
            for parameter, value in zip(self._parameters(), self._pieces(whole), strict=True):
                self.state[parameter][name] = value.to(parameter.device).clone()

    def _pieces(self, whole: Sequence[Tensor]) -> Sequence[Tensor]:
        if self._slot_of is None:
            return whole
        size = len(self._slot_of)
        flat = torch.cat([value.flatten() for value in whole])
        return [nn.functional.pad(flat, (0, size * self._world - len(flat)))[self._rank * size:(self._rank + 1) * size]]


def learning_rate(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear rise over the first `warmup_share` of `total` steps, then linear fall towards zero.

    Args:
        step: 0 for the first step.
    """
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total - step) / max(1, total - warmup)
