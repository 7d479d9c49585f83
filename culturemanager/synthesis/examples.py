"""Training rows from passages: a generator writes candidates under Ray Data, the checks decide."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from culturemanager.errors import NothingFoundError, SynthesisError
from culturemanager.records import Culture, Example, Passage, Task, stable_id
from culturemanager.sections.synthesis import EmbeddingConfig, ExamplesConfig
from culturemanager.storage import StageDraft
from culturemanager.synthesis.candidate import Candidate, ExampleGenerator, Written

PASSAGES_PER_CALL = 6
CALLS_PER_BATCH = 8
"""At least; as many as may be in flight, where those are more."""


@dataclass(frozen=True)
class Call:
    """One unit of work: a task and a few passages of one culture."""

    id: str
    culture: str
    task: str
    passage_ids: tuple[str, ...]


def plan_calls(cultures: Sequence[Culture], tasks: Sequence[Task], passages: Sequence[Passage], per_call: int) -> list[Call]:
    """Every culture's passages in portions, once for each task."""
    calls = []
    for culture in cultures:
        own = [passage.id for passage in passages if passage.culture == culture.id]
        for task in tasks:
            for start in range(0, len(own), per_call):
                portion = tuple(own[start:start + per_call])
                calls.append(Call(stable_id(culture.id, task.id, *portion), culture.id, task.id, portion))
    return calls


def make_generator(config: ExamplesConfig, embedding: EmbeddingConfig, passages: Sequence[Passage], cultures: Sequence[Culture],
                   cache_folder: Path) -> ExampleGenerator:
    """The generator that `examples.generator` names."""
    if config.generator.kind == "extractive":
        from culturemanager.providers.embedding import build_embedder
        from culturemanager.synthesis.extractive import ExtractiveGenerator

        return ExtractiveGenerator(passages, cultures, build_embedder(embedding))
    from culturemanager.synthesis.written import build_written_generator

    return build_written_generator(config.generator, cache_folder)


class GenerateCandidates:
    """Ray Data actor: turns a batch of calls into one row per call, its candidates and its drops as JSON."""

    def __init__(self, generator_factory: Callable[[], ExampleGenerator], passages: Sequence[Passage],
                 cultures: Sequence[Culture], tasks: Sequence[Task]) -> None:
        self._generator = generator_factory()
        self._passages = {passage.id: passage for passage in passages}
        self._cultures = {culture.id: culture for culture in cultures}
        self._tasks = {task.id: task for task in tasks}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        work = [(self._cultures[culture], self._tasks[task], [self._passages[i] for i in ids])
                for culture, task, ids in zip(batch["culture"], batch["task"], batch["passage_ids"], strict=True)]
        written = self._generator.generate_batch(work)
        return {"call": batch["id"], "candidates": np.array([json.dumps([vars(c) | {"inputs": dict(c.inputs)} for c in found],
                                                                        ensure_ascii=False) for found, _ in written]),
                "dropped": np.array([json.dumps(dropped) for _, dropped in written])}


def write_candidates(calls: Sequence[Call], generator_factory: Callable[[], ExampleGenerator], passages: Sequence[Passage],
                     cultures: Sequence[Culture], tasks: Sequence[Task], draft: StageDraft, actors: int = 1,
                     in_flight: int = 1, progress: Callable[[int, int, str], None] | None = None) -> Written:
    """Generate for every call that the draft does not hold yet; finished calls are kept as they come.

    Args:
        in_flight: calls that the generator makes at once.

    Returns:
        The candidates of all calls, in the calls' order, and what the generator threw away.
    """
    import ray
    import ray.data

    finished = {row["call"]: row for row in draft.rows()}
    left = [call for call in calls if call.id not in finished]
    if left:
        rows = [
            {"id": call.id, "culture": call.culture, "task": call.task, "passage_ids": list(call.passage_ids)} for call in left
        ]
        dataset = ray.data.from_items(rows).map_batches(
            GenerateCandidates, fn_constructor_args=(generator_factory, passages, cultures, tasks),
            batch_size=max(CALLS_PER_BATCH, in_flight), compute=ray.data.ActorPoolStrategy(size=actors))
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            done = [dict(zip(batch, map(str, values), strict=True)) for values in zip(*batch.values(), strict=True)]
            draft.append(done)
            finished.update((row["call"], row) for row in done)
            if progress:
                progress(len(finished), len(calls), "passage portions written up")
    candidates = [Candidate(**values) for call in calls for values in json.loads(finished[call.id]["candidates"])]
    return candidates, sum((Counter(json.loads(finished[call.id]["dropped"])) for call in calls), Counter())


def summary(examples: Sequence[Example], dropped: Counter[str], cultures: Sequence[Culture], minimum: int) -> dict[str, Any]:
    """What the manifest and the report tell about the rows."""
    by_culture = Counter(example.culture for example in examples)
    return {"rows": len(examples), "dropped": dict(dropped),
            "by_culture": {culture.id: by_culture[culture.id] for culture in cultures},
            "by_task": dict(Counter(example.task for example in examples)),
            "by_page": dict(Counter(example.url for example in examples)),
            "too_few": [culture.id for culture in cultures if by_culture[culture.id] < minimum]}


def require_any_rows(details: dict[str, Any], minimum: int) -> None:
    """Raise `NothingFoundError` if every culture has fewer rows than `minimum`."""
    if len(details["too_few"]) == len(details["by_culture"]):
        raise NothingFoundError(f"every culture has too few training rows (under {minimum}). Look at `dropped` in "
                                "examples/manifest.json, give the cultures more pages, or lower `examples.minimum`.")


def require_rows(details: dict[str, Any], minimum: int) -> None:
    """Raise `SynthesisError` naming the cultures with fewer rows than `minimum`."""
    if details["too_few"]:
        raise SynthesisError(
            f"too few training rows (under {minimum}) for {', '.join(details['too_few'])}; the other cultures went on. "
            "Look at `dropped` in examples/manifest.json, give these cultures more pages, or lower `examples.minimum`."
        )


def ordered(examples: Sequence[Example]) -> Iterator[Example]:
    """Examples in an order that does not depend on how they were made."""
    yield from sorted(examples, key=lambda example: (example.culture, example.task, example.id))
