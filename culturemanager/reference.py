"""Every field of a project file with its default and its explanation, read from the settings' own source."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from culturemanager import config
from culturemanager.errors import ConfigError


@dataclass(frozen=True)
class Field:
    """One field as `--set` names it."""

    name: str
    default: str
    """As YAML; empty for a field that has to be given, or that is a section."""
    text: str
    required: bool = False
    kind: str = ""
    """The section's kind that has this field, where a section is one of several kinds."""

    @property
    def section(self) -> str:
        """The section it lies in; empty at the top."""
        return self.name.rpartition(".")[0]

    @property
    def heading(self) -> str:
        """Name and default in one line."""
        notes = ", ".join([*([f"with kind: {self.kind}"] if self.kind else []), *(["required"] if self.required else [])])
        return self.name + (f": {self.default}" if self.default else "") + (f"   ({notes})" if notes else "")


def matching(part: str) -> list[Field]:
    """The fields below `part`, or else those whose name holds it; all for an empty text.

    Raises:
        ConfigError: there is none.
    """
    known = list(fields())
    found = [field for field in known if not part or f"{field.name}.".startswith(f"{part}.")]
    found = found or [field for field in known if part in field.name]
    if not found:
        near = difflib.get_close_matches(part, {word for field in known for word in (field.name, field.name.split(".")[-1])},
                                         n=3, cutoff=0.6)
        hint = f"Nearest: {', '.join(near)}." if near else "`culturemanager settings` shows all."
        raise ConfigError(f"settings {part!r}: no field has that in its name. {hint}")
    return found


def fields(model: type[BaseModel] = config.Project, prefix: str = "", kind: str = "") -> Iterator[Field]:
    """All fields below a section, in the file's order; a section that is one of several kinds is shown kind by kind."""
    texts = _explanations(model)
    for name, info in model.model_fields.items():
        inner = list(_sections(info.annotation))
        default = "" if inner or info.is_required() else _as_yaml(info.default)
        if name == "kind":
            continue  # said by every field of the kind, and by the section itself
        kinds = [get_args(section.model_fields["kind"].annotation)[0] for section in inner] if len(inner) > 1 else []
        text = f"{texts[name]} Its kind: {', '.join(kinds)}." if kinds else texts[name]
        if values := _values(info.annotation):
            text += f" One of: {', '.join(values)}."
        yield Field(prefix + name, default, text, info.is_required(), kind)
        for number, section in enumerate(inner):
            yield from fields(section, f"{prefix}{name}.", kinds[number] if kinds else "")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _values(annotation: Any) -> list[str]:
    """The words that a field may hold, if they are known."""
    return [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []


def _as_yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    if value is None:
        return "null"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _explanations(model: type[BaseModel]) -> dict[str, str]:
    """Field to the text that stands under it in the source."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    texts = {}
    for field, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[field.target.id] = " ".join(str(following.value.value).split())
    return texts
