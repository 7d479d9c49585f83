"""Versions are whole, immutable and checked; aliases survive any number of writers."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from culturemanager.adapters import peft_format, registry
from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError, CorruptFileError, StorageError

SHAPE = AdapterShape(2, 4)


def publish(store: AdapterRegistry, culture: str = "turkey", digest: str = "d", fill: float = 1.0):
    tensors = {"h.q.lora_A": torch.full((2, 4), fill), "h.q.lora_B": torch.ones(6, 2)}
    return store.publish(culture, SHAPE, tensors, "org/base", ["h.q"], digest, {"loss": 0.25, "rows": 3})


@pytest.fixture
def store(tmp_path):
    return AdapterRegistry(tmp_path / "adapters")


def test_a_published_version_comes_back_whole(store):
    version = publish(store, fill=2.0)
    assert version.name == "turkey-v0001" and version.version == 1 and version.rank == 2
    assert store.get("turkey-v0001") == version
    shape, tensors = store.load("turkey-v0001")
    assert shape == SHAPE and torch.equal(tensors["h.q.lora_A"], torch.full((2, 4), 2.0))
    assert sorted(path.name for path in (store.folder / version.name).iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "version.json"]
    assert peft_format.load(store.folder / version.name)[2]["base_model_name_or_path"] == "org/base"


def test_numbers_rise_per_culture_and_versions_are_listed_in_order(store):
    for culture in ("turkey", "joint", "turkey", "south_korea"):
        publish(store, culture)
    assert [v.name for v in store.versions()] == ["joint-v0001", "south_korea-v0001", "turkey-v0001", "turkey-v0002"]
    assert [v.name for v in store.versions("turkey")] == ["turkey-v0001", "turkey-v0002"]
    assert store.versions("japan") == [] and AdapterRegistry(store.folder / "nowhere").versions() == []


def test_a_name_that_served_is_never_given_to_other_weights(store):
    publish(store)
    store.promote(publish(store).name)
    shutil.rmtree(store.folder / "turkey-v0002")
    assert publish(store).name == "turkey-v0003"


def test_a_name_that_was_rolled_back_is_never_given_to_other_weights(store):
    for _ in range(2):
        store.promote(publish(store).name)
    store.rollback("turkey")
    shutil.rmtree(store.folder / "turkey-v0002")
    assert publish(store).name == "turkey-v0003"


def test_concurrent_publishes_never_clash(store):
    with ThreadPoolExecutor(8) as pool:
        names = [version.name for version in pool.map(lambda n: publish(store, fill=float(n)), range(24))]
    assert sorted(names) == [f"turkey-v{n:04d}" for n in range(1, 25)]
    filled = {store.load(name)[1]["h.q.lora_A"][0, 0].item() for name in names}
    assert filled == set(range(24))
    assert not list(store.folder.glob(".tmp-*"))


def test_an_interrupted_publish_leaves_no_version(store, monkeypatch):
    monkeypatch.setattr(registry, "write_json", lambda *_: (_ for _ in ()).throw(StorageError("disk full")))
    with pytest.raises(StorageError):
        publish(store)
    assert list(store.folder.iterdir()) == []


def test_drafts_of_dead_processes_are_swept_and_living_ones_kept(store):
    old, young = store.folder / ".tmp-turkey-old", store.folder / ".tmp-turkey-young"
    old.mkdir(parents=True)
    young.mkdir()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    publish(store)
    assert not old.exists() and young.exists()


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "version.json"])
@pytest.mark.parametrize("damage", ["flip", "delete", "empty"])
def test_damage_is_found_and_the_file_and_the_way_out_are_named(store, file, damage):
    path = store.folder / publish(store).name / file
    if damage == "delete":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) * 2 // 3] ^= 1
        path.write_bytes(data if damage == "flip" else b"")
    for action in (store.load, store.promote):
        with pytest.raises(CorruptFileError) as caught:
            action("turkey-v0001")
        assert str(path) in str(caught.value) and "culturemanager train`" in str(caught.value)
    assert store.aliases() == {}


def test_equal_digests_find_the_newest_whole_version(store):
    publish(store, digest="same")
    second = publish(store, digest="same")
    publish(store, digest="other")
    publish(store, "joint", digest="same")
    assert store.latest_with_digest("turkey", "same") == second
    assert store.latest_with_digest("turkey", "none") is None
    (store.folder / second.name / "adapter_model.safetensors").write_bytes(b"damaged")
    assert store.latest_with_digest("turkey", "same").name == "turkey-v0001"


def test_promote_and_rollback_walk_through_what_was_promoted(store):
    names = [publish(store).name for _ in range(3)]
    publish(store, "joint")
    assert store.aliases() == {}
    for name in (*names, names[2], "joint-v0001"):
        store.promote(name)
    assert store.aliases() == {"turkey": names[2], "joint": "joint-v0001"}
    assert store.rollback("turkey") == names[1]
    assert store.rollback("turkey") == names[0]
    with pytest.raises(AdapterError, match="before turkey-v0001"):
        store.rollback("turkey")
    with pytest.raises(AdapterError, match="no adapter that serves; those that do are of joint, turkey"):
        store.rollback("japan")
    store.promote(names[2])
    assert store.rollback("turkey") == names[0]
    assert AdapterRegistry(store.folder).aliases() == {"turkey": names[0], "joint": "joint-v0001"}


def test_training_lets_serve_what_it_wants_until_a_person_chooses(store):
    names = [publish(store).name for _ in range(3)]
    for name in (names[0], names[1], names[0]):
        assert store.promote_trained(name) and store.aliases() == {"turkey": name}
    assert store.history("turkey") == [names[0], names[1], names[0]]
    store.promote(names[1])
    assert not store.promote_trained(names[0]) and not store.promote_trained(names[2])
    assert store.promote_trained(names[1]) and store.aliases() == {"turkey": names[1]}
    made_since = publish(store).name
    assert store.promote_trained(made_since) and store.aliases() == {"turkey": made_since}


@pytest.mark.parametrize("choose", [lambda store: store.rollback("turkey"), lambda store: store.promote("turkey-v0001"),
                                    lambda store: store.try_out("turkey-v0003", 0.5)], ids=["rollback", "promote", "trial"])
def test_every_way_to_choose_outlasts_training(store, choose):
    names = [publish(store).name for _ in range(3)]
    for name in names[:2]:
        store.promote_trained(name)
    choose(store)
    before = store.aliases(), store.canaries()
    assert not store.promote_trained(names[2])
    assert (store.aliases(), store.canaries()) == before


def test_a_choice_holds_no_culture_back_that_nothing_serves(store):
    store.promote(publish(store).name)
    publish(store)
    (store.folder / "aliases.json").unlink()
    assert store.promote_trained("turkey-v0002") and store.aliases() == {"turkey": "turkey-v0002"}


@pytest.mark.parametrize("content", ["{", "[]", '{"turkey": "last"}'])
def test_damaged_choices_are_named_and_cost_no_training_run(store, content):
    store.promote(publish(store).name)
    (store.folder / "choices.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"choices\.json"):
        store.promote_trained(publish(store).name)
    assert publish(store).name == "turkey-v0003"


def test_what_serves_already_is_not_written_again(store):
    store.promote_trained(publish(store).name)
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert store.promote_trained("turkey-v0001")
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before


def test_rollback_to_a_damaged_version_changes_nothing(store):
    names = [publish(store).name for _ in range(2)]
    for name in names:
        store.promote(name)
    (store.folder / names[0] / "adapter_model.safetensors").unlink()
    with pytest.raises(CorruptFileError):
        store.rollback("turkey")
    assert store.aliases() == {"turkey": names[1]}


def test_concurrent_promotes_lose_no_update(store):
    cultures = [f"c{n}" for n in range(10)]
    for culture in cultures:
        publish(store, culture)
    torn, done = [], threading.Event()

    def read():
        while not done.is_set():
            try:
                AdapterRegistry(store.folder).aliases()
            except CorruptFileError as error:
                torn.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda culture: AdapterRegistry(store.folder).promote(f"{culture}-v0001"), cultures))
    done.set()
    reader.join()
    assert store.aliases() == {culture: f"{culture}-v0001" for culture in cultures} and not torn


@pytest.mark.parametrize("content", ["{", "[]", '{"turkey": "turkey-v0001"}', '{"turkey": ["../../etc"]}'])
def test_damaged_aliases_are_named_and_cost_no_training_run(store, content):
    publish(store)
    (store.folder / "aliases.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"aliases\.json"):
        store.aliases()
    with pytest.raises(CorruptFileError, match=r"aliases\.json"):
        store.promote("turkey-v0001")
    assert publish(store).name == "turkey-v0002"


@pytest.mark.parametrize("name", ["../turkey-v0001", "turkey", "turkey-v1", "Turkey-v0001", "turkey-v0001/..",
                                  "turkey-v0001\n", ""])
def test_names_are_checked_before_they_reach_the_disk(store, name):
    publish(store)
    for action in (store.get, store.load, store.promote):
        with pytest.raises(AdapterError, match="no adapter version"):
            action(name)


@pytest.mark.parametrize("culture", ["../turkey", "Turkey", "south-korea", "a/b", "turkey\n", "1st", ""])
def test_cultures_are_checked_before_they_reach_the_disk(store, culture):
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        publish(store, culture)
    assert not store.folder.exists()


def test_an_unknown_version_is_answered_with_those_there_are(store):
    publish(store)
    with pytest.raises(AdapterError, match="turkey-v0001"):
        store.get("turkey-v0007")


def test_a_version_copied_under_another_name_is_refused(store):
    publish(store)
    shutil.copytree(store.folder / "turkey-v0001", store.folder / "japan-v0001")
    with pytest.raises(CorruptFileError, match="japan-v0001"):
        store.load("japan-v0001")


def test_metrics_stay_readable_json(store):
    publish(store)
    manifest = json.loads((store.folder / "turkey-v0001" / "version.json").read_text())
    assert manifest["version"]["metrics"] == {"loss": 0.25, "rows": 3}
