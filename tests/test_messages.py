"""What a slip in a YAML file is answered with: the field as the user wrote it, what was expected, what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from culturemanager import config
from culturemanager.config import Project
from culturemanager.errors import ConfigError
from culturemanager.reference import fields, matching
from culturemanager.sections.model import TrainingConfig
from culturemanager.sections.synthesis import QueriesConfig
from culturemanager.tasks import load_task

MINIMAL = "name: n\nworkspace: w\ncultures: [turkey]\ntasks: [t.yaml]\n"


@pytest.mark.parametrize(("text", "expected"), [
    (MINIMAL.replace("[turkey]", "[{id: austria}]"), "cultures.0.name: has to be given."),
    (MINIMAL.replace("[turkey]", "[{id: a, name: A, countries: A}]"),
     "cultures.0.countries: expected a list, such as [one, two] (found 'A')"),
    (MINIMAL.replace("[turkey]", "germany"), "cultures: expected a list, such as [one, two] (found 'germany')"),
    (MINIMAL.replace("[turkey]", "[]"), "cultures: expected at least 1 entry"),
    (MINIMAL.replace("[turkey]", "[no]"), "cultures.0: YAML reads an unquoted yes, no, on or off as true or false"),
    (MINIMAL + "training: 5\n", "training: expected `key: value` pairs (found 5)"),
    (MINIMAL + "training: {epocs: 5}\n", "training.epocs: unknown field; nearest: epochs"),
    (MINIMAL + "training: {colour: 5}\n", "training.colour: unknown field; known fields here: rank, alpha"),
    (MINIMAL + "epochs: 5\n", "epochs: unknown field; nearest: training.epochs."),
    (MINIMAL + "pages: {search: {kind: bing}}\n", "pages.search.kind: expected 'folder', 'searxng', 'wikipedia' (found 'bing')"),
    (MINIMAL + "pages: {search: {kind: folder, colour: 1}}\n",
     "pages.search.colour: unknown field; known fields here: kind, path."),
    (MINIMAL + "pages: {search: {kind: searxng, path: 1}}\n", "pages.search.url: has to be given; pages.search.path:"),
    (MINIMAL + "training: {epochs: 0, rank: 0, alpha: 0, batch_size: 0}\n", "And 1 more."),
    (MINIMAL + "name: again\n", ":5:1: not valid YAML: the key 'name' stands twice"),
])
def test_a_slip_in_a_project_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "project.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert expected in str(error.value)


def test_what_an_anchor_brings_in_may_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "project.yaml"
    path.write_text(MINIMAL.replace("[turkey]", "[&a {id: a, name: A}, {<<: *a, id: b}]"))
    assert [(culture.id, culture.name) for culture in config.load(path).cultures] == [("a", "A"), ("b", "A")]


@pytest.mark.parametrize(("written", "read"), [("yes", "yes"), ("no", "no"), ("auto", "auto"), ('"no"', "no")])
def test_use_gpu_takes_its_own_words_unquoted(tmp_path: Path, written: str, read: str) -> None:
    path = tmp_path / "project.yaml"
    path.write_text(MINIMAL + f"training: {{use_gpu: {written}}}\n")
    assert config.load(path).training.use_gpu == read


@pytest.mark.parametrize(("changes", "expected"), [
    ("labels: [yes, no]", "labels.0: YAML reads an unquoted yes, no, on or off"),
    ('labels: ["yes", "no"]\nseeds: [{inputs: {a: x}, answer: yes}]', "the answer is True, since YAML reads an unquoted yes"),
    ('labels: ["yes", "no"]\nseeds: [{inputs: hello, answer: "yes"}]', "expected `inputs`, with one value for each field"),
    ('labels: ["yes", "no"]\nseeds: [{inputs: null, answer: "yes"}]', "expected `inputs`, with one value for each field"),
    ('labels: ["yes", "no"]\nseeds: [{inputs: {a: x, 3: y}, answer: "yes"}]', "takes the fields ['a'], found ['a', 3]."),
    ('labels: ["yes", "no"]\nseeds: [{inputs: {a: 2026-02-03}, answer: "yes"}]', "is no text; put it in quotes"),
    ('labels: ["yes", "no"]\nseeds: [{inputs: {a: 2026-02-30}, answer: "yes"}]', ":7:22: not valid YAML: '2026-02-30' cannot"),
])
def test_a_slip_in_a_task_is_named(tmp_path: Path, changes: str, expected: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(f'id: t\nkind: classification\ninstruction: i\nfields: [a]\ntemplate: "{{{{ a }}}}"\n{changes}\n')
    with pytest.raises(ConfigError) as error:
        load_task(path)
    assert expected in str(error.value)


@pytest.mark.parametrize(("template", "expected"), [
    ("{{ 1 // 0 }}", "by zero"), ("{{ 'x'.encode('nothing') }}", "unknown encoding"),
    ("{{ a.index('z') }}", "not found"), ("{{ 'a'.rjust(10 ** 14) }}", ""), ("{% for n in range(10 ** 9) %}{% endfor %}", "big"),
])
def test_a_template_that_fails_in_any_way_is_named(tmp_path: Path, template: str, expected: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("id: t\nkind: generation\ninstruction: i\nfields: [a]\nmetric: keyphrases\n"
                    f'template: "{template} {{{{ a }}}}"\n')
    with pytest.raises(ConfigError, match=f"the template of task 't' fails: .*{expected}"):
        load_task(path)


@pytest.mark.parametrize(("inputs", "expected"), [
    ("{a: x}", r"seed 1: task 't' takes the fields \['a', 'options'\], found \['a'\]"),
    ("{a: x, options: 3}", "the options are 3; expected a list of texts"),
])
def test_a_seed_of_a_choice_has_options_and_they_are_a_list_of_texts(tmp_path: Path, inputs: str, expected: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text('id: t\nkind: multiple_choice\ninstruction: i\nfields: [a, options]\ntemplate: "{{ a }}"\n'
                    f"seeds: [{{inputs: {inputs}, answer: y}}]\n")
    with pytest.raises(ConfigError, match=expected):
        load_task(path)


def test_every_field_of_the_project_file_is_explained() -> None:
    known = {f"{field.name}[{field.kind}]" if field.kind else field.name: field for field in fields()}
    assert all(field.text for field in known.values())
    assert known["training.use_gpu"].default == "auto" and known["evaluation.shots"].default == "3"
    assert {f"training.{name}" for name in TrainingConfig.model_fields} <= known.keys()
    assert set(Project.model_fields) <= known.keys()
    assert known["pages.search.url[searxng]"].text.startswith("Root of the instance")
    assert known["pages.search.url[searxng]"].heading == "pages.search.url   (with kind: searxng, required)"


def test_settings_can_be_asked_for_by_section_and_by_word() -> None:
    assert [field.name for field in matching("queries")] == ["queries", *(f"queries.{name}" for name in
                                                                          QueriesConfig.model_fields)]
    assert [field.name for field in matching("epochs")] == ["training.epochs"]
    with pytest.raises(ConfigError, match=r"Nearest: .*epochs"):
        matching("epoks")
