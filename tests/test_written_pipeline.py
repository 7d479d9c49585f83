"""Synthesis with a language model behind an endpoint: every call is paid for once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from culturemanager import artifacts, project
from culturemanager.console import own_error
from tests.chat_server import ChatServer, chat_server, fails, says

TASK = Path(__file__).parents[1] / "examples" / "tasks" / "acceptability.yaml"


def write_an_example(request, _):
    """What a model could answer: the first passage's first sentence as a behaviour that is fine."""
    prompt = request["messages"][-1]["content"]
    passage = re.search(r"<([\w-]+) id=1>\n?(.+?)\n?</\1>", prompt.split("inside them.\n")[1], re.DOTALL)[2].strip()
    sentence = re.split(r"(?<=[.!?])\s", passage)[0]
    return says(json.dumps({"examples": [{"inputs": {"behaviour": sentence}, "answer": "yes", "passage": 1, "quote": sentence}]}))


def project_for(server: ChatServer, folder: Path, **generator: object):
    settings = {"kind": "openai", "base_url": server.base_url, "model": "m", "max_attempts": 1} | generator
    (folder / "project.yaml").write_text(json.dumps({
        "name": "Written", "workspace": "work", "cultures": ["turkey", "germany"], "tasks": [str(TASK)],
        "pages": {"per_culture": 4}, "examples": {"generator": settings, "minimum": 1}}))
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
