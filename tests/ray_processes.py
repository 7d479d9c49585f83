"""The processes of the test session's own cluster, told from those of other clusters on the machine."""

from __future__ import annotations

import contextlib

import psutil


def worker_processes(title: str) -> list[int]:
    """Those whose title begins so: their parent, the raylet, names the cluster's address."""
    import ray

    address = ray.get_runtime_context().gcs_address
    found = []
    for pid in psutil.pids():  # psutil.process_iter remembers processes, and fails on a number that was given to another since
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if has_title(process, title) and any(address in argument for argument in psutil.Process(process.ppid()).cmdline()):
                found.append(pid)
    return found


def has_title(process: psutil.Process, title: str) -> bool:
    """Whether the process lives and its title begins so."""
    try:
        return "".join(process.cmdline()).startswith(title)
    except psutil.NoSuchProcess:
        return False
