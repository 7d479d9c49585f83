"""What every part of a project file has in common, and how it reads values that YAML leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every part of the project file: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def kind_or(default: str) -> Callable[[Any], Any]:
    """Reads a section without `kind` as the default kind, as a section that is left out is read."""
    return lambda value: {"kind": default, **value} if isinstance(value, dict) else value


def yes_or_no(value: Any) -> Any:
    """YAML reads an unquoted yes or no as a truth value."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def server_address(value: str) -> str:
    """An address without a user name or password: those would end up in logs."""
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if not host or url.scheme not in ("http", "https") or "@" in url.netloc or url.query or url.fragment:
        raise ValueError("expected `http://host:8000/v1` or https, without a user name, a query or a fragment")
    return value
