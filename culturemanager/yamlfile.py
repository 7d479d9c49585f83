"""Reading YAML files into checked models, with errors a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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


def read_yaml(path: Path, next_step: str = "Check the path.") -> Any:
    """Safe YAML from a file.

    Args:
        next_step: what to do about a file that cannot be read.

    Raises:
        ConfigError: the file is missing or malformed; the message has file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}. {next_step}") from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}. "
                          "Expected `key: value` lines with consistent indentation.") from error


def parse_yaml(text: str) -> Any:
    """Safe YAML.

    Raises:
        yaml.YAMLError: the text is none, or gives a key twice or a value that cannot be read as what it says it is.
    """
    return yaml.load(text, Loader=_OneOfEach)


def validate_model(data: Any, model: type[Model], where: str) -> Model:
    """`model.model_validate` with one-line errors.

    Raises:
        ConfigError: naming the first wrong fields, their values and what was expected.
    """
    if not isinstance(data, Mapping):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{where}: expected `key: value` pairs at the top, found {found}.")
    return _validated(data, model, lambda wrong: [f"{where}: {'; '.join(_in_words(one, model) for one in wrong)}"])


def validate_overridden(data: Any, overridden: Any, model: type[Model], where: str, overrides: Mapping[str, str]) -> Model:
    """Like `validate_model` for a file some of whose fields were overridden; a slip is laid to whichever of the two has it.

    Args:
        data: the file alone.
        overridden: the file with the overrides in it; this is what is read.
        overrides: field to text, as they were typed.

    Raises:
        ConfigError: as `validate_model`, and naming the override whose fault it is.
    """
    in_file = {_mark(one) for one in _errors(data, model)}

    def told(wrong: Sequence[Mapping[str, Any]]) -> list[str]:
        blamed = {id(one): None if _mark(one) in in_file else _nearest_override(_place(one["loc"], model)[0], overrides)
                  for one in wrong}
        of_file = "; ".join(_in_words(one, model) for one in wrong if blamed[id(one)] is None)
        of_overrides = [_in_override(one, model, blamed[id(one)], overrides[blamed[id(one)]])
                        for one in wrong if blamed[id(one)] is not None]
        return [*of_overrides, *([f"{where}: {of_file}"] if of_file else [])]

    return _validated(overridden, model, told)


def _validated(data: Any, model: type[Model], told: Callable[[Sequence[Mapping[str, Any]]], list[str]]) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        wrong = _own(_plain(error))
        more = f" And {len(wrong) - SHOWN} more." if len(wrong) > SHOWN else ""
        raise ConfigError(f"{'; '.join(told(wrong[:SHOWN]))}.{more}") from error


def _errors(data: Any, model: type[BaseModel]) -> list[Mapping[str, Any]]:
    try:
        model.model_validate(data)
    except ValidationError as error:
        return _plain(error)
    return []


def _plain(error: ValidationError) -> list[Mapping[str, Any]]:
    """pydantic's errors; a section of no known kind is laid to its field `kind`."""
    return [{"loc": (*one["loc"], "kind"), "type": "literal_error", "input": one["ctx"]["tag"],
             "msg": f"Input should be {one['ctx']['expected_tags']}"} if one["type"] == "union_tag_invalid" else one
            for one in error.errors()]


def _mark(error: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two readings of the same slip have in common."""
    return error["loc"], error["type"], repr(error["input"])


def _nearest_override(parts: Sequence[str], overrides: Mapping[str, str]) -> str | None:
    """The override that shares most of a field's name with it, the last one of equals; `None` if none shares any."""
    shared = {name: len(_common(parts, name.split("."))) for name in overrides}
    return max((name for name in reversed(overrides) if shared[name]), key=shared.get, default=None)


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    end = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return list(one[:end])


def _in_override(error: Mapping[str, Any], model: type[BaseModel], name: str, text: str) -> str:
    parts, _ = _place(error["loc"], model)
    if parts != name.split("."):
        return f"--set {name}: {_in_words(error, model)}"
    # The value of a field that does not exist may be a key that was put where none belongs.
    value = "" if error["type"] == "extra_forbidden" else "=" + " ".join(text.split())[:80]
    return f"--set {name}{value}: {_message(error, model)}"


EXPECTED = {"missing": "has to be given", "tuple_type": "expected a list, such as [one, two]",
            "list_type": "expected a list, such as [one, two]",
            "string_type": "expected text", "dict_type": "expected `key: value` pairs",
            "model_type": "expected `key: value` pairs", "model_attributes_type": "expected `key: value` pairs",
            "int_parsing": "expected an integer", "int_type": "expected an integer", "int_from_float": "expected an integer",
            "float_parsing": "expected a number", "float_type": "expected a number", "bool_parsing": "expected true or false",
            "bool_type": "expected true or false"}
"""pydantic's kinds of error in words for somebody who writes YAML."""


def _own(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without those that only follow from others: a list is not too short whose entries are wrong."""
    return [one for one in errors if one["type"] != "too_short"
            or not any(other is not one and other["loc"][:len(one["loc"])] == one["loc"] for other in errors)]


def _in_words(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One error: the field, what was expected, what was found."""
    field = ".".join(_place(error["loc"], model)[0])
    found = "" if error["type"] in ("missing", "value_error", "extra_forbidden") else f" (found {error['input']!r:.80})"
    return f"{field}: {_message(error, model)}{found}" if field else f"{_message(error, model)}{found}"


def _message(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """What was expected."""
    kind = error["type"]
    if kind == "extra_forbidden":
        parts, section = _place(error["loc"], model)
        return f"unknown field; {_known_fields(parts, section, model)}"
    if kind == "too_short":
        return f"expected at least {error['ctx']['min_length']} entry"
    if kind == "string_type" and isinstance(error["input"], bool):
        return 'YAML reads an unquoted yes, no, on or off as true or false; put the word in quotes, such as "yes"'
    message = error["msg"].removeprefix("Value error, ")
    return EXPECTED.get(kind, re.sub(r"^Input should be (?=greater|less)", "expected a number ", message)
                        .replace("Input should be ", "expected "))


def _known_fields(parts: Sequence[str], section: type[BaseModel], model: type[BaseModel]) -> str:
    """The fields a mistyped one may have meant: the nearest of its section, one of that name elsewhere, or all there are."""
    name = parts[-1]
    near = difflib.get_close_matches(name, section.model_fields, n=2, cutoff=0.6)
    near = near or list(dict.fromkeys(field for field in _names_below(model) if field.split(".")[-1] == name))
    return f"nearest: {', '.join(near)}" if near else f"known fields here: {', '.join(section.model_fields)}"


def _names_below(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field below a model, with the sections it lies in."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(info.annotation):
            yield from _names_below(inner, f"{prefix}{name}.")


def _place(location: tuple, model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """A location as a user would write it, and the section that its last part was looked for in.

    Where a section is one of several kinds, pydantic puts the kind that was chosen between the two. Behind an entry's number,
    kinds whose names begin with an underscore are no fields of the file.
    """
    parts: list[str] = []
    choices: list[type[BaseModel]] = []
    for number, name in enumerate(location):
        last = number == len(location) - 1
        if str(name).startswith("_") and number and isinstance(location[number - 1], int):
            continue
        if name not in model.model_fields and not isinstance(name, int) and not last:
            model = next((one for one in choices if str(name) in get_args(one.model_fields["kind"].annotation)), model)
            continue
        parts.append(str(name) if str(name).isprintable() else repr(name))
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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # A date that no calendar has, say, or a tag such as !!timestamp on what is none: PyYAML lets all of these through.
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"{node.value!r:.80} cannot be read ({error}); put it in quotes "
                                                    "if it is a text", node.start_mark) from error

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
