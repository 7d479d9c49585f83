"""Rows through a pool of Ray Data actors, with nothing lost when the work is interrupted.

Ray Data hands out work ahead of what has been received. A loop that simply stopped reading would
throw away what the actors had done meanwhile, and the next run would do it, or pay for it, again.
Here an interruption tells the actors to finish the batch in hand and take no other; what they
finish is kept, and only then the interruption goes on.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from culturemanager import errors
from culturemanager.errors import CultureManagerError

Row = dict[str, Any]
"""Anything JSON can hold."""
Work = Callable[[list[Row]], list[Row]]

LISTEN_S = 0.5
"""Seconds between two looks at whether the work is over."""
CPUS_PER_ACTOR = 0.5
"""Actors here mostly wait for a network or a disk."""


def stream(rows: Sequence[Row], make_work: Callable[[], Work], keep: Callable[[list[Row]], None],
           report: Callable[[list[Row]], None], *, actors: int, batch_size: int) -> None:
    """Do a piece of work on every row, in no particular order.

    Args:
        rows: the input.
        make_work: called once in each actor; what it returns turns a batch of rows into result rows.
        keep: receives each finished batch in a thread of this process, once; must make it safe.
        report: receives it afterwards, and may raise to interrupt.
        actors: how many.
        batch_size: rows done between two calls of `keep`. At most two batches an actor are under way,
            which is what a killed process has to do again.

    Raises:
        CultureManagerError: from `make_work` or its work, as it was raised there.
        BaseException: what `report` raised, or KeyboardInterrupt, once running batches are kept.
    """
    import ray

    if not rows:
        return
    stop = ray.remote(num_cpus=0)(_Flag).remote()
    events: queue.SimpleQueue[list[Row] | BaseException | None] = queue.SimpleQueue()
    runner = threading.Thread(target=_run, args=(rows, make_work, keep, stop, actors, batch_size, events), daemon=True)
    runner.start()
    interruption: BaseException | None = None
    while True:
        try:
            # Ctrl-C can swallow an event that has left the queue, the last one too: the end is not known from events alone.
            if not runner.is_alive() and events.empty():
                break
            event = events.get(timeout=LISTEN_S)
            if event is None:
                runner.join()
            elif isinstance(event, BaseException):
                raise event
            elif interruption is None:
                report(event)
        except queue.Empty:
            continue
        except BaseException as error:
            if interruption is not None:  # Ctrl-C again: now
                raise
            interruption = error
            stop.set.remote()
    if interruption is not None:
        raise interruption


def _run(rows: Sequence[Row], make_work: Callable[[], Work], keep: Callable[[list[Row]], None], stop: Any, actors: int,
         batch_size: int, events: queue.SimpleQueue) -> None:
    """Run the data set and keep its results, in a thread of its own: Ctrl-C reaches only the main thread.

    Puts each finished batch, errors, and `None` at the end into `events`, so that nobody waits longer than need be.
    """
    try:
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # else it tells of every start, plan and end
        dataset = ray.data.from_items([{"row": json.dumps(row, ensure_ascii=False)} for row in rows],
                                      override_num_blocks=-(-len(rows) // batch_size))
        dataset.context.enable_progress_bars = False
        results = dataset.map_batches(
            _Worker, fn_constructor_args=(make_work, stop), batch_size=None, batch_format="pyarrow", num_cpus=CPUS_PER_ACTOR,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2))
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            done, error = _unpack(table)
            keep(done)
            events.put(done if error is None else error)
    except BaseException as error:
        events.put(error)
    events.put(None)


class _Flag:
    """Ray actor: whether to stop."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


class _Worker:
    """Ray Data actor: does the work on one block at a time, unless it was told to stop."""

    def __init__(self, make_work: Callable[[], Work], stop: Any) -> None:
        self._make_work, self._stop = make_work, stop
        self._work: Work | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        if ray.get(self._stop.is_set.remote()):
            return _pack([])
        try:
            self._work = self._work or self._make_work()
            return _pack(self._work([json.loads(text) for text in table["row"].to_pylist()]))
        except CultureManagerError as error:  # as data: Ray would print its own long story about it
            return _pack([], error)


def _pack(rows: list[Row], error: CultureManagerError | None = None) -> pa.Table:
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    names = ["" for _ in rows]
    if error is not None:
        texts.append(str(error))
        names.append(type(error).__name__)
    return pa.table({"row": pa.array(texts, pa.large_string()), "error": pa.array(names, pa.string())})


def _unpack(table: pa.Table) -> tuple[list[Row], CultureManagerError | None]:
    rows, failure = [], None
    for text, name in zip(table["row"].to_pylist(), table["error"].to_pylist(), strict=True):
        if name:
            failure = getattr(errors, name, CultureManagerError)(text)
        else:
            rows.append(json.loads(text))
    return rows, failure
