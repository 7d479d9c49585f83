"""Examples written by a language model from a few passages at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from culturemanager import prompts
from culturemanager.errors import UnusableAnswerError
from culturemanager.providers.llm import LanguageModel, OpenAIModel
from culturemanager.providers.llm_cache import delimiter_secret
from culturemanager.records import Culture, Passage, Task
from culturemanager.sections.synthesis import OpenAIGenerator
from culturemanager.synthesis.candidate import Candidate, Work, Written

FEWEST_OPTIONS, MOST_OPTIONS = 3, 4


class WrittenGenerator:
    """Asks a language model for examples in the task's own format, each with the sentence it stands on.

    Args:
        model: who writes.
        per_call: passages in one call.
        items_per_call: examples asked for in one call, at most.
        concurrency: calls in flight in `generate_batch`.
        secret: what the delimiters around passages derive from (`llm_cache.delimiter_secret`), so that a
            rerun asks in the same words and the model's cache answers; without it they are random.
    """

    def __init__(self, model: LanguageModel, per_call: int = 6, items_per_call: int = 8, *, concurrency: int = 8,
                 secret: bytes | None = None) -> None:
        self.model = model
        self.name = f"openai:{model.name}"
        self.per_call = per_call
        self.items_per_call = items_per_call
        self.concurrency = concurrency
        self._secret = secret

    def generate_batch(self, work: Sequence[Work]) -> list[Written]:
        """What comes of each piece of work, in its order, with `concurrency` calls in flight.

        Of what was thrown away, `unusable_answer` counts calls and `unknown_passage` candidates.

        The first call that fails for good ends the batch, and so does Ctrl-C: calls in flight finish
        and stay in the model's cache, the others are not made.

        Raises:
            LanguageModelError: the endpoint could not answer.
        """
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="language-model") as pool:
            calls: list[list[Future[Written]]] = [
                [pool.submit(self._write, culture, task, chunk) for chunk in self._chunks(passages)]
                for culture, task, passages in work]
            flat = [call for piece in calls for call in piece]

            def end_the_batch(call: Future[Written]) -> None:
                """Runs in the thread whose call failed, before it would begin another."""
                if not call.cancelled() and call.exception():
                    for other in flat:
                        other.cancel()

            for call in flat:
                call.add_done_callback(end_the_batch)
            try:
                wait(flat, return_when=FIRST_EXCEPTION)
            except BaseException:  # Ctrl-C: nobody waits for endpoints that are down
                self.model.cancel()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        for call in flat:
            if not call.cancelled():
                call.result()
        return [([candidate for call in piece for candidate in call.result()[0]],
                 sum((call.result()[1] for call in piece), Counter())) for piece in calls]

    def _chunks(self, passages: Sequence[Passage]) -> list[Sequence[Passage]]:
        return [passages[start:start + self.per_call] for start in range(0, len(passages), self.per_call)]

    def _write(self, culture: Culture, task: Task, passages: Sequence[Passage]) -> Written:
        """One call. Runs in a thread: touches nothing of this object."""
        prompt = prompts.write_examples(culture, task, passages, self.items_per_call, self._secret)
        try:
            completion = self.model.complete([{"role": "user", "content": prompt}], schema=examples_schema(task))
        except UnusableAnswerError:
            return [], Counter(unusable_answer=1)
        candidates: list[Candidate] = []
        dropped: Counter[str] = Counter()
        for item in json.loads(completion.text)["examples"]:
            number = int(item["passage"])
            if not 1 <= number <= len(passages):
                dropped["unknown_passage"] += 1
                continue
            candidates.append(Candidate(culture.id, task.id, item["inputs"], item["answer"], passages[number - 1].id,
                                        item["quote"]))
        return candidates, dropped


def examples_schema(task: Task) -> dict[str, Any]:
    """JSON schema of a call's answer: inputs and answer as the task has them, passage number, quote.

    It keeps to what structured output in strict mode allows: every property required, none besides.
    """
    text = {"type": "string"}
    options = {"type": "array", "items": text, "minItems": FEWEST_OPTIONS, "maxItems": MOST_OPTIONS}
    inputs = {field: options if task.kind == "multiple_choice" and field == "options" else text for field in task.fields}
    answer = {"type": "string", "enum": list(task.labels)} if task.kind == "classification" else text
    item = _object({"inputs": _object(inputs), "answer": answer, "passage": {"type": "integer"}, "quote": text})
    return _object({"examples": {"type": "array", "items": item}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def build_written_generator(config: OpenAIGenerator, cache_folder: Path) -> WrittenGenerator:
    """The generator a project file asks for; answers and the delimiters' secret are kept in `cache_folder`.

    Raises:
        LanguageModelError: the endpoint's address is wrong.
        StorageError: the folder cannot be written.
    """
    return WrittenGenerator(OpenAIModel(config, cache_folder), concurrency=config.concurrency,
                            secret=delimiter_secret(cache_folder))
