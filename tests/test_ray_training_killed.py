"""A node or the driver killed in the middle of a training: the run ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from culturemanager.config import Project
from tests.test_ray_training import assert_published, make_project, pack_folders, trained_quietly
from tests.tiny_model import build_tiny_model
from tests.training_driver import wait_for_a_checkpoint

TIMEOUT_S = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """For a driver with a cluster of its own, whose address no other driver on the machine shall find."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:  # sockets' paths have a limit
        yield os.environ | {"RAY_TMPDIR": short}


def start_driver(what: str, place: Path, overrides: Sequence[str], environment: dict[str, str]) -> subprocess.Popen:
    """The training in a process and on a cluster of its own; the session's cluster is left in peace."""
    command = [sys.executable, "-m", "tests.training_driver", what, str(place / "project.yaml"), *overrides]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def finished(driver: subprocess.Popen) -> str:
    """What a driver printed; it must have ended well."""
    try:
        printed, _ = driver.communicate(timeout=TIMEOUT_S)
    finally:
        driver.kill()
    assert driver.returncode == 0, printed
    return printed


def told_last(project: Project) -> str:
    """What the pack's run told last of itself."""
    (folder,) = pack_folders(project)
    return json.loads((folder / "progress.json").read_text())["what"]


def test_a_node_is_lost_and_the_run_ends_with_the_same_weights(folder, tmp_path, environment):
    # 80 steps: two workers sum in another order than one process, and every step makes that difference larger.
    overrides = ("training.epochs=20", "training.workers=2", "training.packs=1", "training.cpus_per_worker=1")
    project = make_project(tmp_path, folder, *overrides)
    printed = finished(start_driver("lose-a-node", tmp_path, overrides, environment))
    assert "nodes alive 2, lost 1" in printed
    assert "gone on from step" in told_last(project)
    assert_published(project, trained_quietly(project, tmp_path / "quiet"), 1e-3)


def test_a_killed_driver_started_again_ends_with_the_same_weights(folder, tmp_path, environment):
    overrides = ("training.epochs=60",)
    project = make_project(tmp_path, folder, *overrides)
    first = start_driver("alone", tmp_path, overrides, environment)

    def going_on() -> None:
        assert first.poll() is None, first.communicate()[0]

    wait_for_a_checkpoint(project, going_on)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished(start_driver("alone", tmp_path, overrides, environment))
    assert "gone on from step" in told_last(project)
    assert_published(project, trained_quietly(project, tmp_path / "quiet"), 1e-4)
