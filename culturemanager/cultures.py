"""The catalogue of cultures, and a user's own."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from importlib import resources

import yaml

from culturemanager.errors import ConfigError, UnknownCultureError
from culturemanager.records import Culture
from culturemanager.sections.synthesis import CultureEntry

ID_PATTERN = re.compile(r"[a-z][a-z0-9_]*")
RESERVED_PATTERN = re.compile(r"joint|joint_culture_prompt|(agnostic|retrieval)_.*")
"""Names of the comparison adapters, which lie in the same registry as the cultures' own."""


@functools.cache
def catalogue() -> dict[str, Culture]:
    """The cultures shipped with the package, by id."""
    text = resources.files("culturemanager").joinpath("cultures.yaml").read_text(encoding="utf-8")
    entries = [CultureEntry.model_validate(entry) for entry in yaml.safe_load(text)]
    return {entry.id: Culture(**entry.model_dump()) for entry in entries}


def resolve_cultures(entries: Sequence[str | CultureEntry]) -> tuple[Culture, ...]:
    """The project's cultures, in its order.

    Raises:
        UnknownCultureError: an id that is neither in the catalogue nor defined; nearest ids are listed.
        ConfigError: an id twice, one that cannot be a name on disk, or one that a comparison adapter has.
    """
    cultures: dict[str, Culture] = {}
    for entry in entries:
        culture = _known(entry) if isinstance(entry, str) else Culture(**entry.model_dump())
        if not ID_PATTERN.fullmatch(culture.id):
            raise ConfigError(f"culture id {culture.id!r}: expected lower-case letters, digits and underscores, "
                              "such as `south_korea`.")
        if RESERVED_PATTERN.fullmatch(culture.id):
            raise ConfigError(f"culture id {culture.id!r} names an adapter of the comparison (`joint`, `joint_culture_prompt`, "
                              "`agnostic_…`, `retrieval_…`); choose another id.")
        if culture.id in cultures:
            raise ConfigError(f"culture {culture.id!r} is listed twice in `cultures`; remove one.")
        cultures[culture.id] = culture
    return tuple(cultures.values())


def _known(name: str) -> Culture:
    known = catalogue()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower().replace(" ", "_").replace("-", "_"), known, n=3, cutoff=0.5)
    hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(known)}."
    raise UnknownCultureError(f"unknown culture {name!r}. {hint} Define your own under `cultures:` "
                              "with `id`, `name`, `countries`, `demonyms` and `cues`.")
