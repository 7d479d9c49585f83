"""Assembles the stages from a project file; the command line, the jobs and the endpoint call these.

    load -> synthesize -> train -> fit_router -> evaluate        `run` does all of them in that order

Every stage is skipped when it is complete for the same settings and inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culturemanager import artifacts, config, preflight
from culturemanager.config import Project
from culturemanager.errors import IncompleteStageError, NothingFoundError, SynthesisError
from culturemanager.items import ItemSet
from culturemanager.records import AdapterVersion, to_rows
from culturemanager.storage import fingerprint

if TYPE_CHECKING:
    from culturemanager.evaluation.results import Evaluation
    from culturemanager.training.outlook import Outlook
    from culturemanager.training.plan import Retrieve

Progress = Callable[[int, int, str], None]
Connect = Callable[[], None]
ROUTER_VERSION = 2
"""Raise it when fitting the router changes what is saved."""
EVALUATION_VERSION = 3
"""Raise it when the evaluation's code changes its figures or its report."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Project:
    """Read a project file and check whatever can be checked before anything runs.

    Raises:
        ConfigError: the file, a task, an item or a name in it is wrong, or a folder it names cannot be used.
        ModelError: the base model's `config.json` cannot be read.
    """
    project = config.load(path, overrides)
    preflight.check(project)
    return project


@dataclass(frozen=True)
class Outcome:
    """What a whole run came to."""

    evaluation: Evaluation | None
    """`None` if there are no items to evaluate on."""
    left_out: SynthesisError | None
    """Names the cultures that were left without training rows; everything else is complete."""
    passed_over: Sequence[tuple[str, str]]
    """As `passed_over` says."""


def run(project: Project, progress: Progress | None = None, connect: Connect | None = None) -> Outcome:
    """Everything, from queries to the evaluation's report. Needs Ray, unless synthesis and training are complete.

    Args:
        connect: called before Ray is used; without it there must be a connection.

    Raises:
        ModelError: the base model is not to be had from the hub.
        NothingFoundError: no culture has training rows.
    """
    preflight.check_layers(project, online=True)  # a mistyped name would otherwise show only after all pages were fetched
    left_out = None
    try:
        synthesize(project, progress=progress, connect=connect)
    except NothingFoundError:
        raise
    except SynthesisError as error:
        left_out = error
    versions = train(project, progress=progress, connect=connect)
    fit_router(project, progress)
    return Outcome(evaluate(project, progress) if artifacts.items(project).items else None, left_out,
                   passed_over(project, versions))


def synthesize(project: Project, until: str = "examples", progress: Progress | None = None,
               connect: Connect | None = None) -> dict[str, Any]:
    """The stages from queries to `until`; each stage's row counts and drops. Needs Ray, where there is more to do than to
    write queries.

    Args:
        connect: as `run` takes it.

    Raises:
        SynthesisError: a culture was left without pages or rows; the others are complete.
        NothingFoundError: every culture was.
    """
    from culturemanager.synthesis import pipeline

    status = pipeline.stage_status(project)
    if not status["examples"]:
        preflight.check_key(project)
    if connect and not all(status[stage] for stage in pipeline.STAGES[1 : pipeline.STAGES.index(until) + 1]):
        connect()
    return pipeline.synthesize(project, until, progress)


def train(project: Project, only: Sequence[str] = (), progress: Progress | None = None,
          connect: Connect | None = None) -> list[AdapterVersion]:
    """The cultures' adapters, and those that the compared systems and the served one need; with `only`, those that the served
    one needs for these cultures. Needs Ray, where one of them is to be trained.

    Args:
        connect: as `run` takes it.

    Raises:
        ConfigError: `only` names a culture that the project does not have.
        IncompleteStageError: the examples are not there yet, or are out of date.
        TrainingError: training failed more often than allowed.
    """
    from culturemanager.training import trainer

    names, extra, retrieve = _asked_for(project, only)
    return trainer.train(project, names, extra, progress, retrieve, connect)


def passed_over(project: Project, versions: Sequence[AdapterVersion]) -> list[tuple[str, str]]:
    """Of the versions that training wants, those that do not serve since a person chose another one, each with that one."""
    serving = artifacts.registry(project).aliases()
    return [(version.name, serving[version.culture]) for version in versions if serving[version.culture] != version.name]


def training_outlook(project: Project, only: Sequence[str] = ()) -> Outlook:
    """What `train` would do, without doing it.

    Raises:
        ConfigError: `only` names a culture that the project does not have.
        IncompleteStageError: the examples are not there yet, or are out of date.
        TrainingError: not even one adapter fits into memory.
    """
    from culturemanager.training.outlook import outlook

    return outlook(project, *_asked_for(project, only))


def require_examples(project: Project) -> None:
    """Raise unless there are training rows made with the project's present settings.

    Raises:
        IncompleteStageError: there are none, or they are out of date.
    """
    from culturemanager.synthesis import pipeline

    artifacts.workspace(project).stage("examples").manifest()
    late = [stage for stage, current in pipeline.stage_status(project).items() if not current]
    if late:
        raise IncompleteStageError(f"The training rows in {project.workspace_url} were made with other settings, tasks or "
                                   f"pages (out of date: {', '.join(late)}). Run `culturemanager examples` with this project "
                                   "file first.")


def _asked_for(project: Project, only: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Retrieve | None]:
    """Cultures to train, further adapters that the compared systems and the served one need, and what retrieves for those
    that see passages; all that can be wrong with the question is told here, before anything is started."""
    from culturemanager.evaluation.baselines import required_adapters

    for culture in only:
        artifacts.require_culture(project, culture)
    require_examples(project)
    cultures = only or cultures_with_rows(project)
    systems = tuple(dict.fromkeys([*(() if only else project.evaluation.systems), project.serving.system]))
    needed = [name for name in required_adapters(systems, cultures) if name not in cultures]
    if not any(name.startswith("retrieval_") for name in needed):
        return cultures, needed, None
    retriever = artifacts.open_retriever(project, artifacts.open_embedder(project))
    return cultures, needed, functools.partial(retriever.for_examples, limit=project.evaluation.retrieved_passages,
                                               fields={task.id: task.fields for task in artifacts.tasks(project)})


def cultures_with_rows(project: Project) -> list[str]:
    """Ids of the cultures with enough training rows, in the project's order.

    Raises:
        IncompleteStageError: the examples are not there yet, or are out of date.
    """
    rows = artifacts.workspace(project).stage("examples").manifest().details["by_culture"]
    minimum = project.examples.minimum
    return [culture.id for culture in artifacts.cultures(project) if rows.get(culture.id, 0) >= minimum]


def fit_router(project: Project, progress: Progress | None = None) -> dict[str, Any]:
    """The router, from examples and passages; its figures on held-out rows.

    Raises:
        IncompleteStageError: the examples or passages are not there yet.
        ConfigError: there are too few examples to train or calibrate it.
    """
    from culturemanager.routing.router import CultureRouter

    require_examples(project)
    stage, key = artifacts.workspace(project).stage("router"), _router_key(project)
    if stage.is_complete(key):
        return CultureRouter.saved_report(stage)
    if progress:
        progress(0, 1, "router")
    router = CultureRouter.fit(artifacts.examples(project), artifacts.passages(project), artifacts.cultures(project),
                               artifacts.open_embedder(project), project.router, project.seed)
    with stage.writing(key) as draft:
        draft.details = {"embedding": project.embedding.model}
        router.save(draft)
    if progress:
        progress(1, 1, "router")
    return router.report()


def _router_key(project: Project) -> str:
    """What the router depends on: its settings and the contents of the stages it is made from."""
    workspace = artifacts.workspace(project)
    sources = [workspace.stage(name).manifest().files for name in ("examples", "passages")]
    return fingerprint(ROUTER_VERSION, project.router.model_dump(), project.embedding.model, project.seed,
                       to_rows(artifacts.cultures(project)), sources)


def evaluate(project: Project, progress: Progress | None = None) -> Evaluation:
    """Every compared system on the held-out items, and the report.

    Raises:
        IncompleteStageError: the rows, the router, or a stage that a system needs, are not there yet or out of date: rows
            made without a look at these very items may repeat them.
        AdapterError: a system has none of its adapters.
    """
    from culturemanager.evaluation import results
    from culturemanager.evaluation.baselines import required_adapters, select_systems

    require_examples(project)
    workspace, settings = artifacts.workspace(project), project.evaluation
    workspace.stage("router").manifest()  # raises where there is none
    if not workspace.stage("router").is_complete(_router_key(project)):
        raise IncompleteStageError(f"The router in {project.workspace_url} was made with other settings or rows. Run "
                                   "`culturemanager router` with this project file first.")
    cultures, tasks, items = artifacts.cultures(project), artifacts.tasks(project), artifacts.items(project)
    serving = artifacts.registry(project).aliases()
    needed = required_adapters(settings.systems, [culture.id for culture in cultures])
    adapters = {name: serving[name] for name in needed if name in serving}
    stage, key = workspace.stage("evaluation"), _evaluation_key(project, adapters, items)
    if stage.is_complete(key):
        return results.load(stage)
    from culturemanager.evaluation import provenance, report, runner  # bring torch, which a saved comparison does not need

    systems = select_systems(settings.systems).values()
    embedder = artifacts.open_embedder(project)
    router = artifacts.open_router(project, embedder)
    engine, tokenizer, _ = artifacts.open_serving(project, adapters.values())
    retriever = artifacts.open_retriever(project, embedder) if any(system.passages for system in systems) else None
    examples = artifacts.examples(project) if any(system.shots for system in systems) else []
    with stage.writing(key) as draft:
        evaluation = runner.evaluate(engine, tokenizer, adapters, items, tasks, cultures, settings.systems, router, retriever,
                                     examples, settings, project.seed, progress, draft=draft)
        results.save(draft, evaluation)
        report.write_report(draft, evaluation, provenance.read_sources(workspace), project.name)
    return evaluation


def _evaluation_key(project: Project, adapters: Mapping[str, str], items: ItemSet) -> str:
    """What the evaluation depends on: its settings and the contents of everything it reads."""
    from culturemanager.base_model import content_digest, resolve_base_model

    workspace, registry = artifacts.workspace(project), artifacts.registry(project)
    base = content_digest(resolve_base_model(project.base_path))
    stages = {name: workspace.stage(name) for name in ("index", "examples", "router")}
    inputs = {name: stage.manifest().files for name, stage in stages.items() if stage.is_complete()}
    weights = {name: registry.get(version).content_digest for name, version in adapters.items()}
    known = [to_rows(records) for records in (items.items, artifacts.cultures(project), artifacts.tasks(project))]
    return fingerprint(EVALUATION_VERSION, project.evaluation.model_dump(), project.name, project.seed, base,
                       project.base.dtype, project.embedding.model, known, inputs, weights)
