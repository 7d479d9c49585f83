"""The command line. It parses first and imports the heavy things after, so that `--help` answers at once.

Every command takes the project file as its last argument, and `--set field.field=value` to override it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from culturemanager.config import Project
    from culturemanager.evaluation.runner import Evaluation

STOPPED = 130
DEFAULT_PROJECT = Path("project.yaml")
ProjectFile = Annotated[Path, typer.Argument(metavar="[PROJECT]", help="The project file.", show_default="project.yaml")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one field; may be repeated.")]
Culture = Annotated[str, typer.Option("--culture", help="A culture's id.")]

STAGES = {
    "queries": "Write the search queries.",
    "pages": "Search, and fetch the pages found.",
    "passages": "Cut the pages' main text into passages.",
    "index": "Embed the passages and build the FAISS index.",
    "examples": "Write training rows from passages, and check them.",
}
ORDER = ("init", "settings", "validate", "doctor", "run", *STAGES, "train", "router", "evaluate", "adapters", "ask", "serve")


class RootGroup(TyperGroup):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx):
        return sorted(self.commands, key=ORDER.index)


class PassagesGroup(TyperGroup):
    """`passages search ...` searches; `passages [PROJECT]` is the stage."""

    def parse_args(self, ctx, args):
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["stage", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=RootGroup, name="culturemanager", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
passages_app = typer.Typer(cls=PassagesGroup, help=STAGES["passages"] + " `passages search` looks into them.")
adapters_app = typer.Typer(no_args_is_help=True, help="The adapter versions on disk, and which of them serve.")
app.add_typer(passages_app, name="passages")
app.add_typer(adapters_app, name="adapters")


def main() -> None:
    """Run a command; errors of ours come out as one line, and Ctrl-C says how to go on."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(execute([argument for argument in arguments if argument != "--debug"] or ["--help"], debug))


def execute(arguments: list[str], debug: bool = False) -> int:
    """Run one command and return its exit code; with `debug`, exceptions are passed on."""
    from culturemanager.console import error_line, note, own_error

    try:
        code = app(arguments, standalone_mode=False, obj=debug)
    except typer.TyperException as error:
        if not error.format_message().strip():  # a group without a command has shown its help
            return 0
        note("error: " + " ".join(error.format_message().split()) + " See `culturemanager --help`.")
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        note(error_line(error))
        return getattr(own_error(error), "exit_code", 1)
    if code == STOPPED:
        note("stopped; run the same command again to go on")
    return code if isinstance(code, int) else 0


@app.callback()
def callback(context: typer.Context,
             debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what Ray logs.")] = False) -> None:
    """From cultures and tasks to one served model that answers with the right culture's knowledge."""
    from culturemanager.cluster import prepare_environment

    if context.invoked_subcommand != "doctor":  # which looks at the environment as it is
        prepare_environment()


def _load(path: Path, overrides: list[str]) -> Project:
    from culturemanager import config

    return config.load(path, overrides)


@contextlib.contextmanager
def _working(context: typer.Context, ray: bool = True) -> Iterator[Callable[[int, int, str], None]]:
    """A Ray cluster, if one is needed, and a progress report."""
    from culturemanager import cluster, console

    with cluster.connect(logs=bool(context.obj)) if ray else contextlib.nullcontext(), console.progress() as progress:
        yield progress


# ---- a project


@app.command()
def init(project: ProjectFile = DEFAULT_PROJECT,
         culture: Annotated[list[str], typer.Option(help="A culture of the catalogue; may be repeated.")] = []) -> None:
    """Write a project file and its task files, ready to run."""
    from culturemanager import console, starter

    for path in starter.write(project, culture):
        console.say(f"wrote {path}")
    console.say(f"Next: {_program()} run {project}")


@app.command()
def settings() -> None:
    """Show every field of a project file: its default, and what it is for."""
    from culturemanager import console
    from culturemanager.reference import fields

    for field in fields():
        console.say(f"{field.name}: {field.default}" if field.default else field.name)
        console.say(f"    {field.text}")


@app.command()
def validate(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Check the project file, its tasks and its evaluation items before anything runs."""
    from culturemanager import artifacts, console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    assembly.check_key(loaded)
    items = artifacts.items(loaded)
    console.table(("what", "count", "which"), [
        ("cultures", len(loaded.cultures), ", ".join(culture.id for culture in artifacts.cultures(loaded))),
        ("tasks", len(loaded.tasks), ", ".join(f"{task.id} ({task.kind})" for task in artifacts.tasks(loaded))),
        ("items", len(items.items), loaded.evaluation.items),
        ("systems", len(loaded.evaluation.systems), ", ".join(loaded.evaluation.systems))])
    console.say(f"{project} is fine. Search: {loaded.pages.search.kind}; generator: {loaded.examples.generator.kind}; "
                f"base model: {loaded.base.path}{_from_hub(loaded)}; workspace: {loaded.workspace_url}")
    if not items.items:
        _say_no_items(loaded)


def _from_hub(project: Project) -> str:
    """A word of warning where a name that was meant as a folder would be looked for elsewhere."""
    local = project.base.path == "embedded" or Path(project.base_path).is_absolute()
    return "" if local else " (from the Hugging Face hub: there is no such folder)"


@app.command()
def run(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Do everything: synthesis, training, router, evaluation. What is complete is skipped."""
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    with _working(context) as progress:
        outcome = assembly.run(loaded, progress)
    if outcome.evaluation:
        _show_comparison(loaded, outcome.evaluation, project)
    else:
        _say_no_items(loaded)
    if outcome.left_out:
        raise outcome.left_out


def _say_no_items(project: Project) -> None:
    from culturemanager import console

    console.note(f"{project.evaluation.items} has no evaluation item for these cultures and tasks, so nothing is compared. "
                 "Name a file with such items in `evaluation.items`.")


def _show_comparison(project: Project, evaluation: Evaluation, path: Path) -> None:
    from culturemanager import artifacts, console

    console.comparison(evaluation)
    console.say(f"Report: {artifacts.report_path(project)}")
    console.say(f"Serve:  {_program()} serve {path}")


def _program() -> str:
    """How to call this program again: by its name, or by its path where the shell would not find it."""
    import shutil

    if shutil.which("culturemanager"):
        return "culturemanager"
    return f"{sys.executable} -m culturemanager.cli" if sys.argv[0].endswith(".py") else sys.argv[0]


# ---- the stages one by one


def _stage(name: str) -> Callable[..., None]:
    def stage(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
        from culturemanager import console
        from culturemanager import project as assembly

        loaded = assembly.load(project, overrides)
        with _working(context, assembly.needs_ray(loaded, name)) as progress:
            details = assembly.synthesize(loaded, name, progress)
        for done, counts in details.items():
            dropped = ", ".join(f"{number:,} {reason}" for reason, number in counts.get("dropped", {}).items())
            console.say(f"{done}: {counts['rows']:,} rows{f'; dropped: {dropped}' if dropped else ''}")

    return stage


for _name, _help in STAGES.items():
    if _name == "passages":
        passages_app.command("stage", help=_help, hidden=True)(_stage(_name))
    else:
        app.command(_name, help=_help + " Stages before it are done first, unless they are complete.")(_stage(_name))


@passages_app.command("search")
def passages_search(text: Annotated[str, typer.Argument(help="What to look for.")], project: ProjectFile = DEFAULT_PROJECT,
                    culture: Culture = "", limit: Annotated[int, typer.Option(min=1, max=100, help="Most hits.")] = 5,
                    overrides: Overrides = []) -> None:
    """Show the passages nearest to a text, with their sources."""
    from culturemanager import console, questions

    for hit in questions.search_passages(_load(project, overrides), text, culture, limit):
        passage = hit.passage
        console.say(f"{hit.score:.3f}  {passage.culture}  {passage.title}{f' / {passage.heading}' if passage.heading else ''}")
        console.say(f"       {passage.url}")
        console.say(f"       {' '.join(passage.text.split())}")


@app.command()
def train(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT,
          only: Annotated[list[str], typer.Option(metavar="CULTURE", help="Train only this culture; may be repeated.")] = [],
          plan: Annotated[bool, typer.Option("--plan", help="Show what would be trained, the memory and the time; train nothing.")
                          ] = False,
          overrides: Overrides = []) -> None:
    """Train the adapters whose rows or settings changed, all in one pack, and let them serve."""
    from culturemanager import console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    if plan:
        return console.training_plan(assembly.training_outlook(loaded, only))
    with _working(context) as progress:
        versions = assembly.train(loaded, only, progress)
    _show_versions(loaded, versions)


@app.command()
def router(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Train and calibrate the culture router."""
    from culturemanager import console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    with console.progress() as progress:
        figures = assembly.fit_router(loaded, progress)
    shares = {name: "none" if figures[name] is None else f"{100 * figures[name]:.1f}%" for name in ("precision", "coverage")}
    console.say(f"threshold {figures['threshold']:.3f}: {shares['precision']} of what is routed goes to the right culture, "
                f"{shares['coverage']} of what could be routed is ({figures['measured_rows']:,} held-out rows)")


@app.command()
def evaluate(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Compare the systems on the held-out items, and write the report."""
    from culturemanager import console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    with console.progress() as progress:
        evaluation = assembly.evaluate(loaded, progress)
    _show_comparison(loaded, evaluation, project)


# ---- use


@app.command()
def serve(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Serve the trained model: an OpenAI-compatible endpoint."""
    from culturemanager import serving

    serving.serve(project, overrides, logs=bool(context.obj))


@app.command()
def ask(text: Annotated[str, typer.Argument(help="The question.")], project: ProjectFile = DEFAULT_PROJECT, culture: Culture = "",
        task: Annotated[str, typer.Option(help="Put the question in this task's words.")] = "",
        overrides: Overrides = []) -> None:
    """Ask one question, without a server."""
    from culturemanager import console, questions

    reply = questions.ask(_load(project, overrides), text, culture, task)
    console.say(reply.text)
    route = reply.route
    if route.culture:
        console.say(f"culture: {route.culture} ({route.reason}, confidence {route.confidence:.2f}); "
                    f"adapter: {reply.adapter or 'none'}")
    else:
        console.say(f"culture: none, the router was not sure enough ({route.confidence:.2f}); answered by the bare base model")


@adapters_app.command("list")
def adapters_list(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Every version, and whether it serves."""
    from culturemanager import artifacts, console

    loaded = _load(project, overrides)
    versions = artifacts.registry(loaded).versions()
    if not versions:
        return console.say("No adapter yet; `culturemanager train` makes them.")
    _show_versions(loaded, versions)


def _show_versions(project: Project, versions) -> None:
    from culturemanager import artifacts, console

    serving = set(artifacts.registry(project).aliases().values())
    console.table(("version", "serves", "rank", "rows", "loss", "made"), [
        (version.name, "yes" if version.name in serving else "", version.rank, version.metrics.get("rows", ""),
         _figure(version.metrics.get("loss")), version.created_at) for version in versions])


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""


@adapters_app.command("show")
def adapters_show(name: Annotated[str, typer.Argument(help="A version, such as turkey-v0001.")],
                  project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """One version's record as JSON."""
    import dataclasses
    import json

    from culturemanager import artifacts, console

    console.say(json.dumps(dataclasses.asdict(artifacts.registry(_load(project, overrides)).get(name)), indent=2))


@adapters_app.command("promote")
def adapters_promote(name: Annotated[str, typer.Argument(help="A version, such as turkey-v0001.")],
                     project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Let a version serve its culture."""
    from culturemanager import artifacts, console

    artifacts.registry(_load(project, overrides)).promote(name)
    console.say(f"{name} serves")


@adapters_app.command("rollback")
def adapters_rollback(culture: Annotated[str, typer.Argument(help="A culture's id.")], project: ProjectFile = DEFAULT_PROJECT,
                      overrides: Overrides = []) -> None:
    """Let the version promoted before serve the culture again."""
    from culturemanager import artifacts, console

    console.say(f"{artifacts.registry(_load(project, overrides)).rollback(culture)} serves")


@app.command()
def doctor(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Check this machine: versions, memory, disk, model files, keys, Ray's token, the port."""
    from culturemanager import console
    from culturemanager import doctor as checks

    findings = checks.examine(project, overrides, required=project != DEFAULT_PROJECT)
    console.table(("check", "result", "found"), [(finding.name, finding.result, finding.found) for finding in findings])
    for finding in findings:
        if finding.advice:
            console.say(f"{finding.name}: {finding.advice}")
    if any(finding.result == checks.FAILED for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
