"""From cultures and tasks to training rows: queries, pages, passages, index, examples.

Each stage is skipped when its output was computed from the same settings and the same output of
the stage before, and goes on from where an interrupted run stopped.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from culturemanager import metrics
from culturemanager.config import Project
from culturemanager.cultures import resolve_cultures
from culturemanager.embedded.base_model import cache_folder
from culturemanager.errors import CorruptFileError, IncompleteStageError, NothingFoundError, SynthesisError
from culturemanager.items import load_items
from culturemanager.ngrams import WordRuns, asked_text, item_texts
from culturemanager.records import Culture, EvaluationItem, Page, Passage, Query, Task, to_rows
from culturemanager.storage import StageDirectory, Workspace, fingerprint
from culturemanager.tasks import load_task

STAGES = ("queries", "pages", "passages", "index", "examples")
CODE_VERSION = 4
"""Raise it when a stage's code changes what it writes."""

WRITER = {"base_url", "model", "temperature", "max_tokens"}
"""Settings of a language model that decide what it writes."""

ProgressReport = Callable[[int, int, str], None]


def synthesize(project: Project, until: str = "examples", progress: ProgressReport | None = None) -> dict[str, Any]:
    """Run the synthesis stages up to `until`, skipping what is complete.

    Returns:
        Each stage's manifest details: row counts and drops by reason.

    Raises:
        SynthesisError: a culture ended with no pages or too few rows; the others are complete.
        NothingFoundError: no culture has pages or enough rows.
    """
    run = Synthesis(project, progress)
    for stage in STAGES[: STAGES.index(until) + 1]:
        run.complete(stage)
    run.require_everyone(until)
    return {stage: dict(run.workspace.stage(stage).manifest().details) for stage in STAGES[: STAGES.index(until) + 1]}


def stage_status(project: Project) -> dict[str, bool]:
    """Whether each synthesis stage is complete and up to date."""
    run = Synthesis(project, None)
    return {stage: run.is_complete(stage) for stage in STAGES}


class Synthesis:
    """One project's synthesis: what each stage reads, does and writes."""

    def __init__(self, project: Project, progress: ProgressReport | None) -> None:
        self.project, self.progress = project, progress
        self.workspace = Workspace(project.workspace_url)
        self.cultures: tuple[Culture, ...] = resolve_cultures(project.cultures)
        self.tasks: list[Task] = [load_task(project.resolve(path)) for path in project.tasks]

    def fingerprint(self, stage: str) -> str:
        """What the stage's output depends on: its settings, the stages before it, and what lies there of the one before."""
        project, cultures, tasks = self.project, to_rows(self.cultures), to_rows(self.tasks)
        writer = project.examples.generator.model_dump(include=WRITER) if project.queries.llm else {}
        settings: dict[str, list[Any]] = {
            "queries": [project.queries.model_dump(), cultures, tasks, *([writer] if writer else [])],
            # Without `may_fail`: to raise it must not throw away what was fetched, nor to lower it what is complete.
            "pages": [project.pages.model_dump(exclude={"may_fail"}), _folder_state(project)],
            "passages": [project.passages.model_dump()],
            "index": [project.index.model_dump(), project.embedding.model],
            "examples": [project.examples.model_dump(), project.embedding.model, self.held_out if stage == "examples" else []],
        }
        before = {"queries": None, "pages": "queries", "passages": "pages", "index": "passages", "examples": "passages"}[stage]
        return fingerprint(CODE_VERSION, stage, settings[stage],
                           *([self.fingerprint(before), self._files(before)] if before else [""]))

    def _files(self, stage: str) -> Mapping[str, Any] | None:
        """Names and sums of what a stage has written; None: nothing, or nobody knows."""
        with contextlib.suppress(IncompleteStageError, CorruptFileError):
            return self.workspace.stage(stage).manifest().files
        return None

    @functools.cached_property
    def items(self) -> tuple[EvaluationItem, ...]:
        """The evaluation items, which no training row may repeat."""
        return load_items(self._items_source(), self.tasks, self.cultures).items

    @property
    def held_out(self) -> list[str]:
        """Their texts."""
        return [text for item in self.items for text in item_texts(item)]

    def is_complete(self, stage: str) -> bool:
        return self.workspace.stage(stage).is_complete(self.fingerprint(stage))

    def complete(self, stage: str) -> None:
        """Run a stage unless it is complete."""
        if self.is_complete(stage):
            return
        getattr(self, f"_{stage}")(self.workspace.stage(stage), self.fingerprint(stage))
        details = self.workspace.stage(stage).manifest().details
        metrics.count("culturemanager_stage_rows", details["rows"], stage=stage, outcome="kept")
        for reason, number in details.get("dropped", {}).items():
            metrics.count("culturemanager_stage_rows", number, stage=stage, outcome=reason)

    def require_everyone(self, until: str) -> None:
        """Raise `SynthesisError` naming the cultures that a stage left without anything; `NothingFoundError`, if it is all."""
        from culturemanager.synthesis.examples import require_any_rows, require_rows

        done = STAGES[: STAGES.index(until) + 1]
        if "examples" in done:
            require_any_rows(self.workspace.stage("examples").manifest().details, self.project.examples.minimum)
        if "pages" in done:
            failed = self.workspace.stage("pages").manifest().details["failed_cultures"]
            if failed:
                raise SynthesisError(f"nothing was found for {_reasons(failed)}. The other cultures went on. Check "
                                     "`pages.search`, or add pages for these cultures.")
        if "examples" in done:
            require_rows(self.workspace.stage("examples").manifest().details, self.project.examples.minimum)

    def _queries(self, stage: StageDirectory, key: str) -> None:
        from culturemanager.synthesis.queries import write_queries

        with stage.writing(key) as draft:
            model = self._language_model() if self.project.queries.llm else None
            dropped: Counter[str] = Counter()
            queries = write_queries(self.project.queries, self.cultures, self.tasks, model, self.progress, dropped)
            draft.write_rows(to_rows(queries))
            draft.details = {"rows": len(queries), "dropped": dict(dropped),
                             "by_culture": dict(Counter(q.culture for q in queries)),
                             "task_specific": sum(bool(q.task) for q in queries)}

    def _pages(self, stage: StageDirectory, key: str) -> None:
        from culturemanager.providers.fetch import build_fetcher
        from culturemanager.providers.search import build_search
        from culturemanager.synthesis.pages import collect_pages

        queries = [Query.from_row(row) for row in self.workspace.stage("queries").read_rows()]
        config = self.project.pages
        with stage.writing(key) as draft:
            result = collect_pages(queries, config, functools.partial(build_search, config.search, self.project),
                                   functools.partial(build_fetcher, config.search, config.fetch, self.project),
                                   draft, self.progress)
            found = Counter(page.culture for page in result.pages)
            failed = dict(result.failed_cultures)
            failed |= {c.id: "no page could be fetched" for c in self.cultures if not found[c.id] and c.id not in failed}
            if not result.pages:
                raise NothingFoundError(f"no page was found for any culture ({_reasons(failed)}). Check `pages.search`.")
            draft.write_rows(to_rows(result.pages))
            draft.details = {"rows": len(result.pages), "dropped": dict(result.dropped), "by_culture": dict(found),
                             "failed_cultures": failed}

    def _passages(self, stage: StageDirectory, key: str) -> None:
        from culturemanager.synthesis.passages import deduplicate, extract_passages

        pages = [Page.from_row(row) for row in self.workspace.stage("pages").read_rows()]
        with stage.writing(key) as draft:
            extracted, dropped = extract_passages(pages, self.project.passages, self.progress)
            passages, duplicates = deduplicate(extracted, self.project.passages.near_duplicate)
            dropped += duplicates
            if not passages:
                raise NothingFoundError(f"none of {len(pages)} pages holds a passage; dropped: {dict(dropped)}. Look at the "
                                        "pages: they need paragraphs of five words or more.")
            draft.write_rows(to_rows(passages))
            draft.details = {"rows": len(passages), "dropped": dict(dropped),
                             "by_culture": dict(Counter(p.culture for p in passages)),
                             "by_language": dict(Counter(p.language for p in passages))}

    def _index(self, stage: StageDirectory, key: str) -> None:
        from culturemanager.synthesis.index import embed_passages, write_index

        passages = self.passages()
        with stage.writing(key) as draft:
            draft.details = {"embedding": self.project.embedding.model}
            write_index(draft, passages, embed_passages(passages, self.project.embedding, self.progress), self.project.index)

    def _examples(self, stage: StageDirectory, key: str) -> None:
        from culturemanager.synthesis import examples
        from culturemanager.synthesis.checks import Checker

        project, passages = self.project, self.passages()
        factory = functools.partial(examples.make_generator, project.examples, project.embedding, passages, self.cultures,
                                    self._cache_folder())
        generator = project.examples.generator
        in_flight = generator.concurrency if generator.kind == "openai" else 1
        with stage.writing(key) as draft:
            calls = examples.plan_calls(self.cultures, self.tasks, passages, examples.PASSAGES_PER_CALL)
            candidates, dropped = examples.write_candidates(calls, factory, passages, self.cultures, self.tasks, draft,
                                                            in_flight=in_flight, progress=self.progress)
            fields = {task.id: task.fields for task in self.tasks}
            asked = (asked_text(item.inputs, fields[item.task]) for item in self.items)
            checker = Checker(self.tasks, self.cultures, passages, WordRuns(self.held_out, whole=asked), project.examples,
                              generator.kind)
            outcome = checker.run(candidates)
            dropped += outcome.dropped
            if not outcome.examples:
                raise NothingFoundError(f"no training row passed the checks; dropped: {dict(dropped)}. Look at the pages "
                                        "and at `examples` in the project file.")
            draft.write_rows(to_rows(examples.ordered(outcome.examples)))
            draft.details = examples.summary(outcome.examples, dropped, self.cultures, project.examples.minimum)

    def passages(self) -> list[Passage]:
        """The finished passages."""
        return [Passage.from_row(row) for row in self.workspace.stage("passages").read_rows()]

    def _items_source(self) -> str:
        items = self.project.evaluation.items
        return items if items == "embedded" else str(self.project.resolve(items))

    def _cache_folder(self) -> Path:
        return self.workspace.local_path("llm-cache") if self.workspace.is_local else cache_folder() / "llm"

    def _language_model(self):
        from culturemanager.errors import ConfigError
        from culturemanager.providers.llm import OpenAIModel

        if self.project.examples.generator.kind != "openai":
            raise ConfigError("`queries.llm` needs a language model; set `examples.generator.kind: openai`.")
        return OpenAIModel(self.project.examples.generator, self._cache_folder())


def _reasons(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{culture}: {reason}" for culture, reason in failed.items())


def _folder_state(project: Project) -> str:
    """Names, sizes and times of a searched folder's documents, so that a changed one reruns the stage."""
    search = project.pages.search
    if search.kind != "folder":
        return ""
    from culturemanager.providers.folder import documents, folder_path, outputs

    # A name may be no text; its bytes always are.
    return fingerprint([(os.fsencode(url).hex(), path.stat().st_size, path.stat().st_mtime_ns)
                        for url, path in documents(folder_path(search, project), outputs(project))])
