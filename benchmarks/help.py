"""How long `--help` takes, beside a bare typer application of one command in the same run.

    python -m benchmarks.help --json benchmarks/results/help.json

The aim is half a second. Wall-clock seconds of a fresh interpreter, the two taking turns, medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.circumstances import circumstances
from culturemanager.storage import write_json

PEER = '''
import sys
import typer
app = typer.Typer()
@app.command()
def one(path: str = "a", number: int = 1): "One command."
@app.command()
def two(path: str = "a", number: int = 1): "Another."
sys.argv[1:] = {arguments!r}
app()
'''
OURS = "import sys\nsys.argv[1:] = {arguments!r}\nfrom culturemanager.cli import main\nmain()"
COMMANDS = {"--help": ["--help"], "train --help": ["train", "--help"], "passages --help": ["passages", "--help"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    arguments = parser.parse_args()
    figures = {name: measure(given, arguments.repeats) for name, given in COMMANDS.items()}
    write_json(arguments.json, {"measured": circumstances(repeats=arguments.repeats), "commands": figures})
    Console().print(table(figures))


def measure(given: list[str], repeats: int) -> dict[str, float]:
    """Median seconds of ours and of the peer, and their ratio."""
    peer = given if len(given) == 1 else ["one", "--help"]
    turns = [(seconds(OURS, given), seconds(PEER, peer)) for _ in range(repeats)]
    ours, theirs = (statistics.median(column) for column in zip(*turns, strict=True))
    return {"seconds": round(ours, 3), "seconds_typer": round(theirs, 3), "ratio": round(ours / theirs, 2)}


def seconds(code: str, arguments: list[str]) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code.format(arguments=arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def table(figures: dict[str, dict[str, float]]) -> Table:
    shown = Table(title="Seconds of --help")
    for column in ("command", "culturemanager", "bare typer", "ratio"):
        shown.add_column(column, justify="left" if column == "command" else "right")
    for name, row in figures.items():
        shown.add_row(name, f"{row['seconds']:.2f}", f"{row['seconds_typer']:.2f}", f"{row['ratio']:.2f}")
    return shown


if __name__ == "__main__":
    main()
