"""Token ids to text while they come in, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are not a whole character yet."""


class TextStream:
    """One request's text as it grows.

    Only new tokens are decoded, together with the few before them that decide about spaces between words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._context = 0  # ids from here on decide how the next ones are spelled
        self._decoded = 0  # ids before this are in `_text`
        self._text = ""
        self._shown = 0
        self.stopped = False
        """Whether a stop string has come; the text ends before it."""

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is certain now: no half character, no beginning of a stop string."""
        self._ids.append(token_id)
        new = self._new_text()
        if new and not new.endswith(UNFINISHED):  # a special token alone says nothing about the space after it
            self._accept(new)
        return self._show(len(self._text) if self.stopped else len(self._text) - self._held_back())

    def finish(self) -> str:
        """The rest, when no token will follow."""
        if not self.stopped and self._decoded < len(self._ids):
            self._accept(self._new_text())
        return self._show(len(self._text))

    @property
    def text(self) -> str:
        """Everything returned so far."""
        return self._text[:self._shown]

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._context:self._decoded])
        return self._decode(self._ids[self._context:])[len(before):]

    def _decode(self, ids: list[int]) -> str:
        # A clean-up of spaces may rewrite text that has been sent already.
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if ids else ""

    def _accept(self, new: str) -> None:
        self._context, self._decoded = self._decoded, len(self._ids)
        start = max(0, len(self._text) - max(map(len, self._stop), default=0) + 1)
        self._text += new
        found = [place for place in (self._text.find(stop, start) for stop in self._stop) if place >= 0]
        if found:
            self._text, self.stopped = self._text[:min(found)], True

    def _held_back(self) -> int:
        """Length of the longest ending that a stop string begins with."""
        longest = min(len(self._text), max(map(len, self._stop), default=0) - 1)
        return next((size for size in range(longest, 0, -1)
                     if any(stop.startswith(self._text[-size:]) for stop in self._stop)), 0)

    def _show(self, end: int) -> str:
        shown, self._shown = self._shown, max(end, self._shown)
        return self._text[shown:self._shown]
