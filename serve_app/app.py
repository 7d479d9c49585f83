"""Composes the served application: ingress -> culture router -> model replicas.

    serve deploy cluster/serve.yaml          on a cluster
    culturemanager serve project.yaml        on this machine
"""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from culturemanager import config
from serve_app.ingress import Ingress
from serve_app.keys import collect_keys
from serve_app.replica import Replica
from serve_app.router import CultureRouter
from serve_app.upstream import UpstreamReplica


class ApplicationArgs(BaseModel):
    """What a Serve config may pass under `args`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    project: str
    """Path of the project file on every node."""
    overrides: list[str] = Field(default=[], alias="set")
    """Settings as `a.b=c`, like the command line's `--set`."""


def build(args: dict) -> Application:
    """The Serve application of a project. API keys are read here, where the application is built, and leave as sums.

    Raises:
        ConfigError: the project file is wrong.
        pydantic.ValidationError: `args` has unknown or missing fields.
    """
    given = ApplicationArgs.model_validate(args)
    project = config.load(given.project, given.overrides)
    settings = project.serving
    waiting = settings.max_queued_requests
    file = project.resolve(settings.keys_file) if settings.keys_file else None
    keys = collect_keys(os.environ.get(settings.api_keys_env, ""), file)
    engine, cpus = (UpstreamReplica, 0.1) if settings.upstream else (Replica, settings.cpus_per_replica)
    replica = serve.deployment(engine).options(
        name="Replica", max_ongoing_requests=settings.max_batch_rows * 2, max_queued_requests=waiting,
        ray_actor_options={"num_cpus": cpus},
        **_size(settings.replicas, settings.max_replicas, settings.max_batch_rows),
    ).bind(given.project, given.overrides)
    router = serve.deployment(CultureRouter).options(
        name="CultureRouter", max_ongoing_requests=200, max_queued_requests=waiting, ray_actor_options={"num_cpus": 0.1},
    ).bind(given.project, given.overrides, replica)
    return Ingress.options(
        max_ongoing_requests=200, max_queued_requests=waiting, ray_actor_options={"num_cpus": 0.1},
    ).bind(router, keys, settings.max_body_kb * 1024, settings.log_texts)


def _size(replicas: int, max_replicas: int, target: int) -> dict:
    """Either a fixed number of replicas, or autoscaling from the queue length."""
    if max_replicas <= replicas:
        return {"num_replicas": replicas}
    return {"autoscaling_config": {"min_replicas": replicas, "max_replicas": max_replicas, "target_ongoing_requests": target}}
