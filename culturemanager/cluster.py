"""Starting or joining a Ray cluster, with its token on everywhere.

A new local cluster asks for a token by itself; a cluster started by `ray start`, and a client that
names an address, do so only with `RAY_AUTH_MODE=token`. Ray writes the token readable for every user
of the machine, so it is written here, before Ray looks for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from culturemanager.errors import CultureManagerError

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray would otherwise hide every GPU from workers that ask for none, and warn that it will stop doing so.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What has to stand in the environment before Ray and transformers are imported."""
NOISY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.serve", "DeepSpeed")


def prepare_environment() -> None:
    """Set what is not set yet; to be called before Ray or transformers are imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def token_path() -> Path | None:
    """The file with Ray's token; `None` where the environment holds the token itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def protect_token() -> None:
    """Make the token file, if there is none, and let nobody but its owner read it."""
    path = token_path()
    if path is None:
        return
    # A file of another user, or on a read-only disk (a mounted secret), stays; `doctor` looks at it.
    with contextlib.suppress(OSError):
        if not path.exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)


def stop_at_sigterm() -> None:
    """From now on `kill`, a service manager or `ray job stop` ends this process as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def connect(*, dashboard: bool = False, logs: bool = False) -> Iterator[None]:
    """A Ray cluster for the block: the one `RAY_ADDRESS` names, or a local one with every core.

    Args:
        dashboard: start a local cluster's dashboard; jobs and metrics need it, a laptop run does not.
        logs: show what Ray and its workers log.

    Raises:
        CultureManagerError: the cluster cannot be reached or started.
    """
    prepare_environment()
    protect_token()
    if not logs:
        # The core's own log lines bypass Python's loggers; what concerns a user comes as an exception too.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield
        return
    level = logging.INFO if logs else logging.ERROR
    address = os.environ.get("RAY_ADDRESS")
    try:
        with contextlib.nullcontext() if logs else _without_the_cores_first_line():
            if address:
                ray.init(logging_level=level, log_to_driver=logs)
            else:
                ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=dashboard, logging_level=level,
                         log_to_driver=logs)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray cluster"
        raise CultureManagerError(f"Cannot {'reach' if address else 'start'} {where}: {error} "
                                  "Check the address, that ~/.ray/auth_token holds the cluster's token, and "
                                  "`culturemanager doctor`.") from error
    try:
        _calm(logs)
        stop_at_sigterm()  # Ray's core has just asked for the signal, and would abort with a stack trace
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_the_cores_first_line() -> Iterator[None]:
    """Ray's core tells on standard error which log level it was given, before it heeds it.

    It writes to the descriptor, past `sys.stderr`. What it says when the block fails is shown.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(shown, hidden.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def _calm(logs: bool) -> None:
    """Ray Data's own bars stay off: ours show the same rows."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if not logs:
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
