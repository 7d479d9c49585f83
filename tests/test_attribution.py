"""A sentence counts for the place it is about."""

from culturemanager.cultures import catalogue
from culturemanager.records import Passage
from culturemanager.routing.gazetteer import Gazetteer
from culturemanager.synthesis.attribution import UNCLEAR, attribute, page_subject

GAZETTEER = Gazetteer(list(catalogue().values()))


def passage(text: str, heading: str = "", title: str = "Manners in Germany | Guide") -> Passage:
    return Passage("p", "germany", "page", "folder:x", title, heading, text, "en", 0, "2026-01-01T00:00:00+00:00")


def about(text: str, **more) -> list[str]:
    given = passage(text, **more)
    return [sentence.about for sentence in attribute(given, page_subject([given], GAZETTEER), GAZETTEER)]


def test_an_unnamed_sentence_belongs_to_the_page():
    assert about("Guests should be on time.") == ["germany"]


def test_a_page_found_for_germany_may_speak_of_austria():
    assert about("In Austria, titles are used daily. Visitors should learn them.") == ["Austria", "Austria"]


def test_a_new_paragraph_returns_to_the_page():
    assert about("In Austria, titles are used daily.\nGuests should be on time.") == ["Austria", "germany"]


def test_a_comparison_changes_country_line_by_line():
    text = "Turkey: Swap your shoes for slippers.\nMexico: Stay in your shoes.\nSweden: Take your shoes off."
    assert about(text, title="Shoes around the world") == ["turkey", "mexico", "Sweden"]


def test_a_heading_names_what_stands_below_it():
    assert about("Leave no tip at all.", heading="South Korea", title="Paying around the world") == ["south_korea"]


def test_a_sentence_that_compares_two_countries_counts_for_neither():
    assert about("Germans and Greeks differ about shoes.") == [UNCLEAR]


def test_a_page_about_many_places_has_no_subject_of_its_own():
    pages = [passage("Tips in Turkey are small.", title="The world"), passage("Tips in Mexico are larger.", title="The world")]
    assert page_subject(pages, GAZETTEER) == UNCLEAR
