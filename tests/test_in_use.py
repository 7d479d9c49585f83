"""What is served is what was evaluated: the same passages, the same prompt, the same adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culturemanager.chat import chat_ids
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.in_use import ServedSystem
from culturemanager.evaluation.retrieval import PassageRetriever, question_in, question_text
from culturemanager.tasks import answers, read_inputs, render
from tests.evaluation_world import TEN, NamedCultureRouter, OnePassageEach, ScriptedEngine, knowledge, run, world

WORLD = world(TEN)
TASKS = {task.id: task for task in WORLD.tasks}
READING = SYSTEMS["culturemanager_retrieval"]
RETRIEVER = PassageRetriever(OnePassageEach(), OnePassageEach.passages)


def template(text: str, *fields: str):
    return replace(TASKS["advice"], template=text, fields=fields)


def test_the_search_for_a_prompt_is_the_search_for_its_item() -> None:
    for item in WORLD.items.items:
        task = TASKS[item.task]
        prompt = render(task, item.inputs)
        assert question_in(prompt, WORLD.tasks, answers(task, item.inputs)) == question_text(item.inputs, task.fields)


def test_a_question_in_no_tasks_words_is_searched_for_as_it_is() -> None:
    assert question_in("Do people tip in Izmir?", WORLD.tasks, ("yes", "no")) == "Do people tip in Izmir?"


@pytest.mark.parametrize("name", ["culturemanager", "culturemanager_retrieval"])
def test_the_model_is_asked_what_it_was_asked_in_the_evaluation(name: str) -> None:
    engine = ScriptedEngine(WORLD.items, WORLD.tasks, WORLD.tokenizer, knowledge)
    run(WORLD, engine, [name])
    served = ServedSystem(SYSTEMS[name], WORLD.cultures, WORLD.tasks, RETRIEVER if name != "culturemanager" else None, 2)
    router = NamedCultureRouter(WORLD.cultures)
    asked = set()
    for item in WORLD.items.items:
        prompt = render(TASKS[item.task], item.inputs)
        (route,) = router.route_many([prompt])
        one = served.ask(prompt, route.culture if item.cue else item.culture, answers(TASKS[item.task], item.inputs))
        said = WORLD.tokenizer.decode(chat_ids(WORLD.tokenizer, one.prompt), skip_special_tokens=True)
        asked.add((said, f"{one.adapter}-v0001" if one.adapter else ""))
        assert one.adapter in ("", served.adapter(item.culture), served.adapter(route.culture))
    assert asked <= set(engine.asked)
    assert len(asked) > 400


def test_passages_that_leave_no_room_go_and_the_last_goes_first() -> None:
    served = ServedSystem(READING, WORLD.cultures, WORLD.tasks, RETRIEVER, 3)
    passage = OnePassageEach.passages["turkey-1"].text
    for room in (3, 2, 1, 0):
        asked = served.ask("How do I greet?", "turkey", fits=lambda prompt, room=room: prompt.count(passage) <= room)
        assert (len(asked.passages), asked.prompt.count(passage)) == (room, room)
        assert asked.prompt.endswith("In Turkey: How do I greet?")
    assert len(served.ask("How do I greet?", "turkey", fits=lambda _: False).passages) == 0


def test_without_a_culture_the_bare_base_reads_passages_of_any() -> None:
    asked = ServedSystem(READING, WORLD.cultures, WORLD.tasks, RETRIEVER, 1).ask("How do I greet?", "")
    assert asked.adapter == ""
    assert asked.prompt == f"Notes: {OnePassageEach.passages['any-1'].text}\nHow do I greet?"


@given(st.text(min_size=1).map(str.strip).filter(bool))
def test_what_was_rendered_is_read_back(text: str) -> None:
    for task in (TASKS["acceptability"], TASKS["advice"]):
        (name,) = task.fields
        assert read_inputs(task, render(task, {name: text})) == {name: text}


@pytest.mark.parametrize(("text", "fields", "prompt", "expected"), [
    ("{{ place }}: may I {{ act }}?", ("place", "act"), "Graz: may I sing?", {"place": "Graz", "act": "sing"}),
    ("{{ place }}: may I {{ act }}?", ("place", "act"), "Graz: must I sing?", None),
    ("{{ place }}: may I {{ act }}?", ("place", "act"), "Graz: may I sing!", None),
    ("{{ q }} One of: {{ options | join(' / ') }}", ("q", "options"), "Why? One of: a / b", {"q": "Why?", "options": "a / b"}),
    ("{{ q }} ({{ options[1] }})", ("q", "options"), "Why? (b)", None),
    ("{{ q }} {{ q }}", ("q",), "a a", {"q": "a"}),
    ("Say: {{ q | upper }}", ("q",), "Say: HELLO", {"q": "HELLO"}),
    ("Tell me.", ("q",), "Tell me.", None),
    ("aba {{ q }} aba", ("q",), "aba", None),
    ("{{ q }}", ("q",), "anything", {"q": "anything"}),
])
def test_a_prompt_is_read_by_the_templates_words(text: str, fields: tuple[str, ...], prompt: str, expected: dict | None) -> None:
    assert read_inputs(template(text, *fields), prompt) == expected


def test_options_that_were_given_are_searched_for_as_they_were_given() -> None:
    shows_options = template("{{ q }} One of: {{ options | join(' / ') }}", "q", "options")
    assert question_in("Why? One of: a / b", [shows_options], ("a", "b")) == "Why? a b"
    assert question_in("Why? One of: a / b", [shows_options]) == "Why? a / b"


def test_of_two_tasks_the_one_that_says_more_of_the_prompt_reads_it() -> None:
    anything = template("{{ question }}", "question")
    assert question_in("Advice, please: where to sit?", [anything, TASKS["advice"]]) == "where to sit?"
    assert question_in("Where to sit?", [anything, TASKS["advice"]]) == "Where to sit?"
