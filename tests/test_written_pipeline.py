"""Synthesis with a language model behind an endpoint: every call is paid for once."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest

from culturemanager import artifacts, project
from culturemanager.console import own_error
from culturemanager.errors import NothingFoundError
from tests.chat_server import ChatServer, chat_server, fails, says

TASK = Path(__file__).parents[1] / "examples" / "tasks" / "acceptability.yaml"


def write_an_example(request, _):
    """What a model could answer: the first passage's first sentence as a behaviour that is fine."""
    prompt = request["messages"][-1]["content"]
    passage = re.search(r"<([\w-]+) id=1>\n?(.+?)\n?</\1>", prompt.split("inside them.\n")[1], re.DOTALL)[2].strip()
    sentence = re.split(r"(?<=[.!?])\s", passage)[0]
    return says(json.dumps({"examples": [{"inputs": {"behaviour": sentence}, "answer": "yes", "passage": 1, "quote": sentence}]}))


def project_for(server: ChatServer, folder: Path, more: dict[str, object] | None = None, **generator: object):
    settings = {"kind": "openai", "base_url": server.base_url, "model": "m", "max_attempts": 1} | generator
    (folder / "project.yaml").write_text(json.dumps({
        "name": "Written", "workspace": "work", "cultures": ["turkey", "germany"], "tasks": [str(TASK)],
        "pages": {"per_culture": 4}, "examples": {"generator": settings, "minimum": 1}, **(more or {})}))
    return project.load(folder / "project.yaml")


def test_a_rerun_of_the_examples_asks_nothing_and_gives_the_same_rows(ray_cluster, tmp_path):
    with chat_server(write_an_example) as server:
        loaded = project_for(server, tmp_path)
        project.synthesize(loaded)
        paid, rows = len(server.requests), artifacts.examples(loaded)
        assert paid > 2 and {row.culture for row in rows} == {"turkey", "germany"}
        (tmp_path / "work" / "examples" / "manifest.json").unlink()
        project.synthesize(loaded)
        assert len(server.requests) == paid
        assert artifacts.examples(loaded) == rows


def test_calls_made_before_an_endpoint_failed_are_not_made_again(ray_cluster, tmp_path):
    down = True

    def fails_from_the_third(request, number):
        return fails(500) if down and number >= 2 else write_an_example(request, number)

    with chat_server(fails_from_the_third) as server:
        loaded = project_for(server, tmp_path, concurrency=1)
        with pytest.raises(Exception) as failed:  # wrapped by Ray, as the command line finds it
            project.synthesize(loaded)
        assert "answered 500" in str(own_error(failed.value))
        answered = [json.dumps(request) for request in server.requests[:2]]
        before, down = len(server.requests), False
        project.synthesize(loaded)
        again = [json.dumps(request) for request in server.requests[before:]]
        assert again and not set(answered) & set(again)
        assert len(set(again)) == len(again)


def test_what_a_language_model_wrote_in_vain_is_counted_by_every_stage_and_run(ray_cluster, tmp_path):
    def often_in_vain(request, number):
        if "passage" not in request["messages"][-1]["content"]:
            return says(json.dumps({"queries": ["Turkey", "tea in Turkey and in Germany"]}))
        answer = json.loads(json.loads(write_an_example(request, number).body)["choices"][0]["message"]["content"])
        return says(json.dumps({"examples": [*answer["examples"], {**answer["examples"][0], "passage": 99}]}))

    with chat_server(often_in_vain) as server:
        loaded = project_for(server, tmp_path, more={"queries": {"llm": True}})
        first = project.synthesize(loaded)
        assert first["queries"]["dropped"]["unusable"] >= 1
        assert first["examples"]["dropped"]["unknown_passage"] > 2
        (tmp_path / "work" / "examples" / "manifest.json").unlink()
        assert project.synthesize(loaded)["examples"]["dropped"] == first["examples"]["dropped"]


def test_a_model_whose_every_answer_is_cut_off_is_named_as_the_reason(ray_cluster, tmp_path):
    with chat_server(lambda *_: says("{", finish_reason="length")) as server:
        with pytest.raises(NothingFoundError, match=r"no training row passed the checks; dropped: {'unusable_answer': \d+}"):
            project.synthesize(project_for(server, tmp_path))


def test_as_many_calls_are_in_flight_as_the_project_says(ray_cluster, tmp_path):
    together, lock, now, most = threading.Event(), threading.Lock(), 0, 0

    def wait_for_others(request, number):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == 12:
                together.set()
        together.wait(timeout=120)
        with lock:
            now -= 1
        return write_an_example(request, number)

    with chat_server(wait_for_others) as server:
        project.synthesize(project_for(server, tmp_path, more={"pages": {"per_culture": 12}}, concurrency=12))
    assert most == 12
