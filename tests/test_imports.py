"""Who may import whom, what stays light, and that every library used is declared."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("culturemanager", "serve_app", "jobs")
# Each line imports only from itself and the lines before it; only the parts in APART also keep off each other.
LINES = (
    ("culturemanager.records", "culturemanager.errors"),
    ("culturemanager.config", "culturemanager.sections", "culturemanager.storage", "culturemanager.yamlfile"),
    ("culturemanager.hub", "culturemanager.cultures", "culturemanager.tasks", "culturemanager.prompts", "culturemanager.items",
     "culturemanager.ngrams", "culturemanager.metrics", "culturemanager.chat", "culturemanager.providers"),
    ("culturemanager.base_model", "culturemanager.embedded", "culturemanager.adapters", "culturemanager.routing"),
    ("culturemanager.synthesis", "culturemanager.training", "culturemanager.inference"),
    ("culturemanager.evaluation",),
    ("culturemanager.project", "culturemanager.preflight", "culturemanager.artifacts", "culturemanager.questions",
     "culturemanager.serving", "culturemanager.cluster", "culturemanager.console", "culturemanager.doctor",
     "culturemanager.starter", "culturemanager.reference", "culturemanager.addresses", "culturemanager.summary",
     "culturemanager.job", "culturemanager.cli", "culturemanager.cli_shared", "culturemanager.cli_serving",
     "culturemanager.__main__", "jobs", "serve_app"),
)
APART = {"culturemanager.synthesis", "culturemanager.training", "culturemanager.inference"}
HEAVY = {"torch", "transformers", "ray", "numpy", "pyarrow", "faiss", "deepspeed", "peft", "sklearn", "scipy", "pandas",
         "pydantic", "openai", "httpx2", "trafilatura", "matplotlib", "fastapi", "safetensors"}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path


def imports(path: Path, name: str) -> Iterator[str]:
    """Every module a file imports, inside functions too, without imports for type checkers only."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:  # `from culturemanager import config` imports culturemanager.config
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in module_names() else node.module
        else:
            todo += ast.iter_child_nodes(node)


@functools.cache
def module_names() -> frozenset[str]:
    return frozenset(name for name, _ in modules())


def place(module: str) -> tuple[int, str]:
    """The line and the part a module belongs to."""
    for number, line in enumerate(LINES):
        for part in line:
            if module == part or module.startswith(part + "."):
                return number, part
    raise AssertionError(f"{module} stands in no line of the import order; add it to LINES.")


def wrong_imports(sources: Iterator[tuple[str, Path]]) -> list[str]:
    wrong = []
    for name, path in sources:
        if name == "culturemanager":
            continue
        line, part = place(name)
        for target in imports(path, name):
            if target.split(".")[0] not in PACKAGES or target == "culturemanager":
                continue
            other_line, other_part = place(target)
            if other_line > line or (other_part != part and {part, other_part} <= APART):
                wrong.append(f"{name} imports {target}")
    return wrong


def test_imports_go_one_way() -> None:
    assert wrong_imports(modules()) == []


@pytest.mark.parametrize(("module", "text"), [
    ("culturemanager.records", "from culturemanager.config import Project"),
    ("culturemanager.synthesis.planted", "from culturemanager.training.rows import collate"),
    ("culturemanager.adapters.planted", "def f():\n    import culturemanager.inference.engine"),
    ("culturemanager.evaluation.planted", "from culturemanager import project"),
])
def test_a_planted_import_against_the_direction_is_found(module: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text(text)
    assert len(wrong_imports(iter([(module, path)]))) == 1


def test_only_the_trainer_brings_ray_into_training_and_inference() -> None:
    users = {name for name, path in modules() if any(target.split(".")[0] == "ray" for target in imports(path, name))}
    below = {name for name in users if name.startswith(("culturemanager.adapters", "culturemanager.training",
                                                        "culturemanager.inference", "culturemanager.routing"))}
    assert below == {"culturemanager.training.packs"}


def python(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)} | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after `code`."""
    names = json.loads(python(f"{code}\nimport sys, json\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))")
                       .splitlines()[-1])
    return HEAVY & set(names)


def test_bank_loop_and_engine_run_without_ray() -> None:
    python("import sys; sys.modules['ray'] = None\n"
           "import culturemanager.adapters.bank, culturemanager.training.loop, culturemanager.inference.engine\n"
           "import culturemanager.routing.router")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import culturemanager") == set()


def test_what_a_second_run_does_needs_no_torch(tmp_path: Path) -> None:
    brought = loaded("import culturemanager.training.trainer, culturemanager.routing.router, culturemanager.evaluation.results\n"
                     "from culturemanager.adapters.registry import AdapterRegistry\n"
                     f"registry = AdapterRegistry({str(tmp_path)!r}); registry.versions(); registry.aliases()")
    assert not {"torch", "transformers", "ray"} & brought


def test_public_names_are_there_and_listed() -> None:
    import culturemanager

    for name in culturemanager.__all__:
        assert getattr(culturemanager, name) is not None
    assert set(culturemanager.__all__) <= set(dir(culturemanager))
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(culturemanager, "non" + "sense")


HELP = pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["passages", "--help"], ["adapters", "list", "--help"]]
)


@HELP
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    # typer itself parses with pydantic once a command is chosen; the next test bounds what that costs.
    typers_own = {"pydantic"} if arguments != ["--help"] else set()
    assert loaded(f"from culturemanager import cli; assert cli.execute({arguments!r}) == 0") == typers_own


@HELP
def test_help_loads_few_modules_of_ours(arguments: list[str]) -> None:
    # What help costs beside typer itself; `python -m benchmarks.help` measures the seconds.
    names = python(f"import sys\nfrom culturemanager import cli; assert cli.execute({arguments!r}) == 0\n"
                   "print(*(name for name in sys.modules if name.startswith('culturemanager')))").splitlines()[-1].split()
    parts = ("", ".cli", ".cli_serving", ".cli_shared", ".cluster", ".console", ".errors")
    assert set(names) <= {f"culturemanager{part}" for part in parts}, names


def test_no_module_works_at_import() -> None:
    """Importing every module starts no Ray, no thread and no file."""
    names = [name for name in sorted(module_names()) if not name.startswith("jobs")]
    out = python("import importlib, threading\n"
                 f"for name in {names!r}: importlib.import_module(name)\n"
                 "import ray; print(ray.is_initialized(), threading.active_count())")
    assert out.split()[-2:] == ["False", "1"]


# Declared libraries


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = project["dependencies"] + [text for extra in ("search", "embedded", "warmup")
                                       for text in project["optional-dependencies"][extra]]
    return {normal(re.match(r"[A-Za-z0-9._-]+", text).group()) for text in texts}


def test_every_imported_library_is_declared() -> None:
    homes = importlib.metadata.packages_distributions()
    used: dict[str, set[str]] = {}
    for name, path in modules():
        for target in imports(path, name):
            top = target.split(".")[0]
            if top not in sys.stdlib_module_names and top not in PACKAGES:
                used.setdefault(top, set()).add(name)
    missing = {library: sorted(users) for library, users in used.items()
               if not {normal(home) for home in homes.get(library, [library])} & declared()}
    assert missing == {}
