"""The processes of the test session's own cluster, told from those of other clusters on the machine."""

from __future__ import annotations

import psutil


def worker_processes(title: str) -> list[int]:
    """Those whose title begins so: their parent, the raylet, names the cluster's address."""
    import ray

    address = ray.get_runtime_context().gcs_address
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "".join(process.info["cmdline"] or ()).startswith(title):
            parent = process.parent()
            if parent and any(address in argument for argument in parent.cmdline()):
                found.append(process.pid)
    return found
