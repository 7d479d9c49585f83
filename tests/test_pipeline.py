"""The main job end to end on a small project: every stage leaves what the next one, the report and a person need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from culturemanager import artifacts, config, project, questions
from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.errors import IncompleteStageError, NothingFoundError
from culturemanager.records import Example
from culturemanager.storage import FOLDERS
from culturemanager.synthesis import pipeline
from culturemanager.synthesis.passages import addresses_model
from culturemanager.tasks import contains_phrase

STAGES = ("queries", "pages", "passages", "index", "examples", "router", "evaluation")


def test_every_stage_is_complete_and_its_sums_hold(small_run):
    workspace = artifacts.workspace(config.load(small_run))
    for name in STAGES:
        stage = workspace.stage(name)
        for file in stage.manifest().files:
            assert stage.read_bytes(file)


def test_a_run_writes_into_the_folders_that_are_known_as_its_own(small_run):
    assert {path.name for path in (small_run.parent / "work").iterdir()} <= set(FOLDERS)


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


def test_rows_are_out_of_date_once_an_item_says_something_else(small_run, tmp_path):
    """The path of the items file says nothing of what training must not have seen."""
    copy = shutil.copytree(small_run.parent, tmp_path / "copy")
    loaded = config.load(copy / small_run.name)
    assert pipeline.stage_status(loaded)["examples"]
    items = copy / "items.jsonl"
    read = [json.loads(line) for line in items.read_text().splitlines()]
    next(item for item in read if (item["culture"], item["task"]) == ("turkey", "advice"))["inputs"]["question"] += " Please."
    items.write_text("\n".join(map(json.dumps, read)))
    status = pipeline.stage_status(loaded)
    assert not status.pop("examples")
    assert all(status.values())
    with pytest.raises(IncompleteStageError, match="out of date: examples"):
        project.evaluate(loaded)


def test_what_was_made_with_another_embedding_model_is_not_used(small_run):
    loaded = config.load(small_run)
    embedder = artifacts.open_embedder(loaded)
    other = config.load(small_run, ["embedding.model=sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"])
    for name, opened in (("index", artifacts.open_index), ("router", artifacts.open_router)):
        opened(loaded, embedder)
        with pytest.raises(IncompleteStageError, match=f"The stage '{name}' .* with the embedding model 'embedded'"):
            opened(other, embedder)


def test_an_index_of_other_passages_is_told_by_search_too(small_run, tmp_path):
    loaded = config.load(shutil.copytree(small_run.parent, tmp_path / "copy") / small_run.name)
    stage = artifacts.workspace(loaded).stage("passages")
    rows, manifest = stage.read_rows(), stage.manifest()
    with stage.writing(manifest.fingerprint) as draft:
        draft.write_rows([row for row in rows if row["id"] != rows[0]["id"]])
        draft.details = manifest.details
    with pytest.raises(IncompleteStageError, match="other passages"):
        questions.search_passages(loaded, "tipping")


def test_other_pages_make_all_that_came_of_them_out_of_date(small_run, tmp_path):
    loaded = config.load(shutil.copytree(small_run.parent, tmp_path / "copy") / small_run.name)
    assert all(pipeline.stage_status(loaded).values())
    stage, key = artifacts.workspace(loaded).stage("pages"), pipeline.Synthesis(loaded, None).fingerprint("pages")
    rows, details = stage.read_rows(), stage.manifest().details

    def fetched_again(rows: list[dict]) -> dict[str, bool]:
        with stage.writing(key) as draft:
            draft.write_rows(rows)
            draft.details = details
        return pipeline.stage_status(loaded)

    assert all(fetched_again(rows).values())  # the same as before
    assert fetched_again(rows[:-1]) == {"queries": True, "pages": True, "passages": False, "index": False, "examples": False}


@pytest.mark.parametrize(("changed", "again"), [({"model": "other"}, True), ({"temperature": 0}, True),
                                                ({"concurrency": 2}, False), ({"timeout_s": 9}, False)])
def test_queries_are_written_again_by_another_language_model_if_one_writes_them(small_run, changed: dict, again: bool):
    def key(llm: bool, changes: dict) -> str:
        generator = json.dumps({"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"} | changes)
        settings = [f"queries.llm={json.dumps(llm)}", f"examples.generator={generator}"]
        return pipeline.Synthesis(config.load(small_run, settings), None).fingerprint("queries")

    assert (key(True, {}) != key(True, changed)) is again
    assert key(False, {}) == key(False, changed)


def test_letting_more_pages_fail_throws_nothing_away_that_was_fetched(small_run):
    keys = {pipeline.Synthesis(config.load(small_run, settings), None).fingerprint("pages")
            for settings in ([], ["pages.may_fail=0.9"])}
    assert len(keys) == 1


def test_where_no_page_is_found_nothing_counts_as_done(ray_cluster, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "menu.md").write_text("# Menu\n\nSoup of the day.\n")
    tasks = Path(__file__).parents[1] / "examples" / "tasks"
    path = tmp_path / "project.yaml"
    path.write_text(f"name: None\nworkspace: work\ncultures: [turkey, germany]\ntasks: [{tasks}/advice.yaml]\n"
                    "pages: {search: {kind: folder, path: documents}}\n")
    loaded = config.load(path)
    for _ in range(2):
        with pytest.raises(NothingFoundError, match=r"no page was found for any culture \(.*turkey: none of \d+ queries"):
            project.run(loaded)
        assert not pipeline.stage_status(loaded)["pages"]
    assert NothingFoundError.exit_code == 1
