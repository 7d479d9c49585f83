"""An endpoint that serves adapters with passages: what stands in the prompt, and what the client is told of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import yaml
from browser import Browser

from culturemanager import artifacts, config, project, questions, serving
from culturemanager.adapters import peft_format
from culturemanager.errors import AdapterError
from culturemanager.evaluation import results
from serve_app.keys import key_sum
from serving.conftest import KEYS, TURKISH_KEY

CUED = "Should I leave a tip for the waiter in Istanbul?"
UNCUED = "How late may I arrive for dinner?"
READING = ["serving.system=culturemanager_retrieval", "evaluation.retrieved_passages=2", "serving.port=8432"]


@pytest.fixture(scope="module")
def reading_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run in which Turkey's adapter is there as one for prompts with passages, too; its project file."""
    folder = shutil.copytree(small_run.parent, tmp_path_factory.mktemp("reading") / "copy")
    copy = folder / small_run.name
    registry = artifacts.registry(config.load(copy))
    serves = registry.aliases()["turkey"]
    shape, tensors, settings = peft_format.load(registry.folder / serves)
    version = registry.publish("retrieval_turkey", shape, tensors, registry.get(serves).base_model, settings["target_modules"],
                               "0" * 64, {})
    registry.promote(version.name)
    return copy


def small_keys(run: Path) -> Path:
    """A file with a key for Turkey alone."""
    file = run.parent / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [{"name": "turkish", "sha256": key_sum(TURKISH_KEY), "cultures": ["turkey"]}]}))
    return file


@pytest.fixture(scope="module")
def reading(endpoint: str, reading_run: Path) -> Iterator[str]:
    """Its endpoint, beside the other one; its URL."""
    from ray import serve

    from serve_app.app import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CULTUREMANAGER_API_KEYS", KEYS[0])
        keys = small_keys(reading_run)
        application = build({"project": str(reading_run), "set": [*READING, f"serving.keys_file={keys}"]})
    serve.run(application, name="reading", route_prefix="/reading")
    yield f"{endpoint}/reading"
    serve.delete("reading")


@pytest.fixture(scope="module")
def reader(reading: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{reading}/v1", api_key=KEYS[0], max_retries=0, timeout=300) as opened:
        yield opened


def chat(client: openai.OpenAI, text: str = CUED, model: str = "auto", **more):
    return client.chat.completions.create(**{"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8,
                                             "temperature": 0} | more)


def text_of(answer) -> str:
    return answer.choices[0].message.content


def surprise(answer) -> list[float]:
    """The log-probabilities of the answer's tokens."""
    return [token.logprob for token in answer.choices[0].logprobs.content]


def with_passages(answer, text: str = CUED) -> str:
    """The prompt as it has to be, from the passages told."""
    return "Notes: " + " ".join(one["text"] for one in answer.culturemanager["passages"]) + f"\nIn Turkey: {text}"


def test_the_passages_told_are_those_in_the_prompt(reader: openai.OpenAI, client: openai.OpenAI) -> None:
    answer = chat(reader, logprobs=True)
    assert answer.model == "retrieval_turkey-v0001"
    assert answer.culturemanager["culture"] == "turkey"
    assert len(answer.culturemanager["passages"]) == 2
    assert all(set(one) == {"id", "title", "url", "text"} for one in answer.culturemanager["passages"])
    by_hand = chat(client, with_passages(answer), "turkey", logprobs=True)
    assert text_of(answer) == text_of(by_hand)
    assert answer.usage.prompt_tokens == by_hand.usage.prompt_tokens
    assert surprise(answer) == pytest.approx(surprise(by_hand), rel=1e-4)
    assert surprise(answer) != pytest.approx(surprise(chat(client, CUED, "turkey", logprobs=True)), rel=1e-2)


def test_they_are_those_that_a_search_finds(reader: openai.OpenAI, reading_run: Path) -> None:
    found = questions.search_passages(config.load(reading_run), CUED, "turkey", 2)
    assert [one["id"] for one in chat(reader).culturemanager["passages"]] == [one.passage.id for one in found]


def test_a_question_of_the_evaluation_is_asked_as_it_was_there(reader: openai.OpenAI, reading_run: Path) -> None:
    loaded = config.load(reading_run, READING)
    items = {item.id: item for item in artifacts.items(loaded).items}
    asked = [answer for answer in results.load(artifacts.workspace(loaded).stage("evaluation")).answers
             if answer.score.system == "retrieval" and "\nIn Turkey: " in answer.prompt]
    assert {answer.score.task for answer in asked} == {"acceptability", "choice", "advice"}
    for answer in asked:
        options = items[answer.score.item_id].inputs.get("options")
        told = chat(reader, answer.question, "turkey", extra_body={"guided_choice": options} if options else {})
        assert with_passages(told, answer.question) == answer.prompt


def test_a_stream_tells_them_with_its_first_piece(reader: openai.OpenAI) -> None:
    whole = chat(reader)
    chunks = list(chat(reader, stream=True))
    assert chunks[0].culturemanager == whole.culturemanager
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(whole)


def test_in_a_conversation_they_stand_before_what_was_said_last(reader: openai.OpenAI, client: openai.OpenAI) -> None:
    before = [{"role": "user", "content": "I am off to Istanbul."}, {"role": "assistant", "content": "Have a good time!"}]
    answer = chat(reader, messages=[*before, {"role": "user", "content": CUED}])
    by_hand = chat(client, model="turkey", messages=[*before, {"role": "user", "content": with_passages(answer)}])
    assert (text_of(answer), answer.usage.prompt_tokens) == (text_of(by_hand), by_hand.usage.prompt_tokens)


def test_names_are_those_of_the_adapters_that_read(reader: openai.OpenAI) -> None:
    assert [model.id for model in reader.models.list()] == ["auto", "embedded", "turkey", "retrieval_turkey-v0001"]
    assert text_of(chat(reader, model="retrieval_turkey-v0001")) == text_of(chat(reader, model="turkey"))
    with pytest.raises(openai.NotFoundError, match="not served"):
        chat(reader, model="turkey-v0001")


def test_the_base_asked_for_by_name_and_a_plain_completion_get_none(reader: openai.OpenAI, client: openai.OpenAI) -> None:
    answer = chat(reader, model="embedded")
    assert "passages" not in answer.culturemanager
    assert text_of(answer) == text_of(chat(client, model="embedded"))
    plain = reader.completions.create(model="turkey", prompt=CUED, max_tokens=4)
    assert "passages" not in plain.culturemanager
    assert plain.choices[0].text == client.completions.create(model="turkey", prompt=CUED, max_tokens=4).choices[0].text


def test_a_question_that_fills_the_context_gets_fewer(reader: openai.OpenAI) -> None:
    answer = chat(reader, CUED + " tea" * 1990)
    assert answer.culturemanager["passages"] == []
    with pytest.raises(openai.BadRequestError, match="2048"):
        chat(reader, CUED + " tea" * 2100)


def test_a_culture_without_such_an_adapter_is_answered_by_the_base_that_reads(reader: openai.OpenAI) -> None:
    answer = chat(reader, "Do people tip in Hamburg?")
    assert answer.culturemanager["culture"] == "germany"
    assert len(answer.culturemanager["passages"]) == 2
    assert answer.model == "auto"


def test_a_key_of_one_culture_reads_no_others_passages(reading: str, reader: openai.OpenAI) -> None:
    assert chat(reader, UNCUED).culturemanager["culture"] is None
    assert len(chat(reader, UNCUED).culturemanager["passages"]) == 2
    with openai.OpenAI(base_url=f"{reading}/v1", api_key=TURKISH_KEY, max_retries=0, timeout=300) as turkish:
        assert chat(turkish, UNCUED).culturemanager["passages"] == []
        assert len(chat(turkish).culturemanager["passages"]) == 2


def test_every_one_of_several_answers_reads_the_same(reader: openai.OpenAI) -> None:
    several = chat(reader, n=3)
    assert {choice.message.content for choice in several.choices} == {text_of(chat(reader))}
    assert len(several.culturemanager["passages"]) == 2


def test_a_question_without_a_server_is_answered_alike(reader: openai.OpenAI, reading_run: Path) -> None:
    reply = questions.ask(config.load(reading_run, READING), CUED, max_new_tokens=8)
    answer = chat(reader)
    assert (reply.text, reply.adapter) == (text_of(answer).strip(), answer.model)
    assert [passage.id for passage in reply.passages] == [one["id"] for one in answer.culturemanager["passages"]]


def test_training_makes_what_is_to_be_served(small_run: Path) -> None:
    planned = project.training_outlook(config.load(small_run, READING)).adapters
    # Those that the comparison needs are there already.
    assert {one.name: bool(one.version) for one in planned} == {
        "turkey": True, "germany": True, "retrieval_turkey": False, "retrieval_germany": False}


def test_without_any_such_adapter_serving_does_not_begin(small_run: Path) -> None:
    with pytest.raises(AdapterError, match=r"retrieval_turkey.*culturemanager train"):
        serving.check(config.load(small_run, READING))


def test_the_page_shows_what_was_read(reading: str, browser: Browser) -> None:
    with browser.page(f"{reading}/") as page:
        page.wait_for("!document.getElementById('key-form').hidden")
        page.click("#key")
        page.write(KEYS[0])
        page.press("Enter")
        page.wait_for("document.querySelectorAll('#choices input').length > 1")
        page.click("#question")
        page.write(CUED)
        page.press("Enter")
        page.wait_for("document.querySelectorAll('.read li').length === 2")
        assert page.text(".read h3") == "What it looked up"
        page.wait_for("document.getElementById('sources-note').textContent.includes('looked up')")
