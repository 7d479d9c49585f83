"""Picking the next token of each row.

Each row draws from a generator of its own and is picked by its own settings, so what else is in the
batch has no say in it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from culturemanager.errors import RequestError

NUCLEUS = 1024
"""Most likely tokens looked at first for `top_p`; the whole vocabulary is sorted only if they hold less."""


@dataclass(frozen=True)
class Sampling:
    """How to pick a token; by default the most likely one.

    Raises:
        RequestError: a value is outside its range.
    """

    temperature: float = 0.0
    """0: the most likely token; otherwise logits are divided by it."""
    top_p: float = 1.0
    """Draw from the fewest tokens that hold this much probability (Holtzman et al. 2020, arXiv 1904.09751)."""
    top_k: int = 0
    """Draw from this many of the most likely tokens; 0: from all. Applied before `top_p`."""
    seed: int | None = None
    """The same seed and prompt give the same tokens; None: different ones every time."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise RequestError(f"temperature is {self.temperature}, expected 0 (no sampling) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}, expected more than 0 and at most 1.")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}, expected 0 (all tokens) or more.")


GREEDY = Sampling()
"""The most likely token."""


class TokenPicker:
    """One request's settings and its random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**63
            self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> float:
        """The next random number, in [0, 1)."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()


def pick_tokens(logits: Tensor, pickers: Sequence[TokenPicker]) -> list[int | None]:
    """The next token of each row; None where the row's logits are not finite.

    Args:
        logits: [rows, vocabulary].
        pickers: one a row; those that sample draw one number each.
    """
    best, ids = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    tokens: list[int | None] = [token if fine else None for token, fine in zip(ids.tolist(), finite, strict=True)]
    groups: dict[int, list[int]] = {}
    for row, picker in enumerate(pickers):
        if finite[row] and picker.sampling.temperature > 0:
            groups.setdefault(_candidates(picker.sampling, logits.shape[1]), []).append(row)
    for count, rows in groups.items():
        drawn = _draw(logits[rows], [pickers[row] for row in rows], count)
        for row, token in zip(rows, drawn, strict=True):
            tokens[row] = token
    return tokens


def _candidates(sampling: Sampling, vocabulary: int) -> int:
    """How many of the most likely tokens to sort; 0: none, the whole distribution is drawn from as it stands."""
    if sampling.top_k:
        return min(sampling.top_k, vocabulary)
    return min(NUCLEUS, vocabulary) if sampling.top_p < 1 else 0


def _draw(logits: Tensor, pickers: Sequence[TokenPicker], count: int) -> list[int]:
    """Draw a token a row, [rows, vocabulary], all rows with the same number of candidates."""
    settings = [picker.sampling for picker in pickers]
    temperature = torch.tensor([s.temperature for s in settings], dtype=torch.float64, device=logits.device).unsqueeze(1)
    draws = torch.tensor([picker.draw() for picker in pickers], dtype=torch.float64, device=logits.device).unsqueeze(1)
    # The largest logit becomes 0 before the division, so that no temperature is too small for it.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double() / temperature
    if not count:
        return _invert(scaled.softmax(dim=-1), draws).tolist()
    values, order = scaled.topk(count, dim=-1)
    # With top_k the candidates are all there is; without, their share of the whole vocabulary counts.
    whole = (values if settings[0].top_k else scaled).logsumexp(dim=-1, keepdim=True)
    top_p = torch.tensor([s.top_p for s in settings], dtype=torch.float64, device=logits.device).unsqueeze(1)
    probabilities = (values - whole).exp()
    short = [] if settings[0].top_k else torch.nonzero(probabilities.sum(-1) < top_p[:, 0])[:, 0].tolist()
    picked = order.gather(1, _invert(_nucleus(probabilities, top_p), draws).unsqueeze(1))[:, 0].tolist()
    for row in short if count < logits.shape[1] else ():
        probabilities, order = (scaled[row] - whole[row]).exp().sort(descending=True)
        picked[row] = order[_invert(_nucleus(probabilities[None], top_p[row]), draws[row, None])].item()
    return picked


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero what comes after the first tokens that together hold `top_p`; the first token always stays."""
    before = probabilities.cumsum(dim=-1) - probabilities
    return probabilities * (before < top_p)


def _invert(probabilities: Tensor, draws: Tensor) -> Tensor:
    """The index at which the running sum passes the draw, [rows]; probabilities need not sum to one."""
    sums = probabilities.cumsum(dim=-1)
    found = torch.searchsorted(sums, draws * sums[:, -1:], right=True)[:, 0]
    return found.clamp(max=probabilities.shape[-1] - 1)
