"""Running the comparison: the same items for all, mixed batches, nothing asked twice, nothing guessed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError, ConfigError
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.results import load, save
from culturemanager.evaluation.retrieval import PassageRetriever
from culturemanager.inference.engine import Engine
from culturemanager.items import ItemSet
from culturemanager.sections.model import EvaluationConfig
from culturemanager.storage import Workspace
from culturemanager.tasks import answers, is_correct, parse_answer
from tests.evaluation_world import (
    THREE,
    NamedCultureRouter,
    OnePassageEach,
    ScriptedEngine,
    adapters_for,
    knowledge,
    run,
    world,
)

PLACE = world()


def engine(**options) -> ScriptedEngine:
    return ScriptedEngine(PLACE.items, PLACE.tasks, PLACE.tokenizer, knowledge, **options)


@pytest.fixture(scope="module")
def outcome():
    asked = engine()
    return asked, run(PLACE, asked)


def test_every_system_answers_every_item_once(outcome):
    _, evaluation = outcome
    pairs = [(answer.score.system, answer.score.item_id) for answer in evaluation.answers]
    assert len(pairs) == len(set(pairs)) == len(SYSTEMS) * len(PLACE.items.items)


def test_the_summary_has_the_shape_of_scores_json(outcome):
    summary = json.loads(json.dumps(outcome[1].summary))
    assert set(summary["systems"]) == set(SYSTEMS)
    for entry in summary["systems"].values():
        assert {"accuracy", "interval", "by_culture", "by_task", "unparsed"} <= set(entry)
        assert entry["interval"][0] <= entry["accuracy"] <= entry["interval"][1]
        assert set(entry["by_culture"]) == set(THREE)
        assert set(entry["by_task"]) == {"acceptability", "choice", "advice"}
    assert {"accuracy_with_cue", "abstention_without_cue"} <= set(summary["router"])
    assert {row: set(columns) for row, columns in summary["interference"].items()} == {row: set(THREE) for row in THREE}
    assert summary["seed"] == 0
    assert "mean over cultures" in summary["aggregation"]


def test_scores_agree_with_the_answers_that_were_given(outcome):
    items = {item.id: item for item in PLACE.items.items}
    tasks = {task.id: task for task in PLACE.tasks}
    for answer in outcome[1].answers:
        item = items[answer.score.item_id]
        parsed = parse_answer(tasks[item.task], item.inputs, answer.score.answer)
        assert answer.score.correct == is_correct(tasks[item.task], item, parsed)
        assert answer.score.unparsed == (parsed is None)


def test_an_empty_answer_is_unparsed_and_wrong(outcome):
    empty = [answer.score for answer in outcome[1].answers if not answer.score.answer.strip()]
    assert empty
    assert all(score.unparsed and not score.correct for score in empty)
    for name, entry in outcome[1].summary["systems"].items():
        assert entry["unparsed"] == sum(score.system == name for score in empty)


def test_one_batch_holds_many_adapters(outcome):
    assert max(map(len, outcome[0].batches)) >= 5


def test_no_question_is_asked_twice(outcome):
    asked = outcome[0].asked
    assert len(asked) == len(set(asked))


def test_an_abstention_goes_to_the_bare_base():
    class Abstains(NamedCultureRouter):
        def _route(self, text):
            return dataclasses.replace(super()._route(text), culture="", reason="abstained")

    evaluation = run(PLACE, engine(), ["culturemanager", "oracle"], router=Abstains(PLACE.cultures))
    cued = {item.id for item in PLACE.items.items if item.cue}
    for answer in evaluation.answers:
        bare = answer.score.system == "culturemanager" and answer.score.item_id in cued
        assert (answer.adapter == "") == (answer.score.routed_to == "") == bare
    assert evaluation.summary["router"]["accuracy_with_cue"] == 0.0
    assert evaluation.summary["router"]["abstention_without_cue"] == 1.0


def test_the_same_seed_gives_the_same_files_and_another_seed_other_shots(outcome, tmp_path):
    again = run(PLACE, engine())
    assert json.dumps(again.summary) == json.dumps(outcome[1].summary)
    assert again.answers == outcome[1].answers
    other = run(PLACE, engine(), ["few_shot"], seed=1)
    shots = {answer.prompt for answer in outcome[1].answers if answer.score.system == "few_shot"}
    assert shots != {answer.prompt for answer in other.answers}


def test_a_saved_evaluation_reads_back_equal(outcome, tmp_path):
    stage = Workspace(tmp_path).stage("evaluation")
    with stage.writing("f") as draft:
        save(draft, outcome[1])
    loaded = load(stage)
    assert loaded.answers == outcome[1].answers
    assert loaded.summary == json.loads(json.dumps(outcome[1].summary))


def test_an_interrupted_run_goes_on_and_asks_nothing_again(outcome, tmp_path):
    stage = Workspace(tmp_path).stage("evaluation")
    first, second = engine(stop_after=700), engine()
    with pytest.raises(KeyboardInterrupt), stage.writing("f") as draft:
        run(PLACE, first, draft=draft)
    assert not stage.is_complete()
    with stage.writing("f") as draft:
        evaluation = run(PLACE, second, draft=draft)
        save(draft, evaluation)
    assert stage.is_complete("f")
    assert evaluation.summary == outcome[1].summary
    assert evaluation.answers == outcome[1].answers
    assert 0 < len(second.asked) < len(outcome[0].asked)
    repeated = set(first.asked) & set(second.asked)
    assert len(repeated) < 256  # what the engine had in hand when it was stopped


KILLED = """
import os, signal, sys
from tests.evaluation_world import ScriptedEngine, knowledge, run, world
from culturemanager.storage import Workspace

class Killed(ScriptedEngine):
    def stop(self):
        os.kill(os.getpid(), signal.SIGKILL)

place = world()
with Workspace(sys.argv[1]).stage("evaluation").writing("f") as draft:
    run(place, Killed(place.items, place.tasks, place.tokenizer, knowledge, 700), draft=draft)
"""


def test_a_killed_run_goes_on_where_it_was(outcome, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parent.parent,
                            env={**os.environ, "PYTHONPATH": "."}, timeout=900)
    assert killed.returncode == -signal.SIGKILL
    stage, second = Workspace(tmp_path).stage("evaluation"), engine()
    with stage.writing("f") as draft:
        evaluation = run(PLACE, second, draft=draft)
        save(draft, evaluation)
    assert evaluation.answers == outcome[1].answers
    assert len(second.asked) == len(outcome[0].asked) - 512  # two whole batches were on disk


def test_answers_of_another_run_are_not_taken_over(tmp_path):
    stage = Workspace(tmp_path).stage("evaluation")
    with pytest.raises(KeyboardInterrupt), stage.writing("one") as draft:
        run(PLACE, engine(stop_after=300), ["culturemanager"], draft=draft)
    fresh, undisturbed = engine(), engine()
    run(PLACE, undisturbed, ["culturemanager"])
    with stage.writing("two") as draft:
        run(PLACE, fresh, ["culturemanager"], draft=draft)
    assert fresh.asked == undisturbed.asked


def test_progress_reaches_its_total():
    seen = []
    run(PLACE, engine(), ["base"], progress=lambda done, total, what: seen.append((done, total, what)))
    assert seen[-1] == (135, 135, "answers")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_the_interference_table_asks_at_most_so_many_closed_items_of_each_culture(count):
    asked = engine()
    summary = run(PLACE, asked, ["base"], adapters=adapters_for(["culturemanager"], PLACE.cultures),
                  config=EvaluationConfig(bootstrap=100, interference_items=count)).summary
    closed = Counter(item.culture for item in PLACE.items.items if item.task != "advice")
    forced = [adapter for _, adapter in asked.asked if adapter]
    assert len(forced) == sum(min(count, number) for number in closed.values()) * len(THREE)
    assert set(summary["interference"]) == (set(THREE) if count else set())


def test_one_culture_without_its_adapter_is_reported_and_answered_by_the_base():
    adapters = adapters_for(["culturemanager"], PLACE.cultures)
    del adapters["brazil"]
    evaluation = run(PLACE, engine(), ["culturemanager", "base"], adapters=adapters)
    assert evaluation.summary["adapters_missing"] == ["brazil"]
    brazil = {name: entry["by_culture"]["brazil"] for name, entry in evaluation.summary["systems"].items()}
    assert brazil["culturemanager"] == brazil["base"]
    assert all("brazil" not in columns for columns in evaluation.summary["interference"].values())


@pytest.mark.parametrize(("systems", "changes", "error", "message"), [
    (["joint"], {"adapters": {}}, AdapterError, r"'joint' has none of its adapters \(joint\). Run `culturemanager train`"),
    (["culturemanager"], {"adapters": {}}, AdapterError, "system 'culturemanager' has none of its adapters"),
    (["retrieval"], {"retriever": None}, ConfigError, "system 'retrieval' needs the passage index"),
    (["few_shot"], {"examples": []}, ConfigError, "system 'few_shot' needs training examples"),
    (["base"], {"items": ItemSet((), {"culture not in the project": 450})}, ConfigError, "no evaluation item is about"),
    (["bass"], {}, ConfigError, "unknown system 'bass'. Nearest: base"),
])
def test_what_a_system_lacks_is_said_before_anything_is_asked(systems, changes, error, message):
    asked = engine()
    changes = {"adapters": {}} | changes
    with pytest.raises(error, match=message):
        run(PLACE, asked, systems, **changes)
    assert not asked.asked


def test_passages_and_shots_that_do_not_fit_are_dropped_and_counted():
    small = engine()
    small.context = 420
    many = EvaluationConfig(bootstrap=100, retrieved_passages=12)
    evaluation = run(PLACE, small, ["base", "retrieval", "few_shot"], config=many)
    assert max(len(answer.prompt.encode()) for answer in evaluation.answers) <= 420  # one token a byte
    assert evaluation.summary["prompts_shortened"]["retrieval"] == 135
    assert "base" not in evaluation.summary["prompts_shortened"]


def test_retrieved_passages_are_of_the_culture_gone_by():
    evaluation = run(PLACE, engine(), ["retrieval"])
    for answer in evaluation.answers:
        assert f"Ferry captains of {answer.score.routed_to or 'any'} are greeted." in answer.prompt


@pytest.fixture(scope="module")
def real_engine():
    """A tiny random Llama behind the real bank and engine: three adapters with weights, one whose delta is zero."""
    torch.manual_seed(0)
    tokenizer = PLACE.tokenizer
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)).eval()
    bank = AdapterBank(model, slots=4, max_rank=4)
    for number, name in enumerate(["turkey-v0001", "germany-v0001", "brazil-v0001", "joint-v0001"]):
        bank.add(name, AdapterShape(4, 8), seed=number)
        if name != "joint-v0001":
            weights = bank.tensors(name)
            bank.remove(name)
            generator = torch.Generator().manual_seed(number)
            bank.load(name, AdapterShape(4, 8), {key: torch.randn(value.shape, generator=generator) * 0.3
                                                 for key, value in weights.items()})
    return Engine(model, tokenizer, bank)


def test_the_real_engine_answers_each_system_with_its_own_adapter(real_engine):
    items = ItemSet(tuple(item for item in PLACE.items.items if int(item.id[-2:]) <= 3), {})
    systems = ["base", "retrieval", "joint", "culturemanager", "oracle"]
    evaluation = run(PLACE, real_engine, systems, items=items, config=EvaluationConfig(bootstrap=100, max_new_tokens=6))
    said = {(answer.score.system, answer.score.item_id): answer.score.answer for answer in evaluation.answers}
    by_id = {item.id: item for item in items.items}
    tasks = {task.id: task for task in PLACE.tasks}
    for (_, item_id), text in said.items():
        allowed = answers(tasks[by_id[item_id].task], by_id[item_id].inputs)
        assert not allowed or text in allowed
    differ = 0
    for item in items.items:
        assert said["joint", item.id] == said["base", item.id]  # an adapter whose delta is zero is the base
        differ += said["oracle", item.id] != said["base", item.id]
    assert differ > 3
    for answer in evaluation.answers:
        if answer.score.system == "culturemanager" and answer.score.routed_to == answer.score.culture:
            assert said["oracle", answer.score.item_id] == answer.score.answer


def test_the_real_engine_gives_the_same_answers_whoever_else_is_compared(real_engine):
    items = ItemSet(tuple(item for item in PLACE.items.items if int(item.id[-2:]) <= 2), {})
    options = {"items": items, "config": EvaluationConfig(bootstrap=100, max_new_tokens=6)}
    alone = run(PLACE, real_engine, ["culturemanager"], **options)
    together = run(PLACE, real_engine, ["base", "joint", "retrieval", "oracle", "culturemanager"], **options)
    theirs = [answer for answer in together.answers if answer.score.system == "culturemanager"]
    assert list(alone.answers) == theirs


def test_an_index_may_hold_fewer_passages_than_asked_for():
    class Empty(OnePassageEach):
        def search(self, texts, *, culture, limit):
            return [[] for _ in texts]

    evaluation = run(PLACE, engine(), ["retrieval"], retriever=PassageRetriever(Empty(), {}))
    assert all("Notes:" not in answer.prompt for answer in evaluation.answers)
