"""AdamW over stacked adapters, each with a learning rate, step count and gradient clip of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from culturemanager.errors import TrainingError


class PackedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on tensors stacked by adapter slot.

    Every parameter is [slots, ...]. Before each step the caller sets `learning_rates`; a slot whose
    rate is `None` is not touched at all: neither weights nor moments nor its step count. The gradient
    of each slot is clipped to its own norm over all parameters. The step itself is torch's fused kernel.

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
        self._runs: list[tuple[int, int]] | None = None
        """Slot and number of elements of each run of this worker's piece; None: the parameters are whole."""

    def share_out(self, rank: int, world: int) -> None:
        """From now on the only parameter is the `rank`-th of `world` equal pieces of all, flat and one behind the other.

        Raises:
            TrainingError: the piece is not as large as that makes it; DeepSpeed lays it out in another way.
        """
        (piece,) = self._parameters()
        size, elements = piece.numel(), sum(map(math.prod, self._shapes))
        padding = size * world - elements
        if not 0 <= padding < 1024 * world:
            raise TrainingError(f"DeepSpeed gave a worker {size} of {elements} elements, expected {world} equal "
                                "pieces. Use `training.zero_stage: 0`, or the DeepSpeed release of requirements.lock.")
        every = [(slot, math.prod(shape[1:])) for shape in self._shapes for slot in range(shape[0])]
        self._runs = _cut([*every, (0, padding)], rank * size, (rank + 1) * size)
        self._rank, self._world = rank, world

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure=None) -> None:
        parameters = [p for p in self._parameters() if p.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"first": torch.zeros_like(parameter), "second": torch.zeros_like(parameter)}
        active = [slot for slot, rate in enumerate(self.learning_rates) if rate is not None]
        weights, gradients = self._by_slot(active, parameters), self._by_slot(active, [p.grad for p in parameters])
        first, second = (self._by_slot(active, [self.state[p][name] for p in parameters]) for name in ("first", "second"))
        self.gradient_norms = self._norms(gradients)
        too_long = ((self.gradient_norms + 1e-6) / self.clip_norm).clamp(min=1.0).to(parameters[0].device)
        for slot in active:
            steps = too_long.new_full((len(weights[slot]),), self.steps[slot].item()).unbind()  # `adamw` counts each by one
            self.steps[slot] += 1
            adamw(weights[slot], gradients[slot], first[slot], second[slot], [], list(steps), fused=True,
                  grad_scale=too_long[slot], amsgrad=False, beta1=self.betas[0], beta2=self.betas[1],
                  lr=self.learning_rates[slot], weight_decay=self.weight_decay[slot].item(), eps=self.epsilon, maximize=False)

    def _by_slot(self, slots: Sequence[int], tensors: Sequence[Tensor]) -> dict[int, list[Tensor]]:
        """The parts of these tensors that belong to each of the slots."""
        tensors = [tensor.detach() for tensor in tensors]
        if self._runs is None:
            return {slot: [tensor.select(0, slot) for tensor in tensors] for slot in slots}
        parts: dict[int, list[Tensor]] = {slot: [] for slot in slots}
        for (slot, _), piece in zip(self._runs, tensors[0].split([size for _, size in self._runs]), strict=True):
            if slot in parts:
                parts[slot].append(piece)
        return parts

    def _norms(self, gradients: Mapping[int, Sequence[Tensor]]) -> Tensor:
        """[slots], each over all of a slot's gradients on all workers; 0 where no gradient is given."""
        norms = torch.zeros_like(self.gradient_norms)
        for slot, own in gradients.items():
            norms[slot] = get_total_norm(own)
        if self._runs is not None:
            squares = norms.square().to(self._parameters()[0].device)
            torch.distributed.all_reduce(squares)
            norms = squares.sqrt().cpu()
        return norms

    def clear(self, slot: int) -> None:
        """Forget what a slot's adapter has gathered; a new one begins there."""
        self.steps[slot] = 0
        for state in self.state.values():
            for moments in state.values():
                for part in self._by_slot([slot], [moments])[slot]:
                    part.zero_()

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
        if self._runs is None:
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
        if self._runs is None:
            return whole
        size = sum(size for _, size in self._runs)
        flat = torch.cat([value.flatten() for value in whole])
        return [nn.functional.pad(flat, (0, size * self._world - len(flat)))[self._rank * size:(self._rank + 1) * size]]


def _cut(runs: Sequence[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """The runs, or parts of them, that lie between two places; (slot, number of elements) each."""
    ends = list(accumulate(size for _, size in runs))
    inside = [(slot, min(stop, end) - max(stop - size, begin)) for (slot, size), stop in zip(runs, ends, strict=True)]
    return [(slot, size) for slot, size in inside if size > 0]


def learning_rate(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear rise over the first `warmup_share` of `total` steps, then linear fall towards zero.

    Args:
        step: 0 for the first step.
    """
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total - step) / max(1, total - warmup)
