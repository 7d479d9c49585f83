"""Composes the served application: ingress -> culture router -> model replicas.

    serve deploy cluster/serve.yaml          on a cluster
    culturemanager serve project.yaml        on this machine
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from culturemanager import config
from culturemanager.errors import ConfigError
from serve_app.ingress import Ingress
from serve_app.keys import keys_of
from serve_app.replica import Replica
from serve_app.router import CultureRouter
from serve_app.upstream import UpstreamReplica

ROUTED = 200
"""Requests a replica of the router holds: it waits far more than it computes."""
FULL = BackpressureConfig(status_code=429, retry_after_s=1)
"""What a client is told once a queue is full."""


class ApplicationArgs(BaseModel):
    """What a Serve config may pass under `args`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    project: str
    """Path of the project file on every node."""
    overrides: list[str] = Field(default=[], alias="set")
    """Settings as `a.b=c`, like the command line's `--set`."""
    keys_revision: int = 0
    """Any other number makes `serve deploy` build the application anew, and so read keys that have changed."""
    without_keys: bool = False
    """Let everybody ask if no API key is set; for a port that only this machine reaches."""


def build(args: dict) -> Application:
    """The Serve application of a project. API keys are read here, where the application is built, and leave as sums.

    Raises:
        ConfigError: the project file or a key is wrong, or there is no key and `without_keys` is not said.
        pydantic.ValidationError: `args` has unknown or missing fields.
    """
    given = ApplicationArgs.model_validate(args)
    project = config.load(given.project, given.overrides)
    settings = project.serving
    waiting = settings.max_queued_requests
    keys = keys_of(project)
    if not keys and not given.without_keys:
        raise ConfigError(f"Neither the environment variable {settings.api_keys_env} nor serving.keys_file holds an API key, and "
                          "others may reach the endpoint. Set one; or, if only this machine can, `args: {without_keys: true}`.")
    engine, cpus = (UpstreamReplica, 0.1) if settings.upstream else (Replica, settings.cpus_per_replica)
    replica = serve.deployment(engine).options(
        name="Replica", max_ongoing_requests=settings.max_batch_rows * 2, max_queued_requests=waiting,
        backpressure_config=FULL, ray_actor_options={"num_cpus": cpus},
        **_size(settings.replicas, settings.max_replicas, settings.max_batch_rows),
    ).bind(given.project, given.overrides)
    router = serve.deployment(CultureRouter).options(
        name="CultureRouter", max_ongoing_requests=ROUTED, max_queued_requests=waiting, backpressure_config=FULL,
        ray_actor_options={"num_cpus": 0.1},
    ).bind(given.project, given.overrides, replica)
    # The ingress holds more than the router and its queue, so that this queue is the one that fills: then the refusal has
    # OpenAI's shape, while Serve's proxy, which refuses what the ingress has no room for, says it in a line of text.
    return Ingress.options(
        max_ongoing_requests=2 * (ROUTED + waiting), max_queued_requests=waiting, backpressure_config=FULL,
        ray_actor_options={"num_cpus": 0.1},
    ).bind(router, keys, settings.max_body_kb * 1024, settings.log_texts)


def _size(replicas: int, max_replicas: int, target: int) -> dict:
    """Either a fixed number of replicas, or autoscaling from the queue length."""
    if max_replicas <= replicas:
        return {"num_replicas": replicas}
    return {"autoscaling_config": {"min_replicas": replicas, "max_replicas": max_replicas, "target_ongoing_requests": target}}
