"""Which adapter versions a replica holds, loaded on demand and dropped when slots run out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor

from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError, OverloadedError
from culturemanager.inference.engine import Engine

Weights = tuple[AdapterShape, Mapping[str, Tensor]]
"""A version's shape and tensors, as the registry gives them."""


class ServedAdapters:
    """Keeps the versions asked for last in the bank, and those of requests in flight in any case.

    `read` may run in any thread, so that the engine goes on while files are read. `require` belongs to the engine's
    thread, in one piece of work with the engine's `submit`: from then on the version stays until the request ends.

    Args:
        load: gives a version's weights from its files, as `artifacts.version_loader` makes it.
    """

    def __init__(self, load: Callable[[str], Weights], bank: AdapterBank, engine: Engine) -> None:
        self._load, self._bank, self._engine = load, bank, engine
        self._order: OrderedDict[str, None] = OrderedDict.fromkeys(bank.names)
        self._reading = threading.Lock()

    def read(self, name: str) -> Weights | None:
        """The version's weights from its files, for `require`; None if the bank holds it. Any thread may call.

        Raises:
            AdapterError: no such version, or it was made for another base model.
            CorruptFileError: a file differs from its sum.
        """
        # One file at a time: of many requests for a new version, those that wait mostly find it in the bank afterwards.
        with self._reading:
            return None if not name or name in self._bank.names else self._load(name)

    def require(self, name: str, weights: Weights | None = None) -> None:
        """Make sure the version is in the bank; an empty name is the bare base, which always is.

        Args:
            weights: what `read` gave. Without, they are read here if the bank does not hold the version (any more).

        Raises:
            AdapterError: no such version, or it does not fit the base or the bank.
            OverloadedError: every slot is held by a request in flight.
            CorruptFileError: a file differs from its sum.
        """
        if not name:
            return
        if name not in self._bank.names:
            shape, tensors = weights or self._load(name)
            if shape.rank > self._bank.max_rank:
                raise AdapterError(f"{name} has rank {shape.rank}, and when the endpoint started there was none above "
                                   f"{self._bank.max_rank}. Restart the endpoint.")
            if len(self._bank.names) >= self._bank.slots:
                self._drop_oldest()
            self._bank.load(name, shape, tensors)
        self._order[name] = None
        self._order.move_to_end(name)

    def _drop_oldest(self) -> None:
        used = self._engine.adapters_in_use
        idle = next((name for name in self._order if name not in used), None)
        if idle is None:
            raise OverloadedError(f"all {self._bank.slots} adapter slots are in use; try again.")
        del self._order[idle]
        self._bank.remove(idle)
