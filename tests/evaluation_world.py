"""What evaluation tests share: cultures, tasks, items, and an engine whose knowledge is written down.

`ScriptedEngine` stands where the tests are about comparing, aggregating and reporting, not about
computing; `test_runner.py` runs the real engine too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from culturemanager.cultures import catalogue, resolve_cultures
from culturemanager.evaluation.baselines import SYSTEMS, required_adapters
from culturemanager.evaluation.results import Evaluation
from culturemanager.evaluation.retrieval import PassageRetriever
from culturemanager.evaluation.runner import evaluate
from culturemanager.inference.requests import Generation, GenerationRequest, ScoreRequest
from culturemanager.items import ItemSet, load_items
from culturemanager.records import Culture, EvaluationItem, Example, Route, Task
from culturemanager.routing.gazetteer import Gazetteer
from culturemanager.sections.model import EvaluationConfig
from culturemanager.tasks import load_task, render

TASK_FILES = [Path(__file__).parent.parent / f"examples/tasks/{name}.yaml" for name in ("acceptability", "choice", "advice")]
PLACE_TASKS = [load_task(path) for path in TASK_FILES]
TEN = ("jordan", "bangladesh", "china", "united_states", "germany", "greece", "south_korea", "brazil", "mexico", "turkey")
THREE = ("turkey", "germany", "brazil")


def world(cultures: Sequence[str] = THREE) -> SimpleNamespace:
    """Cultures, tasks, the embedded items about them, and a tokenizer."""
    chosen = resolve_cultures(cultures)
    return SimpleNamespace(cultures=chosen, tasks=PLACE_TASKS, items=load_items("embedded", PLACE_TASKS, chosen),
                           tokenizer=byte_tokenizer())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end token; its chat template is the message itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}<end>"
    return tokenizer


def examples(cultures: Sequence[Culture], per_task: int = 12) -> list[Example]:
    """Training rows about nothing in the items; two thirds of the yes/no rows say no."""
    rows = []
    for culture in cultures:
        for number in range(per_task):
            behaviour = {"behaviour": f"Greeting ferry captain number {number} of {culture.id} with a wave."}
            question = {"question": f"How do you greet ferry captain number {number} of {culture.id}?"}
            options = ["with a wave", "with a bow", "with a song"]
            answers = {"acceptability": (behaviour, "yes" if number % 3 == 0 else "no"),
                       "choice": (question | {"options": options}, options[number % 3]),
                       "advice": (question, options[number % 3])}
            for task in PLACE_TASKS:
                inputs, answer = answers[task.id]
                rows.append(Example(
                    f"{culture.id}-{task.id}-{number}", culture.id, task.id, inputs, render(task, inputs), answer, ("p1",),
                    f"https://pages.example/{culture.id}/{number % 4}", "2025-01-01T00:00:00+00:00", "Captains are greeted.",
                    "extractive", split="validation" if number == per_task - 1 else "train"))
    return rows


class NamedCultureRouter:
    """Routes to the one culture that the shipped gazetteer finds in a text, and abstains otherwise."""

    def __init__(self, cultures: Sequence[Culture]) -> None:
        self._gazetteer = Gazetteer(cultures)

    def route_many(self, texts: Sequence[str]) -> list[Route]:
        return [self._route(text) for text in texts]

    def _route(self, text: str) -> Route:
        found = {mention.place for mention in self._gazetteer.mentions(text) if mention.known}
        return Route(found.pop(), 0.99, "named") if len(found) == 1 else Route("", 0.0, "abstained")


class AlikePassages(dict):
    """Passage id, `<culture>-<number>`, to a passage; all of a culture's say the same."""

    def __missing__(self, passage_id: str) -> SimpleNamespace:
        return SimpleNamespace(id=passage_id, text=f"Ferry captains of {passage_id.rpartition('-')[0]} are greeted.")


class OnePassageEach:
    """An index with passages of each culture that all say the same, and the passages."""

    passages = AlikePassages()

    def search(self, texts: Sequence[str], *, culture: str | None, limit: int) -> list[list[SimpleNamespace]]:
        return [[SimpleNamespace(passage_id=f"{culture or 'any'}-{number}") for number in range(1, limit + 1)] for _ in texts]


class ScriptedEngine:
    """Right as often as `skill` says, decided by a hash of item, adapter and prompt; counts what it is asked.

    Args:
        skill: (adapter, prompt, item) to the probability of a right answer.
        stop_after: call `stop` once so many requests have been answered.
    """

    context = 4096

    def __init__(self, items: ItemSet, tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast,
                 skill: Callable[[str, str, EvaluationItem], float], stop_after: int | None = None) -> None:
        by_id = {task.id: task for task in tasks}
        self._items = {render(by_id[item.task], item.inputs): item for item in items.items}
        self._tokenizer, self._skill, self._stop_after = tokenizer, skill, stop_after
        self.asked: list[tuple[str, str]] = []
        """(prompt, adapter) of every request, in order."""
        self.batches: list[set[str]] = []
        """The adapters of each call."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        self.batches.append({request.adapter for request in requests})
        scores = []
        for request in requests:
            item, right = self._ask(request.prompt_ids, request.adapter)
            wrong = [option for option in request.options if option != item.answer]
            said = item.answer if right else wrong[self._number(item.id, request.adapter) % len(wrong)]
            scores.append(tuple(-0.1 if option == said else -2.0 for option in request.options))
        return scores

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        texts = []
        for request in requests:
            item, right = self._ask(request.prompt_ids, request.adapter)
            texts.append(item.answer if right else (item.reject[0] if item.reject else "") if request.adapter else "")
        return [Generation(text, (), "stop", 1) for text in texts]

    def _ask(self, prompt_ids: Sequence[int], adapter: str) -> tuple[EvaluationItem, bool]:
        if self._stop_after is not None and len(self.asked) >= self._stop_after:
            self.stop()
        prompt = self._tokenizer.decode(prompt_ids, skip_special_tokens=True)
        self.asked.append((prompt, adapter))
        item = next(item for plain, item in self._items.items() if prompt.endswith(plain))
        return item, self._number(item.id, adapter, prompt) % 1000 < 1000 * self._skill(adapter, prompt, item)

    def stop(self) -> None:
        raise KeyboardInterrupt

    @staticmethod
    def _number(*parts: str) -> int:
        return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:4], "big")


def knowledge(adapter: str, prompt: str, item: EvaluationItem) -> float:
    """A plausible skill: own adapter good, others bad, hints in the prompt help."""
    name = adapter.removesuffix("-v0001")
    told = 0.15 if f"In {catalogue()[item.culture].name}: " in prompt else 0.0
    if name == "joint":
        return 0.52
    if name == "joint_culture_prompt":
        return 0.55 + told
    if name.startswith("agnostic_"):
        return 0.45
    if name in (item.culture, f"retrieval_{item.culture}"):
        return 0.82 + (0.04 if "Notes: " in prompt else 0.0)
    if name:
        return 0.36
    return 0.32 + told + (0.1 if "Notes: " in prompt else 0.0) + (0.05 if "ferry captain" in prompt else 0.0)


def adapters_for(systems: Sequence[str], cultures: Sequence[Culture]) -> dict[str, str]:
    """Every adapter the systems need, as its first version."""
    return {name: f"{name}-v0001" for name in required_adapters(systems, [culture.id for culture in cultures])}


def run(place: SimpleNamespace, engine, systems: Sequence[str] = tuple(SYSTEMS), seed: int = 0, **changes) -> Evaluation:
    """`evaluate` with everything there; `changes` replaces single arguments."""
    arguments = {"adapters": adapters_for(systems, place.cultures), "items": place.items, "tasks": place.tasks,
                 "cultures": place.cultures, "systems": systems, "router": NamedCultureRouter(place.cultures),
                 "retriever": PassageRetriever(OnePassageEach(), OnePassageEach.passages), "examples": examples(place.cultures),
                 "config": EvaluationConfig(bootstrap=100), "seed": seed}
    return evaluate(engine, **({"tokenizer": place.tokenizer} | arguments | changes))
