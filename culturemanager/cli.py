"""The command line. It parses first and imports the heavy things after, so that `--help` answers at once.

Every command takes the project file as its last argument, and `--set field.field=value` to override it.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from culturemanager.cli_serving import adapters_app, keys_app, show_versions
from culturemanager.cli_shared import (
    DEFAULT_PROJECT,
    FLAG,
    Culture,
    Overrides,
    PlainGroup,
    ProjectFile,
    command,
    load_project,
)

if TYPE_CHECKING:
    from culturemanager.config import Project
    from culturemanager.evaluation.results import Evaluation

STOPPED = 130
EXIT_CODES = ("Exit code: 0 done; 1 something failed or is not there yet; 2 the command or a file of yours has to be "
              "corrected; 3 a culture was left without rows, all else is done; 130 stopped by Ctrl-C or SIGTERM.")
STAGES = {
    "queries": "Write the search queries.",
    "pages": "Search, and fetch the pages found.",
    "passages": "Cut the pages' main text into passages.",
    "index": "Embed the passages and build the FAISS index.",
    "examples": "Write training rows from passages, and check them.",
}
EARLIER_FIRST = "Stages before it are done first, unless they are complete."
START_PANEL, STAGE_PANEL, USE_PANEL = "To start", "One stage at a time", "What was made"
ORDER = ("init", "settings", "validate", "doctor", "run", *STAGES, "train", "router", "evaluate", "adapters", "ask", "serve",
         "keys")


class RootGroup(PlainGroup):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx):
        return sorted(self.commands, key=ORDER.index)


class PassagesGroup(PlainGroup):
    """`passages search ...` searches; `passages [PROJECT]` is the stage."""

    def parse_args(self, ctx, args):
        if not args or not (args[0] in ("--help", "-h") or self._means_a_command(args[0])):
            args = ["stage", *args]
        return super().parse_args(ctx, args)

    def _means_a_command(self, word: str) -> bool:
        """A mistyped one too, which is then told as such."""
        return not Path(word).suffix and bool(difflib.get_close_matches(word, self.commands))


app = typer.Typer(cls=RootGroup, name="culturemanager", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
                  epilog=f"Example: culturemanager run alps.yaml\n\n{EXIT_CODES}")
passages_app = typer.Typer(cls=PassagesGroup, subcommand_metavar="[PROJECT] | search TEXT [PROJECT]",
                           help=f"{STAGES['passages']}\n\n{EARLIER_FIRST} `passages search` looks into what is there.",
                           epilog="Example: culturemanager passages alps.yaml\n"
                                  'Example: culturemanager passages search "tipping" alps.yaml')
app.add_typer(passages_app, name="passages", rich_help_panel=STAGE_PANEL)
app.add_typer(adapters_app, name="adapters", rich_help_panel=USE_PANEL)
app.add_typer(keys_app, name="keys", rich_help_panel=USE_PANEL)


def main() -> None:
    """Run a command; errors of ours come out as one line, and Ctrl-C says how to go on."""
    from culturemanager.cluster import stop_at_sigterm

    stop_at_sigterm()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(execute([argument for argument in arguments if argument != "--debug"] or ["--help"], debug))


def execute(arguments: list[str], debug: bool = False) -> int:
    """Run one command and return its exit code; with `debug`, exceptions are passed on."""
    from culturemanager.console import error_line, note, own_error

    try:
        code = app(arguments, prog_name="culturemanager", standalone_mode=False, obj=debug)
    except typer.TyperException as error:
        if not error.format_message().strip():  # a group without a command has shown its help
            return 0
        told = getattr(getattr(error, "ctx", None), "command_path", "culturemanager")
        message = " ".join(error.format_message().split())
        note(f"error: {message}{'' if message[-1] in '.?!' else '.'} See `{told} --help`.")
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
             debug: Annotated[bool, typer.Option("--debug", metavar=FLAG, help="Show tracebacks and what Ray logs.")] = False,
             ) -> None:
    """From cultures and tasks to one served model that answers with the right culture's knowledge."""
    from culturemanager.cluster import prepare_environment

    if context.invoked_subcommand != "doctor":  # which looks at the environment as it is
        prepare_environment()


@contextlib.contextmanager
def _working(context: typer.Context) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[], None]]]:
    """A progress report, and what starts a Ray cluster for the block: a second run, which finds everything complete, needs
    none."""
    from culturemanager import cluster, console

    with contextlib.ExitStack() as started, console.progress() as progress:
        yield progress, lambda: started.enter_context(cluster.connect(logs=bool(context.obj)))


# ---- a project


@command(app, "init", "init alps/project.yaml --culture germany --culture greece", START_PANEL)
def init(project: ProjectFile = DEFAULT_PROJECT,
         culture: Annotated[list[str], typer.Option(metavar="CULTURE", help="A culture of the catalogue; may be repeated. The "
                                                                            "example's ten, if none is named.")] = []) -> None:
    """Write a project file and its task files, ready to run."""
    from culturemanager import console, starter

    for path in starter.write(project, culture):
        console.say(f"wrote {path}")
    console.say(f"Next: {_program()} run {project}")


@command(app, "settings", "settings training", START_PANEL)
def settings(part: Annotated[str, typer.Argument(metavar="PART", show_default=False,
                                                 help="Only the fields of this section, or with this in their name.")] = "",
             ) -> None:
    """Show every field of a project file: its default, and what it is for."""
    from culturemanager import console, reference

    for field in reference.matching(part):
        if not (field.section or part):
            console.say()
        console.paragraph(field.heading)
        console.paragraph(field.text, "    ")


@command(app, "validate", "validate alps.yaml --offline", START_PANEL)
def validate(project: ProjectFile = DEFAULT_PROJECT,
             offline: Annotated[bool, typer.Option("--offline", metavar=FLAG, help="Ask no address: search engine, language "
                                                                                   "model, hub.")] = False,
             overrides: Overrides = []) -> None:
    """Check the project file before anything runs: tasks, evaluation items, folders, base model, addresses."""
    from culturemanager import addresses, artifacts, console, preflight, summary
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    preflight.check_key(loaded)
    if not offline:
        addresses.try_each(loaded)
    layers = preflight.check_layers(loaded, online=not offline)
    console.table(("what", "found"), summary.rows(loaded, layers, tried=not offline))
    console.say(f"{project} is fine.")
    if not artifacts.items(loaded).items:
        _say_no_items(loaded)


@command(app, "run", "run alps.yaml --set training.epochs=2", START_PANEL)
def run(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Do everything: synthesis, training, router, evaluation. What is complete is skipped."""
    from culturemanager import console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    with _working(context) as (progress, connect):
        outcome = assembly.run(loaded, progress, connect)
    console.passed_over(outcome.passed_over, project)
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
    return f"{sys.executable} -m culturemanager" if sys.argv[0].endswith(".py") else sys.argv[0]


# ---- the stages one by one


def _stage(name: str) -> Callable[..., None]:
    def stage(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
        from culturemanager import console
        from culturemanager import project as assembly

        loaded = assembly.load(project, overrides)
        with _working(context) as (progress, connect):
            details = assembly.synthesize(loaded, name, progress, connect)
        for done, counts in details.items():
            dropped = ", ".join(f"{number:,} {reason}" for reason, number in counts.get("dropped", {}).items())
            console.say(f"{done}: {counts['rows']:,} rows{f'; dropped: {dropped}' if dropped else ''}")

    return stage


for _name, _help in STAGES.items():
    if _name == "passages":
        command(passages_app, "stage", "passages alps.yaml", help=_help, hidden=True)(_stage(_name))
    else:
        _more = "" if _name == "queries" else f"\n\n{EARLIER_FIRST}"
        command(app, _name, f"{_name} alps.yaml", STAGE_PANEL, help=_help + _more)(_stage(_name))


@command(passages_app, "search", 'passages search "tipping in restaurants" alps.yaml --culture austria')
def passages_search(text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.")],
                    project: ProjectFile = DEFAULT_PROJECT,
                    culture: Annotated[str, typer.Option(metavar="CULTURE", help="Passages of this culture only.")] = "",
                    limit: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=100, help="Hits at most.")] = 5,
                    overrides: Overrides = []) -> None:
    """Show the passages nearest to a text, with their sources."""
    from culturemanager import console, questions

    for hit in questions.search_passages(load_project(project, overrides), text, culture, limit):
        passage = hit.passage
        console.say(f"{hit.score:.3f}  {passage.culture}  {passage.title}{f' / {passage.heading}' if passage.heading else ''}")
        console.say(f"       {passage.url}")
        console.say(f"       {' '.join(passage.text.split())}")


@command(app, "train", "train alps.yaml --plan", STAGE_PANEL)
def train(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT,
          only: Annotated[list[str], typer.Option(metavar="CULTURE", help="Train only this culture; may be repeated.")] = [],
          plan: Annotated[bool, typer.Option("--plan", metavar=FLAG,
                                             help="Show what would be trained, the memory and the time; train nothing.")] = False,
          overrides: Overrides = []) -> None:
    """Train the adapters whose rows or settings changed, and let them serve."""
    from culturemanager import console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    if plan:
        return console.training_plan(assembly.training_outlook(loaded, only))
    with _working(context) as (progress, connect):
        versions = assembly.train(loaded, only, progress, connect)
    show_versions(loaded, versions)
    console.passed_over(assembly.passed_over(loaded, versions), project)


@command(app, "router", "router alps.yaml", STAGE_PANEL)
def router(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Train and calibrate the culture router."""
    from culturemanager import console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    with console.progress() as progress:
        figures = assembly.fit_router(loaded, progress)
    shares = {name: "none" if figures[name] is None else f"{100 * figures[name]:.1f}%" for name in ("precision", "coverage")}
    thresholds = ", ".join(f"{signal} {threshold:.3f}" for signal, threshold in figures["thresholds"].items())
    console.say(f"thresholds: {thresholds}; {shares['precision']} of what is routed goes to the right culture, "
                f"{shares['coverage']} of what could be routed is ({figures['measured_rows']:,} held-out rows, those that the "
                "thresholds were chosen on)")


@command(app, "evaluate", "evaluate alps.yaml", STAGE_PANEL)
def evaluate(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Compare the systems on the held-out items, and write the report."""
    from culturemanager import console
    from culturemanager import project as assembly

    loaded = assembly.load(project, overrides)
    with console.progress() as progress:
        evaluation = assembly.evaluate(loaded, progress)
    _show_comparison(loaded, evaluation, project)


# ---- use


@command(app, "serve", "serve alps.yaml --set serving.port=8080", USE_PANEL)
def serve(context: typer.Context, project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Serve the trained model: an OpenAI-compatible endpoint."""
    from culturemanager import serving

    serving.serve(project, overrides, logs=bool(context.obj))


@command(app, "ask", 'ask "Should I take my shoes off in Graz?" alps.yaml', USE_PANEL)
def ask(text: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")], project: ProjectFile = DEFAULT_PROJECT,
        culture: Culture = "",
        task: Annotated[str, typer.Option(metavar="TASK", help="Put the question in this task's words.")] = "",
        overrides: Overrides = []) -> None:
    """Ask one question, without a server. The answer has 48 tokens at most."""
    from culturemanager import console, questions

    reply = questions.ask(load_project(project, overrides), text, culture, task)
    console.say(reply.text)
    route = reply.route
    if route.culture:
        console.say(f"culture: {route.culture} ({route.reason}, confidence {route.confidence:.2f}); "
                    f"adapter: {reply.adapter or 'none'}")
    else:
        console.say(f"culture: none, the router was not sure enough ({route.confidence:.2f}); answered by the bare base model")
    for passage in reply.passages:
        console.say(f"read: {passage.title or passage.heading}, {passage.url}")


@command(app, "doctor", "doctor alps.yaml", START_PANEL)
def doctor(project: ProjectFile = DEFAULT_PROJECT, overrides: Overrides = []) -> None:
    """Check this machine: versions, memory, disk, model files, keys, Ray's token, the port."""
    from culturemanager import console
    from culturemanager import doctor as checks

    findings = checks.examine(project, overrides, required=project != DEFAULT_PROJECT)
    console.table(("check", "result", "found"), [(finding.name, finding.result, finding.found) for finding in findings])
    for finding in findings:
        if finding.advice:
            console.say()
            console.paragraph(f"{finding.name}: {finding.advice}")
    if any(finding.result == checks.FAILED for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
