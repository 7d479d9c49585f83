"""The gazetteer finds places where they are named, and only there."""

from __future__ import annotations

import time

import pytest

from culturemanager.cultures import catalogue, resolve_cultures
from culturemanager.routing.evidence import weigh
from culturemanager.routing.gazetteer import Gazetteer, plain, uses_capitals
from culturemanager.sections.synthesis import CultureEntry


@pytest.fixture(scope="module")
def gazetteer() -> Gazetteer:
    return Gazetteer(tuple(catalogue().values()))


def places(gazetteer: Gazetteer, text: str) -> list[str]:
    return [mention.place for mention in gazetteer.mentions(text)]


@pytest.mark.parametrize(("text", "place"), [
    ("What is the custom in Türkiye?", "turkey"),
    ("Dinner in SAO PAULO tonight", "brazil"),
    ("A weekend in são paulo", "brazil"),
    ("Is it fine in the U.S. to leave early?", "united_states"),
    ("How do people queue in Xi’an?", "china"),
    ("An office party in New\nYork", "united_states"),
    ("We flew over New Mexico.", "united_states"),
    ("Moving to Mexico City", "mexico"),
    ("North Korean visitors", "North Korea"),
    ("A conference in Tokyo", "Japan"),
    ("A Scottish wedding", "Scotland"),
])
def test_a_named_place_is_found(gazetteer: Gazetteer, text: str, place: str) -> None:
    assert places(gazetteer, text) == [place]


@pytest.mark.parametrize(("text", "place"), [
    ("서울에서 팁을 주나요?", "south_korea"), ("我在北京工作", "china"), ("ঢাকায় কি এটা ঠিক?", "bangladesh"),
    ("Τι κάνουν στην Αθήνα;", "greece"), ("هل هذا مقبول في الأردن؟", "jordan"), ("Almanya'da bahşiş verilir mi?", "germany"),
])
def test_names_in_other_scripts_and_with_endings_are_found(gazetteer: Gazetteer, text: str, place: str) -> None:
    assert place in places(gazetteer, text)


def test_syllables_that_begin_alike_are_not_confused() -> None:
    assert plain("서울") != plain("사이")
    assert [plain(word) for word in ("İzmir", "Ağrı", "Αθήνα")] == ["izmir", "agri", "αθηνα"]
    assert all(len(plain(text)) == len(text) for text in ("Weißwurst", "ﬁn", "Ömer’s", "한국", "ÅÄÖ…", "½"))


@pytest.mark.parametrize("text", [
    "She served a turkey dinner for the whole team.",
    "We carved the turkey and John said grace.",
    "Put the good china on the table, please.",
    "Pour it in china cups.",
    "Please polish your shoes before the visit.",
    "He gave us a guinea pig.",
    "Shall we go Dutch tonight?",
    "French fries with everything",
    "A spree in the shops",
    "They may mark the day.",
    "Travel in South America",
    "what does that mean to us?",
    "slices of turkey and ham",
])
def test_ordinary_words_are_no_places(gazetteer: Gazetteer, text: str) -> None:
    assert places(gazetteer, text) == []


@pytest.mark.parametrize(("text", "place"), [
    ("is it ok to tip in turkey?", "turkey"), ("moving to china next year", "china"),
    ("Is it normal in jordan? I wonder", "jordan"),
    ("how do germans queue", "germany"), ("do they tip in the us", "united_states"), ("a dinner in istanbul", "turkey"),
])
def test_a_text_without_capitals_still_names_places(gazetteer: Gazetteer, text: str, place: str) -> None:
    assert places(gazetteer, text) == [place]


def test_capitals_are_judged_without_those_that_grammar_asks_for() -> None:
    assert not uses_capitals("Is it fine? I wonder. Can I ask")
    assert uses_capitals("Is it fine? Ask Paul")


def test_a_shared_phrase_gives_a_mention_for_each_culture(gazetteer: Gazetteer) -> None:
    assert sorted(places(gazetteer, "a visit during Ramadan")) == ["bangladesh", "jordan", "turkey"]


def test_offsets_point_into_the_text_as_given(gazetteer: Gazetteer) -> None:
    text = "Öğle yemeği İZMİR’de, then São Paulo"
    assert [text[m.start:m.end] for m in gazetteer.mentions(text)] == ["İZMİR", "São Paulo"]


def test_cultures_outside_the_project_are_other_countries() -> None:
    small = Gazetteer(resolve_cultures(["turkey"]))
    text = "From Berlin and Seoul to Izmir, an American asks"
    assert {(mention.place, mention.known) for mention in small.mentions(text)} == {
        ("Germany", False), ("South Korea", False), ("turkey", True), ("United States", False)}


def test_a_user_culture_owns_the_words_of_its_country() -> None:
    austria = CultureEntry(id="austria", name="Austria", countries=("Austria",), demonyms=("Austrians",),
                           cues=("Heuriger", "Schnitzel"))
    own = Gazetteer(resolve_cultures([austria]))
    text = "Austrian hosts in Vienna serve Schnitzel at the Heuriger"
    assert {(mention.place, mention.known) for mention in own.mentions(text)} == {("austria", True)}


def test_a_long_text_is_read_in_milliseconds(gazetteer: Gazetteer) -> None:
    text = "Keeping your shoes on inside a home is considered rude in Turkey, and guests change into slippers. " * 100
    started = time.process_time()
    assert len(gazetteer.mentions(text)) == 100
    assert time.process_time() - started < 0.1


def test_mentions_of_no_text_are_none(gazetteer: Gazetteer) -> None:
    assert gazetteer.mentions("") == [] and weigh([("", 1.0)], gazetteer) is None


@pytest.mark.parametrize(("text", "place"), [
    ("A Turkish colleague asks how to greet people in Seoul.", "south_korea"),
    ("I am from Germany and visiting Jordan next week.", "jordan"),
    ("As an American, may I tip in Beijing?", "china"),
    ("Would a Greek restaurant in Munich mind?", "germany"),
    ("In Seoul, is it fine to open a German beer with your teeth?", "south_korea"),
    ("Unlike in Brazil, do people in Greece come on time?", "greece"),
    ("My Korean boss visits Dhaka. How should he dress?", "bangladesh"),
    ("A Mexican tourist wants to bargain in the Grand Bazaar.", "turkey"),
    ("Is tequila a fine gift at a Korean wedding?", "south_korea"),
    ("What do Japanese visitors get wrong in Athens?", "greece"),
    ("How should my Brazilian friend behave in Tokyo?", "Japan"),
    ("Mehmet has moved to Berlin. Should he wait at the red light?", "germany"),
])
def test_where_something_happens_outweighs_where_somebody_is_from(gazetteer: Gazetteer, text: str, place: str) -> None:
    evidence = weigh([(text, 1.0)], gazetteer)
    assert evidence is not None and evidence.top == place
    assert evidence.shares[place] > 0.65


@pytest.mark.parametrize("text", ["Turkey or Greece: which is stricter?",
                                  "What is the difference between Germany and Brazil?", "Compare Mexico with China."])
def test_two_places_on_a_par_share_the_evidence(gazetteer: Gazetteer, text: str) -> None:
    evidence = weigh([(text, 1.0)], gazetteer)
    assert evidence is not None and max(evidence.shares.values()) < 0.6
