"""The layers below the lowest adapter give a row the same output at every visit, so it is computed once and kept.

An adapter's rows go through those layers at its first step, in batches that depend on them alone, and later steps
start above.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from culturemanager.adapters.bank import AdapterBank
from culturemanager.training.precision import autocast
from culturemanager.training.rows import Batch, TokenRow, behind_each_other, collate
from culturemanager.training.states_folder import StatesFolder
from culturemanager.training.trunk import probe_rows, same, trunk_output

TOKENS_AT_ONCE = 8192
TOKENS_AT_ONCE_ON_CPU = 512
"""What more tokens leave between two operations falls out of the caches."""


def decoder_layers(bank: AdapterBank) -> tuple[list[nn.Module], int]:
    """The model's decoder layers in order, and how many of them lie below the lowest adapter; ([], 0) if not known."""
    found = [re.fullmatch(r"(.+?)\.(\d+)\..+", name) for name in bank.targets]
    if not all(found) or len({match.group(1) for match in found}) != 1:
        return [], 0
    layers = bank.model.get_submodule(found[0].group(1))
    return (list(layers), min(int(match.group(2)) for match in found)) if isinstance(layers, nn.ModuleList) else ([], 0)


class FrozenLayers:
    """Keeps what the layers below the lowest adapter make of each row.

    Args:
        bank: on a model whose decoder layers pass one tensor on; `usable` tells.
        products: type of the matrix products, as in training.
        pad_id: token that fills short sequences.
        capacity: tokens up to which rows share a sequence.
        folder: keeps the states for a run that goes on after an interruption; None: memory alone does.
    """

    def __init__(self, bank: AdapterBank, products: torch.dtype, pad_id: int, capacity: int,
                 folder: StatesFolder | None = None) -> None:
        self._model = bank.model
        self._layers, self._below = decoder_layers(bank)
        self._products, self._pad_id, self._capacity = products, pad_id, capacity
        self._folder = folder
        self._names: dict[int, str] = {}
        self._rows: dict[int, Sequence[TokenRow]] = {}
        """Of adapters put in, and not computed yet."""
        self._kept: dict[tuple[int, TokenRow], Tensor] = {}

    def usable(self) -> bool:
        """Whether layers lie below the adapters, and a pass may begin above them."""
        return self._below > 0 and self._halves_make_a_whole()

    def put(self, slot: int, name: str, rows: Sequence[TokenRow]) -> None:
        """The rows of the adapter that lies in a slot now, those of training and those of validation."""
        self._kept = {key: states for key, states in self._kept.items() if key[0] != slot}
        if self._folder and slot in self._names:
            self._folder.remove(self._names[slot])
        self._names[slot], self._rows[slot] = name, rows

    @torch.no_grad()
    def _halves_make_a_whole(self) -> bool:
        """Models that pass more than one tensor from layer to layer, or look at the input again, do not begin midway."""
        batch = collate(probe_rows(self._model), self._pad_id, self._capacity)[0].to(self._model.device)
        passed_on: list[object] = []
        hook = self._layers[0].register_forward_hook(lambda _module, _inputs, output: passed_on.append(output))
        with hook, self._precision():
            whole = trunk_output(self._model, batch)
        if not isinstance(passed_on[0], Tensor):
            return False
        with self._precision():
            states = self._below_adapters(batch)
            with self.above(states):
                halves = trunk_output(self._model, batch)
        return same(whole, halves)

    def compute(self, report: Callable[[int, int], None] | None = None) -> None:
        """Keep the states of all rows put in that are not kept yet; with a shared base all workers do so at the same time.

        Args:
            report: told now and then how many rows are done, of how many.
        """
        if not self._rows:
            return
        ordered = {slot: sorted(set(rows), key=lambda row: (len(row.ids), row.ids)) for slot, rows in self._rows.items()}
        self._rows = {}
        done, total = 0, sum(map(len, ordered.values()))
        for slot, rows in ordered.items():
            for kept in self._keep_all(slot, rows):
                done += kept
                if report:
                    report(done, total)

    def fill(self, batch: Batch) -> Batch:
        """The batch with the states that a pass above the frozen layers begins from; they have been computed."""
        kept = [self._kept[place.slot, place.row] for place in batch.places]
        states = kept[0].new_zeros(*batch.input_ids.shape, kept[0].shape[-1])
        for place, row in zip(batch.places, kept, strict=True):
            states[place.sequence, place.start:place.start + len(row)] = row
        return replace(batch, states=states)

    def _keep_all(self, slot: int, rows: Sequence[TokenRow]) -> Iterator[int]:
        """Numbers of rows, as they are kept: all at once where an interrupted run has left their states, else pass by pass."""
        name, device = self._names[slot], self._model.device
        found = self._folder.load(name, [len(row.ids) for row in rows], device) if self._folder else None
        if found is not None:
            self._kept |= {(slot, row): states for row, states in zip(rows, found, strict=True)}
            yield len(rows)
            return
        for part in behind_each_other(rows, TOKENS_AT_ONCE_ON_CPU if device.type == "cpu" else TOKENS_AT_ONCE):
            self._keep(slot, part)
            yield len(part)
        if self._folder:
            self._folder.save(name, [self._kept[slot, row] for row in rows])

    @torch.no_grad()
    def _keep(self, slot: int, rows: Sequence[TokenRow]) -> None:
        for batch in collate([(slot, row) for row in rows], self._pad_id, self._capacity):
            with self._precision():
                states = self._below_adapters(batch.to(self._model.device))
            for place in batch.places:
                self._kept[slot, place.row] = states[place.sequence, place.start:place.start + len(place.row.ids)].clone()

    def _precision(self) -> torch.autocast:
        return autocast(self._model.device, self._products)

    def _below_adapters(self, batch: Batch) -> Tensor:
        """What the lowest layer with an adapter gets, [sequences, length, hidden]."""
        seen: list[Tensor] = []

        def take(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
            seen.append(hidden_states)
            return hidden_states

        with _computing(take, self._layers[self._below:]):
            trunk_output(self._model, batch)
        return seen[0]

    @contextlib.contextmanager
    def above(self, states: Tensor) -> Iterator[None]:
        """Forward passes inside begin from `states` [sequences, length, hidden] at the lowest layer with an adapter."""
        with _computing(lambda *_, **__: states, self._layers[:self._below]):
            yield


@contextlib.contextmanager
def _computing(forward: Callable[..., Tensor], layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, `forward` stands in for that of these layers."""
    replaced = [vars(layer).get("forward") for layer in layers]  # a checkpointed layer has a forward of its own
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, own in zip(layers, replaced, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own
