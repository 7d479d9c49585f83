"""Many LoRA adapters on one frozen base; each row of a batch is computed with its own.

Method: LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): a linear layer ``y = W x`` becomes
``y = W x + alpha / rank * B A x``, with `W` frozen. Here every layer holds the A and B of all adapters,
stacked, and one batched product adds each row's own delta.

**Equivalence is the contract.** A row's output depends on its own adapter alone, gradients reach
only the slots of the rows they come from, and the zero padding of smaller ranks gets zero gradient.
A row's dropout mask is drawn from the adapter's own seed, the step, the layer and the row's number, so
it does not depend on what else is in the batch.

The base model runs in evaluation mode, also while adapters train: its own dropout would draw from a
generator that all rows share. The adapters' dropout is turned on by giving `rows` a step.

One forward pass at a time: a bank holds the state of the current pass and takes no lock.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from culturemanager.adapters.compositions import Compositions
from culturemanager.adapters.dropout import Parts, mix
from culturemanager.adapters.layer import BankLayer, Pass
from culturemanager.adapters.shape import AdapterShape
from culturemanager.adapters.targets import find_targets
from culturemanager.errors import AdapterError


class AdapterBank:
    """Many LoRA adapters on one frozen base; each row of a batch is computed with its own.

    Wraps the linear layers of `model` in place (a forward hook and two stacked parameters each; the
    base's own parameters keep their names) and freezes every parameter of the base. Outside a
    `rows` block the model computes as the bare base. Slot 0 is the bare base, adapters take 1..slots.

    Args:
        model: any Hugging Face causal LM built from `nn.Linear` or GPT-2's `Conv1D`.
        slots: adapters held at the same time.
        max_rank: largest rank an adapter may have.
        targets: module names, or endings of them (``q_proj``), as in PEFT. None: every linear layer but
            the output head, and but the experts of a mixture, whose inputs no longer tell their rows.
        cache_bytes: upper bound for weights gathered per row and kept between inference passes.

    Raises:
        AdapterError: a target names no linear layer, the head, or a layer that another bank holds.
    """

    def __init__(self, model: PreTrainedModel, *, slots: int, max_rank: int, targets: Sequence[str] | None = None,
                 cache_bytes: int = 256 * 2**20) -> None:
        if slots < 1 or max_rank < 1:
            raise AdapterError(f"A bank of {slots} slots and rank {max_rank} holds nothing; both must be at least 1.")
        self.model = model
        self.slots = slots
        self.max_rank = max_rank
        self._names: dict[str, int] = {}
        self._shapes: dict[str, AdapterShape] = {}
        self._seeds: dict[int, int] = {}
        self._pass: Pass | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._loads: dict[str, int] = {}  # name to the number of its loading, never given twice
        self._load_numbers = itertools.count(1)
        self._writes = 0  # times that others may have changed weights
        self._versions = 0  # torch's counts of writes when the bank last looked
        modules = find_targets(model, targets)
        model.requires_grad_(False)
        with torch.inference_mode(False):
            self._layers = [self._wrap(name, module) for name, module in modules.items()]
        self.targets = tuple(modules)
        self._compositions = Compositions(4 * sum(layer.fan_in + layer.fan_out for layer in self._layers), cache_bytes)

    def _wrap(self, name: str, module: nn.Module) -> BankLayer:
        layer = BankLayer(name, module, self.slots, self.max_rank)

        def add_delta(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
            current = self._pass
            if current is None or current.plan.is_base:
                return output
            if torch.is_grad_enabled():  # an optimizer step may follow, perhaps one that torch's counters miss
                self.weights_changed()
            return layer.add_delta(args[0], output, current, self._compositions.generation)

        self._hooks.append(module.register_forward_hook(add_delta))
        return layer

    def detach(self) -> None:
        """Take the bank off its model, which is the bare (still frozen) base again; the bank is then of no use."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer.unregister()
        self._hooks, self._layers = [], []

    def keep_apart(self, device: torch.device | str) -> None:
        """Take the stacked weights out of the model's parameters and put them on a device; the bank goes on using them.

        For an engine that lays out the base's parameters anew and must not touch the adapters'.
        """
        for layer in self._layers:
            layer.unregister()
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)
        self.weights_changed()

    # ---- membership

    @property
    def names(self) -> Mapping[str, int]:
        """Adapter name to slot."""
        return MappingProxyType(self._names)

    @property
    def shapes(self) -> Mapping[str, AdapterShape]:
        """Adapter name to shape."""
        return MappingProxyType(self._shapes)

    def add(self, name: str, shape: AdapterShape, *, seed: int) -> int:
        """Put a fresh adapter into a free slot and return the slot.

        A is drawn as PEFT draws it (Kaiming uniform with a = sqrt(5)) from a generator of this
        seed alone, B is zero: the same seed gives the same adapter in any slot, beside any others.

        Raises:
            AdapterError: the name is taken, no slot is free, or the rank is above `max_rank`.
        """
        slot = self._take_slot(name, shape, seed)
        generator = torch.Generator().manual_seed(mix(seed, "init"))
        with self._writing():
            for layer in self._layers:
                start = nn.init.kaiming_uniform_(torch.empty(shape.rank, layer.fan_in), a=math.sqrt(5), generator=generator)
                layer.A[slot, :, :shape.rank] = start.T.to(layer.A)
        return slot

    def load(self, name: str, shape: AdapterShape, tensors: Mapping[str, Tensor], *, seed: int = 0) -> int:
        """Put given weights into a free slot and return the slot.

        Args:
            tensors: ``{module}.lora_A`` [rank, in] and ``{module}.lora_B`` [out, rank]. A module without
                tensors gets no delta.
            seed: of the dropout masks, should training go on.

        Raises:
            AdapterError: as `add`; or a tensor belongs to no target, lacks its partner or has another shape.
        """
        sizes = {f"{layer.name}.lora_A": (shape.rank, layer.fan_in) for layer in self._layers}
        sizes |= {f"{layer.name}.lora_B": (layer.fan_out, shape.rank) for layer in self._layers}
        for key, tensor in tensors.items():
            if key not in sizes:
                raise AdapterError(f"Adapter {name!r} has weights for {key!r}, which this bank does not wrap. It was made "
                                   f"for another base or other targets; here: {', '.join(self.targets[:4])}, ...")
            if tuple(tensor.shape) != sizes[key]:
                raise AdapterError(f"Adapter {name!r}: {key} has shape {list(tensor.shape)}, expected {list(sizes[key])} "
                                   "on this base. It was made for another base model.")
            partner = key[:-1] + ("B" if key.endswith("A") else "A")
            if partner not in tensors:
                raise AdapterError(f"Adapter {name!r} has {key} but not {partner}. The file is incomplete; export it again.")
        if not tensors:
            raise AdapterError(f"Adapter {name!r} has no weights. The file is incomplete; export it again.")
        slot = self._take_slot(name, shape, seed)
        with self._writing():
            for layer in self._layers:
                if f"{layer.name}.lora_A" in tensors:
                    layer.A[slot, :, :shape.rank] = tensors[f"{layer.name}.lora_A"].T.to(layer.A)
                    layer.B[slot, :shape.rank] = tensors[f"{layer.name}.lora_B"].T.to(layer.B)
        return slot

    def _take_slot(self, name: str, shape: AdapterShape, seed: int) -> int:
        if name in self._names:
            raise AdapterError(f"The bank already holds an adapter {name!r}; remove it first.")
        if shape.rank > self.max_rank:
            raise AdapterError(f"Adapter {name!r} has rank {shape.rank}, the bank's max_rank is {self.max_rank}; raise it.")
        free = sorted(set(range(1, self.slots + 1)) - set(self._names.values()))
        if not free:
            raise AdapterError(f"All {self.slots} slots are taken by {sorted(self._names)}; remove one or raise `slots`.")
        self._names[name], self._shapes[name], self._seeds[free[0]] = free[0], shape, seed
        self._loads[name] = next(self._load_numbers)
        self._compositions.clear()
        return free[0]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The adapter's weights under the keys of `load`: float32 copies on the CPU."""
        slot, rank = self._slot(name), self._shapes[name].rank
        weights = {}
        for layer in self._layers:
            stacked = {"lora_A": layer.A.detach()[slot, :, :rank], "lora_B": layer.B.detach()[slot, :rank]}
            for matrix, weight in stacked.items():
                weights[f"{layer.name}.{matrix}"] = weight.T.to("cpu", torch.float32, copy=True).contiguous()
        return weights

    def remove(self, name: str) -> None:
        """Free the adapter's slot; its weights and gradients become zero."""
        slot = self._slot(name)
        with self._writing():
            for parameter in self.parameters():
                parameter[slot] = 0
                if parameter.grad is not None:
                    parameter.grad[slot] = 0
        del self._names[name], self._shapes[name], self._seeds[slot], self._loads[name]
        self._compositions.clear()

    def _slot(self, name: str) -> int:
        if name not in self._names:
            raise AdapterError(f"The bank holds no adapter {name!r}; it holds {sorted(self._names)}.")
        return self._names[name]

    def content(self, name: str) -> tuple[int, int]:
        """Stands for the weights an adapter has now, for who keeps what was computed with them.

        It differs after the adapter was removed and put in again, and after any training step or other write to
        `parameters()` (as far as `weights_changed` knows); another adapter's coming and going leaves it as it is.

        Raises:
            AdapterError: the bank holds no such adapter.
        """
        self._slot(name)
        self._count_writes()
        return self._loads[name], self._writes

    def _count_writes(self) -> None:
        versions = sum(parameter._version for parameter in self.parameters())
        self._writes += versions != self._versions
        self._versions = versions

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """For the bank's own writes, which change no adapter that stays."""
        self._count_writes()
        with torch.inference_mode(False), torch.no_grad():
            yield
        self._versions = sum(parameter._version for parameter in self.parameters())

    def weights_changed(self) -> None:
        """Drop gathered copies of weights, and change what `content` says.

        Only needed after writing to `parameters()` in a way torch does not count (through `.data`) without
        a training pass in between; the bank's own methods, optimizers and training passes see to it.
        """
        self._writes += 1
        self._compositions.drop_gathered()

    # ---- dropout

    @property
    def has_dropout(self) -> bool:
        """Whether any adapter has a dropout rate above 0."""
        return any(shape.dropout for shape in self._shapes.values())

    def dropout_state(self, name: str) -> tuple[float, int]:
        """The adapter's dropout rate and the seed of its masks."""
        slot = self._slot(name)
        return self._shapes[name].dropout, self._seeds[slot]

    def set_dropout(self, name: str, dropout: float, seed: int) -> None:
        """Change the rate and the seed of the masks; a resumed adapter gets back what `dropout_state` said."""
        slot = self._slot(name)
        self._shapes[name] = replace(self._shapes[name], dropout=dropout)
        self._seeds[slot] = seed

    # ---- computing

    @contextlib.contextmanager
    def rows(self, slots: Sequence[int], *, step: int | Mapping[int, int] | None = None,
             parts: Parts | None = None) -> Iterator[None]:
        """Forward passes inside compute row i of the batch with the adapter in ``slots[i]``.

        Fastest with the rows sorted by slot and as many rows for each. Blocks nest: inside another
        one, a layer that gets single positions picked from the batch (an output head's transform at
        the label positions, [positions, in]) is computed under the slots of those positions. `backward` may come
        after the block, also with checkpointed layers if they were checkpointed with `again`.

        Args:
            slots: one slot a row; 0 is the bare base.
            step: turns the adapters' dropout on and numbers the masks, all alike or by slot: give each optimizer
                step (and each micro-batch of one) its own number. None: no dropout, as for evaluation and serving.
            parts: what stands in each row without the padding on its right, for dropout that depends on neither that
                nor what a part shares its row with. None: each row is one, numbered among its slot's rows.

        Raises:
            AdapterError: a slot is empty or unknown, or `parts` does not fit. Inside: a layer gets an input
                whose rows cannot be told apart.
        """
        slots = tuple(slots)
        if parts is not None and len(parts) != len(slots):
            raise AdapterError(f"The parts of {len(parts)} rows for {len(slots)} rows; give those of every row.")
        outer, self._pass = self._pass, self._begin(slots, step, parts)
        try:
            yield
        finally:
            self._pass = outer

    def again(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For `torch.utils.checkpoint` (its `context_fn`): layers recomputed in `backward` see the pass that is open now."""
        return contextlib.nullcontext(), self._reopened(self._pass)

    @contextlib.contextmanager
    def _reopened(self, earlier: Pass | None) -> Iterator[None]:
        outer, self._pass = self._pass, earlier
        try:
            yield
        finally:
            self._pass = outer

    def _begin(self, slots: tuple[int, ...], step: int | Mapping[int, int] | None, parts: Parts | None) -> Pass:
        plan = self._compositions.plan(slots, lambda: {slot: self._shapes[name] for name, slot in self._names.items()})
        dropout = {} if step is None else {slot: self.dropout_state(name) for name, slot in self._names.items()}
        return Pass(plan, step, parts, dropout, self._compositions.gathered(plan))

    # ---- training

    def parameters(self) -> list[nn.Parameter]:
        """The stacked weights: per target A [slots+1, in, max_rank], then B [slots+1, max_rank, out]; slot 0 is zero."""
        return [parameter for layer in self._layers for parameter in (layer.A, layer.B)]

    def slot_gradient_norms(self) -> Tensor:
        """L2 norm of each adapter's whole gradient, [slots+1]; zeros before the first backward pass."""
        norms = [torch.linalg.vector_norm(parameter.grad, dim=(1, 2)).to(torch.float32)
                 for parameter in self.parameters() if parameter.grad is not None]
        if not norms:
            return torch.zeros(self.slots + 1)
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]), dim=0)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the stacked weights, without gradients and gathered copies."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())
