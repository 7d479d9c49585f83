"""What tests share: one Ray cluster, one browser and one small run for the whole session."""

from __future__ import annotations

import os
from pathlib import Path

from culturemanager.cluster import prepare_environment, protect_token

# Before anything imports Ray: it reads its authentication mode once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
prepare_environment()
protect_token()

import pytest  # noqa: E402

from tests.few_items import write_few_items  # noqa: E402


@pytest.fixture(scope="session")
def ray_cluster():
    """A local two-CPU cluster."""
    import ray

    # A cluster of its own, whatever else runs on the machine.
    context = ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="warning", ignore_reinit_error=True)
    yield context
    ray.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A real browser."""
    from browser import Browser, find_browser

    if not find_browser():
        pytest.skip("no Chromium on this machine, and the playground is tested in one: apt-get install chromium")
    with Browser() as started:
        yield started


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """The folder of a small random model, where a test asks what a run does and not what a model knows."""
    from tests.tiny_model import build_small_base

    return build_small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def small_run(ray_cluster, tmp_path_factory):
    """A whole run on two cultures with the embedded default, small enough for a test session; its project file."""
    from culturemanager import project

    path = tmp_path_factory.mktemp("small") / "project.yaml"
    tasks = Path(__file__).parents[1] / "examples" / "tasks"
    path.write_text(f"""
name: Small
workspace: work
cultures: [turkey, germany]
tasks: [{tasks}/acceptability.yaml, {tasks}/choice.yaml, {tasks}/advice.yaml]
pages: {{per_culture: 8}}
examples: {{per_culture_and_task: 20, validation_share: 0.3}}
training: {{epochs: 1, batch_size: 8, last_layers: 8, checkpoint_every: 2}}
evaluation:
  {{items: items.jsonl, systems: [base, retrieval, culturemanager, oracle], bootstrap: 100, interference_items: 4,
    max_new_tokens: 12}}
serving: {{port: 8431}}
""")
    write_few_items(path.parent / "items.jsonl")
    project.run(project.load(path))
    return path
