"""Trains a project in a process and on a cluster of its own, which a test may kill:

    python -m tests.training_driver {alone,lose-a-node} project.yaml [field=value ...]
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from culturemanager.cluster import prepare_environment, protect_token

prepare_environment()
protect_token()

import psutil  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from culturemanager import config  # noqa: E402
from culturemanager.training import trainer  # noqa: E402
from tests.ray_processes import has_title  # noqa: E402


def main() -> None:
    project = config.load(sys.argv[2], sys.argv[3:])
    {"alone": train_alone, "lose-a-node": train_and_lose_a_node}[sys.argv[1]](project)


def train_alone(project: config.Project) -> None:
    """On one node."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
    trainer.train(project)


def train_and_lose_a_node(project: config.Project) -> None:
    """Two workers on three nodes of one CPU each: after the first checkpoint one that has a worker is killed."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        raylets = [cluster.add_node(num_cpus=1).all_processes["raylet"][0].process.pid for _ in range(2)]
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        threading.Thread(target=kill_one_with_a_worker, args=(project, raylets), daemon=True).start()
        trainer.train(project)
        until = time.monotonic() + 60
        while all(node["Alive"] for node in ray.nodes()) and time.monotonic() < until:
            time.sleep(0.2)
        alive = [node["Alive"] for node in ray.nodes()]
        print(f"nodes alive {alive.count(True)}, lost {alive.count(False)}", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_one_with_a_worker(project: config.Project, raylets: list[int]) -> None:
    """SIGKILL for the first of these nodes that has a training worker, once there is a checkpoint: all its processes at once."""
    wait_for_a_checkpoint(project)
    for raylet in raylets:
        on_node = psutil.Process(raylet).children(recursive=True)
        if any(has_title(process, "ray::RayTrainWorker") for process in on_node):
            for pid in [raylet, *(process.pid for process in on_node)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return


def wait_for_a_checkpoint(project: config.Project, going_on: Callable[[], None] = lambda: None) -> None:
    """Until the project's training has written one; `going_on` is called meanwhile, and may raise."""
    while not any(Path(project.workspace_url, "training").glob("*/checkpoints/step-*/state.json")):
        going_on()
        time.sleep(0.01)


if __name__ == "__main__":
    main()
