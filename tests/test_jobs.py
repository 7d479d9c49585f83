"""The scripts in jobs/, submitted to a real Ray cluster with token authentication."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
import pytest

from culturemanager import cluster, config, starter
from culturemanager.artifacts import workspace
from tests.few_items import write_few_items

ROOT = Path(__file__).resolve().parent.parent
RAY = Path(sys.executable).parent / "ray"
STARTS_WITHIN_S = 240
SMALL = """\
name: Small
workspace: runs
cultures: [turkey, germany]
tasks: [tasks/acceptability.yaml]
queries: {per_task: 3, agnostic: 2}
examples: {per_culture_and_task: 40}
training: {rank: 4, epochs: 1, last_layers: 4}
evaluation: {items: items.jsonl, systems: [base, culturemanager], bootstrap: 100, interference_items: 4}
"""


@dataclass(frozen=True)
class Head:
    """A cluster of one node."""

    dashboard: str
    token_file: Path
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """What a client of this cluster needs to set."""
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file), "HF_HUB_OFFLINE": "1",
                       "RAY_USAGE_STATS_ENABLED": "0"} | more

    def get(self, path: str, token: str | None = None) -> str:
        """A page of the dashboard's API."""
        request = urllib.request.Request(self.dashboard + path)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        return fetch(request)

    def samples(self) -> dict[str, float]:
        """Every metric of ours that the nodes export now; the dashboard says where."""
        found = {}
        for group in json.loads(self.get("/api/prometheus/sd", self.token_file.read_text())):
            for target in group["targets"]:
                with contextlib.suppress(OSError):  # Ray names a port before it has it
                    told = fetch(f"http://{target}/metrics").splitlines()
                    ours = [line.rpartition(" ") for line in told if line.startswith("ray_culturemanager_")]
                    found |= {name: float(value) for name, _, value in ours}
        return found

    def submit(self, script: str, *arguments: str, working_dir: Path,
               token: str | None = None) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, followed until the job ends."""
        environment = self.environment(**({"RAY_AUTH_TOKEN": token} if token else {}))
        return subprocess.run([RAY, "job", "submit", "--address", self.dashboard, "--working-dir", working_dir, "--",
                               sys.executable, f"jobs/{script}", *arguments],
                              capture_output=True, text=True, timeout=1500, env=environment)


def fetch(request: str | urllib.request.Request) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # these addresses are this machine's
    with opener.open(request, timeout=30) as response:
        return response.read().decode()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below those that the system gives away itself: until they are used, none is taken."""
    return list(islice((port for port in random.sample(range(20_000, 32_000), 1000) if is_free(port)), count))


def is_free(port: int) -> bool:
    with socket.socket() as opened:
        try:
            opened.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` on free ports, with a token and a folder of its own, so that no other cluster is touched."""
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # short: socket paths end at 107 characters
    token_file = folder / "token"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.delenv("RAY_AUTH_TOKEN", raising=False)
        patch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        cluster.protect_token()
        shutil.copy2(folder / ".ray" / "auth_token", token_file)
    dashboard, client = free_ports(2)
    found = Head(f"http://127.0.0.1:{dashboard}", token_file, folder)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", "--port=0", "--min-worker-port=0",
             "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--metrics-export-port=0", f"--dashboard-port={dashboard}",
             f"--ray-client-server-port={client}", f"--temp-dir={folder}"],
            stdout=log, stderr=subprocess.STDOUT, env=found.environment())
    try:
        wait_for_agent(found, process)
        yield found
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for started in psutil.Process(process.pid).children(recursive=True):  # asked politely, they take 30 seconds
                with contextlib.suppress(psutil.NoSuchProcess):
                    started.kill()
        process.kill()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_agent(head: Head, process: subprocess.Popen) -> None:
    """Jobs need the node's agent as well as the dashboard."""
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until:
        assert process.poll() is None, (head.folder / "log").read_text()
        try:
            if json.loads(head.get("/api/prometheus/sd", head.token_file.read_text())):
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.5)
    raise AssertionError((head.folder / "log").read_text())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> Path:
    """What a user submits: the code and a project, without this repository's other files."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("culturemanager", "jobs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    starter.write(folder / "project.yaml")
    (folder / "project.yaml").write_text(f"{SMALL}base: {{path: {small_base}}}\n")
    write_few_items(folder / "items.jsonl")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace on the disk that all nodes share."""
    return tmp_path_factory.mktemp("shared")


def output(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_cluster_turns_away_whoever_has_no_token(head: Head, checkout: Path) -> None:
    for token in (None, "0" * 64):
        with pytest.raises(urllib.error.HTTPError) as caught:
            head.get("/api/jobs/", token)
        assert caught.value.code in (401, 403)
    refused = head.submit("synthesize.py", "--help", working_dir=checkout, token="0" * 64)
    assert refused.returncode != 0
    assert "token" in output(refused).lower()


def test_synthesis_job_fills_the_workspace_and_its_counts_are_exported(head: Head, checkout: Path, shared: Path) -> None:
    done = head.submit("synthesize.py", "project.yaml", "--set", f"workspace={shared}", working_dir=checkout)
    assert done.returncode == 0, output(done)
    kept = dict(re.findall(r"^(\w+): ([\d,]+) rows$", output(done), re.MULTILINE))
    assert set(kept) == {"queries", "pages", "passages", "index", "examples"}
    samples = head.samples()
    for stage, rows in kept.items():
        (value,) = [value for name, value in samples.items()
                    if name.startswith("ray_culturemanager_stage_rows_total") and f'stage="{stage}"' in name
                    and 'outcome="kept"' in name]
        assert value == int(rows.replace(",", ""))


def test_whole_pipeline_goes_on_from_the_synthesis_job(head: Head, checkout: Path, shared: Path) -> None:
    project = config.load(checkout / "project.yaml", [f"workspace={shared}"])
    before = workspace(project).stage("examples").manifest().created_at
    done = head.submit("pipeline.py", "project.yaml", "--set", f"workspace={shared}", working_dir=checkout)
    assert done.returncode == 0, output(done)
    assert workspace(project).stage("examples").manifest().created_at == before
    assert f"Report: {shared}/evaluation/report.html" in output(done)
    assert workspace(project).stage("evaluation").is_complete()


def test_single_stage_jobs_find_everything_done(head: Head, checkout: Path, shared: Path) -> None:
    trained = head.submit("train.py", "project.yaml", "--only", "turkey", "--set", f"workspace={shared}", working_dir=checkout)
    assert trained.returncode == 0, output(trained)
    assert re.search(r"^turkey-v0001: \d+ rows, loss \d+\.\d+$", output(trained), re.MULTILINE)
    evaluated = head.submit("evaluate.py", "project.yaml", "--set", f"workspace={shared}", working_dir=checkout)
    assert evaluated.returncode == 0, output(evaluated)
    assert "accuracy in percent" in output(evaluated)


def test_mistake_in_a_submitted_project_is_one_line(head: Head, checkout: Path) -> None:
    done = head.submit("pipeline.py", "project.yaml", "--set", "training.epoch=2", working_dir=checkout)
    assert done.returncode != 0
    errors = re.findall(r"^error: .*", output(done), re.MULTILINE)
    assert len(set(errors)) == 1  # Ray shows the end of a failed job's log once more
    assert "training.epoch: unknown field" in errors[0]
    assert "Traceback" not in output(done)
