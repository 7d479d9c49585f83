"""What `validate` finds before anything runs: folders, addresses, and the base model's name and layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from culturemanager import base_model, cli, hub
from culturemanager.embedded.base_model import LAYERS, base_model_path
from culturemanager.errors import UnknownModelError
from tests.loopback import Reply, site

ROOT = Path(__file__).resolve().parent.parent
CLOSED = "http://127.0.0.1:1"
"""Nothing listens there."""
RESULTS = Reply(json.dumps({"results": [{"url": "https://example.org/a", "title": "A"}]}))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    assert cli.execute(["init", str(tmp_path / "project.yaml"), "--culture", "turkey"]) == 0
    return tmp_path / "project.yaml"


def validate(project: Path, capsys: pytest.CaptureFixture[str], *overrides: str,
             options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code, and what was said on either stream."""
    capsys.readouterr()
    code = cli.execute(["validate", str(project), *options, *(word for override in overrides for word in ("--set", override))])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_what_a_project_leads_to_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = validate(project, capsys)
    assert code == 0
    for line in ("search      the embedded pages", "base model  embedded, 30 decoder layers", "cultures    1: turkey"):
        assert line in text
    assert text.endswith("project.yaml is fine.\n")


def test_what_a_project_leaves_empty_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    austria = "{id: austria, name: Austria, countries: [Austria], demonyms: [Austrian]}"
    _, alone = validate(project, capsys)
    assert "no row for choice: wrong options come from other cultures" in alone and "none for" not in alone
    _, two = validate(project, capsys, f"cultures=[turkey, {austria}]")
    assert "none for austria, which the evaluation leaves out" in two and "no row for" not in two


@pytest.mark.parametrize(("task", "said"), [
    ("kind: classification\nfields: [word]\nlabels: [formal, casual]", "generator needs two, one of them approving"),
    ("kind: generation\nmetric: keyphrases\nfields: [word, place]", "the extractive generator fills exactly one"),
])
def test_a_task_that_the_rules_cannot_fill_is_an_error(project: Path, capsys: pytest.CaptureFixture[str], task: str,
                                                       said: str) -> None:
    (project.parent / "register.yaml").write_text(f"id: register\ninstruction: Judge.\n{task}\ntemplate: '{{{{ word }}}}'\n")
    code, text = validate(project, capsys, "tasks=[register.yaml]", "examples.rows_of_task={}")
    assert (code, text.count("\n")) == (2, 1)
    assert said in text and "`examples.generator.kind: openai`" in text


def test_a_workspace_that_is_a_file_is_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for workspace in (project, project / "inner"):
        code, text = validate(project, capsys, f"workspace={workspace}")
        assert (code, text.count("\n")) == (2, 1)
        assert f"--set workspace: {project} is a file, and the workspace is a folder" in text


# Folders


def test_an_empty_folder_of_documents_is_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project.parent / "documents"
    (folder / ".hidden").mkdir(parents=True)
    for name in ("notes.pdf", ".hidden/a.txt"):
        (folder / name).write_text("Nothing to read.")
    code, text = validate(project, capsys, "pages.search.path=documents")
    assert (code, text.count("\n")) == (2, 1)
    assert f"pages.search.path: {folder} holds no document. Expected files that end in .html, .htm, .md, .txt" in text
    (folder / "inner").mkdir()
    (folder / "inner" / "a.TXT").write_text("Shoes are taken off.")
    assert validate(project, capsys, "pages.search.path=documents")[0] == 0
    assert validate(project, capsys, "pages.search.path=nowhere")[0] == 2


@pytest.mark.parametrize(("place", "override"), [("pages/own.txt", "pages.search.path=pages"),
                                                 ("index/deep/own.txt", "pages.search.path=index/deep"),
                                                 ("examples/own.yaml", "tasks=[examples/own.yaml]"),
                                                 ("evaluation/own.jsonl", "evaluation.items=evaluation/own.jsonl")])
def test_own_files_where_outputs_go_are_an_error(project: Path, capsys: pytest.CaptureFixture[str], place: str,
                                                 override: str) -> None:
    path = project.parent / place
    path.parent.mkdir(parents=True)
    path.write_text((project.parent / "tasks" / "acceptability.yaml").read_text() if path.suffix == ".yaml" else "\n")
    text = [override, "examples.rows_of_task={}"]
    assert validate(project, capsys, *text)[0] == 0
    code, said = validate(project, capsys, *text, "workspace=.")
    assert (code, said.count("\n")) == (2, 1)
    named = path.parent if path.suffix == ".txt" else path
    assert f"--set {override.partition('=')[0]}: {named} lies in {project.parent / Path(place).parts[0]}, where the" in said
    assert path.exists()


def test_what_a_project_writes_is_none_of_its_documents(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["pages.search.path=web", "workspace=web/runs"]
    report = project.parent / "web" / "runs" / "evaluation" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("A report.")
    assert "web holds no document" in validate(project, capsys, *overrides)[1]
    (project.parent / "web" / "runs" / "notes.md").write_text("A document.")
    assert validate(project, capsys, *overrides)[0] == 0


# Addresses


def searxng(url: str) -> str:
    return f"pages.search={{kind: searxng, url: '{url}'}}"


def test_a_search_engine_is_asked_once_and_left_alone_offline(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with site({"/search": RESULTS}) as engine:
        code, text = validate(project, capsys, searxng(engine.url))
        assert code == 0 and f"searxng at {engine.url}, which answers" in text
        assert engine.asked("/search") == 1
        code, text = validate(project, capsys, searxng(engine.url), options=("--offline",))
        assert code == 0 and f"searxng at {engine.url}, which was not asked" in text
        assert engine.asked("/search") == 1


@pytest.mark.parametrize("kind", ["searxng", "wikipedia"])
def test_a_search_engine_that_does_not_answer_is_an_error_at_once(project: Path, capsys: pytest.CaptureFixture[str],
                                                                 kind: str) -> None:
    override = f"pages.search={{kind: {kind}, url: '{CLOSED}'}}"
    started = time.monotonic()
    code, text = validate(project, capsys, override)
    assert time.monotonic() - started < 4
    assert (code, text.count("\n")) == (1, 1)
    for part in ("--set pages.search: ", f"{CLOSED}", "cannot be reached", "refused", "Check `pages.search.url`", "`--offline`"):
        assert part in text
    assert validate(project, capsys, override, options=("--offline",))[0] == 0


def test_a_search_engine_that_fails_is_not_asked_again_and_its_advice_is_told(project: Path,
                                                                             capsys: pytest.CaptureFixture[str]) -> None:
    with site({"/search": [Reply(status=403), Reply(status=503)]}) as engine:
        assert "add `json` to `search.formats`" in validate(project, capsys, searxng(engine.url))[1]
        assert "answered 503" in validate(project, capsys, searxng(engine.url))[1]
        assert engine.asked("/search") == 2


def test_a_secret_in_an_address_is_not_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("http://me:hush@127.0.0.1:1", "http://127.0.0.1:1/?key=hush", "http://me:hush@127.0.0.1:99999"):
        code, text = validate(project, capsys, searxng(address))
        assert code == 1 and "hush" not in text
        code, text = validate(project, capsys, searxng(address), options=("--offline",))
        assert code == 0 and "hush" not in text


def generator(url: str) -> str:
    return f"examples.generator={{kind: openai, model: m, base_url: '{url}/v1', api_key_env: MY_KEY}}"


def upstream(url: str) -> str:
    return f"serving.upstream={{base_url: '{url}/v1', api_key_env: MY_KEY}}"


SERVERS = pytest.mark.parametrize(("field", "override"), [("examples.generator", generator), ("serving.upstream", upstream)])


@SERVERS
def test_a_language_model_is_asked_for_its_models_with_the_key(project: Path, capsys: pytest.CaptureFixture[str],
                                                               monkeypatch: pytest.MonkeyPatch, field: str, override) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    replies = [Reply("{}"), Reply(status=404), Reply("sk-very-secret is wrong", 401), Reply(status=503)]
    with site({"/v1/models": replies}) as server:
        assert validate(project, capsys, override(server.url))[0] == 0
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
        assert validate(project, capsys, override(server.url))[0] == 0  # it answers; a list of models is not everyone's
        code, text = validate(project, capsys, override(server.url))
        assert code == 1 and f"{field}: {server.url}/v1 refused the key in MY_KEY (401). Set it again" in text
        assert "sk-very-secret" not in text
        assert f"{field}: {server.url}/v1 answered 503. Check" in validate(project, capsys, override(server.url))[1]
        assert server.asked("/v1/models") == 4
        assert validate(project, capsys, override(server.url), options=("--offline",))[0] == 0
        assert server.asked("/v1/models") == 4


@SERVERS
def test_a_language_model_that_does_not_answer_is_an_error(project: Path, capsys: pytest.CaptureFixture[str],
                                                           monkeypatch: pytest.MonkeyPatch, field: str, override) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    code, text = validate(project, capsys, override(CLOSED))
    assert (code, text.count("\n")) == (1, 1)
    assert f"{field}: {CLOSED}/v1 cannot be reached" in text and "refused" in text and f"Check `{field}.base_url`" in text
    monkeypatch.setenv("MY_KEY", "sk-very\nsecret")
    code, text = validate(project, capsys, override(CLOSED))
    assert code == 1 and "MY_KEY holds characters that no API key has" in text and "secret" not in text


# The base model


def test_the_embedded_base_has_the_layers_that_are_said() -> None:
    assert json.loads((base_model_path() / "config.json").read_text())["num_hidden_layers"] == LAYERS
    assert base_model.count_layers("embedded") == LAYERS


@pytest.mark.parametrize(("config", "layers"), [
    ({"num_hidden_layers": 24}, 24), ({"n_layer": 12}, 12), ({"text_config": {"num_hidden_layers": 26}}, 26), ({}, None),
])
def test_layers_of_a_folder_are_read_from_its_settings(tmp_path: Path, config: dict, layers: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert base_model.count_layers(str(tmp_path)) == layers


def test_last_layers_is_held_against_a_folder_s_layers(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project.parent / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_text("")
    (folder / "config.json").write_text('{"num_hidden_layers": 4}')
    code, text = validate(project, capsys, "base.path=model", "training.last_layers=5")
    assert code == 2 and "--set training.last_layers: 5, and the base model model has 4 decoder layers" in text
    assert validate(project, capsys, "base.path=model", "training.last_layers=4")[0] == 0
    (folder / "config.json").write_text("{}")
    code, text = validate(project, capsys, "base.path=model", "training.last_layers=99")
    assert code == 0 and "its layers were not checked" in text


# The hub: huggingface_hub reads its settings at import, so each case is a process of its own


def asked(arguments: list[str], endpoint: str, home: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A Python process with this hub and an empty cache; it, and its seconds."""
    started = time.monotonic()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT,
                          env=kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)} | environment)
    return done, time.monotonic() - started


NAME = "Qwen/Qwen2.5-0.5B-Instrukt"
CONFIG = f"/{NAME}/resolve/main/config.json"
REQUIRE = ["-c", f"from culturemanager import hub\ntry: hub.require({NAME!r}, 'base.path')\n"
                 "except Exception as error: print(type(error).__name__, error.exit_code, error)"]
HERE = {"ETag": '"1"', "X-Repo-Commit": "0" * 40}


@pytest.fixture
def hub_site() -> Iterator:
    routes: dict = {}
    with site(routes) as running:
        yield running


@pytest.mark.parametrize(("reply", "expected"), [
    (Reply(status=401), "UnknownModelError 2 {hub} has no model '{name}', or shows it to others only (it answered 401, asked "
                        "once). Check the name; set HF_TOKEN for a private or gated model, or set `base.path` to a local "
                        "folder."),
    (Reply(status=404, headers={"X-Error-Code": "RepoNotFound"}), "UnknownModelError 2 {hub} has no model '{name}'"),
    (Reply(status=403, headers={"X-Error-Code": "GatedRepo"}), "UnknownModelError 2 The model '{name}' is gated: {hub} shows it"),
    (Reply(status=503), "ModelError 1 {hub} answered 503 when asked once for the model '{name}'."),
    (Reply(status=404, headers={"X-Error-Code": "EntryNotFound"}), ""),
    (Reply("{}", headers=HERE), ""),
])
def test_the_hub_is_asked_once_and_its_answer_is_told(hub_site, tmp_path: Path, reply: Reply, expected: str) -> None:
    hub_site.routes[CONFIG] = reply
    done, _ = asked(REQUIRE, hub_site.url, tmp_path)
    assert done.stderr == ""
    assert done.stdout.startswith(expected.format(hub=hub_site.url, name=NAME)) and bool(done.stdout) == bool(expected)
    assert done.stdout.count("\n") <= 1
    assert hub_site.asked(CONFIG) == 1


@pytest.mark.parametrize(("reply", "expected"), [
    (Reply(status=404, headers={"X-Error-Code": "EntryNotFound"}), "UnknownModelError 2 The model '{name}' has no config.json"),
    (Reply(status=503), "ModelError 1 config.json of the model '{name}' could not be downloaded ("),
])
def test_a_model_whose_settings_cannot_be_had_is_told_in_one_line(hub_site, tmp_path: Path, reply: Reply, expected: str) -> None:
    hub_site.routes[CONFIG] = reply
    fetch = [REQUIRE[0], REQUIRE[1].replace(f"hub.require({NAME!r}, 'base.path')", f"hub.fetch_config({NAME!r})")]
    done, _ = asked(fetch, hub_site.url, tmp_path)
    assert done.stdout.startswith(expected.format(name=NAME)) and done.stdout.count("\n") == 1


def test_a_hub_that_is_not_reached_is_told_at_once(tmp_path: Path) -> None:
    done, seconds = asked(REQUIRE, CLOSED, tmp_path)
    assert done.stdout.startswith(f"ModelError 1 {CLOSED} cannot be reached (") and "not in the local cache" in done.stdout
    assert done.stderr == "" and seconds < 15


def test_a_name_that_is_not_cached_is_told_apart_where_the_hub_may_not_be_asked(hub_site, tmp_path: Path) -> None:
    done, _ = asked(REQUIRE, hub_site.url, tmp_path, HF_HUB_OFFLINE="1")
    assert "is not in the local cache, and HF_HUB_OFFLINE is set" in done.stdout and hub_site.requests == []


def test_loading_a_mistyped_name_fails_at_once_and_quietly(hub_site, tmp_path: Path) -> None:
    hub_site.routes[CONFIG] = Reply(status=404, headers={"X-Error-Code": "RepoNotFound"})
    load = (f"from culturemanager import base_model as b\nfor load in (b.load_base_model, b.load_outline, b.load_tokenizer):\n"
            f"    try: load({NAME!r})\n    except Exception as error: print(type(error).__name__)")
    for endpoint, kind in ((hub_site.url, "UnknownModelError"), (CLOSED, "ModelError")):
        done, _ = asked(["-c", load], endpoint, tmp_path)
        assert done.stdout.split() == [kind] * 3
        assert "Retrying" not in done.stderr
    assert hub_site.asked(CONFIG) == 3


def test_validate_asks_the_hub_for_the_layers_unless_it_is_to_stay_offline(hub_site, project: Path, tmp_path: Path) -> None:
    arguments = ["-m", "culturemanager", "validate", str(project), "--set", f"base.path={NAME}", "--set",
                 "training.last_layers=99"]
    done, _ = asked([*arguments, "--offline"], hub_site.url, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert f"{NAME} from the Hugging Face hub (there is no such folder); its layers were not checked" in done.stdout
    assert hub_site.requests == []
    hub_site.routes[CONFIG] = Reply('{"num_hidden_layers": 24}', headers=HERE)
    done, _ = asked(arguments, hub_site.url, tmp_path / "home")
    assert done.returncode == 2 and f"99, and the base model {NAME} has 24 decoder layers" in done.stderr
    done, _ = asked([*arguments, "--offline"], hub_site.url, tmp_path / "home")  # it is in the cache now
    assert done.returncode == 2 and "has 24 decoder layers" in done.stderr
    done, seconds = asked(arguments, CLOSED, tmp_path / "other")
    assert done.returncode == 1 and "cannot be reached" in done.stderr and seconds < 20
    assert done.stderr.count("\n") == 1


def test_what_no_model_can_be_called_is_refused() -> None:
    with pytest.raises(UnknownModelError, match="cannot be a name on the Hugging Face hub"):
        hub.cached("a b/c", "config.json")
