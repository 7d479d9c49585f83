"""Every file the repository ships for configuration is one its own reader accepts."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from culturemanager import artifacts, config, project, starter
from culturemanager.cultures import catalogue
from culturemanager.sections import model, synthesis
from culturemanager.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = sorted(path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.yaml")
                  if path.parent.name != "tasks")
TASKS = sorted((ROOT / "examples").rglob("tasks/*.yaml"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_projects_and_tasks() -> None:
    assert PROJECTS
    assert TASKS


@pytest.mark.parametrize("path", PROJECTS, ids=name_of)
def test_shipped_project_loads_with_its_tasks_and_items(path: Path) -> None:
    loaded = config.load(path)
    assert artifacts.cultures(loaded)
    assert artifacts.tasks(loaded)
    assert artifacts.items(loaded).items


def test_shipped_example_passes_every_check_before_a_run() -> None:
    project.load(ROOT / "examples/etiquette.yaml")


def test_the_evidence_is_measured_on_the_example_with_every_row() -> None:
    shown, measured = (config.load(ROOT / path).model_dump() for path in ("examples/etiquette.yaml", "benchmarks/evidence.yaml"))
    assert measured["examples"]["per_culture_and_task"] >= 400 and not measured["examples"]["rows_of_task"]
    for fields in (shown, measured):
        fields["tasks"] = [Path(task).name for task in fields["tasks"]]
        for own in ("per_culture_and_task", "rows_of_task"):
            del fields["examples"][own]
        for own in ("name", "workspace"):
            del fields[own]
    assert shown == measured


@pytest.mark.parametrize("path", TASKS, ids=name_of)
def test_shipped_task_loads(path: Path) -> None:
    assert load_task(path).id == path.stem


def test_started_project_passes_every_check(tmp_path: Path) -> None:
    starter.write(tmp_path / "project.yaml")
    assert [culture.id for culture in artifacts.cultures(project.load(tmp_path / "project.yaml"))] == list(catalogue())


def test_started_project_keeps_the_cultures_asked_for(tmp_path: Path) -> None:
    starter.write(tmp_path / "mine.yaml", ["turkey", "germany"])
    assert config.load(tmp_path / "mine.yaml").cultures == ("turkey", "germany")


def test_every_yaml_file_of_the_package_is_read_without_duplicate_keys() -> None:
    class Strict(yaml.SafeLoader):
        pass

    def unique(loader, node, deep=False):
        keys = [loader.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice in {keys}"
        return yaml.SafeLoader.construct_mapping(loader, node, deep)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique)
    files = [*(ROOT / "culturemanager").rglob("*.yaml"), *PROJECTS, *TASKS]
    for path in files:
        assert yaml.load(path.read_text(encoding="utf-8"), Loader=Strict) is not None, path


def test_every_config_field_is_explained_under_itself() -> None:
    unexplained = []
    for node in [node for module in (config, model, synthesis) for node in ast.parse(inspect.getsource(module)).body]:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not field.target.id.startswith("_") and field.target.id != "kind":
                text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
                if not isinstance(text, str):
                    unexplained.append(f"{node.name}.{field.target.id}")
    assert unexplained == []


# The lock


def locked() -> dict[str, str]:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_lock_pins_everything_exactly_and_names_no_address() -> None:
    for line in LOCK.splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    assert "://" not in LOCK


def test_lock_satisfies_every_declared_range() -> None:
    versions = locked()
    extras = [text for texts in PYPROJECT["optional-dependencies"].values() for text in texts]
    for text in [*PYPROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        version = versions[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(Version(version)), f"{text} is locked at {version}"


def test_lock_holds_no_gpu_libraries_and_the_tried_torch() -> None:
    assert locked()["torch"] == "2.13.0"
    assert not [name for name in locked() if name.startswith(("nvidia", "triton", "cuda"))]


# The Makefile


def make(*arguments: str) -> str:
    done = subprocess.run(["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE).group(1).split()
    assert set(phony) == set(re.findall(r"^  make (\w+)", make(), re.MULTILINE))


def test_make_demo_installs_from_the_lock_and_runs_the_example() -> None:
    planned = make("--dry-run", "--always-make", "demo")
    assert "--requirement requirements.lock" in planned
    assert "culturemanager run examples/etiquette.yaml" in planned


def test_ci_runs_the_whole_suite() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").rstrip().endswith("make test")
    assert "-m pytest" in make("--dry-run", "--always-make", "test")


def test_no_file_for_installing_names_a_package_index() -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "index-url" not in text, name
        assert "find-links" not in text, name
