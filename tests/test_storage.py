"""Stages are whole or absent, survive interruption, and damage is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from culturemanager.errors import CorruptFileError, IncompleteStageError, StorageError
from culturemanager.storage import MANIFEST, StageDirectory, Workspace, fingerprint, free_bytes, write_atomic

ROOT = Path(__file__).resolve().parent.parent
ROWS = [{"id": "a", "number": 1}, {"id": "b", "number": 2}]


@pytest.fixture(params=["local", "memory"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> StageDirectory:
    """An empty stage on a disk, and on an object store's interface."""
    url = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    return Workspace(url).stage("examples")


def fill(stage: StageDirectory, key: str = "k" * 64) -> None:
    with stage.writing(key) as draft:
        draft.write_rows(ROWS)
        draft.write_json("notes.json", {"x": "ü"})
        draft.details["rows"] = len(ROWS)


def python(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_finished_stage_gives_back_what_was_written(stage: StageDirectory) -> None:
    fill(stage)
    assert stage.read_rows() == ROWS
    assert stage.read_json("notes.json") == {"x": "ü"}
    assert stage.manifest().details == {"rows": 2}
    assert stage.is_complete()
    assert stage.is_complete("k" * 64)
    assert not stage.is_complete("l" * 64)
    with stage.local_copy("data.parquet") as path:
        assert pa.parquet.read_table(path).num_rows == 2


def test_rows_come_one_after_another_and_only_those_asked_for(stage: StageDirectory) -> None:
    rows = [{"number": n, "culture": ("turkey", "greece")[n % 2]} for n in range(2500)]
    with stage.writing("a") as draft:
        draft.write_rows(rows)
    assert list(stage.iter_rows()) == stage.read_rows() == rows
    assert list(stage.iter_rows(culture="greece")) == rows[1::2]
    assert list(stage.iter_rows(culture="brazil")) == []


def test_stage_that_never_ran_says_what_to_run(stage: StageDirectory) -> None:
    assert not stage.is_complete()
    with pytest.raises(IncompleteStageError, match=r"'examples' is not complete.*culturemanager run"):
        stage.read_rows()


def test_stage_that_failed_is_not_complete_and_keeps_its_rows(stage: StageDirectory) -> None:
    with pytest.raises(RuntimeError), stage.writing("k" * 64) as draft:
        draft.append(ROWS[:1])
        raise RuntimeError
    assert not stage.is_complete()
    with stage.writing("k" * 64) as draft:
        assert draft.rows() == ROWS[:1]
        draft.append(ROWS[1:])
        draft.write_rows(draft.rows())
    assert stage.read_rows() == ROWS


def test_rows_kept_for_other_settings_are_not_taken_up(stage: StageDirectory) -> None:
    with pytest.raises(RuntimeError), stage.writing("k" * 64) as draft:
        draft.append(ROWS)
        raise RuntimeError
    with stage.writing("l" * 64) as draft:
        assert draft.rows() == []
        draft.write_rows([])


def test_rows_come_back_in_the_order_of_many_parts(stage: StageDirectory) -> None:
    with stage.writing("k" * 64) as draft:
        for number in range(30):
            draft.append([{"number": number}])
        draft.append([])
        assert [row["number"] for row in draft.rows()] == list(range(30))
        draft.write_rows(draft.rows())


def test_second_run_replaces_the_first_and_leaves_nothing_behind(stage: StageDirectory) -> None:
    fill(stage)
    with stage.writing("l" * 64) as draft:
        draft.append(ROWS[:1])
        draft.write_rows(draft.rows())
    assert stage.read_rows() == ROWS[:1]
    names = {name.rsplit("/", 1)[1] for name in stage.workspace.filesystem.ls(stage.path, detail=False)}
    assert names == {"data.parquet", MANIFEST}


def test_files_that_no_run_wrote_are_left_alone(stage: StageDirectory) -> None:
    fill(stage)
    own = [f"{stage.path}/mine.html", f"{stage.path}/inner/mine.txt", f"{stage.path}/.hidden"]
    for path in own:
        stage.workspace.filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        stage.workspace.filesystem.pipe_file(path, b"mine")
    with stage.writing("l" * 64) as draft:
        draft.append(ROWS)
        draft.write_rows(ROWS)
    assert all(stage.workspace.filesystem.cat_file(path) == b"mine" for path in own)
    assert not stage.workspace.filesystem.exists(f"{stage.path}/notes.json")


def test_a_broken_off_replacement_leaves_nothing_behind_in_the_end(stage: StageDirectory) -> None:
    fill(stage)
    with pytest.raises(RuntimeError), stage.writing("l" * 64) as draft:
        draft.write_rows(ROWS)
        raise RuntimeError
    stage.workspace.filesystem.pipe_file(f"{stage.path}/.data.parquet.0123abcd", b"half a file of a killed run")
    with stage.writing("m" * 64) as draft:
        draft.write_rows(ROWS)
    names = {name.rsplit("/", 1)[1] for name in stage.workspace.filesystem.ls(stage.path, detail=False)}
    assert names == {"data.parquet", MANIFEST}


def test_old_output_is_not_complete_while_it_is_replaced(stage: StageDirectory) -> None:
    fill(stage)
    with stage.writing("l" * 64) as draft:
        draft.append(ROWS)
        assert stage.is_complete()  # rows kept aside touch nothing
        draft.write_rows(ROWS)
        assert not stage.is_complete()
    assert stage.is_complete("l" * 64)


def test_unknown_file_of_a_stage_is_named(stage: StageDirectory) -> None:
    fill(stage)
    with pytest.raises(IncompleteStageError, match=r"no file 'other.json'"):
        stage.read_json("other.json")


@pytest.mark.parametrize("where", [0, 100, -1])
def test_one_flipped_bit_is_noticed_and_the_file_named(tmp_path: Path, where: int) -> None:
    stage = Workspace(tmp_path).stage("examples")
    fill(stage)
    path = Path(stage.path, "data.parquet")
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"data.parquet does not have the SHA-256.*run the stage 'examples' again"):
        stage.read_rows()


def test_missing_and_truncated_files_are_noticed(tmp_path: Path) -> None:
    stage = Workspace(tmp_path).stage("examples")
    fill(stage)
    path = Path(stage.path, "data.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptFileError):
        stage.read_rows()
    path.unlink()
    with pytest.raises(CorruptFileError, match="is missing"):
        stage.read_rows()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "examples"}', "null"])
def test_damaged_manifest_makes_the_stage_incomplete(tmp_path: Path, text: str) -> None:
    stage = Workspace(tmp_path).stage("examples")
    fill(stage)
    Path(stage.path, MANIFEST).write_text(text)
    assert not stage.is_complete()
    with pytest.raises(CorruptFileError, match=r"manifest.json is damaged.*Delete"):
        stage.manifest()


KILLED = """
import sys
from culturemanager.storage import Workspace
stage = Workspace(sys.argv[1]).stage("examples")
with stage.writing("k" * 64) as draft:
    for number in range(len(draft.rows()), 10_000):
        draft.append([{"number": number}])
        print(number, flush=True)
"""


def test_killed_run_goes_on_where_it_stopped_with_nothing_lost_or_twice(tmp_path: Path) -> None:
    stage = Workspace(tmp_path).stage("examples")
    told = -1
    for _ in range(3):
        process = python(KILLED, str(tmp_path))
        last = told + 5
        while told < last:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told = int(line)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()  # not communicate(), which forgets lines that readline() has read ahead
        process.communicate()
        told = int(rest[-1]) if rest else told
        assert not stage.is_complete()
    with stage.writing("k" * 64) as draft:
        numbers = [row["number"] for row in draft.rows()]
        draft.write_rows(draft.rows())
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (told + 1, told + 2)  # the last row may be safe before it is told


FULL_DISK = """
import resource, signal, sys
from culturemanager.errors import StorageError
from culturemanager.storage import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_atomic(sys.argv[1], b"x" * 20_000)
except StorageError as error:
    print(error)
"""


def test_write_that_the_disk_refuses_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_atomic(path, b"old")
    out, err = python(FULL_DISK, str(path)).communicate(timeout=120)
    assert f"Cannot write {path}" in out, err
    assert "Free space" in out
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_workspace_below_a_file_gives_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        write_atomic(tmp_path / "file" / "inner" / "data", b"x")


def test_readers_see_the_old_file_or_the_new_one_and_nothing_between(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_atomic(path, json.dumps([0] * 5000).encode())
    stop = threading.Event()

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write_atomic(path, json.dumps([number] * 5000).encode())

    writers = [threading.Thread(target=rewrite) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        until = time.monotonic() + 1.0
        reads = 0
        while time.monotonic() < until or reads < 50:
            values = json.loads(path.read_bytes())
            assert len(values) == 5000
            assert len(set(values)) == 1
            reads += 1
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_local_path_is_refused_on_an_object_store() -> None:
    with pytest.raises(StorageError, match=r"memory://x is not a local path.*shared disk"):
        Workspace("memory://x").local_path("adapters")


def test_fingerprint_depends_on_content_and_not_on_key_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint(1, 2) != fingerprint(12)
    assert fingerprint("a") != fingerprint("b")


@settings(max_examples=50)
@given(st.lists(st.fixed_dictionaries({"text": st.text(max_size=20), "number": st.integers(-2**40, 2**40),
                                       "many": st.lists(st.text(max_size=5), max_size=3)}), min_size=1, max_size=5))
def test_any_rows_survive_the_round_trip(rows: list[dict]) -> None:
    stage = Workspace(f"memory://{fingerprint(rows)}").stage("examples")
    with stage.writing("k" * 64) as draft:
        draft.append(rows)
        draft.write_rows(draft.rows())
    assert stage.read_rows() == rows


def test_free_bytes_looks_at_the_disk_a_folder_will_lie_on(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there" / "yet") > 0
