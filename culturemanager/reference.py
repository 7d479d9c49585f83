"""Every field of a project file with its default and its explanation, read from the settings' own source."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from culturemanager import config


@dataclass(frozen=True)
class Field:
    """One field as `--set` names it."""

    name: str
    default: str
    """As YAML; empty for a field that must be given, or that is a section."""
    text: str


def fields(model: type[BaseModel] = config.Project, prefix: str = "") -> Iterator[Field]:
    """All fields below a section, in the file's order; a section that is one of several kinds is shown kind by kind."""
    texts = _explanations(model)
    for name, info in model.model_fields.items():
        inner = list(_sections(info.annotation))
        default = "" if inner or info.is_required() else _as_yaml(info.default)
        yield Field(prefix + name, default, texts[name])
        for section in inner:
            chosen = f"[{get_args(section.model_fields['kind'].annotation)[0]}]" if len(inner) > 1 else ""
            yield from fields(section, f"{prefix}{name}{chosen}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _as_yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _explanations(model: type[BaseModel]) -> dict[str, str]:
    """Field to the text that stands under it in the source."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    texts = {"kind": "Which of the kinds."}
    for field, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[field.target.id] = " ".join(str(following.value.value).split())
    return texts
