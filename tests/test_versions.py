"""Trials of a version, and which version answers when one fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from culturemanager import cli
from culturemanager.adapters.aliases import CANARIES_FILE
from culturemanager.adapters.registry import VERSION_FILE, AdapterRegistry
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError, CorruptFileError, RequestError
from serve_app.router import _refusal
from serve_app.versions import CONDEMNED_S, ServingVersions, place

TENSORS = {"h.q.lora_A": torch.ones(2, 4), "h.q.lora_B": torch.ones(6, 2)}


@pytest.fixture
def registry(tmp_path):
    registry = AdapterRegistry(tmp_path / "work" / "adapters")
    for _ in range(3):
        registry.publish("turkey", AdapterShape(2, 4), TENSORS, "base", ["h.q"], "0" * 64, {})
    registry.promote("turkey-v0001")
    registry.promote("turkey-v0002")
    return registry


def test_a_trial_ends_with_a_rollback_or_a_promotion(registry):
    registry.try_out("turkey-v0003", 0.25)
    assert registry.canaries() == {"turkey": ("turkey-v0003", 0.25)} and registry.aliases() == {"turkey": "turkey-v0002"}
    assert registry.rollback("turkey") == "turkey-v0002" and registry.canaries() == {}
    registry.try_out("turkey-v0003", 0.25)
    registry.promote("turkey-v0003")
    assert registry.canaries() == {} and registry.aliases() == {"turkey": "turkey-v0003"}
    assert registry.rollback("turkey") == "turkey-v0002"


@pytest.mark.parametrize(("name", "share", "said"), [
    ("turkey-v0003", 1.0, "0.1"), ("turkey-v0003", 0.0, "0.1"), ("turkey-v0003", float("nan"), "0.1"),
    ("turkey-v0002", 0.5, "serves already"), ("turkey-v0009", 0.5, "no adapter version")])
def test_a_trial_that_cannot_be_is_refused(registry, name, share, said):
    with pytest.raises(AdapterError, match=said):
        registry.try_out(name, share)


def test_a_trial_needs_something_that_serves(tmp_path):
    registry = AdapterRegistry(tmp_path)
    registry.publish("turkey", AdapterShape(2, 4), TENSORS, "base", ["h.q"], "0" * 64, {})
    with pytest.raises(AdapterError, match="nothing serves yet"):
        registry.try_out("turkey-v0001", 0.5)


@pytest.mark.parametrize("text", ["{", "[]", '{"turkey": 3}', '{"turkey": ["../../etc", 0.5]}',
                                  '{"turkey": ["turkey-v0001", 7]}'])
def test_damaged_trials_are_told(registry, text):
    (registry.folder / CANARIES_FILE).write_text(text)
    with pytest.raises(CorruptFileError, match=r"canaries\.json"):
        registry.canaries()


def test_a_share_of_conversations_goes_to_the_trial(registry):
    registry.try_out("turkey-v0003", 0.25)
    versions = ServingVersions(registry)
    first = [versions.candidates("turkey", f"question {number}")[0] for number in range(2000)]
    assert first.count("turkey-v0003") == pytest.approx(500, abs=70)
    assert set(first) == {"turkey-v0002", "turkey-v0003"}
    assert first == [versions.candidates("turkey", f"question {number}")[0] for number in range(2000)]
    assert place("turkey", "a") != place("germany", "a")


def test_a_failed_version_is_passed_over_for_a_while(registry):
    now = 0.0
    versions = ServingVersions(registry, clock=lambda: now)
    assert versions.candidates("turkey", "a") == ["turkey-v0002", "turkey-v0001"]
    versions.condemn("turkey-v0002", "no numbers")
    assert versions.candidates("turkey", "a") == ["turkey-v0001"] and versions.condemned == {"turkey-v0002": "no numbers"}
    versions.condemn("turkey-v0001", "no numbers")
    assert versions.candidates("turkey", "a") == ["turkey-v0002"]  # rather than nothing
    now = CONDEMNED_S + 1
    assert versions.candidates("turkey", "a") == ["turkey-v0002", "turkey-v0001"] and not versions.condemned
    assert versions.candidates("atlantis", "a") == []


def test_a_damaged_version_does_not_hide_the_others(registry):
    (registry.folder / "turkey-v0001" / VERSION_FILE).write_text("{")
    assert [version.name for version in registry.readable()] == ["turkey-v0002", "turkey-v0003"]
    with pytest.raises(CorruptFileError):
        registry.versions()


@pytest.mark.parametrize(("error", "status", "waits"), [
    (CorruptFileError("damaged"), 503, True), (AdapterError("no such version"), 404, False),
    (RequestError("too long"), 400, False)])
def test_a_request_is_refused_as_the_clients_fault_only_where_it_is(error, status, waits):
    told = _refusal(error)
    assert (told["status"], told["refused"], "Retry-After" in told["headers"]) == (status, str(error), waits)


def test_the_command_starts_a_trial_and_the_list_shows_it(registry, tmp_path, capsys):
    project = tmp_path / "project.yaml"
    task = Path(__file__).parents[1] / "examples" / "tasks" / "advice.yaml"
    project.write_text(f"name: A\nworkspace: work\ncultures: [turkey]\ntasks: [{task}]\n")
    assert cli.execute(["adapters", "promote", "turkey-v0003", str(project), "--share", "0.25"]) == 0
    assert cli.execute(["adapters", "list", str(project)]) == 0
    assert "25% on trial" in capsys.readouterr().out
    assert cli.execute(["adapters", "promote", "turkey-v0003", str(project), "--share", "2"]) == 1
