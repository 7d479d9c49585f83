"""The project file as a whole; its parts are in `sections`.

`load` reads YAML, applies `--set a.b=c` overrides, and refuses unknown fields. Relative paths in
a project file are relative to that file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PrivateAttr

from culturemanager.errors import ConfigError
from culturemanager.sections.base import Section
from culturemanager.sections.model import (
    BaseModelConfig,
    EvaluationConfig,
    RouterConfig,
    ServingConfig,
    TrainingConfig,
)
from culturemanager.sections.synthesis import (
    CultureName,
    EmbeddingConfig,
    ExamplesConfig,
    IndexConfig,
    PagesConfig,
    PassagesConfig,
    QueriesConfig,
)
from culturemanager.yamlfile import parse_yaml, read_yaml, validate_model, validate_overridden


class Project(Section):
    """A whole project file."""

    name: str
    """Name shown in reports."""
    workspace: str
    """Where outputs go: a folder or an fsspec URL."""
    seed: int = 0
    """Seed of everything random."""
    cultures: tuple[CultureName, ...] = Field(min_length=1)
    """Catalogue ids, or cultures of your own."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Task files."""
    queries: QueriesConfig = QueriesConfig()
    """Search queries."""
    pages: PagesConfig = PagesConfig()
    """Search and fetch."""
    passages: PassagesConfig = PassagesConfig()
    """Main text and passages."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """Passage vectors."""
    index: IndexConfig = IndexConfig()
    """FAISS."""
    examples: ExamplesConfig = ExamplesConfig()
    """Training rows."""
    base: BaseModelConfig = BaseModelConfig()
    """The frozen model."""
    training: TrainingConfig = TrainingConfig()
    """Adapters."""
    router: RouterConfig = RouterConfig()
    """Routing."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Comparison."""
    serving: ServingConfig = ServingConfig()
    """Endpoint."""

    _folder: Path = PrivateAttr(default=Path("."))
    _file: str = PrivateAttr(default="")
    _overridden: tuple[str, ...] = PrivateAttr(default=())

    def where(self, field: str) -> str:
        """Where a field's value comes from, for messages: `project.yaml: base.path`, or `--set base.path`."""
        if any(f"{field}.".startswith(f"{name}.") for name in self._overridden):
            return f"--set {field}"
        return f"{self._file}: {field}" if self._file else field

    def resolve(self, path: str) -> Path:
        """A path of this file, relative to the folder the file lies in; `~` is the user's home.

        Raises:
            ConfigError: `~` stands for a home that nobody knows.
        """
        try:
            return (self._folder / Path(path).expanduser()).resolve()
        except RuntimeError as error:
            raise ConfigError(f"{self._file}: {path!r} names no folder: {error} Write the path out.") from error

    @property
    def workspace_url(self) -> str:
        """The workspace as an absolute path or a URL."""
        return self.workspace if "://" in self.workspace else str(self.resolve(self.workspace))

    @property
    def base_path(self) -> str:
        """The base model as `base_model.load_base_model` takes it: `embedded`, an absolute folder, or a hub name."""
        local = self.resolve(self.base.path)
        return str(local) if self.base.path != "embedded" and local.exists() else self.base.path


def load(path: str | Path, overrides: Sequence[str] = ()) -> Project:
    """Read a project file and apply overrides of the form `training.epochs=2`.

    Raises:
        ConfigError: the file or an override is wrong; the message names file, place and expectation.
    """
    path = Path(path)
    data = read_yaml(path, "Check the path, or start with `culturemanager init`.")
    if not overrides or not isinstance(data, dict):
        project, names = validate_model(data, Project, str(path)), ()
    else:
        overridden = copy.deepcopy(data)
        texts = dict(_override(overridden, override) for override in overrides)
        project, names = validate_overridden(data, overridden, Project, str(path), texts), tuple(texts)
    project._folder, project._file, project._overridden = path.resolve().parent, str(path), names
    return project


def _override(data: dict[Any, Any], override: str) -> tuple[str, str]:
    """Put an override into the data, and return its field and its text."""
    name, separator, text = override.partition("=")
    name = name.strip()
    if not separator or not name or not name.isprintable():
        raise ConfigError(f"--set {override!r}: expected `field.field=value`, such as `training.epochs=2`.")
    *parents, last = name.split(".")
    node = data
    for parent in parents:
        if not isinstance(node, dict):
            break
        node = node.setdefault(parent, {})
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(parents)} is not a group of fields.")
    try:
        node[last] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value.") from error
    return name, text
