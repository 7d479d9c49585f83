"""API keys: known by their sums only, each with the cultures it may ask for and a rate.

Keys come from an environment variable (comma-separated, allowed everything) and from a YAML file, which
`culturemanager keys new` writes:

    keys:
    - name: shop-berlin
      sha256: 9f86d0...
      cultures: [germany]
      requests_per_minute: 60
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict, Field

from culturemanager.errors import ConfigError
from culturemanager.storage import write_atomic
from culturemanager.yamlfile import read_yaml, validate_model

if TYPE_CHECKING:
    from culturemanager.config import Project


class ApiKey(BaseModel):
    """One key as it stands at rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w.-]+$")
    """Appears in logs; the key itself never does."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    cultures: tuple[str, ...] | None = None
    """Cultures it may ask for; None: all. The bare base is open to every key."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """None: no limit."""


class KeyFile(BaseModel):
    """The keys of a file."""

    model_config = ConfigDict(extra="forbid")

    keys: tuple[ApiKey, ...]


NOBODY = ApiKey(name="open", sha256="0" * 64)
"""Who asks where no key is set."""


@dataclass(frozen=True)
class Refusal:
    """Why a request may not go on."""

    status: int
    message: str
    retry_after_s: int | None = None


def key_sum(key: str) -> str:
    """SHA-256 of a key: what is stored and handed to deployments in its place."""
    return hashlib.sha256(key.encode(errors="backslashreplace")).hexdigest()


def collect_keys(text: str, file: Path | None = None) -> list[ApiKey]:
    """The keys of an environment variable's text and of a key file.

    Raises:
        ConfigError: the file is not there or is wrong, or two keys share a name.
    """
    given = [key.strip() for key in text.split(",") if key.strip()]
    keys = [ApiKey(name=f"key-{number}", sha256=key_sum(key)) for number, key in enumerate(given, 1)]
    if file is not None:
        keys += validate_model(read_yaml(file), KeyFile, str(file)).keys
    names = [key.name for key in keys]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{file}: the key name {name!r} is used twice; give every key a name of its own.")
    return keys


def keys_of(project: Project) -> list[ApiKey]:
    """Who may ask a project's endpoint. A place for keys that holds none is an error: it would leave the endpoint open.

    Raises:
        ConfigError: the environment variable is set and holds no key; the key file is not there, is wrong or holds none.
    """
    settings = project.serving
    text = os.environ.get(settings.api_keys_env, "")
    from_variable = collect_keys(text)
    if text and not from_variable:
        raise ConfigError(f"The environment variable {settings.api_keys_env} is set and holds no key. Put keys into it, "
                          "separated by commas, or unset it.")
    if not settings.keys_file:
        return from_variable
    file = project.resolve(settings.keys_file)
    try:
        keys = collect_keys(text, file)
    except ConfigError as error:
        raise ConfigError(f"{project.where('serving.keys_file')}: {error}") from error
    if len(keys) == len(from_variable):
        raise ConfigError(f"{project.where('serving.keys_file')}: {file} holds no key. Make one: culturemanager keys new NAME "
                          f"--file {file}")
    return keys


def add_key(file: Path, name: str, cultures: Sequence[str] | None, requests_per_minute: int | None) -> str:
    """Draw a key, add its sum to a file (made if it is not there), and return it.

    Raises:
        ConfigError: the file is wrong, has a key of that name, or a value is out of range.
        StorageError: the file cannot be written.
    """
    known = validate_model(read_yaml(file), KeyFile, str(file)).keys if file.exists() else ()
    if name in [key.name for key in known]:
        raise ConfigError(f"{file} has a key named {name!r} already; choose another name, or take that one out of the file.")
    key = secrets.token_urlsafe(32)
    asked = {"name": name, "sha256": key_sum(key), "cultures": cultures, "requests_per_minute": requests_per_minute}
    added = validate_model({field: value for field, value in asked.items() if value is not None}, ApiKey, f"key {name!r}")
    whole = {"keys": [one.model_dump(mode="json", exclude_none=True) for one in (*known, added)]}
    write_atomic(file, yaml.safe_dump(whole, sort_keys=False).encode())
    return key


class ApiKeys:
    """Decides who may ask, and how often; one process's own count.

    Args:
        keys: with none, everyone is admitted.
        clock: seconds that never go back.
    """

    def __init__(self, keys: Sequence[ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = list(keys)
        self._clock = clock
        self._allowances: dict[str, tuple[float, float]] = {}  # name to requests left, and when that was reckoned

    def identify(self, authorization: str | None) -> ApiKey | None:
        """The key an `Authorization` header carries; None: no known one."""
        if not self._keys:
            return NOBODY
        scheme, _, key = (authorization or "").partition(" ")
        given = key_sum(key.strip())
        matches = [known for known in self._keys if hmac.compare_digest(given, known.sha256)]  # every one is compared
        return matches[0] if matches and scheme.lower() == "bearer" else None

    def take(self, key: ApiKey) -> Refusal | None:
        """Count one request of the key against its rate; a refusal if none is left.

        The allowance refills evenly and holds a minute's worth (a token bucket).
        """
        if key.requests_per_minute is None:
            return None
        now, most = self._clock(), float(key.requests_per_minute)
        left, then = self._allowances.get(key.name, (most, now))
        left = min(most, left + (now - then) * most / 60)
        if left < 1:
            self._allowances[key.name] = left, now
            wait = max(1, math.ceil((1 - left) * 60 / most))
            return Refusal(429, f"This key may ask {key.requests_per_minute} times a minute. Try again in {wait} s.", wait)
        self._allowances[key.name] = left - 1, now
        return None
