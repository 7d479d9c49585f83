"""Adapters that come and go in a replica: loaded while others are answered, dropped only when nobody uses them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from culturemanager import artifacts
from culturemanager.adapters import peft_format
from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.registry import VERSION_FILE, AdapterRegistry
from culturemanager.adapters.shape import AdapterShape
from culturemanager.base_model import content_digest
from culturemanager.config import load
from culturemanager.errors import AdapterError, CorruptFileError, OverloadedError
from culturemanager.inference.engine import Engine, GenerationRequest
from serve_app.adapters import ServedAdapters
from serve_app.replica import Replica
from tests.test_engine import tiny_model, tiny_tokenizer
from tests.tiny_model import build_tiny_model

NAMES = ("greece-v0001", "jordan-v0001", "mexico-v0001")
PROMPT = tuple(range(5, 20))


class Shelf:
    """Stands in for a registry: weights by name, and which were asked for."""

    def __init__(self, weights: dict[str, tuple]) -> None:
        self.weights = weights
        self.loads: list[str] = []
        self.on_load: Callable[[], None] = lambda: None

    def load(self, name: str) -> tuple:
        self.loads.append(name)
        self.on_load()
        if name not in self.weights:
            raise AdapterError(f"no version {name!r}")
        return self.weights[name]


@pytest.fixture
def served() -> tuple[ServedAdapters, AdapterBank, Engine, Shelf]:
    """A bank of two slots, and three versions to put into it."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    bank = AdapterBank(model, slots=2, max_rank=2)
    weights = {}
    for seed, name in enumerate(NAMES):
        bank.add(name, AdapterShape(2, 2.0), seed=seed)
        weights[name] = AdapterShape(2, 2.0), {key: value + 0.1 * (seed + 1) for key, value in bank.tensors(name).items()}
        bank.remove(name)
    shelf, engine = Shelf(weights), Engine(model, tokenizer, bank)
    return ServedAdapters(shelf.load, bank, engine), bank, engine, shelf


def submit(adapters: ServedAdapters, engine: Engine, name: str) -> int:
    adapters.require(name)
    return engine.submit(GenerationRequest(PROMPT, name, 4))


def test_the_version_used_longest_ago_makes_room_and_each_is_read_once_while_it_stays(served):
    adapters, bank, _, shelf = served
    for name in (NAMES[0], NAMES[1], NAMES[0], NAMES[2]):
        adapters.require(name)
    assert set(bank.names) == {NAMES[0], NAMES[2]} and shelf.loads == list(NAMES)
    adapters.require("")
    assert shelf.loads == list(NAMES)


def test_a_version_of_a_request_in_flight_stays_and_its_answer_is_its_own(served):
    adapters, bank, engine, _ = served
    alone = [submit(adapters, engine, NAMES[0])]
    while engine.pending:
        alone += [event.generation for event in engine.step() if event.generation]
    number = submit(adapters, engine, NAMES[0])  # not even begun
    for name in (NAMES[1], NAMES[2], NAMES[1]):
        adapters.require(name)
        assert NAMES[0] in bank.names
    submit(adapters, engine, NAMES[1])
    with pytest.raises(OverloadedError, match="all 2 adapter slots are in use"):
        adapters.require(NAMES[2])
    ended = {}
    while engine.pending:
        ended |= {event.request_id: event.generation for event in engine.step() if event.generation}
    assert ended[number] == alone[1]
    adapters.require(NAMES[2])
    assert NAMES[0] not in bank.names


def test_a_version_of_a_higher_rank_than_there_was_is_told_what_to_do(served):
    adapters, bank, _, _ = served
    wide = AdapterBank(tiny_model("llama", len(tiny_tokenizer())), slots=1, max_rank=4)
    wide.add("wide", AdapterShape(4, 2.0), seed=0)
    adapters.require(NAMES[0])
    with pytest.raises(AdapterError, match=r"wide-v0001 has rank 4, .* above 2\. Restart the endpoint"):
        adapters.require("wide-v0001", (AdapterShape(4, 2.0), wide.tensors("wide")))
    assert set(bank.names) == {NAMES[0]}


def test_files_are_read_in_another_thread_while_the_engine_answers(served):
    adapters, bank, engine, shelf = served
    submit(adapters, engine, NAMES[0])
    begun, go_on, read = threading.Event(), threading.Event(), []
    shelf.on_load = lambda: (begun.set(), go_on.wait(60))
    reader = threading.Thread(target=lambda: read.append(adapters.read(NAMES[1])))
    reader.start()
    assert begun.wait(60)
    assert any(event.generation for _ in range(4) for event in engine.step())  # answered while the file is being read
    go_on.set()
    reader.join(60)
    adapters.require(NAMES[1], read[0])
    assert NAMES[1] in bank.names and shelf.loads == [NAMES[0], NAMES[1]]
    assert adapters.read(NAMES[1]) is None and adapters.read("") is None
    assert shelf.loads == [NAMES[0], NAMES[1]]


def test_a_version_dropped_after_it_was_found_in_the_bank_is_read_again(served):
    adapters, bank, _, shelf = served
    adapters.require(NAMES[0])
    weights = adapters.read(NAMES[0])
    for name in NAMES[1:]:
        adapters.require(name)
    adapters.require(NAMES[0], weights)
    assert weights is None and NAMES[0] in bank.names and shelf.loads == [*NAMES, NAMES[0]]


@pytest.fixture
def project_file(tmp_path) -> Path:
    """A project with a tiny base and a promoted version each of Turkey's and Germany's adapter."""
    base = build_tiny_model(tmp_path / "base")
    bank = AdapterBank(LlamaForCausalLM.from_pretrained(base), slots=1, max_rank=2)
    registry = AdapterRegistry(tmp_path / "work" / "adapters")
    for seed, culture in enumerate(("turkey", "germany")):
        bank.add(culture, AdapterShape(2, 2.0), seed=seed)
        registry.publish(culture, AdapterShape(2, 2.0), bank.tensors(culture), str(base), bank.targets, "0" * 64, {})
        registry.promote(f"{culture}-v0001")
        bank.remove(culture)
    path = tmp_path / "project.yaml"
    path.write_text(f"name: n\nworkspace: work\ncultures: [turkey, germany]\ntasks: [t.yaml]\nbase: {{path: {base}}}\n"
                    "serving: {threads_per_replica: 1, spare_adapters: 1}\n")
    return path


def test_a_version_trained_on_other_weights_of_that_name_is_not_served(project_file):
    registry = AdapterRegistry(project_file.parent / "work" / "adapters")
    base = str(project_file.parent / "base")
    bank = AdapterBank(LlamaForCausalLM.from_pretrained(base), slots=1, max_rank=2)
    bank.add("turkey", AdapterShape(2, 2.0), seed=0)
    for digest, served in ((content_digest(base), True), ("0" * 64, False)):
        version = registry.publish("turkey", AdapterShape(2, 2.0), bank.tensors("turkey"), base, bank.targets, "1" * 64, {},
                                   base_digest=digest)
        for take in (lambda name: artifacts.open_serving(load(project_file), [name]),  # at the start
                     artifacts.version_loader(load(project_file))):  # when it is asked for later
            if served:
                take(version.name)
            else:
                with pytest.raises(AdapterError, match=f"{version.name} was trained on .* no longer the same"):
                    take(version.name)


def test_a_replica_has_room_for_every_rank_there_is_and_that_training_makes(project_file):
    registry = AdapterRegistry(project_file.parent / "work" / "adapters")
    base = str(project_file.parent / "base")
    bank = AdapterBank(LlamaForCausalLM.from_pretrained(base), slots=1, max_rank=12)
    bank.add("turkey", AdapterShape(12, 2.0), seed=0)
    registry.publish("turkey", AdapterShape(12, 2.0), bank.tensors("turkey"), base, bank.targets, "1" * 64, {})

    def ranks(rank: int, spare: int) -> int:
        project = load(project_file, [f"training.rank={rank}"])
        return artifacts.open_serving(project, ["turkey-v0001"], spare)[2].max_rank

    assert [ranks(3, 1), ranks(16, 1), ranks(16, 0)] == [12, 16, 2]


@pytest.mark.parametrize("file", [VERSION_FILE, peft_format.WEIGHTS_FILE])
def test_a_replica_starts_without_a_damaged_version_and_answers_with_it_once_it_is_whole(project_file, caplog, file):
    path = project_file.parent / "work" / "adapters" / "turkey-v0001" / file
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    replica = Replica(str(project_file))
    assert "turkey-v0001 is not loaded" in caplog.text and str(path) in caplog.text
    asked = {"prompt": "yes", "max_new_tokens": 2, "temperature": 0, "top_p": 1, "top_k": 0, "seed": None, "stop": [],
             "logprobs": None, "echo": False, "guided_choice": None, "asked_at": 0}

    def answers(adapter: str) -> bool:
        return asyncio.run(replica.complete(asked | {"adapter": adapter}))["finish_reason"] in ("length", "stop")

    assert answers("germany-v0001") and answers("")
    with pytest.raises(CorruptFileError, match="turkey-v0001"):
        answers("turkey-v0001")
    with pytest.raises(CorruptFileError, match="turkey-v0001"):
        artifacts.open_serving(load(project_file), ["germany-v0001", "turkey-v0001"])
    path.write_bytes(content)
    assert answers("turkey-v0001") and answers("germany-v0001")


def test_a_culture_left_with_an_old_bases_version_keeps_no_other_from_being_served(project_file):
    registry = AdapterRegistry(project_file.parent / "work" / "adapters")
    base = str(project_file.parent / "base")
    bank = AdapterBank(LlamaForCausalLM.from_pretrained(base), slots=1, max_rank=2)
    bank.add("turkey", AdapterShape(2, 2.0), seed=0)
    old = registry.publish("turkey", AdapterShape(2, 2.0), bank.tensors("turkey"), base, bank.targets, "1" * 64, {},
                           base_digest="0" * 64)
    told: list[str] = []
    project = load(project_file)
    _, _, held = artifacts.open_serving(project, [old.name, "germany-v0001"], on_damage=lambda name, _: told.append(name))
    assert list(held.names) == ["germany-v0001"] and told == [old.name]
    with pytest.raises(AdapterError, match="no longer the same"):  # it is the base that is wrong
        artifacts.open_serving(project, [old.name], on_damage=lambda name, _: told.append(name))


def test_a_hubs_commit_says_nothing_of_a_folders_files(project_file):
    registry = AdapterRegistry(project_file.parent / "work" / "adapters")
    folder = str(project_file.parent / "base")
    bank = AdapterBank(LlamaForCausalLM.from_pretrained(folder), slots=1, max_rank=2)
    bank.add("turkey", AdapterShape(2, 2.0), seed=0)
    version = registry.publish("turkey", AdapterShape(2, 2.0), bank.tensors("turkey"), "owner/base", bank.targets, "1" * 64, {},
                               base_digest="0" * 64)
    assert version.name in artifacts.open_serving(load(project_file), [version.name])[2].names


def test_a_version_that_is_not_there_drops_no_other(served):
    adapters, bank, _, _ = served
    adapters.require(NAMES[0])
    adapters.require(NAMES[1])
    for ask in (adapters.require, adapters.read):
        with pytest.raises(AdapterError, match="atlantis"):
            ask("atlantis-v0001")
    assert set(bank.names) == set(NAMES[:2])
