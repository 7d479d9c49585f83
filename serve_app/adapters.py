"""Which adapter versions a replica holds, loaded on demand and dropped when slots run out."""

from __future__ import annotations

from collections import OrderedDict

from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.errors import AdapterError
from culturemanager.inference.engine import Engine


class ServedAdapters:
    """Keeps the versions asked for last in the bank. Belongs to the engine's thread."""

    def __init__(self, registry: AdapterRegistry, bank: AdapterBank, engine: Engine) -> None:
        self._registry, self._bank, self._engine = registry, bank, engine
        self._order: OrderedDict[str, None] = OrderedDict.fromkeys(bank.names)

    def require(self, name: str) -> None:
        """Make sure the version is in the bank.

        Raises:
            AdapterError: no such version, or every slot is held by a request in flight.
            CorruptFileError: a file differs from its sum.
        """
        if name not in self._bank.names:
            shape, tensors = self._registry.load(name)
            if len(self._bank.names) >= self._bank.slots:
                self._drop_oldest()
            self._bank.load(name, shape, tensors)
        self._order[name] = None
        self._order.move_to_end(name)

    def _drop_oldest(self) -> None:
        used = self._engine.adapters_in_use
        idle = next((name for name in self._order if name not in used), None)
        if idle is None:
            raise AdapterError(f"all {self._bank.slots} adapter slots are in use; try again.")
        del self._order[idle]
        self._bank.remove(idle)
