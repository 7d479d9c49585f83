"""The files in cluster/, each held against its schema or by its own tool, without a cluster."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from culturemanager.embedded.base_model import WEIGHTS_PACKAGE, WEIGHTS_VERSION
from culturemanager.metrics import METRICS
from serve_app.app import FULL, ApplicationArgs

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
MANIFESTS = {"raycluster.yaml": "rayClusters", "rayjob.yaml": "rayJobs", "rayservice.yaml": "rayServices"}
YAML_FILES = sorted(path.name for path in CLUSTER.iterdir() if path.suffix in (".yaml", ".yml"))
RAY_MINOR = ".".join(importlib.metadata.version("ray").split(".")[:2])



def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def tool(name: str) -> str:
    """A command of this environment, which need not be on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is missing: install the development dependencies."
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# KubeRay manifests


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as JSON schema that refuses what an API server would drop without a word."""
    result = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in schema:
        result["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = strict(schema["items"])
    if result.pop("nullable", False):
        result = {"anyOf": [result, {"type": "null"}]}
    return result


@functools.cache
def crd_schema(plural: str) -> dict[str, Any]:
    folder = os.environ.get("KUBERAY_CRD_DIR")
    if not folder:
        pytest.skip("KUBERAY_CRD_DIR is unset: run `make crds` and set it to the folder with KubeRay's CRDs.")
    text = (Path(folder) / f"ray.io_{plural.lower()}.yaml").read_text(encoding="utf-8")
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    return strict(version["schema"]["openAPIV3Schema"])


@functools.cache
def validator(plural: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(crd_schema(plural))


def ray_cluster(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = ray_cluster(name)
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def every_pod(name: str) -> list[dict[str, Any]]:
    submitter = read(name)["spec"].get("submitterPodTemplate")
    return [pod for _, pod in pods(name)] + ([submitter["spec"]] if submitter else [])


@pytest.mark.parametrize(("name", "plural"), MANIFESTS.items())
def test_manifest_matches_the_crd_and_has_no_unknown_field(name: str, plural: str) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in validator(plural).iter_errors(read(name))]
    assert not errors


@pytest.mark.parametrize("typo", ["in authOptions", "in a container's resources", "in the spec", "a wrong type"])
@pytest.mark.parametrize(("name", "plural"), MANIFESTS.items())
def test_crd_check_catches_a_planted_mistake(name: str, plural: str, typo: str) -> None:
    manifest = json.loads(json.dumps(read(name)))  # a copy in which YAML anchors are no longer shared
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    if typo == "in authOptions":
        cluster["authOptions"]["secretNmae"] = cluster["authOptions"].pop("secretName")
    elif typo == "in a container's resources":
        cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limit"] = {"cpu": "1"}
    elif typo == "in the spec":
        spec["rayclusterspec"] = {}
    else:
        cluster["workerGroupSpecs"][0]["minReplicas"] = "two"
    assert len(list(validator(plural).iter_errors(manifest))) == 1


def test_workspace_claim_matches_the_schema_of_a_claim() -> None:
    # The CRDs carry Kubernetes' own schema of a claim, inside the pod template.
    node = crd_schema("rayClusters")
    for key in ("spec", "headGroupSpec", "template", "spec", "volumes"):
        node = node["properties"][key]
    claim_spec = node["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    claim = read("workspace.yaml")
    jsonschema.validate(claim.pop("spec"), claim_spec, cls=jsonschema.Draft202012Validator)
    assert claim == {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                     "metadata": {"name": "culturemanager-workspace"}}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_cluster_asks_for_the_token_of_a_secret(name: str) -> None:
    assert ray_cluster(name)["authOptions"] == {"mode": "token", "secretName": "culturemanager-ray-token"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_is_unprivileged_and_bounded(name: str) -> None:
    containers = [container for pod in every_pod(name) for container in pod["containers"]]
    for pod in every_pod(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*containers, ray_cluster(name).get("autoscalerOptions", {})]:
        if container:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys()


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_ray_pod_has_probes_metrics_and_the_workspace(name: str) -> None:
    for role, pod in pods(name):
        (container,) = pod["containers"]
        for probe in ("livenessProbe", "readinessProbe"):
            # No exec probe: the image has neither wget nor curl.
            assert "httpGet" in container[probe], role
        assert {"name": "metrics", "containerPort": 8080} in container["ports"], role
        assert {"name": "workspace", "mountPath": "/workspace"} in container["volumeMounts"], role
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == read("workspace.yaml")["metadata"]["name"], role


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayservice.yaml"])
def test_every_pod_that_may_serve_gets_its_api_keys_from_a_secret(name: str) -> None:
    for _, pod in pods(name):
        (key,) = [env for env in pod["containers"][0]["env"] if env["name"] == "CULTUREMANAGER_API_KEYS"]
        # Not optional: without keys the endpoint would be open.
        assert key["valueFrom"] == {"secretKeyRef": {"name": "culturemanager-api-keys",
                                                     "key": "CULTUREMANAGER_API_KEYS"}}


def test_no_yaml_file_holds_a_secret_value() -> None:
    for name in YAML_FILES:
        text = (CLUSTER / name).read_text(encoding="utf-8")
        assert "kind: Secret" not in text
        assert not re.search(r"[0-9a-f]{32}|sk-\w{8}", text), name


def test_readme_creates_every_secret_the_manifests_name() -> None:
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert "secret generic culturemanager-ray-token --from-file=auth_token=" in readme
    assert "secret generic culturemanager-api-keys --from-file=CULTUREMANAGER_API_KEYS=" in readme


def test_service_pods_outlive_the_longest_graceful_shutdown() -> None:
    outer_first = [deployment["graceful_shutdown_timeout_s"] for deployment in deployments()]
    assert outer_first == sorted(outer_first, reverse=True)  # an answer goes through all of them
    worker = dict(pods("rayservice.yaml"))["cpu"]
    (container,) = worker["containers"]
    drained = int(next(one["value"] for one in container["env"] if one["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"))
    assert worker["terminationGracePeriodSeconds"] > drained > outer_first[0]
    longest_answer = read("serve.yaml")["http_options"]["request_timeout_s"]
    assert read("rayservice.yaml")["spec"]["rayClusterDeletionDelaySeconds"] > longest_answer


def test_ray_heeds_the_time_to_drain() -> None:
    from ray._private import ray_constants

    assert hasattr(ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")


@pytest.mark.parametrize("text", ["rayjob.yaml", "README.md"])
def test_drivers_run_where_there_is_memory_for_a_model(text: str) -> None:
    if text == "rayjob.yaml":
        assert read(text)["spec"]["entrypointNumCpus"] == 1
    else:
        submitted = re.findall(r"ray job submit .*", (CLUSTER / text).read_text(encoding="utf-8"))
        assert submitted and all("--entrypoint-num-cpus 1" in line for line in submitted)


# Versions


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_names_the_installed_ray(name: str) -> None:
    assert ray_cluster(name)["rayVersion"].rsplit(".", 1)[0] == RAY_MINOR
    images = {container["image"] for pod in every_pod(name) for container in pod["containers"]}
    assert images == {f"culturemanager:ray{RAY_MINOR}"}


@pytest.mark.parametrize("name", ["Dockerfile", "README.md"])
def test_build_command_makes_the_image_the_manifests_name(name: str) -> None:
    assert f"-t culturemanager:ray{RAY_MINOR} ." in (CLUSTER / name).read_text(encoding="utf-8")


def test_lock_holds_the_ray_the_manifests_name() -> None:
    lock = ROOT / "requirements.lock"
    (version,) = re.findall(r"^ray(?:\[[^]]*\])?==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    assert {ray_cluster(name)["rayVersion"] for name in MANIFESTS} == {version}


# The image


def test_hadolint_accepts_the_dockerfile() -> None:
    run(tool("hadolint"), CLUSTER / "Dockerfile")


def test_hadolint_rejects_a_planted_mistake(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text((CLUSTER / "Dockerfile").read_text(encoding="utf-8") + "\nRUN cd /tmp && sudo true\n")
    with pytest.raises(AssertionError, match="DL3004"):
        run(tool("hadolint"), bad)


def test_image_is_slim_ends_as_a_numbered_user_and_keeps_the_token_on() -> None:
    lines = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("FROM")][-1].startswith("FROM python:3.11-slim")
    users = [line for line in lines if line.startswith("USER")]
    assert re.fullmatch(r"USER [1-9]\d*", users[-1])
    assert any("RAY_AUTH_MODE=token" in line for line in lines)
    assert not [line for line in lines if re.match(r"(ENV|ARG).*(KEY|SECRET|PASSWORD)", line)]


@pytest.mark.parametrize("path", ["Makefile", "NOTICE", "requirements.lock", "pyproject.toml", "cluster/Dockerfile",
                                  "cluster/launcher.yaml"])
def test_the_weights_of_the_embedded_base_have_one_version_everywhere(path: str) -> None:
    pins = re.findall(rf"{WEIGHTS_PACKAGE}==([\w.]*\w)", (ROOT / path).read_text(encoding="utf-8"))
    assert pins and set(pins) == {WEIGHTS_VERSION}


def test_dockerignore_lets_through_what_the_dockerfile_copies() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    copied = {source.rstrip("/") for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
              for source in line.split()}
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


# YAML


@pytest.mark.parametrize("name", YAML_FILES)
def test_yamllint_accepts(name: str) -> None:
    rules = "{extends: default, rules: {line-length: {max: 110}, document-start: disable}}"
    run(tool("yamllint"), "--strict", "-d", rules, CLUSTER / name)


# The launcher


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    result = prepare_config(copy.deepcopy(config))
    validate_config(result)
    return result


def test_ray_accepts_the_launcher_and_keeps_every_worker() -> None:
    config = read("launcher.yaml")
    result = prepared(config)
    assert result["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize(("group", "key"), [(None, "setup_command"), ("auth", "ssh_users"), ("docker", "imagee")])
def test_ray_rejects_a_launcher_with_an_unknown_field(group: str | None, key: str) -> None:
    config = read("launcher.yaml")
    (config if group is None else config.setdefault(group, {}))[key] = "x"
    with pytest.raises(jsonschema.ValidationError, match=key):
        prepared(config)


def test_launcher_has_no_unknown_provider_field() -> None:
    # Ray's schema lets anything through here.
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    assert read("launcher.yaml")["provider"].keys() <= schema["properties"]["provider"]["properties"].keys()


def test_launcher_starts_every_node_with_the_token() -> None:
    config = read("launcher.yaml")
    starts = [command for key in ("head_start_ray_commands", "worker_start_ray_commands")
              for command in config[key] if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert not any("0.0.0.0" in command for command in starts)


# The Serve config


def deployments() -> list[dict[str, Any]]:
    (application,) = read("serve.yaml")["applications"]
    return application["deployments"]


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as `Optional[Union[Dict, Model]]` or `List[Model]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    models = [nested_model(argument) for argument in typing.get_args(annotation)]
    return next((model for model in models if model), None)


def unknown_fields(data: Any, model: type[BaseModel], place: str = "$") -> list[str]:
    """Fields that Serve would ignore without a word."""
    if isinstance(data, list):
        return [found for index, item in enumerate(data) for found in unknown_fields(item, model, f"{place}[{index}]")]
    found = []
    for key, value in data.items() if isinstance(data, dict) else ():
        if key not in model.model_fields:
            found.append(f"{place}.{key}")
        elif inner := nested_model(model.model_fields[key].annotation):
            found += unknown_fields(value, inner, f"{place}.{key}")
    return found


def test_serve_accepts_the_config_and_knows_every_field() -> None:
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    config = read("serve.yaml")
    ServeDeploySchema.model_validate(config)
    assert unknown_fields(config, ServeDeploySchema) == []
    for deployment in deployments():
        # The deploy schema would also take any dict here.
        AutoscalingConfig.model_validate(deployment["autoscaling_config"])


@pytest.mark.parametrize("place", ["http_options", "deployment", "autoscaling_config", "ray_actor_options"])
def test_unknown_serve_field_is_found_where_serve_ignores_it(place: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = read("serve.yaml")
    deployment = config["applications"][0]["deployments"][0]
    target = {"http_options": config["http_options"], "deployment": deployment}.get(place) or deployment[place]
    target["max_ongoing_request"] = 1
    ServeDeploySchema.model_validate(config)
    assert [field.rsplit(".", 1)[1] for field in unknown_fields(config, ServeDeploySchema)] == ["max_ongoing_request"]


def test_rayservice_deploys_the_application_of_the_serve_config() -> None:
    assert yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"]) == read("serve.yaml")


def test_serve_config_builds_our_app_and_tunes_every_deployment() -> None:
    (application,) = read("serve.yaml")["applications"]
    assert application["import_path"] == "serve_app.app:build"
    cpus = deployments()[-1]["ray_actor_options"]["num_cpus"]
    assert application["args"] == {"project": "examples/etiquette.yaml", "set": [f"serving.threads_per_replica={cpus}"]}
    ApplicationArgs.model_validate(application["args"] | {"keys_revision": 2})
    assert (ROOT / application["args"]["project"]).exists()
    assert [deployment["name"] for deployment in deployments()] == ["Ingress", "CultureRouter", "Replica"]
    for deployment in deployments():
        scaling = deployment["autoscaling_config"]
        assert scaling["target_ongoing_requests"] < deployment["max_ongoing_requests"], "it would never scale up"
        assert deployment["max_queued_requests"] > 0, "an endless queue hides an overload"
        assert deployment["health_check_timeout_s"] > 0
        assert deployment["graceful_shutdown_timeout_s"] > deployment["graceful_shutdown_wait_loop_s"]


def test_the_routers_queue_fills_before_the_ingress_is_full() -> None:
    ingress, router, _ = deployments()
    assert ingress["max_ongoing_requests"] > router["max_ongoing_requests"] + router["max_queued_requests"]
    assert ingress["backpressure_config"] == FULL.model_dump()


def test_first_replicas_fit_the_smallest_service_cluster() -> None:
    needed = sum(deployment["autoscaling_config"]["min_replicas"] * deployment["ray_actor_options"]["num_cpus"]
                 for deployment in deployments())
    (group,) = ray_cluster("rayservice.yaml")["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert needed <= group["minReplicas"] * int(container["resources"]["limits"]["cpu"])


# Prometheus and Grafana

NAME = {"type": "string", "minLength": 1}
STRINGS = {"type": "array", "items": NAME, "minItems": 1}


def fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


PROMETHEUS = fields(
    ["scrape_configs"],
    **{"global": fields([], scrape_interval=NAME, evaluation_interval=NAME)},
    scrape_configs=listed(fields(
        ["job_name"],
        job_name=NAME,
        file_sd_configs=listed(fields(["files"], files=STRINGS)),
        http_sd_configs=listed(fields(["url"], url={"type": "string", "pattern": "^https?://"},
                                      authorization=fields(["credentials_file"], credentials_file=NAME))),
        metric_relabel_configs=listed(fields(["action"], action={"enum": ["labeldrop"]}, regex=NAME)),
    )),
)
POD_MONITOR = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    metadata=fields(["name"], name=NAME, labels={"type": "object"}),
    spec=fields(
        ["selector", "podMetricsEndpoints"],
        selector=fields(["matchLabels"], matchLabels={"type": "object", "additionalProperties": {"type": "string"}}),
        podMetricsEndpoints=listed(fields(
            ["port"],
            port={"const": "metrics"},
            interval=NAME,
            relabelings=listed(fields(["sourceLabels", "targetLabel"], sourceLabels=STRINGS, targetLabel=NAME)),
            metricRelabelings=listed(fields(["action", "regex"], action={"enum": ["labeldrop"]}, regex=NAME)),
        )),
    ),
)


@pytest.mark.parametrize(("name", "schema"), [("prometheus.yml", PROMETHEUS), ("podmonitor.yaml", POD_MONITOR)])
def test_scrape_config_has_the_expected_structure(name: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(read(name), schema, cls=jsonschema.Draft202012Validator)


def test_promtool_accepts_the_scrape_config() -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not on PATH (Debian: prometheus); the structure is checked without it.")
    # Syntax only: the token's file exists where Prometheus runs.
    run("promtool", "check", "config", "--syntax-only", CLUSTER / "prometheus.yml")


def test_scraped_services_are_the_heads_of_our_clusters() -> None:
    (job,) = [job for job in read("prometheus.yml")["scrape_configs"] if job["job_name"] == "kuberay"]
    hosts = {re.match(r"http://([^.]+)\.", target["url"])[1] for target in job["http_sd_configs"]}
    assert hosts == {f"{read(name)['metadata']['name']}-head-svc" for name in ("raycluster.yaml", "rayservice.yaml")}


def exported(name: str, kind: str) -> set[str]:
    """The names under which Ray exports a metric of `ray.util.metrics`."""
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}[kind]
    return {f"ray_{name}{suffix}" for suffix in suffixes}


TAGS = {export: set(tags) for name, (kind, tags, _) in METRICS.items() for export in exported(name, kind)}
DASHBOARD = json.loads((CLUSTER / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = [variable["definition"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable]


def metrics_in(expression: str) -> list[str]:
    return re.findall(r"\b(?:ray|culturemanager)_\w+", expression)


@pytest.mark.parametrize("expression", EXPRESSIONS + VARIABLES)
def test_dashboard_query_names_a_metric_and_tags_we_export(expression: str) -> None:
    names = metrics_in(expression)
    assert names and set(names) <= TAGS.keys()
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", expression))
    for group in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",")}
    used |= set(re.findall(r"label_values\(\w+, (\w+)\)", expression))
    known = set.intersection(*(TAGS[name] for name in names))
    assert used <= known | ({"le"} if names[0].endswith("_bucket") else set())


def test_dashboard_shows_every_metric() -> None:
    shown = {name for expression in EXPRESSIONS for name in metrics_in(expression)}
    missing = [name for name, (kind, _, _) in METRICS.items() if not shown & exported(name, kind)]
    assert not missing


def test_dashboard_queries_are_promql(tmp_path: Path) -> None:
    plain = [expression.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$culture", ".*")
             for expression in EXPRESSIONS]
    for expression in plain:
        assert "$" not in expression
        assert all(expression.count(left) == expression.count(right) for left, right in ("()", "[]", "{}"))
    if shutil.which("promtool"):
        rules = tmp_path / "rules.yml"
        rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": [
            {"record": f"dashboard:query{index}", "expr": expression} for index, expression in enumerate(plain)]}]}))
        run("promtool", "check", "rules", rules)


def test_dashboard_ids_are_unique_and_panels_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        box = panel["gridPos"]
        area = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert max(x for x, _ in area) < 24, panel["title"]
        assert not cells & area, panel["title"]
        cells |= area


def test_dashboard_panels_are_described_and_use_the_chosen_data_source() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "culture"}
    for panel in PANELS:
        assert panel["title"] and panel["description"]
        assert {source["uid"] for source in [panel["datasource"], *(t["datasource"] for t in panel["targets"])]} == {
            "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]


# The folder


def test_readme_says_what_each_file_is() -> None:
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```\n(.*?)```", readme, re.DOTALL)[1]
    assert {line.split()[0] for line in tree.splitlines()} == {
        path.name for path in CLUSTER.iterdir() if path.name != "README.md"}
