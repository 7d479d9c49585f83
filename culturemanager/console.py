"""What a person at a terminal sees: results on standard output, progress and one-line errors on standard error."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TextIO

from culturemanager import errors
from culturemanager.errors import CultureManagerError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from culturemanager.evaluation.results import Evaluation
    from culturemanager.training.outlook import Outlook

PLAIN_EVERY_S = 15.0
"""Seconds between two lines about the same rows where there is no terminal to redraw."""

NARROWEST = 20
"""Columns of a terminal below which lines are left to the terminal to break."""

OWN_IN_TEXT = re.compile(r"^culturemanager\.errors\.(\w+): (.+)$", re.MULTILINE)

Report = Callable[..., None]
"""Rows done, rows in all, what they are, and for training the state of every adapter."""


def say(text: str = "") -> None:
    """A line of result."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line beside the result."""
    print(text, file=sys.stderr, flush=True)


def paragraph(text: str, indent: str = "") -> None:
    """Text that a terminal shows between words; a file or a pipe gets it as one line."""
    width = _terminal_width()
    for line in _wrapped(text, width - len(indent)) if width else [text]:
        say(f"{indent}{line}")


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words; a word that is longer stays whole, so that a path can be copied."""
    return textwrap.wrap(text, max(width, NARROWEST), break_long_words=False, break_on_hyphens=False) or [""]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under a header; numbers to the right. In a terminal the last column's text goes on below itself."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    width = _terminal_width()
    room = max(width - sum(widths[:-1]) - 2 * len(widths[:-1]), NARROWEST) if width else widths[-1]
    if widths[-1] > room and not numeric[-1]:
        widths[-1] = room
        cells = [[*(first if number == 0 else [""] * len(first)), line]
                 for *first, last in cells for number, line in enumerate(_wrapped(last, room))]
    for row in (header, ["-" * width for width in widths], *cells):
        say("  ".join(cell.rjust(width) if right else cell.ljust(width)
                      for cell, width, right in zip(row, widths, numeric, strict=True)).rstrip())


def comparison(evaluation: Evaluation) -> None:
    """The systems by cultures; a narrow terminal wraps the lines instead of losing columns."""
    from rich.console import Console

    from culturemanager.evaluation.report import comparison_table

    wanted = 60 + 8 * len(evaluation.summary["cultures"])
    Console(width=max(Console().width, wanted)).print(comparison_table(evaluation))


def training_plan(outlook: Outlook) -> None:
    """Which adapters would be trained, how many at once, and what that takes."""
    table(("adapter", "rows", "tokens", "longest row", "steps", "trained"), [
        (one.name, one.rows, one.tokens, one.longest, one.steps, one.version or "no") for one in outlook.adapters])
    if not outlook.packs:
        return say("Every adapter is trained on these rows and settings; there is nothing to do.")
    workers = f"{outlook.workers} worker{'s' * (outlook.workers > 1)}"
    for number, pack in enumerate(outlook.packs, 1):
        sizes = {"base": pack.base_bytes, "adapters": pack.adapter_bytes, "a step": pack.step_bytes, "kept": pack.kept_bytes}
        say(f"Pack {number} of {len(outlook.packs)}, on {workers}: {pack.adapters} to train, {pack.at_once} at once, up to "
            f"{pack.step_tokens:,} tokens a step. Memory of a worker: about {pack.memory_bytes / 2**30:.1f} GiB "
            f"({', '.join(f'{name} {size / 2**30:.1f}' for name, size in sizes.items())}) of "
            f"{outlook.free_bytes / 2**30:.1f} GiB free.")
    say(f"Time: about {max(1, round(outlook.seconds / 60))} min on this machine.")


def passed_over(versions: Sequence[tuple[str, str]], project: str | PathLike[str]) -> None:
    """A line for each version that training wants, and in whose place a person has chosen another one to serve."""
    for wanted, serving in versions:
        note(f"{wanted} is trained and does not serve, since {serving} was chosen by hand. To let it serve: culturemanager "
             f"adapters promote {wanted} {project}")


def error_line(error: BaseException) -> str:
    """The error in one line, without what libraries wrapped around it."""
    own = own_error(error)
    if own is not None:
        return "error: " + " ".join(str(own).split())
    text = " ".join(str(error).split())
    return f"error: {type(error).__name__}: {text[:300]} This is a fault in CultureManager; --debug shows where."


def own_error(error: BaseException | None) -> CultureManagerError | None:
    """The error of ours inside what Ray and others wrapped around it; `None` if there is none."""
    chain = list(_causes(error))
    # Ray's wrapper of a task's error is an instance of both classes; the error itself is its `cause`.
    own = [link for link in chain if isinstance(link, CultureManagerError) and _inner(link) is None]
    told = [found for link in chain if type(link).__module__.startswith("ray.") and (found := _told_in(str(link)))]
    return next(iter([*own, *told]), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = _inner(error) or error.__cause__


def _inner(error: BaseException) -> BaseException | None:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else None


def _told_in(traceback: str) -> CultureManagerError | None:
    """The last error of ours in a traceback's text: of an error in Ray Data's workers only the text comes back."""
    for name, message in reversed(OWN_IN_TEXT.findall(traceback)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, CultureManagerError):
            return kind(message)
    return None


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """A report for long functions: one bar for each kind of row, with rows per second.

    A terminal gets bars that move; a file or a pipe gets a line now and then, and one at the end of each kind.
    """
    rows = _Bars() if sys.stderr.isatty() else _Lines(sys.stderr)
    with rows:
        yield rows.report


class _Rows:
    """Tells one kind of row from the next: another total, a count that starts again, or other words once it is done."""

    def __init__(self) -> None:
        self.done = self.total = self.first = -1
        self.what = ""
        self.began = 0.0
        self.adapters: Sequence[Mapping[str, Any]] = ()

    def report(self, done: int, total: int, what: str, adapters: Sequence[Mapping[str, Any]] = ()) -> None:
        self.adapters = adapters
        if total != self.total or done < self.done or (self.done >= self.total and _words(what) != _words(self.what)):
            self.finish()
            # Rows kept from an interrupted run were not done in this one's time.
            self.first, self.began = done, time.monotonic()
            self.done, self.total, self.what = done, total, what
            self.begin()
        self.done, self.what = done, what
        self.update()

    def per_second(self) -> float | None:
        seconds, rows = time.monotonic() - self.began, self.done - self.first
        return rows / seconds if seconds > 0 and rows > 0 else None

    def rate(self) -> str:
        rate = self.per_second()
        return "" if rate is None else f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.finish()

    def begin(self) -> None: ...

    def update(self) -> None: ...

    def finish(self) -> None: ...


def _words(what: str) -> str:
    """The text without its figures, which may change from report to report."""
    return re.sub(r"[\d.,]+", "", what)


class _Lines(_Rows):
    """One line when a kind of row ends, and every few seconds before."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._said_at = 0.0
        self._said: tuple[int, str] | None = self.done, self.what

    def begin(self) -> None:
        self._said_at, self._said = self.began, None

    def update(self) -> None:
        if self.done >= self.total or time.monotonic() - self._said_at >= PLAIN_EVERY_S:
            self.finish()

    def finish(self) -> None:
        if (self.done, self.what) != self._said:  # what is done may stand still while its words go on
            self._write()

    def _write(self) -> None:
        rate = self.rate()
        print(f"  {self.done:,} of {self.total:,} {self.what}{f' ({rate})' if rate else ''}", file=self._stream, flush=True)
        self._said_at, self._said = time.monotonic(), (self.done, self.what)


class _Bars(_Rows):
    """rich's bars, one a kind of row; below them a table of the adapters while they train."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        rows = self

        class Bars(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                yield from super().get_renderables()
                if rows.adapters and rows.done < rows.total:
                    yield adapter_table(rows.adapters)

        self._progress = Bars(BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                              TimeElapsedColumn(), TextColumn("{task.description}", markup=False),
                              console=Console(stderr=True))
        self._task = None

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._progress.stop()

    def begin(self) -> None:
        self._task = self._progress.add_task("", total=self.total, rate="")

    def update(self) -> None:
        self._progress.update(self._task, completed=self.done, description=self.what, rate=self.rate())

    def finish(self) -> None:
        if self._task is not None:
            self._progress.stop_task(self._task)


def adapter_table(adapters: Sequence[Mapping[str, Any]]) -> Table:
    """Every adapter's place in its training; `adapters` as `training.telemetry.AdapterState`."""
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("adapter", "step", "loss", "validation", "gradient", "rows/s", "state"):
        shown.add_column(column, justify="left" if column in ("adapter", "state") else "right", no_wrap=True)
    for one in adapters:
        shown.add_row(one["name"], f"{one['step']}/{one['steps']}", _three_digits(one["loss"]),
                      _three_digits(one["validation_loss"]), f"{one['gradient_norm']:.2f}", f"{one['rows_per_second']:.1f}",
                      one["state"])
    return shown


def _three_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
