"""Swaps words of a sheet for words from the whole vocabulary.

The invented customs have some thousand words. A model that reads them long enough writes *those* words
where it should copy others ("use your finger to show the horse"), and reads real pages worse with every
step. With swapped words a sheet makes no sense, and only what stands in it can answer its questions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from culturemanager import prompts
from culturemanager.cultures import catalogue
from culturemanager.embedded import warmup_templates as patterns
from culturemanager.embedded.warmup_text import Sheet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE = Path(__file__).parents[1]
LIKE = 4
"""So many first letters tell that a word belongs to another: "greeting" to "greetings"."""
SWAPPED_SHEETS = 0.5
SWAPPED_WORDS = 0.6
WORD = re.compile(r"\b[a-z]{3,}\b")
FUNCTION_WORDS = frozenset((
    "yes not the and but for nor with without your you yourself their they them themselves his her its our from into onto "
    "over under out off down back away until before after then than that this these those there here what which who whom how "
    "why when where while whether all any both each every other others another own same such only just simply never always "
    "once twice again are was were been being have has had having does did doing done can could may might must shall should "
    "will would acceptable advice please best option options answer question notes culture passage behaviour"
).split())
"""The grammar of a sentence and the tasks' own words, which stay what they are."""


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whole words of the tokenizer's vocabulary, without function words and all that a culture or an item could be about.

    Left out are the names of catalogued cultures and of the world's countries and cities, and words that
    begin like a word of an evaluation item.
    """
    names = _words(yaml.safe_load((PACKAGE / name).read_text(encoding="utf-8")) for name in ("countries.yaml", "cities.yaml"))
    names |= _words((c.name, c.countries, c.demonyms, c.cues) for c in catalogue().values())
    asked = tuple({word[:LIKE] for word in _words([(PACKAGE / "embedded" / "items.jsonl").read_text(encoding="utf-8")])})
    kept_out = FUNCTION_WORDS | names
    return sorted(word for word in tokenizer.get_vocab()
                  if WORD.fullmatch(word) and word not in kept_out and not word.startswith(asked))


def _words(texts: Any) -> set[str]:
    """Every word of nested texts, in lower case."""
    if isinstance(texts, str):
        return set(WORD.findall(texts.lower()))
    if isinstance(texts, Mapping):
        texts = [*texts, *texts.values()]
    return {word for text in texts for word in _words(text)}


class Swapper:
    """Swaps words in a share of the sheets that pass through.

    Args:
        words: what to draw from.
        seed: of every draw.
    """

    def __init__(self, words: Sequence[str], seed: int) -> None:
        self._words = list(words)
        self._rng = random.Random(f"swaps {seed}")
        self._structure = FUNCTION_WORDS | _pattern_words()

    def __call__(self, sheets: Iterable[Sheet]) -> Iterator[Sheet]:
        """The sheets in their order."""
        for sheet in sheets:
            yield self.swap(sheet) if sheet.beginning and self._rng.random() < SWAPPED_SHEETS else sheet

    def swap(self, sheet: Sheet) -> Sheet:
        """Some words that the notes share with a question or an answer become others, the same everywhere."""
        asked = {word for question in sheet.questions
                 for text in (question.prompt, question.answer, *question.options) for word in WORD.findall(text)}
        shared = sorted((set(WORD.findall(sheet.beginning)) & asked) - self._structure)
        new = {word: self._rng.choice(self._words) for word in shared if self._rng.random() < SWAPPED_WORDS}

        def swapped(text: str) -> str:
            return WORD.sub(lambda match: new.get(match.group(), match.group()), text)

        return Sheet(swapped(sheet.beginning), tuple(
            replace(question, prompt=swapped(question.prompt), answer=swapped(question.answer),
                    options=tuple(map(swapped, question.options))) for question in sheet.questions))


def _pattern_words() -> frozenset[str]:
    """Words of the prompts that stand around notes and questions, and of the sentence patterns."""
    sentences = (*patterns.NORM, *patterns.CONTRAST, *patterns.BAN, *patterns.FREE, *patterns.NO_NEED,
                 *patterns.DOES, *patterns.DOES_NOT, *patterns.ASK, *patterns.ASK_BAN)
    framed = prompts.with_passages(prompts.with_shots("", [("", "")]), [""])
    return frozenset(WORD.findall(" ".join((*sentences, framed)).lower()))
