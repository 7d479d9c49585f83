"""API keys: found by their sums, limited by a rate that refills evenly, read from a file that says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from culturemanager import cli
from culturemanager.config import load
from culturemanager.errors import ConfigError
from serve_app.app import build
from serve_app.keys import NOBODY, ApiKey, ApiKeys, collect_keys, key_sum, keys_of


def test_without_keys_everyone_is_admitted():
    assert ApiKeys([]).identify(None) is NOBODY


@pytest.mark.parametrize(("header", "name"), [
    ("Bearer one", "key-1"), ("bearer two", "key-2"), ("Bearer  two ", "key-2"), ("Bearer three", None), ("Basic one", None),
    ("one", None), ("", None), (None, None), ("Bearer \udcff", None)])
def test_a_key_is_known_by_its_sum(header, name):
    keys = ApiKeys(collect_keys("one, two"))
    found = keys.identify(header)
    assert (found.name if found else None) == name


def test_an_allowance_refills_evenly_and_never_holds_more_than_a_minute():
    now = 0.0
    keys = ApiKeys([], clock=lambda: now)
    key = ApiKey(name="a", sha256="0" * 64, requests_per_minute=6)
    assert [keys.take(key) for _ in range(6)] == [None] * 6
    assert keys.take(key).retry_after_s == 10
    now = 0.7
    assert keys.take(key).retry_after_s == 10  # 9.3 s: who comes after 9 would be refused again
    now = 10.0
    assert keys.take(key) is None and keys.take(key).status == 429
    now = 10_000.0
    assert [keys.take(key) is None for _ in range(7)] == [True] * 6 + [False]


def test_a_file_adds_keys_with_their_limits(tmp_path: Path):
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n  - {{name: shop, sha256: {key_sum('secret')}, cultures: [turkey], requests_per_minute: 5}}\n")
    keys = collect_keys("one", file)
    assert [key.name for key in keys] == ["key-1", "shop"]
    assert ApiKeys(keys).identify("Bearer secret").cultures == ("turkey",)


@pytest.mark.parametrize(("text", "said"), [
    ("keys:\n  - {name: a, sha256: nonsense}", "sha256"), ("keys:\n  - {name: 'a b', sha256: x}", "name"),
    ("- a", "key: value"), (f"keys:\n  - {{name: a, sha256: '{'0' * 64}', more: 1}}", "more"),
    (f"keys:\n  - {{name: a, sha256: '{'0' * 64}'}}\n  - {{name: a, sha256: '{'1' * 64}'}}", "used twice"),
])
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text, said):
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as told:
        collect_keys("", file)
    assert "keys.yaml" in str(told.value)


@pytest.fixture
def project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CULTUREMANAGER_API_KEYS", raising=False)
    path = tmp_path / "project.yaml"
    path.write_text("name: n\nworkspace: w\ncultures: [turkey]\ntasks: [t.yaml]\n")
    return path


@pytest.mark.parametrize(("variable", "file", "said"), [
    (",", None, "CULTUREMANAGER_API_KEYS is set and holds no key"), (" ", None, "CULTUREMANAGER_API_KEYS is set"),
    ("", "keys: []", r"serving\.keys_file: .*keys\.yaml holds no key.*keys new"),
    ("one", "keys: []", "holds no key"), ("", "missing", r"serving\.keys_file: Cannot read .*keys\.yaml"),
])
def test_a_place_for_keys_that_holds_none_is_an_error(project_file, monkeypatch, variable, file, said):
    monkeypatch.setenv("CULTUREMANAGER_API_KEYS", variable)
    keys = project_file.with_name("keys.yaml")
    if file and file != "missing":
        keys.write_text(file)
    with pytest.raises(ConfigError, match=said):
        keys_of(load(project_file, [f"serving.keys_file={keys}"] if file else []))


def test_an_application_without_keys_is_built_only_if_that_is_said(project_file, monkeypatch):
    with pytest.raises(ConfigError, match=r"CULTUREMANAGER_API_KEYS.*without_keys"):
        build({"project": str(project_file)})
    build({"project": str(project_file), "without_keys": True})
    monkeypatch.setenv("CULTUREMANAGER_API_KEYS", "one")
    build({"project": str(project_file)})


def test_every_queue_once_full_gives_429_and_the_routers_is_full_before_the_ingress(project_file):
    ingress = build({"project": str(project_file), "without_keys": True})._bound_deployment
    router = ingress.init_args[0]._bound_deployment
    replica = router.init_args[2]._bound_deployment
    assert [one.name for one in (ingress, router, replica)] == ["Ingress", "CultureRouter", "Replica"]
    for deployment in (ingress, router, replica):
        told = deployment._deployment_config.backpressure_config
        assert (told.status_code, told.retry_after_s) == (429, 1)
    assert ingress.max_ongoing_requests > router.max_ongoing_requests + router.max_queued_requests


def test_the_command_shows_a_key_once_and_keeps_its_sum(tmp_path: Path, capsys):
    file = tmp_path / "keys.yaml"
    assert cli.execute(["keys", "new", "shop", "--file", str(file), "--culture", "turkey", "--per-minute", "5"]) == 0
    assert cli.execute(["keys", "new", "all", "--file", str(file)]) == 0
    shop, everything = capsys.readouterr().out.split()
    keys = ApiKeys(collect_keys("", file))
    assert keys.identify(f"Bearer {shop}").cultures == ("turkey",) and keys.identify(f"Bearer {shop}").requests_per_minute == 5
    assert keys.identify(f"Bearer {everything}").name == "all" and keys.identify(f"Bearer {everything}").cultures is None
    assert shop not in file.read_text()
    for wrong in (["shop"], ["a b"], ["one", "--per-minute", "0"]):
        before = file.read_text()
        assert cli.execute(["keys", "new", *wrong, "--file", str(file)]) == 2
        assert file.read_text() == before
