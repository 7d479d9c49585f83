"""Trains a project in a process and on a cluster of its own, which a test may kill:

    python -m tests.training_driver {alone,lose-a-node} project.yaml [field=value ...]
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from culturemanager.cluster import prepare_environment, protect_token

prepare_environment()
protect_token()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from culturemanager import config  # noqa: E402
from culturemanager.training import trainer  # noqa: E402


def main() -> None:
    project = config.load(sys.argv[2], sys.argv[3:])
    {"alone": train_alone, "lose-a-node": train_and_lose_a_node}[sys.argv[1]](project)


def train_alone(project: config.Project) -> None:
    """On one node."""
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
    trainer.train(project)


def train_and_lose_a_node(project: config.Project) -> None:
    """One worker on the first node, one on the second: its raylet is killed after the first checkpoint, a third one comes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    raylet = lost.all_processes["raylet"][0].process.pid

    def lose_it() -> None:
        while not has_checkpoint(project):
            time.sleep(0.01)
        os.kill(raylet, signal.SIGKILL)
        cluster.add_node(num_cpus=1, wait=False)

    threading.Thread(target=lose_it, daemon=True).start()
    trainer.train(project)
    alive = [node["Alive"] for node in ray.nodes()]
    print(f"nodes alive {alive.count(True)}, lost {alive.count(False)}", flush=True)
    ray.shutdown()
    cluster.shutdown()


def has_checkpoint(project: config.Project) -> bool:
    """Whether the project's training has written one."""
    return any(Path(project.workspace_url, "training").glob("*/checkpoints/step-*/state.json"))


if __name__ == "__main__":
    main()
