"""What one adapter's training is made of, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from culturemanager.adapters.shape import AdapterShape
from culturemanager.training.token_files import TokenRow


@dataclass(frozen=True)
class AdapterJob:
    """One adapter's training: rows and hyperparameters of its own."""

    name: str
    train: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    shape: AdapterShape
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    patience: int = 0
    """Epochs without a better validation loss before it stops; 0 trains to the end."""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs


@dataclass
class Progress:
    """Where one adapter stands, and its curves."""

    step: int = 0
    stopped: str = ""
    """Empty while it trains; then "finished", "early stop" or the reason of a failure."""
    best_validation: float = math.inf
    epochs_without_gain: int = 0
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
