"""Serving a project from this machine: checks first, then Ray Serve until Ctrl-C."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from culturemanager import artifacts, cluster, config, console
from culturemanager.config import Project
from culturemanager.errors import ServingError


def serve(path: str | Path, overrides: Sequence[str] = (), *, logs: bool = False) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: the project file is wrong.
        IncompleteStageError: the router is not there yet.
        ServingError: the port is taken, keys are missing, `RAY_ADDRESS` is set, or the application did not start.
    """
    project = config.load(path, overrides)
    check(project)
    if os.environ.get("RAY_ADDRESS"):  # there it would take the place of what was deployed, and outlive this command
        raise ServingError("RAY_ADDRESS names a running cluster, and `culturemanager serve` serves from this machine. Unset it; "
                           "or deploy to the cluster: serve deploy cluster/serve.yaml")
    with cluster.connect(logs=logs):
        from ray import serve as ray_serve
        from ray.serve.exceptions import RayServeException

        from serve_app.app import build

        console.note("starting the endpoint")
        try:
            ray_serve.start(http_options={"host": project.serving.host, "port": project.serving.port})
            ray_serve.run(build({"project": str(Path(path).resolve()), "set": list(overrides),
                                 "without_keys": is_loopback(project.serving.host)}), name="culturemanager")
        except (RayServeException, RuntimeError) as error:
            if console.own_error(error):
                raise
            raise ServingError(f"the application did not start: {error} `--debug` shows Ray's log.") from error
        _announce(project)
        while True:
            time.sleep(3600)


def check(project: Project) -> None:
    """Raise what would otherwise be raised after Ray has started.

    Raises:
        ConfigError: a place for API keys is named and holds none, or what it holds is wrong.
        IncompleteStageError: the router is not there yet, or what the served system reads.
        AdapterError: the served system has adapters of its own, and none was trained.
        ServingError: the port is taken or may not be used, or the endpoint would be open to others without keys.
    """
    from serve_app.keys import keys_of

    settings = project.serving
    if not keys_of(project) and not is_loopback(settings.host):
        raise ServingError(f"serving.host is {settings.host!r}, which others can reach, and neither the environment variable "
                           f"{settings.api_keys_env} nor serving.keys_file holds an API key. Set one, or serve on 127.0.0.1.")
    check_port(settings.host, settings.port)
    artifacts.served_adapters(project)
    for stage in artifacts.served_stages(project):
        artifacts.workspace(project).stage(stage).manifest()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(host: str, port: int) -> None:
    """Raise `ServingError` unless the port can be listened on."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Connections that were just closed do not count as in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror or error})"
        other = port + 1 if 1024 <= port < 65535 else 8001
        raise ServingError(f"port {port} on {host} {what}. Choose another: --set serving.port={other}") from error


def _announce(project: Project) -> None:
    from serve_app.keys import keys_of

    settings = project.serving
    url = f"http://{settings.host}:{settings.port}"
    key = ' -H "Authorization: Bearer $KEY"' if keys_of(project) else ""
    console.say(f"Serving {project.name} at {url}")
    console.say(f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
                "-d '{\"model\": \"auto\", \"messages\": [{\"role\": \"user\", "
                "\"content\": \"Advice, please: Should I take my shoes off in Izmir?\"}]}'")
    console.say(f"The playground is at {url}/. Ctrl-C stops the endpoint.")
