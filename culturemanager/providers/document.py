"""A document's bytes as text, and what a reader sees of it: charset, title, words."""

from __future__ import annotations

import codecs
import re

import lxml.etree
import lxml.html

BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.I)
META_WINDOW = 1024
"""Bytes in which the HTML standard wants the charset declared."""
HEADER_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w:.-]{1,40})", re.I)

# The encodings of the web, by Python's name for them. Python knows more codecs, and some of them
# (unicode_escape, punycode, idna) are not meant for text from strangers.
WEB_ENCODINGS = frozenset({
    "utf-8", "utf-16-le", "utf-16-be", "cp866", "cp874", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "gbk", "gb18030",
    "big5", "big5hkscs", "euc_jp", "iso2022_jp", "shift_jis", "cp932", "euc_kr", "cp949",
    *(f"cp{number}" for number in range(1250, 1259)), *(f"iso8859-{number}" for number in range(2, 17) if number != 12),
})
# Labels that browsers read as a superset, because pages so labelled use its characters.
SUPERSETS = {"ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "utf-16": "utf-16-le"}

UNSEEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
                    "\ufff9-\ufffb\U000e0000-\U000e007f]")
"""Control and format characters, which a terminal may obey, but for line ends and the joiners that some scripts write with."""
INVISIBLE = ("script", "style", "noscript", "template", "svg")
TITLE_CHARACTERS = 300


def decode(body: bytes, content_type: str) -> str:
    """The body as text; what cannot be decoded becomes U+FFFD, never an error.

    The encoding is that of a byte order mark, else of `content_type`'s charset, else (HTML only) of a
    `<meta>` in the first 1024 bytes, else UTF-8.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return _text(body[len(mark):], encoding)
    in_header = HEADER_CHARSET.search(content_type)
    encoding = _known(in_header[1]) if in_header else None
    if encoding is None and "html" in content_type:
        in_page = META_CHARSET.search(body[:META_WINDOW])
        encoding = _known(in_page[1].decode("ascii", "replace")) if in_page else None
        if encoding in ("utf-16-le", "utf-16-be"):
            encoding = "utf-8"  # a declaration that could be read as ASCII is not in UTF-16
    return _text(body, encoding or "utf-8")


def _text(body: bytes, encoding: str) -> str:
    return body.decode(encoding, "replace").replace("\0", "\ufffd")


def _known(label: str) -> str | None:
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return None
    name = SUPERSETS.get(name, name)
    return name if name in WEB_ENCODINGS else None


def title_and_text(text: str, content_type: str) -> tuple[str, str]:
    """A document's title and its readable words, for searching: menus and footers are still among them.

    The title is HTML's `<title>` (else the first `<h1>`), Markdown's first heading, or empty.
    """
    if "html" not in content_type:
        heading = re.search(r"^#\s+(.+?)\s*#*$", text, re.M) if "markdown" in content_type else None
        return shown_title(heading[1]) if heading else "", text
    try:
        parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
        tree = lxml.html.document_fromstring(text.encode("utf-8"), parser=parser)
    except (lxml.etree.LxmlError, ValueError):  # nothing in it that is an element
        return "", ""
    title = tree.findtext(".//title") or "".join(h.text_content() for h in tree.iterfind(".//h1[1]"))
    lxml.etree.strip_elements(tree, *INVISIBLE, "title", with_tail=False)
    return shown_title(title), " ".join(" ".join(tree.itertext()).split())


def shown_title(text: str) -> str:
    """A title as one line, without what a terminal may obey."""
    return " ".join(UNSEEN.sub("", text).split())[:TITLE_CHARACTERS]
