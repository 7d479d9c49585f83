"""Size and strength of one adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from culturemanager.errors import AdapterError


@dataclass(frozen=True)
class AdapterShape:
    """Size and strength of one adapter; its delta is scaled by ``alpha / rank``.

    Raises:
        AdapterError: a rank below 1, an alpha that is not positive and finite, or a dropout outside [0, 1).
    """

    rank: int
    alpha: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise AdapterError(f"{self} is no adapter: expected rank >= 1, a positive finite alpha and 0 <= dropout < 1.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
