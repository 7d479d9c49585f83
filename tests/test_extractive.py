"""The extractive generator writes each task's format from norm sentences, with other cultures' practices as wrong options."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from culturemanager.cultures import catalogue
from culturemanager.errors import ConfigError
from culturemanager.records import Passage, Task
from culturemanager.synthesis.extractive import ExtractiveGenerator
from culturemanager.tasks import load_task

FOLDER = Path(__file__).parents[1] / "examples" / "tasks"
CULTURES = [catalogue()[name] for name in ("turkey", "united_states", "brazil")]
TEXTS = {
    "turkey": "Keeping your shoes on inside a home is rude in Turkey. Guests should swap their shoes for house slippers.",
    "united_states": ("Keeping your shoes on inside a home is fine in America. "
                      "Guests should keep their shoes on unless asked otherwise."),
    "brazil": "Keeping your shoes on inside a home is normal in Brazil. Guests should wear smart sandals all evening.",
}
PASSAGES = [Passage(f"p-{c}", c, f"page-{c}", f"folder:{c}", f"Manners in {catalogue()[c].name}", "", text, "en", 0, "2026-01-01")
            for c, text in TEXTS.items()]


class WordEmbedder:
    """A bag of words in 256 hashed places: enough to find statements in like words."""

    dimension = 256

    def embed(self, texts):
        vectors = np.zeros((len(texts), 256), np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, sum(map(ord, word)) % 256] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def generator():
    return ExtractiveGenerator(PASSAGES, CULTURES, WordEmbedder())


def rows(generator, culture: str, task: str):
    return list(generator.generate(catalogue()[culture], load_task(FOLDER / f"{task}.yaml"), PASSAGES))


def test_a_judgement_becomes_rows_with_its_culture_s_label(generator):
    for culture, answer in (("turkey", "no"), ("united_states", "yes")):
        found = {row.inputs["behaviour"]: row.answer for row in rows(generator, culture, "acceptability")}
        assert found["Keeping your shoes on inside a home."] == answer


def test_what_refers_back_is_an_answer_and_no_question():
    text = "Keeping shoes on inside is rude in Turkey. Guests should take them off at the door."
    passage = replace(PASSAGES[0], text=text)
    generator = ExtractiveGenerator([passage], CULTURES, WordEmbedder())
    judged = list(generator.generate(CULTURES[0], load_task(FOLDER / "acceptability.yaml"), [passage]))
    advised = list(generator.generate(CULTURES[0], load_task(FOLDER / "advice.yaml"), [passage]))
    assert judged and not any("them" in row.inputs["behaviour"] for row in judged)
    assert {row.answer for row in advised} == {"take them off at the door"}
    alone = replace(passage, text="In Turkey, guests should take them off at the door.")
    assert not list(ExtractiveGenerator([alone], CULTURES, WordEmbedder()).generate(
        CULTURES[0], load_task(FOLDER / "advice.yaml"), [alone]))


def test_advice_answers_a_question_about_the_judged_matter(generator):
    found = rows(generator, "turkey", "advice")
    assert found and {row.answer for row in found} == {"swap your shoes for house slippers"}
    assert any("keeping your shoes on inside a home" in row.inputs["question"] for row in found)
    assert all(row.quote == "Guests should swap their shoes for house slippers." for row in found)


def test_wrong_options_are_practices_of_cultures_that_judge_differently(generator):
    found = rows(generator, "turkey", "choice")
    assert found
    for row in found:
        assert set(row.inputs["options"]) == {"swap your shoes for house slippers", "keep your shoes on unless asked otherwise",
                                              "wear smart sandals all evening"}
        assert row.answer == "swap your shoes for house slippers"


def test_the_same_passages_give_the_same_candidates(generator):
    again = ExtractiveGenerator(PASSAGES, CULTURES, WordEmbedder())
    for task in ("acceptability", "choice", "advice"):
        assert rows(generator, "turkey", task) == rows(again, "turkey", task)


def test_a_task_whose_labels_are_no_yes_and_no_is_refused(generator):
    task = Task("tone", "classification", "Name the tone.", ("text",), "{{ text }}", "accuracy", ("warm", "cold", "neutral"))
    with pytest.raises(ConfigError, match=r"warm.*generator.kind: openai"):
        list(generator.generate(CULTURES[0], task, PASSAGES))
