"""The exported figures: declared names only, silent without Ray, and really scraped with it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from culturemanager.metrics import METRICS, SECONDS_BOUNDARIES, count, gauge, observe

ROOT = Path(__file__).resolve().parent.parent
# Figures leave a Ray process every 10 s by default; a cluster started after this line sends them at once.
os.environ.setdefault("RAY_metrics_report_interval_ms", "500")

RECORD = {"counter": count, "gauge": gauge, "histogram": observe}


def alone(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_names_tags_and_descriptions_fit_prometheus() -> None:
    for name, (kind, tags, description) in METRICS.items():
        assert re.fullmatch(r"culturemanager_[a-z_]+", name) and not name.endswith(("_total", "_bucket", "_count", "_sum"))
        assert kind in RECORD and tags and description.endswith(".")
        assert all(re.fullmatch(r"[a-z]+", tag) and tag != "le" for tag in tags)
    assert list(SECONDS_BOUNDARIES) == sorted(set(SECONDS_BOUNDARIES)) and SECONDS_BOUNDARIES[0] > 0


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_recorded_by_its_kind_and_tags_only(name: str) -> None:
    kind, tags, _ = METRICS[name]
    good = dict.fromkeys(tags, "x")
    for other, record in RECORD.items():
        if other != kind:
            with pytest.raises(ValueError, match=name):
                record(name, 1, **good)
    for wrong in ({**good, "more": "x"}, dict.fromkeys(tags[1:], "x")):
        with pytest.raises(ValueError, match="takes the tags"):
            RECORD[kind](name, 1, **wrong)


def test_an_unknown_name_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ValueError, match="culturemanager_tokens"):
        count("culturemanager_token", 1, kind="prompt")


def test_a_counter_does_not_fall() -> None:
    with pytest.raises(ValueError, match="only grows"):
        count("culturemanager_tokens", -1, kind="prompt")


def test_recording_without_ray_does_nothing_and_does_not_import_it() -> None:
    done = alone("import sys; from culturemanager import metrics as m\n"
                 "m.count('culturemanager_tokens', 5, kind='prompt')\n"
                 "m.gauge('culturemanager_adapter_loss', 1, adapter='a')\n"
                 "m.observe('culturemanager_request_seconds', 1, culture='x')\n"
                 "sys.exit('ray' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_nothing_is_made_while_ray_is_imported_but_not_started() -> None:
    done = alone("import sys, ray; from culturemanager import metrics as m\n"
                 "m.count('culturemanager_tokens', 5, kind='prompt')\n"
                 "sys.exit(bool(ray.is_initialized() or m._made))")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def scraped(ray_cluster: object) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus reads from a node after this process recorded: (name, our labels) to value."""
    import ray

    count("culturemanager_stage_rows", 3, stage="probe", outcome="kept")
    count("culturemanager_stage_rows", 4, stage="probe", outcome="kept")
    count("culturemanager_stage_rows", 0, stage="probe", outcome="robots")
    count("culturemanager_tokens", 7, kind="probe")
    gauge("culturemanager_adapter_loss", 2, adapter="probe")
    gauge("culturemanager_adapter_loss", 0.5, adapter="probe")
    for figure in ("learning_rate", "gradient_norm", "rows_per_second"):
        gauge(f"culturemanager_adapter_{figure}", 1, adapter="probe")
    count("culturemanager_requests", culture="probe", status=200)
    count("culturemanager_routes", culture="probe", reason="abstained")
    observe("culturemanager_request_seconds", 0.3, culture="probe")
    observe("culturemanager_request_seconds", 400, culture="probe")
    observe("culturemanager_first_token_seconds", 0.1, culture="probe")
    observe("culturemanager_router_confidence", 0.97, culture="probe")
    count("culturemanager_served_tokens", 3, culture="probe", kind="prompt")
    gauge("culturemanager_engine", 1, figure="probe")

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    end = time.monotonic() + 60
    while time.monotonic() < end and len({name for name, labels in values if "probe" in dict(labels).values()}) < 19:
        time.sleep(0.2)
        with contextlib.suppress(OSError):  # the node's agent starts a little later than the node
            values = parse(opener.open(url, timeout=5).read().decode())
    return values


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    ours = {tag for _, tags, _ in METRICS.values() for tag in tags} | {"le"}
    values = {}
    for name, labels, value in re.findall(r"^(ray_culturemanager_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        values[name, frozenset(pair for pair in re.findall(r'(\w+)="([^"]*)"', labels) if pair[0] in ours)] = float(value)
    return values


def read(values: dict, name: str, **labels: str) -> float | None:
    return values.get((name, frozenset(labels.items())))


def test_every_metric_is_exported_under_the_name_dashboards_use(scraped: dict) -> None:
    suffixes = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
    names = {name for name, _ in scraped}
    assert {f"ray_{name}{suffixes[kind]}" for name, (kind, _, _) in METRICS.items()} <= names


def test_exported_values_are_those_recorded(scraped: dict) -> None:
    assert read(scraped, "ray_culturemanager_stage_rows_total", stage="probe", outcome="kept") == 7
    assert read(scraped, "ray_culturemanager_stage_rows_total", stage="probe", outcome="robots") is None
    assert read(scraped, "ray_culturemanager_adapter_loss", adapter="probe") == 0.5
    assert read(scraped, "ray_culturemanager_requests_total", culture="probe", status="200") == 1
    assert read(scraped, "ray_culturemanager_request_seconds_bucket", culture="probe", le="0.25") == 0
    assert read(scraped, "ray_culturemanager_request_seconds_bucket", culture="probe", le="0.5") == 1
    assert read(scraped, "ray_culturemanager_request_seconds_bucket", culture="probe", le="60.0") == 1
    assert read(scraped, "ray_culturemanager_request_seconds_bucket", culture="probe", le="+Inf") == 2
    assert read(scraped, "ray_culturemanager_router_confidence_bucket", culture="probe", le="0.95") == 0
    assert read(scraped, "ray_culturemanager_router_confidence_bucket", culture="probe", le="0.99") == 1
