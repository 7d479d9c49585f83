"""The commands around the endpoint: adapter versions, and API keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from culturemanager.cli_shared import DEFAULT_PROJECT, Overrides, PlainGroup, ProjectFile, Version, command, load_project

if TYPE_CHECKING:
    from culturemanager.config import Project
    from culturemanager.records import AdapterVersion

adapters_app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="The adapter versions on disk, and which of them serve.",
                           epilog="Example: culturemanager adapters list alps.yaml")
keys_app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="API keys with limits of their own.",
                       epilog="Example: culturemanager keys new shop-berlin --file keys.yaml --culture germany")


@command(adapters_app, "list", "adapters list alps.yaml")
def adapters_list(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Every version, and whether it serves."""
    from culturemanager import artifacts, console

    loaded = load_project(project, overrides)
    versions = artifacts.registry(loaded).versions()
    if not versions:
        return console.say("No adapter yet; `culturemanager train` makes them.")
    show_versions(loaded, versions)


def show_versions(project: Project, versions: Sequence[AdapterVersion]) -> None:
    """A table of versions, and which of them serve."""
    from culturemanager import artifacts, console

    registry = artifacts.registry(project)
    serves = dict.fromkeys(registry.aliases().values(), "yes")
    serves |= {name: f"{share:.0%} on trial" for name, share in registry.canaries().values()}
    console.table(("version", "serves", "rank", "rows", "loss", "made"), [
        (version.name, serves.get(version.name, ""), version.rank, version.metrics.get("rows", ""),
         _figure(version.metrics.get("loss")), version.created_at) for version in versions])


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""


@command(adapters_app, "show", "adapters show austria-v0001 alps.yaml")
def adapters_show(name: Version, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """One version's record as JSON."""
    import dataclasses
    import json

    from culturemanager import artifacts, console

    loaded = load_project(project, overrides)
    artifacts.require_version(loaded, name)
    console.say(json.dumps(dataclasses.asdict(artifacts.registry(loaded).get(name)), indent=2))


@command(adapters_app, "promote", "adapters promote austria-v0001 alps.yaml")
def adapters_promote(name: Version, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = [],
                     share: Annotated[float | None, typer.Option(metavar="SHARE", help="Only this share of the culture's "
                                                                 "conversations, such as 0.1: a trial.")] = None) -> None:
    """Let a version serve its culture, or a share of it. A running endpoint follows at once."""
    from culturemanager import artifacts, console

    loaded = load_project(project, overrides)
    artifacts.require_version(loaded, name)
    if share is None:
        artifacts.registry(loaded).promote(name)
        console.say(f"{name} serves")
    else:
        artifacts.registry(loaded).try_out(name, share)
        console.say(f"{name} serves {share:.0%} of the conversations; `adapters promote {name}` gives it all, "
                    f"`adapters rollback {artifacts.registry(loaded).get(name).culture}` ends the trial")


@command(adapters_app, "rollback", "adapters rollback austria alps.yaml")
def adapters_rollback(culture: Annotated[str, typer.Argument(metavar="CULTURE", help="A culture's id.")],
                      project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """End a culture's trial; without one, let the version promoted before serve again."""
    from culturemanager import artifacts, console

    loaded = load_project(project, overrides)
    if culture not in artifacts.registry(loaded).aliases():  # the comparison's adapters are no cultures, and go back too
        artifacts.require_culture(loaded, culture)
    console.say(f"{artifacts.registry(loaded).rollback(culture)} serves")


@command(keys_app, "new", "keys new shop-berlin --file keys.yaml --culture germany --per-minute 60")
def keys_new(name: Annotated[str, typer.Argument(metavar="NAME", help="What the request log calls it.")],
             file: Annotated[Path, typer.Option(metavar="FILE", help="The file that `serving.keys_file` names; made if it is not "
                                                                     "there.")],
             culture: Annotated[list[str], typer.Option(metavar="CULTURE", help="A culture it may ask for; may be repeated. "
                                                                                "Without any: all.")] = [],
             per_minute: Annotated[int | None, typer.Option(metavar="N", help="Requests a minute; without it: no limit.")] = None,
             ) -> None:
    """Make an API key: it is shown once, and the file keeps its SHA-256."""
    from culturemanager import console
    from culturemanager.cultures import catalogue
    from serve_app.keys import add_key

    console.say(add_key(file, name, culture or None, per_minute))
    if own := [one for one in culture if one not in catalogue()]:
        console.note(f"Not in the catalogue: {', '.join(own)}. That is fine for cultures that the project file defines.")
    console.note(f"Keep it now, it is not shown again. {file} holds its SHA-256; a restart of the endpoint takes it up.")
