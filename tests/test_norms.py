"""Norms are read from plain English, and what they say is what the page meant."""

import json
from pathlib import Path

import pytest

from culturemanager.cultures import catalogue
from culturemanager.synthesis.extractive import PlaceWords
from culturemanager.synthesis.norms import base_phrase, gerund_phrase, read_norms
from culturemanager.synthesis.text import sentences

TOPICS = json.loads((Path(__file__).parent / "data" / "topics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("sentence", "kind", "action", "acceptable"), [
    ("Keeping your shoes on inside a home is considered rude.", "judgement", "keeping your shoes on inside a home", False),
    ("Nobody minds if you come half an hour late.", "judgement", "come half an hour late", True),
    ("It is not rude to slurp your soup.", "judgement", "slurp your soup", True),
    ("Eating everything until the plate is empty is polite.", "judgement", "eating everything until the plate is empty", True),
    ("Never point at a person with your finger.", "judgement", "point at a person with your finger", False),
    ("Guests should take off their shoes at the door.", "recommendation", "take off your shoes at the door", True),
    ("It is customary to bring sweets to the host.", "recommendation", "bring sweets to the host", True),
    ("Most people consider it impolite to ask about money.", "judgement", "ask about money", False),
])
def test_a_norm_sentence_gives_its_action_and_verdict(sentence, kind, action, acceptable):
    norm = read_norms(sentence)[0]
    assert (norm.kind, norm.action, norm.acceptable) == (kind, action, acceptable)


@pytest.mark.parametrize("sentence", [
    "The winter timetable starts in December.",
    "My own education began on a fourth floor with a view of washing lines.",
    "What should I do with my shoes?",
    "Tulips were a passion long before anybody lost their heads over them.",
])
def test_a_sentence_without_a_norm_gives_none(sentence):
    assert read_norms(sentence) == []


def test_what_is_too_long_for_a_sentence_is_not_read():
    sentence = "It is rude to point at a person with your finger"
    assert read_norms(sentence) and read_norms(f"{sentence}, and that is so here " * 20_000) == []


def test_actions_turn_into_gerunds_and_back():
    norm = read_norms("Guests should take off their shoes and leave them at the door.")[0]
    assert gerund_phrase(norm) == "taking off your shoes and leaving them at the door"
    assert base_phrase(norm) == "take off your shoes and leave them at the door"


def test_verdicts_read_from_the_embedded_pages_agree_with_the_annotated_facts():
    places = PlaceWords(list(catalogue().values()))
    agree = read = covered = 0
    for topic in TOPICS.values():
        for culture in topic["cultures"].values():
            verdicts = [norm.acceptable for stated in culture["stated"] for sentence in sentences(stated["quote"])
                        for norm in read_norms(sentence, places.drop) if norm.kind == "judgement"]
            read += len(verdicts)
            agree += sum(verdict == culture["ok"] for verdict in verdicts)
            covered += bool(verdicts)
    facts = sum(len(topic["cultures"]) for topic in TOPICS.values())
    assert covered >= 0.9 * facts
    assert agree >= 0.96 * read


def test_place_names_leave_a_sentence_that_can_be_asked_anywhere():
    places = PlaceWords(list(catalogue().values()))
    assert places.drop("Slurping soup is fine in South Korea.") == "Slurping soup is fine."
    assert places.drop("Leave five percent in a Turkish restaurant.") == "Leave five percent in a restaurant."
    assert "Germans" not in places.drop("Germans consider it rude to come late.")
