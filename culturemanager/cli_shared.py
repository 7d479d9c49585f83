"""What the commands share: arguments, options, the form of their help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from culturemanager.config import Project

DEFAULT_PROJECT = Path("project.yaml")
FLAG = ""
"""What help shows as the type of an option that takes no value."""
ProjectFile = Annotated[Path, typer.Argument(metavar="PROJECT", help="The project file.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one field, named as by `settings`; may "
                                                                             "be repeated.")]
Culture = Annotated[str, typer.Option("--culture", metavar="CULTURE", help="A culture's id. Without it the text decides.")]
Version = Annotated[str, typer.Argument(metavar="NAME", help="A version, such as turkey-v0001.")]


class PlainHelp:
    """Usage as manuals write it, `TEXT [PROJECT]`, and flags without a type."""

    def collect_usage_pieces(self, ctx):
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def get_help_option(self, ctx):
        option = super().get_help_option(ctx)
        option.metavar = FLAG
        return option


class PlainCommand(PlainHelp, TyperCommand):
    """A command."""


class PlainGroup(PlainHelp, TyperGroup):
    """Commands below a command."""


def command(group: typer.Typer, name: str, example: str, panel: str | None = None, **more) -> Callable:
    """Register a command, with an example under its help."""
    return group.command(name, cls=PlainCommand, epilog=f"Example: culturemanager {example}", rich_help_panel=panel, **more)


def load_project(path: Path, overrides: list[str]) -> Project:
    """The project file with its overrides."""
    from culturemanager import config

    return config.load(path, overrides)
