"""The catalogue of cultures and the lists of countries and cities are whole and do not contradict each other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from culturemanager.cultures import ID_PATTERN, catalogue, resolve_cultures
from culturemanager.errors import ConfigError, UnknownCultureError
from culturemanager.routing.gazetteer import Gazetteer, plain, world_cities, world_countries
from culturemanager.sections.synthesis import CultureEntry

TEN = ["jordan", "bangladesh", "china", "united_states", "germany", "greece", "south_korea", "brazil", "mexico", "turkey"]
# The hundred or so words that would turn any English text into a text about some culture.
EVERYDAY = set("""
a about after all also an and any are as at be because been before but by can come could day did do does down each eat
eating even every find first for from gift give go good great guest had has have he her here him his home host house how i
if in into is it its just know late like little long look make man many may me mark meal men more most my new no not now
of off on one only or other our out over own people person place polite real right rude said same say see she should so
some take table tea than thank that the their them then there these they thing this time tip to two up us use very visit
want was way we well were what when where which who will with won woman work would year yes you your street market office
boss friend family bill child water wine coffee bread
""".split())


def test_the_ten_cultures_are_there_in_order() -> None:
    assert list(catalogue()) == TEN
    assert [culture.id for culture in resolve_cultures(TEN)] == TEN
    assert all(ID_PATTERN.fullmatch(culture) for culture in TEN)


@pytest.mark.parametrize("culture", TEN)
def test_a_culture_has_words_enough(culture: str) -> None:
    entry = catalogue()[culture]
    assert len(entry.cues) >= 120
    assert entry.countries and entry.demonyms and entry.languages
    assert all(re.fullmatch("[a-z]{2}", language) for language in entry.languages)
    assert all(phrase == phrase.strip() and phrase for phrase in (*entry.countries, *entry.demonyms, *entry.cues))


@pytest.mark.parametrize("culture", TEN)
def test_no_cue_stands_twice(culture: str) -> None:
    assert [cue for cue, count in Counter(map(plain, catalogue()[culture].cues)).items() if count > 1] == []


@pytest.mark.parametrize("culture", TEN)
def test_no_cue_is_an_everyday_english_word(culture: str) -> None:
    lower_case = {plain(cue) for cue in catalogue()[culture].cues if not any(letter.isupper() for letter in cue)}
    assert lower_case & EVERYDAY == set()


@pytest.mark.parametrize("culture", TEN)
def test_every_phrase_is_found_in_a_text_as_its_culture(culture: str) -> None:
    entry = catalogue()[culture]
    gazetteer = Gazetteer(tuple(catalogue().values()))
    missed = [phrase for phrase in (entry.name, *entry.countries, *entry.demonyms, *entry.cues)
              if culture not in {mention.place for mention in gazetteer.mentions(f"so, {phrase}, they said")}]
    assert missed == []


def test_no_word_names_a_culture_and_another_country() -> None:
    ours = {plain(phrase): culture for culture in catalogue().values()
            for phrase in (*culture.countries, *culture.demonyms, *culture.cues)}
    own_names = {culture.name.removeprefix("the "): culture.id for culture in catalogue().values()}
    clashes = [(country, word) for table in (world_countries(), world_cities()) for country, words in table.items()
               for word in (country, *words) if plain(word) in ours and own_names.get(country) != ours[plain(word)].id]
    assert clashes == []


def test_every_country_is_listed_once_with_words_of_its_own() -> None:
    countries = world_countries()
    assert len(countries) >= 195
    assert {culture.name.removeprefix("the ") for culture in catalogue().values()} <= set(countries)
    assert {"Scotland", "England", "Hong Kong", "Taiwan"} <= set(countries)
    owners = Counter(plain(word) for country, words in countries.items() for word in {country, *words})
    doubled = {word for word, count in owners.items() if count > 1}
    assert doubled <= {"korea"}
    assert set(world_cities()) <= set(countries)


def test_the_documentation_lists_the_catalogue() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "projects.md").read_text(encoding="utf-8")
    listed = re.search(r"The catalogue has ten: (.+?)\. ", text, re.DOTALL)[1]
    assert re.findall(r"`(\w+)`", listed) == list(catalogue())


def test_an_unknown_culture_is_refused_with_its_nearest() -> None:
    with pytest.raises(UnknownCultureError, match=r"unknown culture 'turky'\. Nearest: turkey"):
        resolve_cultures(["turky"])


def test_a_culture_listed_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="listed twice"):
        resolve_cultures(["turkey", "turkey"])


@pytest.mark.parametrize("name", ["joint", "joint_culture_prompt", "agnostic_turkey", "retrieval_x"])
def test_the_name_of_a_comparison_adapter_is_refused(name: str) -> None:
    entry = CultureEntry(id=name, name="Somewhere", countries=["Somewhere"], languages=["en"], demonyms=["Somebody"])
    with pytest.raises(ConfigError, match=f"{name}.*comparison.*another id"):
        resolve_cultures([entry])


def test_a_user_may_define_a_culture_and_override_one() -> None:
    austria = CultureEntry(id="austria", name="Austria", countries=("Austria",), demonyms=("Austrian",), cues=("Vienna",))
    germany = CultureEntry(id="germany", name="Germany", cues=("Hintertupfing",))
    found = resolve_cultures([austria, germany, "turkey"])
    assert [culture.id for culture in found] == ["austria", "germany", "turkey"]
    assert found[1].cues == ("Hintertupfing",)
