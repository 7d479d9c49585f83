"""Runs an engine in a thread of its own, and hands its tokens to asyncio callers."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from culturemanager.errors import CultureManagerError, ServingError
from culturemanager.inference.engine import Engine, Generation, GenerationRequest, TokenEvent

MOST_FAILED_STEPS = 3


class EngineLoop:
    """The one thread that touches the engine and its bank.

    Other threads pass it work through a queue: `call` runs a function between two steps, `in_turns` long work with
    steps in between, `generate` streams a request's tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[int, Callable[[TokenEvent | BaseException], None]] = {}
        self._failed_steps = self._failed_turns = 0  # in a row; either may go on working where the other fails
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it computes. A GPU that failed once may fail at every step, or turn, from then on."""
        return self._thread.is_alive() and max(self._failed_steps, self._failed_turns) < MOST_FAILED_STEPS

    def stop(self) -> None:
        """End the thread after the step it is in."""
        self._work.put(None)
        self._thread.join(timeout=10)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the engine's thread and return its result, or raise what it raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # raised again where the caller waits
                loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                loop.call_soon_threadsafe(_settle, future, result, None)

        self._work.put(work)
        return await future

    async def in_turns(self, begin: Callable[[], Generator[Any, None, Any]]) -> Any:
        """Run a generator in the engine's thread, with a step of the engine after each of its own, and return its result.

        Being cancelled ends it after the turn it is in.

        Args:
            begin: makes the generator, in the engine's thread and in one piece with its first turn.

        Raises:
            Exception: what the generator or `begin` raised.
        """
        running: Generator[Any, None, Any] | None = None

        def turn() -> tuple[Any] | None:
            nonlocal running
            ended = None
            try:
                running = running or begin()
                next(running)
            except StopIteration as end:
                ended = (end.value,)
            except RuntimeError:
                self._failed_turns += 1
                raise
            self._failed_turns = 0
            return ended

        def close() -> None:
            if running:
                running.close()

        try:
            while (ended := await self.call(turn)) is None:
                pass
            return ended[0]
        finally:
            self._work.put(close)  # its turn comes after that of the last `turn`

    async def generate(self, request: GenerationRequest, prepare: Callable[[], None]) -> AsyncIterator[list[TokenEvent]]:
        """The request's tokens, those that came together in one list. Leaving early cancels it and frees its row.

        Args:
            prepare: runs in the engine's thread right before the request is submitted, so that the adapter it loads
                cannot be dropped in between.

        Raises:
            RequestError, AdapterError: as `Engine.submit`, or what `prepare` raises.
            ServingError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TokenEvent | BaseException] = asyncio.Queue()
        async with self._submitted(request, prepare, lambda event: loop.call_soon_threadsafe(events.put_nowait, event)):
            ended = False
            while not ended:
                together = [await events.get()]
                while not events.empty():  # a slow reader gets fewer and longer pieces
                    together.append(events.get_nowait())
                failed = next((event for event in together if isinstance(event, BaseException)), None)
                if failed is not None:
                    raise ServingError(f"the engine failed: {failed}") from failed
                ended = together[-1].finish_reason is not None
                yield together

    async def complete(self, request: GenerationRequest, prepare: Callable[[], None]) -> tuple[Generation, float]:
        """The request's whole answer, and the seconds since its first token. Being cancelled cancels the request.

        Raises:
            RequestError, AdapterError, ServingError: as `generate`.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[TokenEvent | BaseException] = loop.create_future()
        first: list[float] = []

        def listen(event: TokenEvent | BaseException) -> None:
            if not first:
                first.append(time.monotonic())
            # Only the end is told: waking the event loop for every token costs more than the token.
            if isinstance(event, BaseException) or event.finish_reason:
                loop.call_soon_threadsafe(_settle, ended, event, None)

        async with self._submitted(request, prepare, listen):
            event = await ended
        if isinstance(event, BaseException):
            raise ServingError(f"the engine failed: {event}") from event
        return event.generation, time.monotonic() - first[0]

    @contextlib.asynccontextmanager
    async def _submitted(self, request: GenerationRequest, prepare: Callable[[], None],
                         listen: Callable[[TokenEvent | BaseException], None]) -> AsyncIterator[None]:
        """Within, the request is in the engine. Leaving cancels it, even a caller that leaves while it is being submitted."""
        number = None

        def submit() -> None:
            nonlocal number
            prepare()
            number = self.engine.submit(request)
            self._listeners[number] = listen

        def forget() -> None:
            if self._listeners.pop(number, None):
                self._cancel(number)

        try:
            await self.call(submit)
            yield
        finally:
            self._work.put(forget)  # its turn comes after that of `submit`

    def _run(self) -> None:
        while True:
            if not self._do_work(block=not self.engine.pending):
                return
            if self.engine.pending:
                try:
                    events = self.engine.step()
                except (CultureManagerError, RuntimeError) as error:
                    self._failed_steps += isinstance(error, RuntimeError)
                    self._fail(error)
                    continue
                if any(event.finish_reason != "cancelled" for event in events):  # something was computed
                    self._failed_steps = 0
                for event in events:
                    listener = self._listeners.get(event.request_id)
                    if event.finish_reason:
                        self._listeners.pop(event.request_id, None)
                    if listener:
                        listener(event)

    def _do_work(self, block: bool) -> bool:
        """Run what waits in the queue by now; False once `stop` was called."""
        for _ in range(self._work.qsize() or int(block)):
            work = self._work.get()
            if work is None:
                return False
            work()
        return True

    def _fail(self, error: BaseException) -> None:
        """Tell every caller, and clear the engine, so that the next requests start fresh."""
        failed, self._listeners = self._listeners, {}
        for listener in failed.values():
            listener(error)
        for number in failed:
            self._cancel(number)

    def _cancel(self, number: int) -> None:
        # Freeing a row writes to the device, too; one that is broken is found out by the next steps.
        with contextlib.suppress(RuntimeError):
            self.engine.cancel(number)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
