"""Reading YAML files into checked models, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from culturemanager.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


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
        return yaml.safe_load(text)
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
        first, *more = error.errors()
        field = ".".join(str(part) for part in first["loc"]) or "file"
        value = "" if first["type"] in ("missing", "value_error") else f" (found {first['input']!r:.80})"
        if first["type"] == "extra_forbidden":
            message = f"unknown field; known fields here: {_known_fields(model, first['loc'])}"
        else:
            message = first["msg"].removeprefix("Value error, ")
        rest = f" And {len(more)} more." if more else ""
        raise ConfigError(f"{where}: {field}: {message}{value}.{rest}") from error


def _known_fields(model: type[BaseModel], location: tuple) -> str:
    for name in location[:-1]:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return "see the documentation"
        model = annotation
    return ", ".join(model.model_fields)
