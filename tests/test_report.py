"""The report: one safe file, whose figures and sentences are those of scores.json."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re

import lxml.html
import pytest
from lxml import etree
from rich.console import Console

from culturemanager.errors import CorruptFileError
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.charts import heat_level
from culturemanager.evaluation.findings import headline, points, sample
from culturemanager.evaluation.provenance import Sources, StageCount, read_sources
from culturemanager.evaluation.report import comparison_table, render_report, write_report
from culturemanager.evaluation.results import Evaluation, save
from culturemanager.items import ItemSet
from culturemanager.records import to_rows
from culturemanager.storage import Workspace
from tests.evaluation_world import PLACE_TASKS, TEN, THREE, ScriptedEngine, examples, knowledge, run, world

PLACE = world()


def evaluate(systems=tuple(SYSTEMS), skill=knowledge, place=PLACE, **changes) -> Evaluation:
    return run(place, ScriptedEngine(place.items, place.tasks, place.tokenizer, skill), systems, **changes)


def fill(workspace: Workspace) -> Workspace:
    """A workspace as synthesis and training leave it, small."""
    rows = examples(PLACE.cultures)
    details = {"queries": {"rows": 36}, "pages": {"rows": 20, "dropped": {"robots": 2, "timeout": 0}},
               "passages": {"rows": 60, "dropped": {"near_duplicate": 7}},
               "examples": {"rows": len(rows), "dropped": {"names_culture": 4, "leakage": 1}}}
    for name, content in details.items():
        with workspace.stage(name).writing("f") as draft:
            draft.write_rows(to_rows(rows) if name == "examples" else [{"x": 1}])
            draft.details = content
    curve = {"steps": [1, 2, 3, 4], "loss": [3.0, 2.0, 1.5, 1.25], "validation_steps": [2, 4], "validation": [2.5, 1.75]}
    path = workspace.local_path("training", "curves.json")
    path.parent.mkdir()
    names = ("turkey", "germany", "brazil", "joint", "agnostic_turkey", "of_an_older_run")
    path.write_text(json.dumps(dict.fromkeys(names, curve)))
    return workspace


@pytest.fixture(scope="module")
def evaluation():
    return evaluate()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return read_sources(fill(Workspace(tmp_path_factory.mktemp("workspace"))))


@pytest.fixture(scope="module")
def text(evaluation, sources):
    return render_report(evaluation, sources, "Everyday etiquette")


@pytest.fixture(scope="module")
def page(text):
    return lxml.html.document_fromstring(text)


def table(page, section: str, number: int = 0) -> list[list[str]]:
    found = page.xpath(f"//section[@id='{section}']//table")[number]
    return [[cell.text_content().strip() for cell in row.xpath("./th|./td")] for row in found.xpath(".//tr")]


def images(page) -> list[str]:
    return page.xpath("//img/@src") + page.xpath("//source/@srcset")


# ---- one file, safe to open


def test_a_difference_of_nothing_has_no_minus():
    assert [points(share) for share in (-0.0, -0.0002, 0.0812, -0.0222)] == ["+0.0", "+0.0", "+8.1", "\u22122.2"]


def test_nothing_in_it_comes_from_elsewhere(page):
    assert images(page)
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in images(page))
    for tag in ("script", "link", "iframe", "object", "embed", "form", "base", "video", "audio"):
        assert not page.xpath(f"//{tag}")
    assert not page.xpath("//*[@style] | //@*[starts-with(name(), 'on')]")
    assert "url(" not in page.xpath("string(//style)") and "@import" not in page.xpath("string(//style)")


def test_the_security_policy_allows_its_own_style_sheet_and_its_own_images_only(page):
    policy = page.xpath("string(//meta[@http-equiv='Content-Security-Policy']/@content)")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digest = base64.b64encode(hashlib.sha256(page.xpath("string(//style)").encode()).digest()).decode()
    assert rules == {"default-src": "'none'", "style-src": f"'sha256-{digest}'", "img-src": "data:", "base-uri": "'none'",
                     "form-action": "'none'"}


def test_every_image_is_well_formed_and_holds_no_script_and_no_reference(page):
    for uri in images(page):
        root = etree.fromstring(base64.b64decode(uri.partition(",")[2]))
        assert not root.xpath("//*[local-name()='script' or local-name()='foreignObject' or local-name()='image']")
        references = [value for name, value in ((a.attrname, str(a)) for a in root.xpath("//@*")) if name.endswith("href")]
        assert all(value.startswith("#") for value in references)


def test_images_follow_the_light_or_dark_setting(page):
    for uri in images(page):
        svg = base64.b64decode(uri.partition(",")[2]).decode()
        assert "prefers-color-scheme:dark" in svg and "var(--ink)" in svg
        assert not re.search(r"#0[0-9a-f]{2}0fe", svg)  # a stand-in without its variable
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(re.findall(r"--(\w+):", svg))


def test_every_chart_has_words_for_those_who_do_not_see_it_and_a_table_in_its_section(page):
    for image in page.xpath("//img"):
        assert len(image.get("alt")) > 20
        assert image.xpath("ancestor::section//table")


HOSTILE = "<script>alert(1)</script>$\\frac{1}$&\"'"


def test_text_from_pages_models_and_project_files_is_escaped():
    cultures = tuple(dataclasses.replace(culture, name=f"{HOSTILE}{culture.id}") for culture in PLACE.cultures)
    evaluation = evaluate(["base", "culturemanager"], cultures=cultures)
    answers = tuple(dataclasses.replace(one, question=HOSTILE, expected=HOSTILE,
                                        score=dataclasses.replace(one.score, answer=HOSTILE)) for one in evaluation.answers)
    bad = Sources([StageCount("pages", 1, {HOSTILE: 2})], {"turkey": {HOSTILE: 3}},
                  {"turkey": [("javascript:alert(1)", 2), ("https://pages.example/?q=<b>", 1)]}, {HOSTILE: 3}, {})
    html = render_report(Evaluation(evaluation.summary, answers), bad, HOSTILE)
    found = lxml.html.document_fromstring(html)
    assert not found.xpath("//script") and "<script" not in html
    assert found.xpath("//a[starts-with(@href, 'http')]/@href") == ["https://pages.example/?q=<b>"]
    assert not found.xpath("//a[not(starts-with(@href, '#')) and not(starts-with(@href, 'http'))]")
    assert found.xpath("string(//h1)") == HOSTILE
    for uri in images(found):
        assert not etree.fromstring(base64.b64decode(uri.partition(",")[2])).xpath("//*[local-name()='script']")


# ---- the figures are those of scores.json


def test_the_comparison_table_agrees_with_the_scores(page, evaluation):
    rows = {row[0]: row for row in table(page, "comparison")[1:]}
    assert len(rows) == len(SYSTEMS)
    for name, entry in evaluation.summary["systems"].items():
        row = rows[SYSTEMS[name].label]
        assert row[1] == f"{100 * entry['accuracy']:.1f}%"
        assert row[2] == "{:.1f} to {:.1f}".format(*(100 * value for value in entry["interval"]))
        assert row[-1] == str(entry["unparsed"])
    accuracies = [float(row[1][:-1]) for row in table(page, "comparison")[1:]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_culture_task_and_interference_tables_agree_with_the_scores(page, evaluation):
    summary = evaluation.summary
    by_label = {SYSTEMS[name].label: entry for name, entry in summary["systems"].items()}
    head, *rows = table(page, "cultures")
    assert head[1:] == ["Turkey", "Germany", "Brazil"]
    for row in rows:
        assert row[1:] == [f"{100 * by_label[row[0]]['by_culture'][culture]:.0f}" for culture in THREE]
    for row in table(page, "tasks")[1:]:
        shares = [by_label[row[0]]["by_task"][task.id] for task in PLACE_TASKS]
        assert [cell.split("%")[0] for cell in row[1:]] == [f"{100 * share:.1f}" for share in shares]
    for row in table(page, "interference")[1:]:
        assert row[1:] == [f"{100 * value:.0f}" for value in summary["interference"][row[0].lower()].values()]


def test_the_router_tables_add_up_to_the_items(page, evaluation):
    router = evaluation.summary["router"]
    counts = {row[0]: list(map(int, row[1:])) for row in table(page, "router")[1:]}
    assert sum(counts["text shows its culture"]) == router["items_with_cue"]
    assert sum(counts["text does not"]) == router["items_without_cue"]
    right = counts["text shows its culture"][0]
    assert right / router["items_with_cue"] == pytest.approx(router["accuracy_with_cue"], abs=1e-4)
    confusion = table(page, "router", 1)
    assert sum(int(cell) for row in confusion[1:] for cell in row[1:]) == router["items_with_cue"]


def test_seed_rule_and_intervals_are_told(page, evaluation):
    method = page.xpath("string(//section[@id='method'])")
    assert evaluation.summary["aggregation"] in method
    assert "seed 0" in method and "100 resamples" in method
    facts = dict(zip(page.xpath("//header//dt/text()"), page.xpath("//header//dd/text()"), strict=True))
    assert facts == {"systems": "10", "questions": "135", "cultures": "3", "tasks": "3", "seed": "0"}


@pytest.mark.parametrize(("share", "level"), [(0.0, 0), (0.05, 0), (0.5, 5), (0.999, 10), (1.0, 10)])
def test_heat_levels_cover_the_whole_scale(share, level):
    assert heat_level(share) == level


# ---- the sentence at the top is honest



def rivalry(own: float, rival: float) -> str:
    def skill(adapter, prompt, item):
        return rival if adapter.startswith("joint") else own if adapter else 0.1

    evaluation = evaluate(["base", "joint", "culturemanager"], skill)
    return headline(evaluation.summary)


def test_it_says_by_how_much_culturemanager_leads():
    assert re.fullmatch(r"CultureManager answers \d\d\.\d% of the questions right, \d\d\.\d points more than the best "
                        r"rival, “Joint adapter”, with \d\d\.\d% \(95% interval of the difference [\d.]+ to [\d.]+\)\.",
                        rivalry(0.95, 0.5))


def test_it_says_so_when_culturemanager_is_not_best():
    said = rivalry(0.3, 0.95)
    assert said.startswith("CultureManager is not the best system here: “Joint adapter” answers")


def test_it_says_so_when_the_difference_may_be_chance():
    said = rivalry(0.6, 0.6)
    assert said.startswith("CultureManager and its best rival cannot be told apart")


def test_the_oracle_and_the_own_variant_are_no_rivals():
    evaluation = evaluate(["base", "culturemanager", "culturemanager_retrieval", "oracle"])
    assert "“Base”" in headline(evaluation.summary)


def test_without_culturemanager_it_names_the_best_system():
    said = headline(evaluate(["base", "joint"]).summary)
    assert re.match(r"Joint adapter answers \d\d\.\d% .* the most of the 2 systems compared\.", said)


# ---- samples and sources


def test_samples_are_items_on_which_systems_differ_spread_over_cultures_and_tasks(evaluation):
    chosen = sample(evaluation.answers, 12, 0)
    assert len(chosen) == len({own[0].score.item_id for own in chosen}) == 12
    for own in chosen:
        assert len(own) == len(SYSTEMS)
        assert {one.score.correct for one in own} == {True, False}
    for values in ([own[0].score.culture for own in chosen], [own[0].score.task for own in chosen]):
        assert all(values.count(value) == 4 for value in set(values))
    assert sample(evaluation.answers, 12, 0) == chosen
    assert sample(evaluation.answers, 12, 1) != chosen


def test_systems_that_agree_everywhere_give_no_samples():
    assert sample(evaluate(["base"]).answers, 12, 0) == []


def test_sources_are_read_from_the_workspace(sources):
    assert [(stage.name, stage.rows, dict(stage.dropped)) for stage in sources.stages] == [
        ("queries", 36, {}), ("pages", 20, {"robots": 2}), ("passages", 60, {"near_duplicate": 7}),
        ("examples", 108, {"names_culture": 4, "leakage": 1})]
    assert sources.rows["turkey"] == {"acceptability": 12, "choice": 12, "advice": 12}
    assert sources.pages["turkey"] == [(f"https://pages.example/turkey/{n}", 9) for n in range(4)]
    assert sources.generators == {"extractive": 108}
    assert sources.curves["turkey"].validation == [(2, 2.5), (4, 1.75)]


def test_where_rows_came_from_and_what_was_dropped_is_shown(page):
    section = page.xpath("//section[@id='data']")[0].text_content()
    for words in ("https://pages.example/turkey/3", "names culture 4", "leakage 1", "near duplicate 7", "extractive (108)"):
        assert words in section


def test_loss_curves_are_those_of_the_adapters_compared(page):
    rows = [row for number in (0, 1) for row in table(page, "losses", number)[1:]]
    assert [row[0] for row in rows] == ["Turkey", "Germany", "Brazil", "joint", "agnostic_turkey"]
    assert rows[0][1:] == ["4", "3.000", "1.250", "1.750", "1.750"]


def test_damaged_loss_curves_are_named(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "curves.json").write_text('{"turkey": {"steps": [1, 2], "loss": [1.0]}}')
    with pytest.raises(CorruptFileError, match=r"training/curves.json is not a file of loss curves"):
        read_sources(Workspace(tmp_path))


def test_an_empty_workspace_still_gives_a_report(tmp_path):
    small = world(["turkey"])
    small.items = ItemSet(tuple(item for item in small.items.items if item.task == "advice" and not item.cue), {"task": 1})
    evaluation = evaluate(["base"], place=small, tasks=PLACE_TASKS[2:])
    found = lxml.html.document_fromstring(render_report(evaluation, read_sources(Workspace(tmp_path)), "Small"))
    assert "This workspace holds no training rows." in found.text_content()
    assert not found.xpath("//section[@id='interference' or @id='losses' or @id='samples']")


def test_many_cultures_still_fit(evaluation):
    names = {f"c{number}": f"Culture {number}" for number in range(30)}
    matrix = {row: {column: (row == column) * 0.5 + 0.25 for column in names} for row in names}
    summary = {**evaluation.summary, "cultures": names, "interference": matrix, "items_by_culture": dict.fromkeys(names, 5)}
    assert render_report(Evaluation(summary, ()), Sources(), "Many").count("<h2>") >= 6


def test_the_report_is_written_with_the_stage(tmp_path, evaluation):
    stage = Workspace(tmp_path).stage("evaluation")
    with stage.writing("f") as draft:
        save(draft, evaluation)
        write_report(draft, evaluation, Sources(), "Etiquette")
    assert set(stage.manifest().files) == {"scores.json", "answers.parquet", "report.html"}
    assert b"<title>Etiquette: evaluation</title>" in stage.read_bytes("report.html")


def test_the_terminal_table_fits_80_columns_for_ten_cultures(evaluation):
    place = world(TEN)
    place.items = ItemSet(tuple(item for item in place.items.items if item.id.endswith("01")), {})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(comparison_table(evaluate(["base", "culturemanager_retrieval"], place=place)))
    printed = console.export_text()
    assert "…" not in printed
    assert printed.split()[3:13] == "Jor Ban Chi US Ger Gre SK Bra Mex Tur".split()
    assert "culturemanager_retrieval" in printed


def test_the_terminal_table_agrees_with_the_scores(evaluation):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(comparison_table(evaluation))
    lines = {line.split()[0]: line.split() for line in console.export_text().splitlines() if line.strip()}
    for name, entry in evaluation.summary["systems"].items():
        assert lines[name][1] == f"{100 * entry['accuracy']:.1f}"
        assert lines[name][3:6] == [f"{100 * entry['by_culture'][culture]:.0f}" for culture in THREE]
        assert lines[name][6] == str(entry["unparsed"])
