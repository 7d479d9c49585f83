"""A prompt and its options in one row, so that the prompt is computed once for all of them.

    ids        p0 p1 p2 | a0 a1 | b0
    positions   0  1  2 |  3  4 |  3
    segments    0  0  0 |  1  1 |  2

Tokens of an option see the prompt and their own option. The prompt's last token predicts the first token of every
option, an option's last token the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PackedOptions:
    """A request to score, or some of its options, as one row of a batch."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[int, ...]
    """0 in the prompt, n in the n-th option."""
    kept: tuple[int, ...]
    """Columns whose logits are needed: the prompt's last, then every option's."""
    places: tuple[int, ...]
    """For each label the index in `kept` of the column that predicts it."""
    labels: tuple[int, ...]
    """The options' tokens one after another, each option closed by the end token."""
    sizes: tuple[int, ...]
    """Labels of each option."""


def pack(prompt: Sequence[int], options: Sequence[Sequence[int]], end: int) -> PackedOptions:
    """Put a prompt and its options' token ids, without the end token, into one row."""
    ids, positions, segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    kept, places, labels = [len(prompt) - 1], [], []
    for number, option in enumerate(options, 1):
        places += [0, *range(len(kept), len(kept) + len(option))]
        labels += [*option, end]
        kept += range(len(ids), len(ids) + len(option))
        ids += option
        positions += range(len(prompt), len(prompt) + len(option))
        segments += [number] * len(option)
    return PackedOptions(tuple(ids), tuple(positions), tuple(segments), tuple(kept), tuple(places), tuple(labels),
                         tuple(len(option) + 1 for option in options))
