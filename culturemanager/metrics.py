"""The figures CultureManager exports through Ray to Prometheus, and how code records them.

`count`, `gauge` and `observe` do nothing where Ray does not run: the training loop and the engine
work without it. Ray exports a name with the prefix ``ray_``, a counter with ``_total`` behind it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

Kind = Literal["counter", "gauge", "histogram"]

METRICS: dict[str, tuple[Kind, tuple[str, ...], str]] = {
    "culturemanager_stage_rows": ("counter", ("stage", "outcome"),
                                  "Rows of a stage; outcome is kept, or the reason they were dropped."),
    "culturemanager_tokens": ("counter", ("kind",),
                              "Tokens; kind is prompt or completion (of the language model that writes rows), or train."),
    "culturemanager_adapter_loss": ("gauge", ("adapter",), "Training loss of an adapter, mean per label token, in nats."),
    "culturemanager_adapter_learning_rate": ("gauge", ("adapter",), "Learning rate of an adapter's last step."),
    "culturemanager_adapter_gradient_norm": ("gauge", ("adapter",), "Gradient norm of an adapter's last step, before clipping."),
    "culturemanager_adapter_rows_per_second": ("gauge", ("adapter",), "Training rows of an adapter a second."),
    "culturemanager_requests": ("counter", ("culture", "status"), "Requests answered, by culture and HTTP status."),
    "culturemanager_routes": ("counter", ("culture", "reason"), "Routing decisions, by culture and reason."),
    "culturemanager_request_seconds": ("histogram", ("culture",), "Seconds from a request's arrival to its last byte."),
    "culturemanager_first_token_seconds": ("histogram", ("culture",), "Seconds from a request's arrival to its first token."),
    "culturemanager_served_tokens": ("counter", ("culture", "kind"),
                                     "Tokens of served requests; kind is prompt, completion or cached (of the prompt's)."),
    "culturemanager_router_confidence": ("histogram", ("culture",), "How sure the router was of the culture it chose."),
    "culturemanager_engine": ("gauge", ("figure",), "A replica's running and waiting requests, and its cache_bytes."),
}
"""Name to kind, tags and description."""

SECONDS_BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of a histogram of seconds."""
SHARE_BOUNDARIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Upper bounds of the buckets of a histogram of shares."""

_made: dict[str, Any] = {}
_lock = threading.Lock()
_mirror: Callable[[Kind, str, float, dict[str, str]], None] | None = None


def mirror(record: Callable[[Kind, str, float, dict[str, str]], None]) -> None:
    """Tell `record` too whatever this process records from now on: kind, name, value and tags."""
    global _mirror
    _mirror = record


def count(name: str, value: float = 1, **tags: object) -> None:
    """Add `value`, zero or more, to a counter.

    Raises:
        ValueError: `METRICS` has no such counter, the tags are not the counter's, or `value` is negative.
    """
    if value < 0:
        raise ValueError(f"{name}: a counter only grows, found {value}.")
    metric = _metric(name, "counter", tags)
    if metric and value:  # Ray refuses to add nothing
        metric.inc(float(value), _texts(tags))
    _tell("counter", name, value, tags)


def gauge(name: str, value: float, **tags: object) -> None:
    """Set a gauge.

    Raises:
        ValueError: `METRICS` has no such gauge, or the tags are not the gauge's.
    """
    metric = _metric(name, "gauge", tags)
    if metric:
        metric.set(float(value), _texts(tags))
    _tell("gauge", name, value, tags)


def observe(name: str, value: float, **tags: object) -> None:
    """Put one value into a histogram.

    Raises:
        ValueError: `METRICS` has no such histogram, or the tags are not the histogram's.
    """
    metric = _metric(name, "histogram", tags)
    if metric:
        metric.observe(float(value), _texts(tags))
    _tell("histogram", name, value, tags)


def _tell(kind: Kind, name: str, value: float, tags: dict[str, object]) -> None:
    if _mirror:
        _mirror(kind, name, float(value), _texts(tags))


def boundaries(name: str) -> list[float]:
    """Upper bounds of a histogram's buckets."""
    return list(SECONDS_BOUNDARIES if name.endswith("_seconds") else SHARE_BOUNDARIES)


def _texts(tags: dict[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in tags.items()}


def _metric(name: str, kind: Kind, tags: dict[str, object]) -> Any | None:
    """The process's Ray metric of that name; `None` where Ray does not run."""
    # Checked without Ray too, so that a wrong name fails in the first test that meets it.
    if name not in METRICS or METRICS[name][0] != kind:
        raise ValueError(f"no {kind} {name!r}; known: {', '.join(n for n, (k, _, _) in METRICS.items() if k == kind)}.")
    expected = METRICS[name][1]
    if set(tags) != set(expected):
        raise ValueError(f"{name} takes the tags {sorted(expected)}, found {sorted(tags)}.")
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    with _lock:
        if name not in _made:
            _made[name] = _make(name)
        return _made[name]


def _make(name: str) -> Any:
    from ray.util import metrics

    kind, tags, description = METRICS[name]
    if kind == "histogram":
        return metrics.Histogram(name, description, boundaries=boundaries(name), tag_keys=tags)
    return {"counter": metrics.Counter, "gauge": metrics.Gauge}[kind](name, description, tag_keys=tags)
