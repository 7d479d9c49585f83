"""Reading YAML files into checked models, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from culturemanager.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
SHOWN = 3
"""Errors of one file that are told."""


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a YAML file into a pydantic model, with errors a person can act on.

    Raises:
        ConfigError: naming the file, and the line or the field.
    """
    return validate_model(read_yaml(path), model, str(path))


def read_yaml(path: Path) -> Any:
    """Safe YAML from a file.

    Raises:
        ConfigError: the file is missing or malformed; the message has file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}. "
                          "Check the path, or start with `culturemanager init`.") from error
    try:
        return yaml.load(text, Loader=_OneOfEach)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}. "
                          "Expected `key: value` lines with consistent indentation.") from error


def validate_model(data: Any, model: type[Model], where: str) -> Model:
    """`model.model_validate` with one-line errors.

    Raises:
        ConfigError: naming the first wrong field, its value and what was expected.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected `key: value` pairs at the top, found {type(data).__name__}.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        told = [_in_words(one, model) for one in _own(error.errors())]
        more = f" And {len(told) - SHOWN} more." if len(told) > SHOWN else ""
        raise ConfigError(f"{where}: {'; '.join(told[:SHOWN])}.{more}") from error


EXPECTED = {"tuple_type": "expected a list, such as [one, two]", "list_type": "expected a list, such as [one, two]",
            "string_type": "expected text", "dict_type": "expected `key: value` pairs",
            "model_type": "expected `key: value` pairs", "model_attributes_type": "expected `key: value` pairs"}
"""pydantic's kinds of error in words for somebody who writes YAML."""


def _own(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without those that only follow from others: a list is not too short whose entries are wrong."""
    return [one for one in errors if one["type"] != "too_short"
            or not any(other is not one and other["loc"][:len(one["loc"])] == one["loc"] for other in errors)]


def _in_words(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One error: the field, what was expected, what was found."""
    kind = error["type"]
    parts, section = _place(error["loc"], model)
    field = ".".join(parts)
    if kind == "extra_forbidden":
        return f"{field}: unknown field; known fields here: {', '.join(section.model_fields)}"
    message = EXPECTED.get(kind, error["msg"].removeprefix("Value error, "))
    if kind == "too_short":
        message = f"expected at least {error['ctx']['min_length']} entry"
    if kind == "string_type" and isinstance(error["input"], bool):
        message = 'YAML reads an unquoted yes, no, on or off as true or false; put the word in quotes, such as "yes"'
    found = "" if kind in ("missing", "value_error") else f" (found {error['input']!r:.80})"
    return f"{field}: {message}{found}" if field else f"{message}{found}"


def _place(location: tuple, model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """A location as a user would write it, and the section that its last part was looked for in.

    Where a section is one of several kinds, pydantic puts the kind that was chosen between the two. Kinds whose names
    begin with an underscore are no fields of the file.
    """
    parts: list[str] = []
    choices: list[type[BaseModel]] = []
    for number, name in enumerate(location):
        last = number == len(location) - 1
        if str(name).startswith("_"):
            continue
        if name not in model.model_fields and not isinstance(name, int) and not last:
            model = next((one for one in choices if str(name) in get_args(one.model_fields["kind"].annotation)), model)
            continue
        parts.append(str(name))
        if name in model.model_fields and not last:
            choices = list(_models_in(model.model_fields[name].annotation))
            model = choices[0] if len(choices) == 1 else model
    return parts, model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


class _OneOfEach(yaml.SafeLoader):
    """Safe YAML in which no key may stand twice in one mapping: the last one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<` may stand more than once, and what it brings in may be given again
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the super class says so
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
