"""Whether this machine can run a project: what was found, and what to do where it does not suffice."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from culturemanager import cluster, config
from culturemanager.config import Project
from culturemanager.errors import CultureManagerError
from culturemanager.storage import free_bytes

OK, WARNING, FAILED = "ok", "warning", "FAILED"
GIB = 2**30
TESTED_PYTHONS = ((3, 11),)
MEMORY_NEEDED = 6 * GIB
"""The embedded example's peak, Ray included, is under this; a larger base model needs more."""
DISK_NEEDED = 2 * GIB


@dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    name: str
    result: str
    found: str
    advice: str = ""
    """What to do; empty if all is well."""


def examine(path: Path, overrides: Sequence[str] = (), *, required: bool = True) -> list[Finding]:
    """Every check, for one project; for the defaults, if there is no project file and none is `required`.

    Raises:
        ConfigError: the project file is wrong.
    """
    project = None
    if required or path.exists() or overrides:
        project = config.load(path, overrides)
    findings = [check_python(), check_packages(), check_memory(), check_cores(), *check_ray_token()]
    settings = project or Project(name="defaults", workspace="runs", cultures=("turkey",), tasks=("none",))
    findings += [check_disk(settings), *check_models(settings), *check_keys(settings), check_port(settings)]
    return findings


def check_python() -> Finding:
    found = platform.python_version()
    if sys.version_info[:2] not in TESTED_PYTHONS:
        tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED_PYTHONS)
        return Finding("Python", WARNING, found, f"this version was not tried; {tested} were.")
    return Finding("Python", OK, found)


def check_packages() -> Finding:
    """The installed packages against the ranges that this package's metadata names."""
    try:
        requirements = importlib.metadata.requires("culturemanager") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", WARNING, "culturemanager runs without being installed", "run: pip install -e .")
    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, expected {requirement.specifier}")
    if wrong:
        return Finding("packages", FAILED, "; ".join(wrong), "run: pip install -r requirements.lock")
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "ray", "deepspeed"))
    return Finding("packages", OK, shown)


def check_memory() -> Finding:
    free = psutil.virtual_memory().available
    found = f"{free / GIB:.1f} GiB free"
    if free < MEMORY_NEEDED:
        return Finding("memory", WARNING, found, f"the embedded example wants {MEMORY_NEEDED // GIB} GiB; close other programs, "
                       "or lower `training.batch_size` and `serving.max_batch_rows`.")
    return Finding("memory", OK, found)


def check_cores() -> Finding:
    cores = os.cpu_count() or 1
    if cores < 2:
        return Finding("cores", WARNING, "1", "training and its coordinator share one core; expect it to take longer.")
    return Finding("cores", OK, str(cores))


def check_ray_token() -> list[Finding]:
    """Ray's token: asked for, there, and nobody else's to read."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    findings = [Finding("Ray auth mode", OK, mode or "token; for `ray start` and `ray job`: export RAY_AUTH_MODE=token")]
    if mode not in ("", "token"):
        findings = [Finding("Ray auth mode", FAILED, mode, "run: export RAY_AUTH_MODE=token")]
    path = cluster.token_path()
    if path is None:
        return [*findings, Finding("Ray token", OK, "in the environment")]
    if not path.is_file():
        return [*findings, Finding("Ray token", WARNING, f"{path} does not exist",
                                   "it is made at the first run; for a cluster of yours, copy its token there with mode 0600.")]
    mode_bits = path.stat().st_mode & 0o777
    if mode_bits & 0o077:
        return [*findings, Finding("Ray token", FAILED, f"{path} has mode {mode_bits:04o}", f"run: chmod 600 {path}")]
    return [*findings, Finding("Ray token", OK, f"{path}, mode {mode_bits:04o}")]


def check_disk(project: Project) -> Finding:
    if "://" in project.workspace_url:
        return Finding("disk", OK, f"the workspace is {project.workspace_url}")
    free = free_bytes(project.workspace_url)
    found = f"{free / GIB:.1f} GiB free for {project.workspace_url}"
    if free < DISK_NEEDED:
        return Finding("disk", FAILED, found, f"free {DISK_NEEDED // GIB} GiB, or set `workspace` to another disk.")
    return Finding("disk", OK, found)


def check_models(project: Project) -> list[Finding]:
    """The embedding model and the base model, as far as that is known without loading them."""
    findings = []
    if project.embedding.model == "embedded":
        from culturemanager.providers.embedding import MINILM_PACKAGE, minilm_folder

        findings.append(_embedded("embedding model", MINILM_PACKAGE, minilm_folder))
    if project.base.path == "embedded":
        from culturemanager.embedded.base_model import WEIGHTS_PACKAGE, weights_file

        return [*findings, _embedded("base model", WEIGHTS_PACKAGE, weights_file)]
    try:
        from culturemanager.base_model import check_folder

        if Path(project.base_path).is_absolute():
            check_folder(Path(project.base_path))
            findings.append(Finding("base model", OK, project.base_path))
        else:
            offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
            findings.append(Finding("base model", WARNING if offline else OK,
                                    f"{project.base.path} from the Hugging Face hub, which `culturemanager validate` asks",
                                    "HF_HUB_OFFLINE is set: it must be in the local cache already." if offline else ""))
    except CultureManagerError as error:
        findings.append(Finding("base model", FAILED, project.base_path, str(error)))
    return findings


def _embedded(name: str, package: str, find_weights: Callable[[], object]) -> Finding:
    """Weights that a package carries; `find_weights` raises if they are missing or are not what they should be."""
    try:
        find_weights()
    except CultureManagerError as error:
        return Finding(name, FAILED, "missing or damaged", str(error))
    return Finding(name, OK, f"{package}, sum checked")


def check_keys(project: Project) -> list[Finding]:
    """The keys the project needs; their values are never shown."""
    from culturemanager.serving import is_loopback
    from serve_app.keys import keys_of

    findings = []
    generator, settings = project.examples.generator, project.serving
    if generator.kind == "openai":
        from culturemanager.providers.llm import read_key

        try:
            key = generator.api_key_env if read_key(generator) else f"none, {generator.api_key_env} is not set,"
            findings.append(Finding("generator key", OK, f"{key} for {generator.base_url}"))
        except CultureManagerError as error:
            findings.append(Finding("generator key", FAILED, f"{generator.api_key_env}", str(error)))
    try:
        keys = keys_of(project)
    except CultureManagerError as error:
        return [*findings, Finding("API keys", FAILED, "none, where some are said to be", str(error))]
    if keys or is_loopback(settings.host):
        found = f"{len(keys)}" if keys else f"none, and only this machine can reach {settings.host}"
        return [*findings, Finding("API keys", OK, found)]
    return [*findings, Finding("API keys", FAILED, f"none, and others can reach {settings.host}",
                               f"run: export {settings.api_keys_env}=$(openssl rand -hex 32)")]


def check_port(project: Project) -> Finding:
    from culturemanager import serving

    host, port = project.serving.host, project.serving.port
    try:
        serving.check_port(host, port)
    except CultureManagerError as error:
        return Finding("port", WARNING, f"{host}:{port}", str(error))
    return Finding("port", OK, f"{host}:{port} is free")
