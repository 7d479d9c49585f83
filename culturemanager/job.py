"""What the scripts in jobs/ share: their arguments, a cluster with progress, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

from culturemanager import cluster, console
from culturemanager.console import Report


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments of every job: the project file, and `--set a.b=c` as often as needed."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("project", nargs="?", default="project.yaml", help="the project file")
    made.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one field; may be repeated")
    return made


@contextlib.contextmanager
def running() -> Iterator[Report]:
    """The cluster the job was submitted to, and a progress report in the job's log.

    Leaving the block disconnects from Ray, which hands the last metrics to the node's agent.
    """
    with cluster.connect(), console.progress() as progress:
        yield progress


def finish(main: Callable[[], None]) -> None:
    """Run a job's `main` and leave the process: errors of ours come out as one line, and their exit code."""
    try:
        main()
    except KeyboardInterrupt:
        console.note("stopped; submit the same job again to go on")
        sys.exit(130)
    except Exception as error:
        if console.own_error(error) is None:
            raise
        console.note(console.error_line(error))
        sys.exit(console.own_error(error).exit_code)
