"""`GET /metrics`: what this ingress recorded, in Prometheus' text format.

Ray's own exporter has the figures of every process (`cluster/prometheus.yml` scrapes it); this is for those who
scrape the endpoint itself.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from culturemanager import metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Keeps what `culturemanager.metrics` records in this process from now on."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._collectors: dict[str, Counter | Gauge | Histogram] = {}
        metrics.mirror(self._record)

    def text(self) -> bytes:
        """All figures recorded so far."""
        return generate_latest(self._registry)

    def _record(self, kind: metrics.Kind, name: str, value: float, tags: dict[str, str]) -> None:
        if name not in self._collectors:
            self._collectors[name] = self._make(kind, name)
        collector = self._collectors[name].labels(**tags)
        if kind == "counter":
            collector.inc(value)
        elif kind == "gauge":
            collector.set(value)
        else:
            collector.observe(value)

    def _make(self, kind: metrics.Kind, name: str) -> Counter | Gauge | Histogram:
        _, tags, description = metrics.METRICS[name]
        if kind == "histogram":
            return Histogram(name, description, tags, registry=self._registry, buckets=metrics.boundaries(name))
        return {"counter": Counter, "gauge": Gauge}[kind](name, description, tags, registry=self._registry)
