"""The playground on a real Ray Serve with a real model, used by a real browser as a person would."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from browser import Browser, Page

from culturemanager import artifacts, config
from serve_app import sources
from serve_app.sources import TrainingSources

KEY = "a-key-for-the-page"
GERMAN_KEY = "a-key-for-germany-only"
URL = "http://127.0.0.1:8433"
CUED = "Should I leave a tip for the waiter in Istanbul?"
UNCUED = "How late may I arrive for dinner?"

ANSWERED = ("document.querySelector('#routed .answer')?.getAttribute('aria-busy') === 'false'"
            " && document.getElementById('stop').hidden")
READY = "document.querySelectorAll('#choices input').length > 1"
SOURCES = "document.querySelectorAll('#sources-list > li').length > 0"


@pytest.fixture(scope="module")
def endpoint(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The small run's endpoint, which asks for a key; its URL."""
    from ray import serve

    from serve_app.app import build

    keys = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys.write_text(f"keys: [{{name: german, sha256: {hashlib.sha256(GERMAN_KEY.encode()).hexdigest()}, cultures: [germany]}}]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CULTUREMANAGER_API_KEYS", KEY)
        application = build({"project": str(small_run), "set": [f"serving.keys_file={keys}"]})
    serve.start(http_options={"host": "127.0.0.1", "port": 8433})
    serve.run(application, name="culturemanager")
    yield URL
    serve.shutdown()


@pytest.fixture
def visit(endpoint: str, browser: Browser) -> Iterator[Page]:
    """A fresh visit to the page, before a key was entered."""
    with browser.page(endpoint) as page:
        page.wait_for("!document.getElementById('key-form').hidden")
        yield page


@pytest.fixture
def page(visit: Page) -> Page:
    """The page with the key entered, as if just loaded."""
    enter_key(visit, KEY)
    visit.wait_for(READY)
    visit.problems.clear()  # the refusal that made the page ask for a key
    return visit


@pytest.fixture(scope="module")
def http(endpoint: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=endpoint, headers={"Authorization": f"Bearer {KEY}"}, timeout=300) as opened:
        yield opened


def enter_key(page: Page, key: str) -> None:
    page.click("#key")
    page.write(key)
    page.press("Enter")


def ask(page: Page, question: str) -> None:
    page.evaluate("question.value = ''")
    page.click("#question")
    page.write(question)
    page.press("Enter")


def asked_of(http: httpx2.Client, model: str, question: str) -> dict:
    """The same question without a browser."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 200}
    return http.post("/v1/chat/completions", json=body).json()


def content(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"].strip()


# Asking


def test_an_answer_streams_in_with_the_culture_and_the_reason(page: Page, http: httpx2.Client) -> None:
    page.evaluate("""(() => {
        window.seen = new Set();
        const note = () => seen.add(document.querySelector('#routed .answer')?.textContent);
        new MutationObserver(note).observe(routed, {subtree: true, childList: true, characterData: true});
    })()""")
    ask(page, CUED)
    page.wait_for(ANSWERED)
    expected = asked_of(http, "auto", CUED)
    assert page.text("#routed .answer").strip() == content(expected)
    assert page.text("#routed h3").split() == ["Turkey", expected["model"]]
    assert "names Turkey" in page.text(".decision")
    if expected["usage"]["completion_tokens"] > 3:
        assert page.evaluate("seen.size") > 2, "the answer came in one piece"


def test_the_bars_are_the_routers_probabilities(page: Page, http: httpx2.Client) -> None:
    ask(page, UNCUED)
    page.wait_for(ANSWERED)
    told = http.post("/v1/route", json={"input": UNCUED}).json()["data"][0]
    shares = [value / 100 for value in page.evaluate(
        "[...document.querySelectorAll('.bars .filled')].map((bar) => parseFloat(bar.style.inlineSize))")]
    assert shares[:-1] == pytest.approx(list(told["probabilities"].values()), abs=1e-3)
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert page.texts(".bars .name")[-1] == "None of them"


def test_the_page_says_when_no_culture_was_sure_enough(page: Page) -> None:
    ask(page, UNCUED)
    page.wait_for(ANSWERED)
    assert page.text("#routed h3") == "Bare base model"
    assert "not sure enough" in page.text(".decision")
    assert "no training rows" in page.text("#sources-note")


def test_every_chosen_culture_gives_its_own_answer(page: Page, http: httpx2.Client) -> None:
    for name in ("turkey", "germany", ""):
        page.click(f"#choices input[value='{name}']")
    ask(page, UNCUED)
    page.wait_for(ANSWERED)
    assert [heading.split()[0] for heading in page.texts("#answers h3")] == ["Turkey", "Germany", "Bare"]
    shown = [text.strip() for text in page.texts("#answers .answer")]
    assert shown == [content(asked_of(http, model, UNCUED)) for model in ("turkey", "germany", "embedded")]


# What the answer stands on


def test_sources_are_shown_with_their_page_and_their_rows(page: Page, http: httpx2.Client) -> None:
    ask(page, CUED)
    page.wait_for(SOURCES)
    told = http.get("/v1/cultures/turkey/sources", params={"query": CUED}).json()["data"]
    assert page.texts("#sources-list blockquote") == [source["quote"] for source in told]
    first = page.text("#sources-list > li")
    for said in (told[0]["url"], told[0]["rows"][0]["prompt"], told[0]["rows"][0]["completion"]):
        assert said in first


def test_sources_of_another_culture_can_be_looked_at(page: Page, http: httpx2.Client) -> None:
    ask(page, CUED)
    page.wait_for(SOURCES)
    page.evaluate("(() => { const list = document.getElementById('sources-culture'); list.value = 'germany';"
                  "list.dispatchEvent(new Event('change')); })()")
    expected = http.get("/v1/cultures/germany/sources", params={"query": CUED}).json()["data"][0]["quote"]
    page.wait_for(f"document.querySelector('#sources-list blockquote')?.textContent === {expected!r}")


@pytest.mark.parametrize(("url", "linked"), [
    ("https://example.org/tips", True), ("folder:turkey/tips.html", False), ("javascript:alert(1)", False)])
def test_only_web_addresses_become_links(page: Page, url: str, linked: bool) -> None:
    source = {"quote": "q", "title": "", "url": url, "fetched_at": "2026-01-02T00:00:00+00:00", "rows": []}
    made = page.evaluate(f"import('/playground/view.js').then((view) => view.sourceItem({source}, true).outerHTML)")
    assert ("href" in made) == linked
    assert "2 January 2026" in made


def test_the_nearest_sentence_comes_first_and_none_twice(http: httpx2.Client) -> None:
    told = http.get("/v1/cultures/turkey/sources", params={"query": "tipping the waiter", "limit": 20}).json()
    quotes = [source["quote"] for source in told["data"]]
    assert len(quotes) == len(set(quotes)) <= 20
    assert all({"quote", "url", "fetched_at", "title", "rows"} <= source.keys() for source in told["data"])
    again = http.get("/v1/cultures/turkey/sources", params={"query": quotes[-1], "limit": 3}).json()
    assert quotes[-1] in [source["quote"] for source in again["data"]]


@pytest.mark.parametrize(("path", "status"), [
    ("/v1/cultures/atlantis/sources?query=tea", 404),
    ("/v1/cultures/turkey/sources?query=tea&limit=0", 400),
    ("/v1/cultures/turkey/sources?query=tea&limit=21", 400),
    ("/v1/cultures/turkey/sources", 400),
    (f"/v1/cultures/turkey/sources?query={'a' * 2001}", 400),
])
def test_a_wrong_request_for_sources_is_refused_in_openais_shape(http: httpx2.Client, path: str, status: int) -> None:
    response = http.get(path)
    assert response.status_code == status
    assert {"message", "type", "param", "code"} <= response.json()["error"].keys()


def test_a_project_without_its_rows_says_so(small_run: Path, tmp_path: Path) -> None:
    project = config.load(small_run, [f"workspace={tmp_path}"])
    assert TrainingSources(project).nearest("turkey", CUED, 5) == {"data": [], "reason": sources.NOT_DEPLOYED}


def test_rows_made_anew_are_found_at_once_and_held_out_ones_never(small_run: Path, tmp_path: Path) -> None:
    original = config.load(small_run)
    shutil.copytree(artifacts.workspace(original).local_path("examples"), tmp_path / "examples")
    project = config.load(small_run, [f"workspace={tmp_path}"])
    found = TrainingSources(project)
    row = next(row for row in artifacts.examples(project) if row.split == "train")
    assert row.quote in [source["quote"] for source in found.nearest(row.culture, row.quote, 3)["data"]]
    rows = [row.to_row() | {"id": split, "quote": f"{split} zeppelins", "split": split} for split in ("train", "validation")]
    with artifacts.workspace(project).stage("examples").writing("another") as draft:
        draft.write_rows(rows)
    assert [source["quote"] for source in found.nearest(row.culture, "a zeppelin", 5)["data"]] == ["train zeppelins"]
    assert found.nearest(row.culture, "qqqq", 5) == {"data": [], "reason": sources.NOTHING_NEAR}
    assert found.nearest("atlantis", "a zeppelin", 5) == {"data": [], "reason": sources.NO_ROWS}


# Keys


def test_sources_need_a_key_that_may_see_the_culture(endpoint: str) -> None:
    def status(culture: str, **headers: str) -> int:
        return httpx2.get(f"{endpoint}/v1/cultures/{culture}/sources?query=tea", headers=headers, timeout=60).status_code

    assert status("germany") == 401
    german = f"Bearer {GERMAN_KEY}"
    assert (status("germany", authorization=german), status("turkey", authorization=german)) == (200, 403)


def test_a_key_is_asked_for_and_a_wrong_one_refused(visit: Page) -> None:
    enter_key(visit, "a-wrong-key")
    visit.wait_for("document.querySelector('[role=alert]')?.textContent.includes('not accepted')")
    assert visit.evaluate("sessionStorage.length") == 0
    enter_key(visit, KEY)
    visit.wait_for(READY)
    assert visit.evaluate("document.getElementById('key-form').hidden")
    assert not visit.text("[role=alert]")


def test_the_key_stays_in_this_tab_and_out_of_every_address(page: Page) -> None:
    ask(page, CUED)
    page.wait_for(f"{ANSWERED} && {SOURCES}")
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    addresses = page.evaluate("[location.href, ...performance.getEntries().map((entry) => entry.name)]")
    assert not [address for address in addresses if KEY in address]
    page.click("#forget-key")
    page.wait_for("!document.getElementById('key-form').hidden && sessionStorage.length === 0")


def test_a_question_that_met_a_revoked_key_is_asked_with_the_next_one(page: Page) -> None:
    page.evaluate("sessionStorage.setItem('culturemanager-api-key', 'revoked')")
    ask(page, CUED)
    page.wait_for("!document.getElementById('key-form').hidden")
    enter_key(page, KEY)
    page.wait_for(ANSWERED)
    assert page.text("#asked") == CUED


# By keyboard, on a phone


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    page.wait_for("document.activeElement.id === 'question'")
    page.write("May I tip")
    page.press("Enter", shift=True)
    page.write("in Istanbul?")
    page.press("Enter")
    page.wait_for(f"{ANSWERED} && {SOURCES}")
    assert page.text("#asked").splitlines() == ["May I tip", "in Istanbul?"]
    stops = []
    for _ in range(20):
        page.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.tagName"))
        focus_shows = "(() => { const style = getComputedStyle(document.activeElement); return style.outlineStyle; })()"
        assert page.evaluate(focus_shows) != "none", stops[-1]
        if stops[-1] == "turkey":
            page.press(" ")
        if stops[-1] == "SUMMARY":
            break
    assert {"send", "turkey", "germany", "sources-culture"} <= set(stops)
    assert page.evaluate("document.querySelector('#choices input[value=turkey]').checked")


def test_escape_stops_the_answer(page: Page) -> None:
    ask(page, "Tell me everything about Turkish manners. " * 20)
    page.press("Escape")
    page.wait_for("document.querySelector('#routed').innerText.includes('You stopped the answer here')")
    assert page.evaluate("document.getElementById('stop').hidden && document.activeElement.id === 'question'")


@pytest.mark.parametrize("width", [320, 360])
def test_nothing_runs_off_a_phone(endpoint: str, browser: Browser, width: int) -> None:
    with browser.page(endpoint, width=width, height=740) as page:
        page.wait_for("!document.getElementById('key-form').hidden")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        enter_key(page, KEY)
        page.wait_for(READY)
        for name in ("turkey", "germany"):
            page.click(f"#choices input[value={name}]")
        ask(page, f"{CUED} {'x' * 200}")
        page.wait_for(f"{ANSWERED} && {SOURCES}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# Safety


def test_markup_is_shown_as_text(page: Page) -> None:
    markup = "<img src=x onerror='window.broken = true'><b>Istanbul</b>"
    ask(page, markup)
    page.wait_for(ANSWERED)
    assert page.text("#asked") == markup
    source = {"quote": markup, "title": markup, "url": "https://a/\"><img>", "fetched_at": "2026-01-02T00:00:00+00:00",
              "rows": [{"task": markup, "prompt": markup, "completion": markup}]}
    page.evaluate("import('/playground/view.js').then((view) => { const panel = new view.AnswerPanel('a');"
                  f"panel.add({markup!r}); routed.append(panel.element, view.sourceItem({source}, true)); }})")
    assert page.texts("#routed .answer")[-1] == markup
    assert page.evaluate("document.querySelectorAll('#result img, #result b').length") == 0
    assert page.evaluate("window.broken") is None


def test_the_policy_allows_nothing_foreign_and_nothing_inline(endpoint: str) -> None:
    page = httpx2.get(f"{endpoint}/", timeout=60)
    names = ["/", *(f"/playground/{name}" for name in ("style.css", "main.js", "endpoint.js", "view.js", "icon.svg"))]
    for name in names:
        response = httpx2.get(endpoint + name, timeout=60)
        assert response.status_code == 200, name
        assert response.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "").replace("^https?:\\/\\/", "")
    assert "<style" not in page.text
    assert " style=" not in page.text


@pytest.mark.parametrize("name", ["__init__.py", "..%2fapp.py", "../app.py", "%2e%2e%2fkeys.py", "page.html", "main.js%00"])
def test_no_other_file_is_served(endpoint: str, name: str) -> None:
    assert httpx2.get(f"{endpoint}/playground/{name}", timeout=60).status_code == 404


def test_using_the_page_logs_no_error_and_breaks_no_policy(page: Page) -> None:
    page.reload()
    page.wait_for(READY)
    for name in ("turkey", ""):
        page.click(f"#choices input[value='{name}']")
    for question in (CUED, UNCUED):
        ask(page, question)
        page.wait_for(ANSWERED)
    page.dark()
    page.evaluate("document.title")
    assert page.problems == []


# When it goes wrong


@pytest.mark.parametrize(("status", "headers", "message", "shown"), [
    (429, {"Retry-After": "7"}, "Too many requests are waiting.", "Wait 7 seconds, then ask again."),
    (503, {}, "the model is not ready", "The model is not ready. Ask again in a few seconds"),
    (403, {}, "This key may ask for germany", "Choose another culture"),
    (502, {}, None, "status 502. Ask again in a while."),
])
def test_a_refusal_is_shown_in_words_with_what_to_do(page: Page, status: int, headers: dict, message: str | None,
                                                     shown: str) -> None:
    body = f'{{"error": {{"message": "{message}"}}}}' if message else "<html>Bad gateway</html>"
    with page.answering("*/v1/chat/completions", status, headers, body):
        ask(page, CUED)
    page.wait_for(ANSWERED)
    assert shown in page.text("#routed [role=alert]")


def test_a_question_too_long_for_the_model_is_explained(page: Page) -> None:
    ask(page, "tea " * 3000)
    page.wait_for(ANSWERED)
    assert "2048" in page.text("#routed [role=alert]")
    assert page.text("#routed [role=alert]").endswith("ask again.")


def test_an_endpoint_out_of_reach_is_explained_and_the_next_question_works(page: Page) -> None:
    page.offline(True)
    ask(page, CUED)
    page.wait_for(ANSWERED)
    assert "cannot be reached" in page.text("#routed [role=alert]")
    assert page.text("#routed h3") == "No answer"
    page.offline(False)
    ask(page, CUED)
    page.wait_for(ANSWERED)
    assert page.text("#routed h3").startswith("Turkey")


def test_an_answer_that_breaks_off_is_explained(page: Page) -> None:
    chunk = '{"model": "turkey-v0001", "choices": [{"delta": {"content": "Leave"}, "finish_reason": null}]}'
    body = f'data: {chunk}\\n\\ndata: {{"error": {{"message": "the answer broke off: a replica died"}}}}\\n\\n'
    with page.answering("*/v1/chat/completions", 200, {"Content-Type": "text/event-stream"}, body.replace("\\n", "\n")):
        ask(page, CUED)
    page.wait_for(ANSWERED)
    assert page.text("#routed .answer") == "Leave"
    assert "The answer broke off: a replica died. Ask again." in page.text("#routed [role=alert]")
