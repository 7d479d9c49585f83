"""A page's main text as headed blocks, and blocks as sentences."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import lxml.etree
import lxml.html
import trafilatura

from culturemanager.providers.document import UNSEEN
from culturemanager.records import Page

HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|(?:font-size|opacity)\s*:\s*0(?![.\d])", re.I)
NEVER_SHOWN = ("script", "style", "noscript", "template", "iframe", "object", "svg", "nav", "footer", "header", "aside",
               "input", "select", "textarea", "button")
LIST_MARK = re.compile(r"(?:[-*]|\d+[.)])\s+")
RULE = frozenset("-*_|: ")
"""A line of nothing else is drawn, not written."""
EMPHASIS = re.compile(r"(?<!\\)(\*\*|__|(?<!\w)[*_])(?=\S)(.+?)(?<=[^\s\\])\1")
KEPT_TAG = re.compile(r"</?(?:sub|sup|u)>")
"""What trafilatura writes as in HTML."""
ESCAPED = re.compile(r"\\([\\`*_\[\]<>~#+\-.)|])")
FOOTNOTE = re.compile(r"\s*\[[^\]]{1,20}\]\s*")
HEADING_CHARACTERS = 300
"""A heading stands in each of its passages."""
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|e\.g|i\.e|approx|a\.m|p\.m|No)\.$")
ABBREVIATION_CHARACTERS = 8
"""The longest with its full stop, and one before it."""
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+(?=[\"'“‘(]*([^\W_]))|(?<=[。！？؟۔।።။។])\s*")
"""With the letter that follows, where it tells whether a sentence begins."""


@dataclass(frozen=True)
class Block:
    """A paragraph or list item under its nearest heading."""

    heading: str
    text: str


def page_blocks(page: Page) -> list[Block]:
    """The main text of a page, hidden elements and page furniture dropped.

    A page that holds no readable text gives an empty list.
    """
    if "html" not in page.content_type:
        return _markdown_blocks(UNSEEN.sub("", page.content), wrapped=True)
    html = _without_hidden(page.content)
    if html is None:
        return []
    text = trafilatura.extract(html, output_format="markdown", include_comments=False, include_tables=True,
                               include_formatting=True, favor_recall=True)  # without formatting it drops the headings' marks
    plain = ESCAPED.sub(r"\1", KEPT_TAG.sub("", EMPHASIS.sub(r"\2", text or "")))
    return _markdown_blocks(UNSEEN.sub("", plain), wrapped=False)


def _without_hidden(content: str) -> str | None:
    try:
        tree = lxml.html.document_fromstring(content.encode("utf-8"), parser=lxml.html.HTMLParser(encoding="utf-8"))
    except (lxml.etree.LxmlError, ValueError):
        return None
    for element in list(tree.iter()):
        if not isinstance(element.tag, str):
            _drop(element)
        elif element.tag == "sup" and FOOTNOTE.fullmatch(element.text_content()):
            _drop(element)
        elif (element.tag in NEVER_SHOWN or "hidden" in element.attrib or element.get("aria-hidden") == "true"
              or HIDDEN_STYLE.search(element.get("style", ""))):
            _drop(element)
        elif element.tag == "form":  # some pages are one form as a whole, and trafilatura reads none
            element.drop_tag()
    return lxml.html.tostring(tree, encoding="unicode")


def _drop(element) -> None:
    """Remove an element but keep the text that follows it."""
    if element.getparent() is not None:
        if isinstance(element.tag, str):
            element.drop_tree()
        else:
            parent, previous, tail = element.getparent(), element.getprevious(), element.tail or ""
            if previous is not None:
                previous.tail = (previous.tail or "") + tail
            else:
                parent.text = (parent.text or "") + tail
            element.tail = None
            parent.remove(element)


def _markdown_blocks(text: str, wrapped: bool) -> list[Block]:
    """Blocks of a Markdown text; in a `wrapped` one a paragraph goes on until a blank line, else each line is one."""
    blocks, heading, paragraph = [], "", []

    def flush() -> None:
        joined = " ".join(" ".join(paragraph).split())
        if joined:
            blocks.append(Block(heading, joined))
        paragraph.clear()

    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            flush()
            heading = line.lstrip("#").strip()[:HEADING_CHARACTERS]
        elif set(line) <= RULE:
            flush()
        elif mark := LIST_MARK.match(line):
            flush()
            paragraph.append(line[mark.end():])
        elif line.startswith("|"):
            flush()
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            paragraph.append(": ".join(cell for cell in cells if cell))
            flush()
        else:
            if not wrapped:
                flush()
            paragraph.append(line)
    flush()
    return blocks


def sentences(text: str) -> list[str]:
    """Split running text into sentences; an abbreviation's full stop does not end one."""
    found: list[list[str]] = []
    # A letter that headlines would write larger begins none; Georgian has small letters and no larger ones at a beginning.
    ends = [end.span() for end in SENTENCE_END.finditer(text) if end[1] is None or end[1] == end[1].title()]
    for (_, start), (stop, _) in itertools.pairwise([(0, 0), *ends, (len(text), len(text))]):
        piece = text[start:stop].strip()
        if not piece:
            continue
        if found and ABBREVIATION.search(found[-1][-1][-ABBREVIATION_CHARACTERS:]):
            found[-1].append(piece)
        else:
            found.append([piece])
    return [" ".join(pieces) for pieces in found]
