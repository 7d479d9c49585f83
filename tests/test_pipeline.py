"""The main job end to end on a small project: every stage leaves what the next one, the report and a person need."""

from __future__ import annotations

import json

from culturemanager import artifacts, config, project
from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.records import Example
from culturemanager.synthesis.passages import addresses_model
from culturemanager.tasks import contains_phrase

STAGES = ("queries", "pages", "passages", "index", "examples", "router", "evaluation")


def test_every_stage_is_complete_and_its_sums_hold(small_run):
    workspace = artifacts.workspace(config.load(small_run))
    for name in STAGES:
        stage = workspace.stage(name)
        for file in stage.manifest().files:
            assert stage.read_bytes(file)


def test_every_row_can_be_traced_to_a_sentence_of_a_passage(small_run):
    loaded = config.load(small_run)
    passages = {passage.id: passage for passage in artifacts.passages(loaded)}
    rows = artifacts.examples(loaded)
    assert {row.culture for row in rows} == {"turkey", "germany"} and {row.task for row in rows} == {
        "acceptability",
        "choice",
        "advice",
    }
    for row in rows:
        assert contains_phrase(passages[row.passage_ids[0]].text, row.quote)
        assert row.url == passages[row.passage_ids[0]].url and row.fetched_at
        assert set(row.checks.values()) == {"passed"}


def test_no_planted_instruction_reaches_a_row(small_run):
    for row in artifacts.examples(config.load(small_run)):
        assert not addresses_model(f"{row.prompt} {row.completion} {row.quote}")


def test_each_culture_has_a_promoted_adapter(small_run):
    registry = AdapterRegistry(small_run.parent / "work" / "adapters")
    assert registry.aliases() == {"turkey": "turkey-v0001", "germany": "germany-v0001"}


def test_the_scores_have_the_documented_shape(small_run):
    scores = json.loads((small_run.parent / "work" / "evaluation" / "scores.json").read_text())
    assert set(scores["systems"]) == {"base", "retrieval", "culturemanager", "oracle"}
    for system in scores["systems"].values():
        assert {"accuracy", "interval", "by_culture", "by_task", "unparsed"} <= set(system)
        assert system["interval"][0] <= system["accuracy"] <= system["interval"][1]
    assert {"accuracy_with_cue", "abstention_without_cue"} <= set(scores["router"])
    assert set(scores["interference"]) == {"turkey", "germany"} and scores["seed"] == 0


def test_the_report_is_one_file_that_needs_no_network(small_run):
    html = (small_run.parent / "work" / "evaluation" / "report.html").read_text()
    assert "CultureManager" in html and "src=\"http" not in html and "href=\"http" not in html


def test_a_second_run_changes_nothing(small_run):
    folder = small_run.parent / "work"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    project.run(project.load(small_run))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")} == before


def test_synthesis_from_nothing_gives_the_same_rows(small_run, tmp_path):
    loaded = project.load(small_run, [f"workspace={tmp_path}/again"])
    project.synthesize(loaded)
    assert artifacts.examples(loaded) == artifacts.examples(config.load(small_run))
    assert all(isinstance(row, Example) for row in artifacts.examples(loaded))
