"""Which adapter version answers a culture: the one on trial for its share, or the serving one.

Where that one fails, an older one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from culturemanager.adapters.registry import AdapterRegistry

CONDEMNED_S = 60.0
"""A version that could not answer is left alone for so long, then tried again: the disk may have been the fault."""


class ServingVersions:
    """Reads the registry's aliases and trials for every choice, so that a promotion counts from the next request on.

    Args:
        registry: the versions on disk.
        clock: seconds that never go back.
    """

    def __init__(self, registry: AdapterRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._condemned: dict[str, tuple[float, str]] = {}

    def candidates(self, culture: str, conversation: str) -> list[str]:
        """Versions that may answer, the first choice first; empty if the culture has none.

        Args:
            conversation: the user's first message. A conversation stays with one version as it grows.
        """
        trial = self._registry.canaries().get(culture)
        names = self._registry.history(culture)[::-1]
        if trial and place(culture, conversation) < trial[1]:
            names.insert(0, trial[0])
        condemned = self.condemned
        usable = [name for name in dict.fromkeys(names) if name not in condemned]
        return usable or list(dict.fromkeys(names))[:1]

    def condemn(self, name: str, reason: str) -> None:
        """The version could not answer; pass it over for a while."""
        self._condemned[name] = self._clock() + CONDEMNED_S, reason

    @property
    def condemned(self) -> dict[str, str]:
        """Versions passed over now, and why."""
        now = self._clock()
        self._condemned = {name: told for name, told in self._condemned.items() if told[0] > now}
        return {name: reason for name, (_, reason) in self._condemned.items()}


def place(culture: str, conversation: str) -> float:
    """A number in [0, 1) that a conversation has for ever: those below a share are the share's."""
    digest = hashlib.sha256(f"{culture}\n{conversation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
