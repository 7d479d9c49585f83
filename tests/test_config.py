"""The project file: what is accepted, and that a mistake is named in one line with the way out."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from culturemanager import config
from culturemanager.errors import ConfigError
from culturemanager.records import Passage
from culturemanager.sections.synthesis import ExtractiveGenerator, FolderSearch
from culturemanager.synthesis.passages import deduplicate

MINIMAL = "name: Test\nworkspace: runs\ncultures: [turkey]\ntasks: [task.yaml]\n"


def written(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "project.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_minimal_file_has_defaults_for_the_rest(tmp_path: Path) -> None:
    project = config.load(written(tmp_path))
    assert project.base.path == "embedded"
    assert project.pages.search == FolderSearch()
    assert project.examples.generator == ExtractiveGenerator()


def test_paths_are_relative_to_the_file_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = written(folder)
    monkeypatch.chdir(tmp_path)
    project = config.load(path.relative_to(tmp_path))
    assert project.workspace_url == str(folder / "runs")
    assert project.resolve("../tasks/a.yaml") == tmp_path / "tasks/a.yaml"


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run", "file:///tmp/run"])
def test_workspace_url_stays_as_it_is(tmp_path: Path, url: str) -> None:
    assert config.load(written(tmp_path), [f"workspace={url}"]).workspace_url == url


def test_a_home_that_nobody_knows_is_named(tmp_path: Path) -> None:
    project = config.load(written(tmp_path))
    with pytest.raises(ConfigError, match="'~nobody-of-that-name/pages' names no folder"):
        project.resolve("~nobody-of-that-name/pages")


def test_base_path_is_a_folder_of_the_project_or_a_hub_name(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = written(tmp_path)
    assert config.load(path).base_path == "embedded"
    assert config.load(path, ["base.path=model"]).base_path == str(tmp_path / "model")
    assert config.load(path, ["base.path=owner/name"]).base_path == "owner/name"


def test_a_folder_named_embedded_does_not_replace_the_embedded_model(tmp_path: Path) -> None:
    (tmp_path / "embedded").mkdir()
    assert config.load(written(tmp_path)).base_path == "embedded"


@pytest.mark.parametrize(("override", "read"), [
    ("training.epochs=2", lambda project: project.training.epochs == 2),
    ("training.learning_rate=1e-3", lambda project: project.training.learning_rate == 1e-3),
    ("cultures=[turkey, germany]", lambda project: project.cultures == ("turkey", "germany")),
    ("queries.topics=[tipping]", lambda project: project.queries.topics == ("tipping",)),
    ("pages.fetch.allow_private_addresses=true", lambda project: project.pages.fetch.allow_private_addresses is True),
    ("name=a=b", lambda project: project.name == "a=b"),
    ("evaluation.systems=[base]", lambda project: project.evaluation.systems == ("base",)),
])
def test_override_sets_one_field(tmp_path: Path, override: str, read) -> None:
    assert read(config.load(written(tmp_path), [override]))


def test_later_override_wins_and_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "training: {epochs: 7, rank: 3}\n")
    project = config.load(path, ["training.epochs=1", "training.epochs=2"])
    assert (project.training.epochs, project.training.rank) == (2, 3)


def test_section_without_a_kind_is_of_the_default_kind(tmp_path: Path) -> None:
    project = config.load(written(tmp_path), ["pages.search.path=docs"])
    assert project.pages.search == FolderSearch(path="docs")


def test_other_kinds_are_chosen_by_name(tmp_path: Path) -> None:
    search = "pages.search={kind: searxng, url: 'https://search.example.org'}"
    generator = "examples.generator={kind: openai, base_url: 'https://host.example.org/v1', model: m}"
    project = config.load(written(tmp_path), [search, generator])
    assert project.pages.search.kind == "searxng"
    assert project.examples.generator.api_key_env == "OPENAI_API_KEY"


@pytest.mark.parametrize(("override", "parts"), [
    ("training.epoch=2", ["--set training.epoch: unknown field; nearest: epochs."]),
    ("trainin.epochs=2", ["--set trainin.epochs: trainin: unknown field; nearest: training."]),
    ("epochs=2", ["--set epochs: unknown field; nearest: training.epochs."]),
    ("training.epochs=two", ["--set training.epochs=two: expected an integer."]),
    ("training.learning_rate=fast", ["--set training.learning_rate=fast: expected a number."]),
    ("queries.llm=2", ["--set queries.llm=2: expected true or false."]),
    ("training={epochs: two}", ["--set training: training.epochs: expected an integer (found 'two')."]),
    ("training.epochs=0", ["training.epochs", "greater than or equal to 1"]),
    ("training.dropout=1", ["training.dropout", "less than 1"]),
    ("serving.port=99999", ["serving.port", "65535"]),
    ("cultures=[]", ["cultures", "at least 1"]),
    ("pages.search.kind=google", ["--set pages.search.kind=google: expected 'folder', 'searxng', 'wikipedia'."]),
    ("base.dtype=int4", ["--set base.dtype=int4: expected 'float32' or 'bfloat16'."]),
    ("examples.generator={kind: openai, model: m}", ["base_url", "has to be given"]),
    ("examples.generator={kind: openai, model: m, base_url: x, api_key: sk-1}", ["api_key"]),
    ("training=5", ["training", "5"]),
    ("name.first=x", ["name", "not a group of fields"]),
    ("epochs", ["--set 'epochs'", "field.field=value"]),
    ("=2", ["--set '=2'", "field.field=value"]),
    ("a\nb=2", ["--set 'a\\nb=2'", "field.field=value"]),
    ("_a=2", ["--set _a: unknown field"]),
    ("training._rank=2", ["--set training._rank: unknown field; nearest: rank"]),
    ("cultures=[{id: a, name: A, _cues: [x]}]", ["cultures.0._cues: unknown field"]),
    ("training.epochs=[", ["--set", "not a YAML value"]),
    ("name=2026-02-30", ["--set", "not a YAML value"]),
    ("name=!!timestamp tea", ["--set", "not a YAML value"]),
    ("name=!!int", ["--set", "not a YAML value"]),
    ("training={rank: 2, rank: 4}", ["--set", "not a YAML value"]),
    ("passages.near_duplicate=0.97", ["passages.near_duplicate", "less than or equal to 0.96"]),
    ("pages.fetch.user_agent=Tée/1", ["user_agent", "'Tée/1' cannot be sent; expected printable ASCII"]),
    ('pages.fetch.user_agent="a\\nb"', ["user_agent", "expected printable ASCII"]),
    ("pages.fetch.user_agent=''", ["user_agent", "expected printable ASCII"]),
    ('cultures=[{id: a, name: A, cues: [Graz, ""]}]', ["cultures.0.cues.1: '' holds no letter"]),
    ('cultures=[{id: a, name: " "}]', ["cultures.0.name: ' ' holds no letter"]),
    ('cultures=[{id: a, name: A, demonyms: ["-"]}]', ["cultures.0.demonyms.0: '-' holds no letter"]),
])
def test_mistake_in_an_override_is_named(tmp_path: Path, override: str, parts: list[str]) -> None:
    text = message(written(tmp_path), override)
    for part in parts:
        assert part in text
    assert "project.yaml" not in text


def test_a_slip_is_laid_to_the_file_or_to_the_override_whichever_has_it(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "training: {rank: much, epochs: 2}\n")
    assert message(path, "training.epochs=3").endswith("project.yaml: training.rank: expected an integer (found 'much').")
    both = message(path, "training.epochs=two")
    assert both.startswith("--set training.epochs=two: expected an integer; ") and "project.yaml: training.rank: expected" in both
    assert config.load(path, ["training.rank=4"]).training.rank == 4


def test_the_value_of_a_field_that_does_not_exist_is_not_shown(tmp_path: Path) -> None:
    assert "sk-secret" not in message(written(tmp_path), "examples.generator.api_key=sk-secret")


def test_where_a_value_comes_from_is_known(tmp_path: Path) -> None:
    path = written(tmp_path)
    project = config.load(path, ["training={rank: 2}"])
    assert project.where("training.rank") == "--set training.rank"
    assert project.where("tasks") == f"{path}: tasks"


@pytest.mark.parametrize(("text", "parts"), [
    ("", ["key: value", "nothing"]),
    ("- a\n- b\n", ["key: value", "list"]),
    ("name: [\n", ["project.yaml:2:1", "not valid YAML"]),
    ("name: a\n\tworkspace: b\n", ["project.yaml:2:1", "not valid YAML"]),
    ("name: T\nworkspace: w\ncultures: [turkey]\n", ["tasks", "has to be given"]),
    (MINIMAL + "training:\n", ["training"]),
    (MINIMAL + "_a: 1\n", ["_a: unknown field"]),
    (MINIMAL + '"a\\nb": 1\n', [r"'a\nb': unknown field"]),
    ("name: T\nworkspace: 2026-02-30\n", ["project.yaml:2:12", "'2026-02-30' cannot be read", "put it in quotes"]),
    ("name: !!bool tea\n", ["project.yaml:1:7", "'tea' cannot be read", "put it in quotes"]),
    ("name: !!python/object/apply:os.system ['true']\n", ["not valid YAML"]),
])
def test_mistake_in_the_file_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    found = message(written(tmp_path, text))
    for part in ["project.yaml", *parts]:
        assert part in found


def test_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    assert "culturemanager init" in message(tmp_path / "nowhere.yaml")


def test_folder_and_binary_file_are_refused(tmp_path: Path) -> None:
    assert "Is a directory" in message(tmp_path)
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml" in message(path)


def test_project_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    project = config.load(written(tmp_path))
    copy = pickle.loads(pickle.dumps(project))
    assert copy == project
    assert copy.workspace_url == project.workspace_url


def test_project_cannot_be_changed(tmp_path: Path) -> None:
    project = config.load(written(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        project.training.epochs = 3


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
@example("a\nb=1")
@example("_a=1")
@example("training._a=1")
def test_any_override_either_loads_or_gives_one_line(tmp_path: Path, override: str) -> None:
    try:
        config.load(written(tmp_path), [override])
    except ConfigError as error:
        assert "\n" not in str(error).replace(override, "").replace(repr(override), "")


def test_the_strictest_near_duplicate_works(tmp_path: Path) -> None:
    strictest = config.load(written(tmp_path), ["passages.near_duplicate=0.96"]).passages.near_duplicate
    passages = [Passage(f"p{n}", "turkey", "page", "u", "t", "", f"Take off both shoes {'here' * n}", "en", n, "2026-01-01")
                for n in range(2)]
    assert deduplicate([*passages, passages[0]], strictest)[1] == {"exact_duplicate": 1}
