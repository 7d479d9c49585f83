"""Picking the next token of each row.

Each row draws from a generator of its own and is picked by its own settings, so what else is in the
batch has no say in it. The same logits come out of another batch rounded otherwise in their last bits, so
a token is drawn as the largest of logit plus noise (the Gumbel-max trick; Maddison et al. 2014, arXiv
1411.0030, section 2): the last bits decide only where two tokens are as good as tied. Where a number
falls in the running sum of the probabilities, tens of thousands of close borders would.
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

    def draw(self) -> int:
        """The next random number, of 63 bits."""
        return torch.randint(2**63 - 1, (), generator=self._generator).item()


def pick_tokens(logits: Tensor, pickers: Sequence[TokenPicker]) -> list[int | None]:
    """The next token of each row; None where the row's logits are not finite.

    Args:
        logits: [rows, vocabulary].
        pickers: one a row; those that sample draw one number each.
    """
    best, ids = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    tokens: list[int | None] = [token if fine else None for token, fine in zip(ids.tolist(), finite, strict=True)]
    groups: dict[tuple[int, bool], list[int]] = {}
    for row, picker in enumerate(pickers):
        if finite[row] and picker.sampling.temperature > 0:
            settings = picker.sampling
            groups.setdefault((_candidates(settings, logits.shape[1]), bool(settings.top_k)), []).append(row)
    for (count, _), rows in groups.items():
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
    """Draw a token a row, [rows, vocabulary]: all rows with so many candidates, and all of them with `top_k` or none."""
    settings = [picker.sampling for picker in pickers]
    temperature = torch.tensor([s.temperature for s in settings], dtype=torch.float64, device=logits.device).unsqueeze(1)
    draws = torch.tensor([picker.draw() for picker in pickers], device=logits.device).unsqueeze(1)
    # The largest logit becomes 0 before the division, so that no temperature is too small for it.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double() / temperature
    if not count:
        return (scaled + _gumbel(draws, torch.arange(logits.shape[1], device=logits.device))).argmax(dim=-1).tolist()
    values, order = scaled.topk(count, dim=-1)
    # With top_k the candidates are all there is; without, their share of the whole vocabulary counts.
    whole = (values if settings[0].top_k else scaled).logsumexp(dim=-1, keepdim=True)
    top_p = torch.tensor([s.top_p for s in settings], dtype=torch.float64, device=logits.device).unsqueeze(1)
    probabilities = (values - whole).exp()
    short = [] if settings[0].top_k else torch.nonzero(probabilities.sum(-1) < top_p[:, 0])[:, 0].tolist()
    picked = _draw_from_nucleus(probabilities, order, top_p, draws).tolist()
    for row in short if count < logits.shape[1] else ():
        probabilities, order = (scaled[row, None] - whole[row]).exp().sort(descending=True)
        picked[row] = _draw_from_nucleus(probabilities, order, top_p[row, None], draws[row, None]).item()
    return picked


def _draw_from_nucleus(probabilities: Tensor, tokens: Tensor, top_p: Tensor, draws: Tensor) -> Tensor:
    """One of the first tokens that together hold `top_p`, [rows]; the very first always counts.

    Args:
        probabilities: [rows, candidates], the largest first; they need not sum to one.
        tokens: [rows, candidates], whose they are.
    """
    before = probabilities.cumsum(dim=-1) - probabilities
    noisy = (probabilities.log() + _gumbel(draws, tokens)).masked_fill(before >= top_p, -torch.inf)
    return tokens.gather(1, noisy.argmax(dim=-1, keepdim=True))[:, 0]


def _gumbel(draws: Tensor, tokens: Tensor) -> Tensor:
    """Noise of the standard Gumbel distribution, [rows, tokens], that follows from a row's draw and the token alone.

    Both are mixed to 52 random bits (SplitMix64; Steele et al. 2014, "Fast splittable pseudorandom number generators").
    """
    mixed = draws + (tokens + 1) * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    uniform = (_shifted(mixed ^ _shifted(mixed, 31), 12).double() + 0.5) * 2.0**-52  # exact, and neither 0 nor 1
    return -(-uniform.log()).log()


def _signed(constant: int) -> int:
    """The same 64 bits as torch's int64, which wraps around in products and sums."""
    return constant - 2**64


def _shifted(values: Tensor, places: int) -> Tensor:
    """To the right, with zeros coming in from the left."""
    return (values >> places) & (2 ** (64 - places) - 1)
