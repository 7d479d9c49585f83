"""The command line: what it prints, how it fails, and one whole small run of the real thing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from culturemanager import cli, cluster, console, doctor, errors, serving
from culturemanager.errors import ConfigError, EmbeddingError, SynthesisError
from tests.few_items import write_few_items

ROOT = Path(__file__).resolve().parent.parent
SMALL = """\
name: Small
workspace: runs
cultures: [turkey, germany]
tasks: [tasks/acceptability.yaml, tasks/choice.yaml]
queries: {per_task: 3, agnostic: 2}
examples: {per_culture_and_task: 40}
training: {rank: 4, epochs: 1, last_layers: 4}
evaluation: {items: items.jsonl, systems: [base, culturemanager], bootstrap: 100, interference_items: 4}
"""


def command(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "culturemanager", *map(str, arguments)], capture_output=True, text=True,
                          timeout=1500, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    code = cli.execute([str(argument) for argument in arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert code != 0
    return code, line


def start(folder: Path, base: str | Path = "embedded") -> Path:
    """A started project with the small settings."""
    path = folder / "project.yaml"
    assert cli.execute(["init", str(path)]) == 0
    path.write_text(f"{SMALL}base: {{path: {base}}}\n")
    write_few_items(folder / "items.jsonl")
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return start(tmp_path)


@pytest.fixture
def quick_project(tmp_path: Path, small_base: Path) -> Path:
    return start(tmp_path, small_base)


# Parsing


def test_no_arguments_show_the_help() -> None:
    done = command()
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_commands_are_listed_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["--help"]) == 0
    text = capsys.readouterr().out
    found = [match for match in re.findall(r"^\W*(\w+)  ", text, re.MULTILINE) if match in cli.ORDER]
    assert found == list(cli.ORDER)


@pytest.mark.parametrize(("arguments", "expected"), [
    (["bogus"], "bogus"),
    (["train", "--bad"], "--bad"),
    (["ask"], "TEXT"),
    (["adapters", "promote"], "NAME"),
    (["passages", "search"], "TEXT"),
    (["passages", "sarch", "tipping"], "did you mean 'search'"),
    (["run", "a.yaml", "b.yaml"], "b.yaml"),
    (["passages", "search", "x", "--limit", "0"], "--limit"),
])
def test_wrong_usage_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    code, line = fails(capsys, *arguments)
    assert code == 2
    assert expected.lower() in line.lower()


def test_error_of_a_real_process_is_one_line_on_standard_error() -> None:
    done = command("run", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: Cannot read nowhere.yaml")
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for arguments in (["--debug", "run", "nowhere.yaml"], ["run", "nowhere.yaml", "--debug"]):
        assert "Traceback" in command(*arguments).stderr


# Help


def all_commands() -> list[list[str]]:
    groups = {"passages": ["search"], **{name: [command.name for command in group.registered_commands]
                                         for name, group in (("adapters", cli.adapters_app), ("keys", cli.keys_app))}}
    return [[], *([name] for name in cli.ORDER), *([group, name] for group, names in groups.items() for name in names)]


@pytest.mark.parametrize("arguments", all_commands(), ids=" ".join)
def test_help_of_every_command_teaches_by_an_example_and_is_plain(arguments: list[str], capsys: pytest.CaptureFixture[str],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.execute([*arguments, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: {' '.join(['culturemanager', *arguments])}" in text
    assert not [ugly for ugly in ("[[", "{", "<bool>", "<list") if ugly in text]
    assert max(map(len, text.splitlines())) <= 100


def test_the_examples_of_the_help_can_be_parsed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                                tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in all_commands():
        cli.execute([*arguments, "--help"])
        for example in re.findall(r"Example: culturemanager (.+)", capsys.readouterr().out):
            cli.execute(shlex.split(example))
            error = capsys.readouterr().err
            assert "--help" not in error, f"{example}: {error}"  # what is wrong usage points there


def test_wrong_usage_points_to_the_help_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, "train", "--bad")[1].endswith("See `culturemanager train --help`.")


# Exit codes


def test_exit_codes_are_told_by_the_help_and_the_readme(capsys: pytest.CaptureFixture[str],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    cli.execute(["--help"])
    helped = re.search(r"Exit code: (.+)", capsys.readouterr().out).group(1)
    sentence = re.search(r"Exit codes: ([^.]+)\.", (ROOT / "README.md").read_text(encoding="utf-8")).group(1)
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    for text in (helped, sentence):
        assert {int(number) for number in re.findall(r"\d+", text)} == raised | {0, cli.STOPPED}


@pytest.mark.parametrize(("code", "arguments"), [
    (0, ["validate", "{project}"]),
    (2, ["validate", "{project}", "--nonsense"]),
    (2, ["validate", "nowhere.yaml"]),
    (2, ["validate", "{project}", "--set", "training.epochs=abc"]),
    (2, ["validate", "{project}", "--set", "base.path=/none/model"]),
    (2, ["validate", "{project}", "--set", "examples.generator={kind: openai, model: m, base_url: nowhere}"]),
    (2, ["settings", "nonsense"]),
    (2, ["train", "{project}", "--only", "turky"]),
    (2, ["adapters", "show", "turkey-v0001", "{project}"]),
    (2, ["adapters", "promote", "turkey", "{project}"]),
    (2, ["adapters", "rollback", "mars", "{project}"]),
    (2, ["ask", "hello", "{project}", "--culture", "mars"]),
    (1, ["adapters", "rollback", "turkey", "{project}"]),
    (1, ["train", "{project}"]),
    (1, ["evaluate", "{project}"]),
])
def test_exit_code_says_whose_turn_it_is(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                         code: int, arguments: list[str]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # none of them gets as far as to need a cluster
    assert cli.execute([argument.replace("{project}", str(project)) for argument in arguments]) == code


def test_serve_does_not_take_the_place_of_what_a_cluster_serves(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(serving, "check", lambda _: None)
    with pytest.raises(errors.ServingError, match="serve deploy"):
        serving.serve(project)


# A project


def test_a_missing_task_file_is_named_with_the_file_that_names_it_and_those_that_are_there(
        project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project.write_text(SMALL.replace("tasks/choice.yaml", "task/choise.yaml"))
    code, line = fails(capsys, "validate", project)
    assert code == 2
    assert line.startswith(f"error: {project}: tasks: 'task/choise.yaml': there is no file {project.parent}/task/choise.yaml. "
                           "Nearest: tasks/choice.yaml; task files there are: tasks/acceptability.yaml, tasks/advice.yaml, ")
    assert "init" not in line
    assert "No task file lies near" in fails(capsys, "validate", lonely(project))[1]


def lonely(project: Path) -> Path:
    """The project file alone in a folder."""
    other = project.parent / "lonely" / "project.yaml"
    other.parent.mkdir()
    other.write_text(project.read_text())
    return other


def test_init_writes_what_validate_accepts_and_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "project.yaml"
    assert cli.execute(["init", str(path), "--culture", "turkey"]) == 0
    assert "tasks/choice.yaml" in capsys.readouterr().out
    assert cli.execute(["validate", str(path)]) == 0
    assert "is fine" in capsys.readouterr().out
    before = path.read_text()
    assert "is there already" in fails(capsys, "init", path)[1]
    assert path.read_text() == before


def test_init_names_the_nearest_culture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fails(capsys, "init", tmp_path / "project.yaml", "--culture", "turky")
    assert code == 2
    assert "turkey" in line
    assert list(tmp_path.iterdir()) == []


def test_project_file_defaults_to_the_current_folder(project: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(project.parent)
    assert cli.execute(["validate"]) == 0
    assert "project.yaml is fine" in capsys.readouterr().out


@pytest.mark.parametrize(("override", "expected"), [
    ("training.epoch=2", "epochs"),
    ("cultures=[turky]", "turkey"),
    ("tasks=[tasks/none.yaml]", "none.yaml"),
    ("training.last_layers=99", "--set training.last_layers: 99, and the base model embedded has 30 decoder layers. Set a number "
                                "from 1 to 30, or 0"),
    ("evaluation.systems=[bse]", "base"),
    ("evaluation.items=none.jsonl", "none.jsonl"),
    ("pages.search.path=none", "pages.search.path"),
    ("queries.llm=true", "examples.generator.kind: openai"),
    ("base.path=/none/model", "/none/model"),
])
def test_validate_names_the_mistake_before_anything_runs(project: Path, capsys: pytest.CaptureFixture[str], override: str,
                                                         expected: str) -> None:
    code, line = fails(capsys, "validate", project, "--set", override)
    assert expected.lower() in line.lower()
    assert code == 2
    assert not (project.parent / "runs").exists()


def test_missing_key_is_named_and_never_shown(project: Path, capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    generator = "examples.generator={kind: openai, base_url: 'https://host.example.org/v1', model: m, api_key_env: MY_KEY}"
    monkeypatch.delenv("MY_KEY", raising=False)
    assert "MY_KEY" in fails(capsys, "validate", project, "--set", generator)[1]
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    assert cli.execute(["validate", str(project), "--offline", "--set", generator]) == 0
    captured = capsys.readouterr()
    assert "sk-very-secret" not in captured.out + captured.err


def test_culture_without_items_is_told_and_is_no_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["validate", str(project), "--set", "cultures=[{id: mars, name: Mars}]"]) == 0
    assert "evaluation.items" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["router"], ["evaluate"], ["ask", "hello"], ["passages", "search", "tipping"], ["serve"]])
def test_stage_out_of_order_says_what_to_run(project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert "culturemanager run" in fails(capsys, *arguments, project)[1]


def test_queries_need_no_cluster(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert cli.execute(["queries", str(project)]) == 0
    assert re.search(r"queries: \d+ rows", capsys.readouterr().out)


# Errors and progress


def test_error_inside_a_cluster_s_wrapper_is_found(ray_cluster) -> None:
    import ray

    @ray.remote
    def fail() -> None:
        raise SynthesisError("nothing was found for\n turkey.")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    assert console.own_error(caught.value).exit_code == 3
    assert console.error_line(caught.value) == "error: nothing was found for turkey."


def test_error_inside_a_data_pipeline_is_found(ray_cluster) -> None:
    import ray.data

    def fail(batch):
        raise ConfigError("the value is wrong.")

    class FailsAtStart:
        def __init__(self) -> None:
            raise ConfigError("the start is wrong.")

        def __call__(self, batch):
            return batch

    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.data.range(2).map_batches(fail).materialize()
    assert console.error_line(caught.value) == "error: the value is wrong."
    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.data.range(2).map_batches(FailsAtStart, compute=ray.data.ActorPoolStrategy(size=1)).materialize()
    assert console.error_line(caught.value) == "error: the start is wrong."
    assert console.own_error(caught.value).exit_code == 2


def test_error_that_is_not_ours_is_one_line_and_says_so() -> None:
    line = console.error_line(ValueError("a\nb"))
    assert line.startswith("error: ValueError: a b")
    assert "--debug" in line


def test_a_terminal_gets_lines_that_fit_and_a_pipe_gets_them_whole(capsys: pytest.CaptureFixture[str],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> list[str]:
        console.table(("what", "found"), [("systems", "base, few_shot, retrieval, oracle"), ("seed", "0")])
        console.paragraph("one two three four five six seven eight", "    ")
        return capsys.readouterr().out.splitlines()

    assert shown()[2:] == ["systems  base, few_shot, retrieval, oracle", "seed     0",
                           "    one two three four five six seven eight"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "32")
    assert shown() == ["what     found", "-------  -----------------------", "systems  base, few_shot,",
                       "         retrieval, oracle", "seed     0", "    one two three four five six", "    seven eight"]


def test_progress_counts_rows_of_this_run_only(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as report:
        report(900, 1000, "pages fetched")
        time.sleep(0.05)
        report(1000, 1000, "pages fetched")
        report(1, 2, "rows, loss 0.5")
        report(2, 2, "rows, loss 0.4")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0].strip() for line in lines] == ["1,000 of 1,000 pages fetched", "2 of 2 rows, loss 0.4"]
    assert float(re.search(r"\(([\d.,]+)/s\)", lines[0]).group(1).replace(",", "")) <= 2000


# The doctor


def findings(path: Path, *overrides: str) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(path, overrides)}


def test_doctor_asks_for_a_private_token_file(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert findings(project)["Ray token"].result == doctor.WARNING
    token.write_text("secret-token")
    token.chmod(0o644)
    finding = findings(project)["Ray token"]
    assert finding.result == doctor.FAILED
    assert f"chmod 600 {token}" in finding.advice
    cluster.protect_token()
    assert token.stat().st_mode & 0o777 == 0o600
    assert findings(project)["Ray token"].result == doctor.OK
    assert not [finding for finding in findings(project).values() if "secret-token" in finding.found + finding.advice]


def test_token_file_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    cluster.protect_token()
    path = tmp_path / ".ray" / "auth_token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[0-9a-f]{64}", path.read_text())
    before = path.read_text()
    cluster.protect_token()
    assert path.read_text() == before


@pytest.mark.parametrize(("mode", "result"), [("token", doctor.OK), ("disabled", doctor.FAILED), ("", doctor.OK)])
def test_doctor_wants_token_auth(project: Path, monkeypatch: pytest.MonkeyPatch, mode: str, result: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert findings(project)["Ray auth mode"].result == result


def test_doctor_sees_a_port_in_use_and_keys_that_are_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CULTUREMANAGER_API_KEYS", raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        finding = findings(project, f"serving.port={port}")["port"]
        assert finding.result == doctor.WARNING
        assert "--set serving.port=" in finding.advice
    assert findings(project, f"serving.port={port}")["port"].result == doctor.OK
    assert findings(project, "serving.host=0.0.0.0")["API keys"].result == doctor.FAILED
    monkeypatch.setenv("CULTUREMANAGER_API_KEYS", "sk-very-secret")
    finding = findings(project, "serving.host=0.0.0.0")["API keys"]
    assert finding.result == doctor.OK
    assert "sk-very-secret" not in finding.found


def test_doctor_checks_the_base_model_s_folder(project: Path) -> None:
    (project.parent / "model").mkdir()
    finding = findings(project, "base.path=model")["base model"]
    assert finding.result == doctor.FAILED
    assert "config.json" in finding.advice


def test_doctor_checks_each_of_the_embedded_models(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(project)
    assert found["embedding model"].result == found["base model"].result == doctor.OK

    def nothing() -> Path:
        raise EmbeddingError("gone. Run: pip install it")

    monkeypatch.setattr("culturemanager.providers.embedding.minilm_folder", nothing)
    found = findings(project)
    assert found["embedding model"].result == doctor.FAILED and found["embedding model"].advice == "gone. Run: pip install it"
    assert found["base model"].result == doctor.OK


def test_doctor_works_without_a_project_and_fails_by_its_exit_code(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o640)
    done = command("doctor", cwd=tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 1
    assert "chmod 600" in done.stdout
    assert token.stat().st_mode & 0o777 == 0o640  # it only looks
    token.chmod(0o600)
    assert command("doctor", cwd=tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)).returncode == 0


def test_rows_of_a_task_that_is_not_there_are_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, line = fails(capsys, "validate", project, "--set", "examples.rows_of_task={advise: 9}")
    assert "'advise' is none of the project's tasks (acceptability, choice" in line


# One small run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two cultures through every stage."""
    path = start(tmp_path_factory.mktemp("small"), small_base)
    return path, command("run", path)


def test_run_ends_with_the_table_the_report_and_how_to_serve(finished) -> None:
    path, done = finished
    assert done.returncode == 0, done.stderr
    head = next(line for line in done.stdout.splitlines() if line.startswith("system"))
    assert [name for name in ("Tur", "Ger") if name in head] == ["Tur", "Ger"]
    for system in ("base", "culturemanager"):
        assert re.search(rf"^{system} +\d+\.\d ", done.stdout, re.MULTILINE)
    report = Path(re.search(r"^Report: (.+)$", done.stdout, re.MULTILINE).group(1))
    assert "Small" in report.read_text(encoding="utf-8")
    assert re.search(rf"^Serve:  .*culturemanager.* serve {re.escape(str(path))}$", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert "/s)" in done.stderr


def test_second_run_does_nothing_again(finished) -> None:
    path, _ = finished
    before = {file: file.stat().st_mtime_ns for file in (path.parent / "runs").rglob("*") if file.is_file()}
    done = command("run", path, RAY_ADDRESS="127.0.0.1:1")  # not even a cluster is asked for
    assert done.returncode == 0, done.stderr
    after = {file: file.stat().st_mtime_ns for file in (path.parent / "runs").rglob("*") if file.is_file()}
    assert after == before


def test_the_router_is_told_with_its_thresholds(finished, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = finished
    assert cli.execute(["router", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"thresholds: named \d\.\d{3}, language \d\.\d{3}, classifier \d\.\d{3}; \d", said), said


def test_training_one_culture_takes_the_adapter_that_serves_it_along(finished, capsys: pytest.CaptureFixture[str]) -> None:
    serving = ["--set", "serving.system=culturemanager_retrieval"]
    assert cli.execute(["train", "--plan", "--only", "turkey", str(finished[0]), *serving]) == 0
    planned = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "turkey" in line]
    assert planned == ["turkey", "retrieval_turkey"]


def test_training_one_culture_again_makes_one_version_and_rollback_returns(finished) -> None:
    path, _ = finished
    done = command("train", path, "--only", "turkey", "--set", "training.rank=2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"turkey-v0002 +yes +2", done.stdout)
    listed = command("adapters", "list", path).stdout
    assert re.search(r"germany-v0001 +yes", listed)
    assert re.search(r"turkey-v0001 +4", listed)
    assert command("adapters", "rollback", "turkey", path).stdout == "turkey-v0001 serves\n"
    assert command("adapters", "promote", "turkey-v0002", path).stdout == "turkey-v0002 serves\n"
    assert json.loads(command("adapters", "show", "turkey-v0002", path).stdout)["rank"] == 2
    assert command("adapters", "rollback", "turkey", path).returncode == 0


def test_passages_are_found_with_their_source(finished) -> None:
    done = command("passages", "search", "tipping in restaurants", finished[0], "--culture", "germany", "--limit", "3")
    assert done.returncode == 0, done.stderr
    heads = [line for line in done.stdout.splitlines() if re.match(r"-?\d\.\d{3}  ", line)]
    assert 1 <= len(heads) <= 3
    assert all("  germany  " in head for head in heads)
    assert done.stdout.count("folder:") == len(heads)


def test_ask_names_the_culture_and_how_sure_the_router_was(finished) -> None:
    done = command("ask", "Should I tip the waiter in Berlin?", finished[0])
    assert done.returncode == 0, done.stderr
    assert re.search(r"culture: germany \(named, confidence [01]\.\d\d\); adapter: germany-v0001", done.stdout)
    pinned = command("ask", "Leaving a tip.", finished[0], "--culture", "turkey", "--task", "acceptability")
    assert pinned.stdout.splitlines()[0] in ("yes", "no")
    assert "culture: turkey (pinned, confidence 1.00)" in pinned.stdout


def interrupted(*arguments: object, when: str, by: signal.Signals = signal.SIGINT) -> subprocess.CompletedProcess[str]:
    """A command, and Ctrl-C (or another signal) as soon as its standard error says `when`."""
    process = subprocess.Popen([sys.executable, "-m", "culturemanager", *map(str, arguments)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
                               # A test run in the background of a shell ignores Ctrl-C, and its children would too.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert any(when in line for line in process.stderr), process.wait()
    process.send_signal(by)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_how_to_go_on_and_goes_on(project: Path, by: signal.Signals) -> None:
    stopped = interrupted("examples", project, when="queries searched", by=by)  # Ray is up, and a stage is under way
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-1] == "stopped; run the same command again to go on"
    done = command("examples", project)
    assert done.returncode == 0, done.stderr


def test_sigterm_ends_a_command_without_a_cluster_too(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        upstream = f"serving.upstream={{base_url: 'http://127.0.0.1:{silent.getsockname()[1]}/v1'}}"
        process = subprocess.Popen([sys.executable, "-m", "culturemanager", "validate", str(project), "--set", upstream],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
        with silent.accept()[0]:  # it waits for an answer now
            process.terminate()
            _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and told.splitlines()[-1] == "stopped; run the same command again to go on"


def killed(path: Path, when: str) -> None:
    """A run whose driver is killed as soon as a file like `when` lies in its workspace."""
    process = subprocess.Popen([sys.executable, "-m", "culturemanager", "run", str(path)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    until = time.monotonic() + 900
    while not any((path.parent / "runs").glob(when)):
        assert process.poll() is None and time.monotonic() < until, f"{when} never came"
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_run_killed_in_one_stage_after_another_ends_like_an_undisturbed_one(finished, quick_project: Path) -> None:
    quick_project.write_text(quick_project.read_text().replace("epochs: 1", "epochs: 1, checkpoint_every: 2"))
    for when in (
        "queries/manifest.json",
        "passages/manifest.json",
        "training/*/checkpoints/step-*/state.json",
        "router/manifest.json",
    ):
        killed(quick_project, when)
    done = command("run", quick_project)
    assert done.returncode == 0, done.stderr
    ours, theirs = quick_project.parent / "runs", finished[0].parent / "runs"
    for stage in ("queries", "pages", "passages", "examples"):
        rows, undisturbed = (pq.read_table(sorted((runs / stage).glob("*.parquet"))).to_pylist() for runs in (ours, theirs))
        # the time of fetching is the run's own
        assert [row | {"fetched_at": ""} for row in rows] == [row | {"fetched_at": ""} for row in undisturbed] != []
    for name in ("turkey-v0001", "germany-v0001"):
        weights, undisturbed = (load_file(runs / "adapters" / name / "adapter_model.safetensors") for runs in (ours, theirs))
        for key, tensor in weights.items():
            torch.testing.assert_close(tensor, undisturbed[key], rtol=1e-3, atol=1e-5)
    scores, undisturbed = (json.loads((runs / "evaluation" / "scores.json").read_text()) for runs in (ours, theirs))
    assert scores["systems"] == undisturbed["systems"]


def test_interrupted_training_says_so_too_and_leaves_the_versions_as_they_were(finished) -> None:
    before = command("adapters", "list", finished[0]).stdout
    stopped = interrupted("train", finished[0], "--set", "training.epochs=500", when="mean loss")
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "stopped; run the same command again to go on"
    assert command("adapters", "list", finished[0]).stdout == before


def test_serve_refuses_a_port_in_use_before_anything_starts(finished) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        done = command("serve", finished[0], "--set", f"serving.port={port}")
    assert done.returncode == 1
    assert re.fullmatch(rf"error: port {port} on 127.0.0.1 is in use\. Choose another: --set serving.port=\d+\n", done.stderr)


def test_serve_refuses_to_be_open_to_others_without_keys(finished) -> None:
    done = command("serve", finished[0], "--set", "serving.host=0.0.0.0", CULTUREMANAGER_API_KEYS="")
    assert done.returncode == 1
    assert "CULTUREMANAGER_API_KEYS" in done.stderr
