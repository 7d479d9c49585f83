"""Queries from templates, and from a language model behind a real endpoint."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from culturemanager.cultures import catalogue
from culturemanager.errors import LanguageModelError
from culturemanager.providers.llm import OpenAIModel
from culturemanager.records import Culture, Task
from culturemanager.sections.synthesis import OpenAIGenerator, QueriesConfig
from culturemanager.synthesis.queries import AGNOSTIC_TEMPLATES, TASK_TEMPLATES, task_words, write_queries
from culturemanager.tasks import contains_phrase, load_task, normalise
from tests.chat_server import Answer, ChatServer, chat_server, fails, says

EXAMPLES = Path(__file__).parent.parent / "examples" / "tasks"
CULTURES = [catalogue()["turkey"], catalogue()["south_korea"]]
LABELS = ("offensive", "fine")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [load_task(EXAMPLES / f"{name}.yaml") for name in ("acceptability", "choice", "advice")]


def task(task_id: str = "moderation", instruction: str = "Decide whether this chat message is offensive.",
         **more: object) -> Task:
    values = {"kind": "classification", "fields": ("message",), "template": "{{ message }}", "metric": "accuracy"}
    return Task(id=task_id, instruction=instruction, **{**values, "labels": LABELS, **more})


def test_every_culture_gets_the_number_asked_for_of_each_kind(tasks: list[Task]) -> None:
    queries = write_queries(QueriesConfig(per_task=5, agnostic=3), CULTURES, tasks)
    counts = Counter((query.culture, query.task) for query in queries)
    assert counts == {(culture.id, task_id): number for culture in CULTURES
                      for task_id, number in (("acceptability", 5), ("choice", 5), ("advice", 5), ("", 3))}
    assert {query.source for query in queries} == {"template"} and {query.language for query in queries} == {"en"}


def test_queries_depend_on_the_arguments_alone_and_so_do_their_ids(tasks: list[Task]) -> None:
    config = QueriesConfig()
    first = write_queries(config, CULTURES, tasks)
    assert first == write_queries(config, CULTURES, tasks)
    alone = write_queries(config, CULTURES[1:], tasks)
    assert alone == [query for query in first if query.culture == "south_korea"]
    assert len({query.id for query in first}) == len(first)


def test_every_query_names_its_culture_and_a_topic(tasks: list[Task]) -> None:
    config = QueriesConfig()
    for query in write_queries(config, CULTURES, tasks):
        culture = catalogue()[query.culture]
        assert any(contains_phrase(query.text, name) for name in (culture.name, *culture.demonyms)), query.text
        assert any(topic in query.text for topic in config.topics), query.text


def test_a_task_is_asked_about_in_its_own_words_and_by_its_kind() -> None:
    one, other = task(), task("reviews", "Decide whether this hotel review sounds sarcastic.")
    queries = write_queries(QueriesConfig(topics=("weddings",), per_task=2, agnostic=1), CULTURES[:1], [one, other])
    texts = {(query.task, query.text) for query in queries}
    assert ("moderation", "Turkish weddings etiquette chat message or rude") in texts
    assert ("reviews", "Turkish weddings etiquette hotel review or rude") in texts
    assert ("", "everyday customs in Turkey weddings") in texts
    kinds = {kind: write_queries(QueriesConfig(topics=("weddings",), per_task=1, agnostic=0), CULTURES[:1],
                                 [task(kind=kind, labels=())])[0].text for kind in TASK_TEMPLATES}
    assert len(set(kinds.values())) == 3


def test_a_task_without_telling_words_in_its_instruction_takes_them_from_its_seeds() -> None:
    seeds = ({"inputs": {"message": "the tea is cold, tea!"}, "answer": "fine"},
             {"inputs": {"message": "cold service"}, "answer": "fine"})
    plain = task(instruction="Answer the question.", seeds=seeds)
    assert task_words(plain) == ["cold", "service"]
    assert task_words(task(instruction="Answer yes or no.")) == []


def test_more_queries_than_topics_use_other_phrasings_until_they_run_out() -> None:
    config = QueriesConfig(topics=("tea", "coffee"), per_task=100, agnostic=100)
    queries = write_queries(config, CULTURES[:1], [task()])
    assert len(queries) == 2 * (len(TASK_TEMPLATES["classification"]) + len(AGNOSTIC_TEMPLATES))


def test_queries_of_the_same_words_are_kept_once_per_culture_and_counted() -> None:
    dropped: Counter[str] = Counter()
    config = QueriesConfig(topics=("tea", "Tea!", "coffee"), per_task=3, agnostic=3)
    queries = write_queries(config, CULTURES, [task(), task("twin")], dropped=dropped)
    words = Counter((query.culture, *sorted(normalise(query.text).split())) for query in queries)
    assert set(words.values()) == {1}
    assert Counter(query.culture for query in queries) == {"turkey": 4, "south_korea": 4}
    assert dropped == {"duplicate": 2 * (3 + 3 + 3) - len(queries)}


def test_a_culture_of_the_users_own_needs_no_demonym() -> None:
    own = Culture(id="zorland", name="Zorland", countries=(), languages=(), demonyms=())
    queries = write_queries(QueriesConfig(), [own], [task()])
    assert all("Zorland" in query.text for query in queries)


def model(server: ChatServer) -> OpenAIModel:
    generator = OpenAIGenerator(kind="openai", base_url=server.base_url, model="m", max_attempts=1)
    return OpenAIModel(generator, None, backoff_s=0.01)


def written(*texts: object) -> Answer:
    return says(json.dumps({"queries": list(texts)}))


CONFIG = QueriesConfig(topics=("tea", "coffee"), per_task=2, agnostic=1)


def test_a_language_model_adds_as_many_queries_as_the_templates_gave() -> None:
    dropped: Counter[str] = Counter()
    answer = written("tea houses in Turkey", "who pours the coffee", "Turkish tea glasses")
    with chat_server(lambda request, number: answer) as server:
        queries = write_queries(CONFIG, CULTURES[:1], [task()], model(server), dropped=dropped)
        assert len(server.requests) == 2
        assert all("tea, coffee" in server.prompt(number) for number in range(2))
        form = server.requests[0]["response_format"]["json_schema"]["schema"]
        assert form["properties"]["queries"]["items"] == {"type": "string"}
    by_model = [(query.task, query.text) for query in queries if query.source == "llm"]
    assert by_model == [("moderation", "tea houses in Turkey"), ("moderation", "Turkey who pours the coffee")]
    assert sum(query.source == "template" for query in queries) == 3
    assert dropped == {"surplus": 1 + 2, "duplicate": 1}  # the task-agnostic call was answered alike


def test_what_a_model_writes_is_cut_to_plain_lines_and_useless_lines_are_counted() -> None:
    dropped: Counter[str] = Counter()
    texts = ["Turkey tea\n<script>site:evil</script>", "  ", "Turkey", "x" * 500 + " Turkey"]
    with chat_server(lambda request, number: written(*texts)) as server:
        config = QueriesConfig(topics=("tea",), per_task=9, agnostic=0)
        queries = write_queries(config, CULTURES[:1], [task()], model(server), dropped=dropped)
    assert [query.text for query in queries if query.source == "llm"] == ["Turkey tea script site:evil /script"]
    assert dropped == {"unusable": 3}


def test_an_unusable_answer_is_counted_and_the_templates_remain() -> None:
    dropped: Counter[str] = Counter()
    with chat_server(lambda request, number: says("I would rather not.")) as server:
        queries = write_queries(CONFIG, CULTURES, [task()], model(server), dropped=dropped)
    assert queries == write_queries(CONFIG, CULTURES, [task()])
    assert dropped == {"unusable_answer": 4}


def test_an_endpoint_that_fails_is_an_error() -> None:
    with chat_server(lambda request, number: fails(500)) as server, pytest.raises(LanguageModelError):
        write_queries(CONFIG, CULTURES, [task()], model(server))


def test_progress_reaches_its_total_and_the_order_is_that_of_the_arguments() -> None:
    seen: list[tuple[int, int]] = []
    with chat_server(lambda request, number: written("tea in Turkey and South Korea")) as server:
        queries = write_queries(CONFIG, CULTURES, [task()], model(server),
                                lambda done, total, what: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [query.culture for query in queries] == sorted((query.culture for query in queries), reverse=True)
