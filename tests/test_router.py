"""The router is right where a text shows its culture, abstains where it does not, and knows how sure it is."""

from __future__ import annotations

import statistics
import time
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest

from culturemanager.cultures import catalogue
from culturemanager.errors import ConfigError, CorruptFileError, UnknownCultureError
from culturemanager.providers.embedding import MiniLMEmbedder
from culturemanager.records import Example, Page, Passage, stable_id
from culturemanager.routing.request import read_request
from culturemanager.routing.router import CultureRouter
from culturemanager.sections.model import RouterConfig
from culturemanager.sections.synthesis import PassagesConfig
from culturemanager.storage import Workspace
from culturemanager.synthesis.passages import page_passages

BEHAVIOURS = """Leaving some coins for the waiter. Keeping your boots on in the hall. Turning up half an hour late for
supper. Opening a parcel at once. Accepting tea at the first offer. Kissing a new acquaintance on the cheek. Calling the
director by her first name. Staring at an old man. Passing the salt with your left hand. Eating rice with your fingers.
Leaving nothing on the plate. Slurping the soup. Blowing your nose at table. Splitting the bill among friends. Pouring
your own drink. Drinking before the toast. Bringing wine to the hosts. Giving twelve roses. Showing a thumbs-up. Putting
your feet on a chair. Kissing on a bench in the park. Handing over a card with one hand. Asking about somebody's
children. Contradicting the boss. Asking what somebody earns. Asking how old somebody is. Quarrelling about elections.
Ringing at a friend's door without calling. Haggling over a carpet. Standing very close. Pointing at people. Crossing at
the red light. Drilling on a Sunday. Chatting on the phone in the bus. Asking for tap water. Writing a name in red ink.
Praising a vase in the living room. Starting before the grandmother.""".replace("\n", " ").split(". ")

CUED = {
    "jordan": ["How late may I come to a dinner in Amman?", "Is a tip expected in Jordan?",
               "My host in Irbid serves mansaf. Do I use a fork?", "What do Jordanians bring when they visit the sick?",
               "هل من اللائق أن أرفض القهوة العربية؟"],
    "bangladesh": ["May I use my left hand at a meal in Dhaka?", "What is a polite gift for a Bangladeshi family?",
                   "Cox's Bazar with colleagues: who pays the bill?", "do people in chittagong shake hands",
                   "অতিথি হিসেবে কী উপহার নেওয়া উচিত?"],
    "china": ["Do I hand over a business card with both hands in Shanghai?",
              "Someone shouts ganbei. Must I empty the glass?", "Is it wrong to give a clock as a gift in China?",
              "我应该给服务员小费吗？", "When is a hongbao handed over?"],
    "united_states": ["How much do I tip a bartender in Chicago?", "What should I bring to Thanksgiving dinner?",
                      "How do Americans feel about talk of salaries?",
                      "is it ok to come late to a job interview in the us", "A baby shower in Ohio: do I need a gift?"],
    "germany": ["May I mow the lawn on a Sunday in Hamburg?", "Do Germans shake hands with everyone in the room?",
                "Is it fine to jaywalk in Berlin at night?", "When do I say du to Frau Schneider?",
                "Darf ich am Sonntag bei meinen Nachbarn klingeln?"],
    "greece": ["Is it rude to show an open palm in Athens?", "What do Greeks do on somebody's name day?",
               "A taverna on Naxos: how does one pay?", "Can I refuse a glass of ouzo?",
               "Είναι αγένεια να αρνηθώ ένα κέρασμα;"],
    "south_korea": ["How do I pour soju for my boss?", "Should I take off my shoes in a home in Busan?",
                    "Do Koreans mind being asked their age?", "Can I stick my chopsticks into the rice in South Korea?",
                    "회식에서 먼저 일어나도 되나요?"],
    "brazil": ["Is it rude to be on time for a party in Rio de Janeiro?", "How do Brazilians greet each other at work?",
               "Who pays at a churrascaria in Curitiba?", "Can I make the OK sign in São Paulo?",
               "Devo levar um presente quando visito alguém?"],
    "mexico": ["Do I tip the musicians in Guadalajara?", "Is it fine to talk business over lunch in Mexico City?",
               "What is expected of guests at a quinceañera?", "How do Mexicans answer an invitation they cannot accept?",
               "¿Es de mala educación llegar a la hora exacta?"],
    "turkey": ["Should I take off my shoes when I visit someone in Izmir?",
               "how do i refuse more tea politely in turkey?", "What do I answer to afiyet olsun?",
               "Is haggling expected in the Grand Bazaar?", "Misafirliğe giderken ne götürmeliyim?"],
}
BARE = ["Is it rude to arrive late?", "How much should I tip?", "May I keep my shoes on?",
        "What is a good gift for a dinner host?", "Should I finish everything on my plate?",
        "Is it polite to open a present right away?", "Can I call my boss by his first name?",
        "Do I shake hands with everyone?", "Is it all right to split the bill?", "What flowers should I avoid?",
        "Is slurping soup impolite?", "How long should a visit last?", "May I start eating before the others?",
        "Should I kiss my new neighbour on the cheek?", "Is it okay to ask what a colleague earns?",
        "Can I blow my nose at the table?", "What do I wear to a wedding?",
        "How do I turn down a drink without hurting anyone?", "Who pays when the boss invites?",
        "Is pointing with a finger offensive?", "Should I bring wine?",
        "We served a turkey dinner; may guests help themselves?", "Is it fine to phone somebody late in the evening?",
        "Put the good china on the table?", "Must I stand up when an older person comes in?"]
ABOUT = [("A Turkish colleague asks how to greet people in Seoul.", "south_korea"),
         ("I grew up in Brazil and now live in Munich. May I mow the lawn on Sunday?", "germany"),
         ("As an American in Dhaka, do I eat with my hand?", "bangladesh"),
         ("Our Greek guest wonders whether to tip in Beijing.", "china"),
         ("My Mexican friend is visiting Amman. What should she wear?", "jordan")]
ELSEWHERE = ["How do I greet people in Tokyo?", "Is tipping expected in France?", "What do Nigerians bring to a wedding?",
             "Which is stricter about time, Germany or Brazil?", "Do people queue in London?"]


def examples() -> list[Example]:
    rows = []
    for culture in catalogue():
        for number, behaviour in enumerate(BEHAVIOURS):
            prompt = f"Is this acceptable, yes or no? {behaviour.rstrip('.')}."
            rows.append(Example(id=stable_id(culture, behaviour), culture=culture, task="acceptability",
                                inputs={"behaviour": behaviour}, prompt=prompt, completion="yes", passage_ids=(), url="",
                                fetched_at="", quote="", generator="test", split="validation" if number % 2 else "train"))
    return rows


def passages() -> list[Passage]:
    web = resources.files("culturemanager").joinpath("embedded", "web")
    found = []
    for culture in catalogue():
        files = (file for file in web.joinpath(culture).iterdir() if file.name.endswith(".html"))
        for file in sorted(files, key=lambda file: file.name)[:2]:
            page = Page(id=file.name, culture=culture, query_ids=(), url=file.name, final_url=file.name, title=file.name,
                        content_type="text/html", content=file.read_text(encoding="utf-8"), fetched_at="", sha256="")
            found += page_passages(page, PassagesConfig())
    return found


@pytest.fixture(scope="module")
def embedder() -> MiniLMEmbedder:
    return MiniLMEmbedder()


@pytest.fixture(scope="module")
def router(embedder: MiniLMEmbedder) -> CultureRouter:
    return CultureRouter.fit(examples(), passages(), tuple(catalogue().values()), embedder, RouterConfig(), seed=7)


def test_texts_with_a_cue_go_to_their_culture(router: CultureRouter) -> None:
    pairs = [(text, culture) for culture, texts in CUED.items() for text in texts]
    routes = router.route_many([text for text, _ in pairs])
    wrong = [(text, route.culture, route.reason) for (text, culture), route in zip(pairs, routes, strict=True)
             if route.culture != culture]
    assert len(wrong) <= 0.05 * len(pairs), wrong
    assert [item for item in wrong if item[1]] == []


def test_texts_without_a_cue_abstain(router: CultureRouter) -> None:
    routes = router.route_many(BARE)
    routed = [(text, route.culture) for text, route in zip(BARE, routes, strict=True) if route.culture]
    assert len(routed) <= 0.2 * len(BARE), routed
    assert all(route.reason == "abstained" for route in routes if not route.culture)


@pytest.mark.parametrize(("text", "culture"), ABOUT)
def test_a_text_goes_to_the_culture_it_is_about(router: CultureRouter, text: str, culture: str) -> None:
    route = router.route(text)
    assert (route.culture, route.reason) == (culture, "named")


@pytest.mark.parametrize("text", ELSEWHERE)
def test_other_countries_and_comparisons_abstain(router: CultureRouter, text: str) -> None:
    assert router.route(text).culture == ""


def test_reasons_name_the_signal(router: CultureRouter) -> None:
    assert router.route("Tipping in Izmir?").reason == "named"
    assert router.route("Darf ich am Sonntag bei meinen Nachbarn klingeln?").reason == "language"
    assert router.route("Is it rude to arrive late?").reason == "abstained"
    assert router.route("Tipping in Izmir?", pinned="greece").reason == "pinned"


def test_a_name_outweighs_the_language(router: CultureRouter) -> None:
    assert router.route("Wie viel Trinkgeld gibt man in Istanbul im Restaurant?").culture == "turkey"


def test_a_language_of_no_culture_abstains(router: CultureRouter) -> None:
    assert router.route("Est-ce impoli d'arriver en retard au dîner chez des amis ?").culture == ""


def test_a_pin_is_an_id_or_a_name_and_is_checked(router: CultureRouter) -> None:
    assert router.route("anything", pinned="south_korea").culture == "south_korea"
    assert router.route("anything", pinned="South Korea").culture == "south_korea"
    with pytest.raises(UnknownCultureError, match=r"unknown culture 'turky'\. Nearest: turkey"):
        router.route("anything", pinned="turky")
    with pytest.raises(UnknownCultureError, match="may not be used here; allowed: greece"):
        router.route("anything", pinned="turkey", cultures_allowed=["greece"])


def test_a_culture_that_is_not_allowed_is_not_replaced_by_another(router: CultureRouter) -> None:
    assert router.route("Tipping in Izmir?", cultures_allowed=["greece", "turkey"]).culture == "turkey"
    route = router.route("Tipping in Izmir?", cultures_allowed=["greece"])
    assert (route.culture, route.reason) == ("", "abstained")


def test_a_conversation_goes_on_about_its_place(router: CultureRouter) -> None:
    messages = [{"role": "user", "content": "I am moving to Seoul next month."},
                {"role": "assistant", "content": "How exciting!"},
                {"role": "user", "content": "Should I bring gifts for my new neighbours?"}]
    assert router.route(messages).culture == "south_korea"


def test_the_last_user_turn_weighs_most(router: CultureRouter) -> None:
    messages = [{"role": "user", "content": "How much do I tip in Chicago?"},
                {"role": "assistant", "content": "In the US, twenty percent."},
                {"role": "user", "content": [{"type": "text", "text": "And in Athens?"}]}]
    assert router.route(messages).culture == "greece"


def test_a_system_message_sets_the_scene(router: CultureRouter) -> None:
    assert router.route([{"role": "system", "content": "You help the guests of a hotel in Cancún."},
                         {"role": "user", "content": "Should I tip the maid?"}]).culture == "mexico"


@pytest.mark.parametrize("messages", [[{"content": "hello"}], ["hello"], [{"role": "user", "content": 5}]])
def test_malformed_messages_are_refused(router: CultureRouter, messages: list) -> None:
    with pytest.raises(ConfigError, match="expected"):
        router.route(messages)


@pytest.mark.parametrize("text", ["", "   ", "?!", "\x00\ufffd", "ok " * 20_000, []])
def test_empty_and_odd_texts_abstain(router: CultureRouter, text: str) -> None:
    assert router.route(text).culture == ""


def test_batches_and_single_requests_agree(router: CultureRouter) -> None:
    texts = [*BARE[:6], "Tipping in Izmir?", "Darf ich am Sonntag bei meinen Nachbarn klingeln?"]
    for text, route in zip(texts, router.route_many(texts), strict=True):
        alone = router.route(text)
        assert (alone.culture, alone.reason) == (route.culture, route.reason)
        assert alone.confidence == pytest.approx(route.confidence, abs=1e-4)


def test_probabilities_are_probabilities_and_hold_the_confidence(router: CultureRouter) -> None:
    for route in router.route_many([*BARE, *ELSEWHERE, *(text for texts in CUED.values() for text in texts)]):
        assert 0 <= route.confidence <= 1 and set(route.probabilities) <= set(catalogue())
        assert all(value >= 0 for value in route.probabilities.values()) and sum(route.probabilities.values()) <= 1 + 1e-6
        if route.culture:
            assert max(route.probabilities, key=route.probabilities.__getitem__) == route.culture
            assert route.probabilities[route.culture] == pytest.approx(route.confidence)
            assert route.confidence >= router.thresholds[route.reason]


def test_the_report_says_what_was_measured(router: CultureRouter) -> None:
    report = router.report()
    assert all(report["target_reached"].values()) and report["precision"] >= RouterConfig().target_precision
    assert report["kinds"]["bare"].get("abstained", 0) >= 0.8 * sum(report["kinds"]["bare"].values())
    assert report["kinds"]["named"]["right"] >= 0.95 * sum(report["kinds"]["named"].values())
    assert report["calibration_error"] < 0.06
    assert sum(entry["rows"] for entry in report["reliability"]) == report["measured_rows"]
    assert sum(sum(row.values()) for row in report["confusion"].values()) == report["measured_rows"]
    assert all(later["threshold"] <= earlier["threshold"] for earlier, later in pairwise(report["curves"]["all"]))


def test_the_classifier_knows_places_that_no_list_has(router: CultureRouter) -> None:
    unlisted = {"greece": ["Katerini", "Karditsa", "Gavdos"], "germany": ["Pforzheim", "Heilbronn", "Ulm"],
                "south_korea": ["Yangsan", "Mokpo", "Gunsan"], "brazil": ["Cascavel", "Londrina", "Joinville"],
                "mexico": ["Celaya", "Irapuato"], "turkey": ["Isparta", "Afyon"], "china": ["Wenzhou", "Nanchang"],
                "bangladesh": ["Habiganj", "Netrokona"], "united_states": ["Tulsa", "Boise"]}
    pairs = [(read_request(f"A dinner at a home in {name}"), culture)
             for culture, names in unlisted.items() for name in names]
    judgements = router.judge([request for request, _ in pairs])
    assert all(judgement.signal == "classifier" for judgement in judgements)
    right = sum(judgement.culture == culture for judgement, (_, culture) in zip(judgements, pairs, strict=True))
    assert right >= 0.4 * len(pairs)


def test_a_saved_router_decides_alike(router: CultureRouter, embedder: MiniLMEmbedder, tmp_path) -> None:
    stage = Workspace(tmp_path).stage("router")
    with stage.writing("fingerprint") as draft:
        router.save(draft)
    assert sorted(stage.manifest().files) == ["classifier.safetensors", "router.json"]
    again = CultureRouter.load(stage, embedder)
    texts = [*BARE[:8], *ELSEWHERE, "Tipping in Izmir?"]
    assert again.route_many(texts) == router.route_many(texts)
    assert again.report() == router.report() == CultureRouter.saved_report(stage) and again.thresholds == router.thresholds


def test_a_damaged_or_foreign_router_is_refused(router: CultureRouter, embedder: MiniLMEmbedder, tmp_path) -> None:
    stage = Workspace(tmp_path).stage("router")
    with stage.writing("fingerprint") as draft:
        router.save(draft)

    class Smaller:
        dimension = 8

        def embed(self, texts):
            return np.zeros((len(texts), 8), dtype=np.float32)

    with pytest.raises(ConfigError, match="embeddings of size 384"):
        CultureRouter.load(stage, Smaller())
    path = tmp_path / "router" / "classifier.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for read in (lambda: CultureRouter.load(stage, embedder), lambda: CultureRouter.saved_report(stage)):
        with pytest.raises(CorruptFileError, match=r"classifier\.safetensors"):
            read()


def test_a_router_cannot_be_fitted_without_rows(embedder: MiniLMEmbedder) -> None:
    cultures = tuple(catalogue().values())
    with pytest.raises(ConfigError, match="needs training examples"):
        CultureRouter.fit([], [], cultures, embedder, RouterConfig(), seed=0)


def test_routing_takes_few_milliseconds(router: CultureRouter) -> None:
    texts = [text for texts in CUED.values() for text in texts] + BARE
    router.route(texts[0])
    spent = []
    for text in texts:
        started = time.thread_time()
        router.route(text)
        spent.append(time.thread_time() - started)
    assert statistics.median(spent) < 0.010
