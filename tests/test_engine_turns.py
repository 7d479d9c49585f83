"""Answers to compare and streamed ones take turns: neither holds the other up, and both are as if alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from culturemanager.adapters.bank import AdapterBank
from culturemanager.errors import AdapterError
from culturemanager.inference import scoring
from culturemanager.inference.engine import Engine, ScoreRequest
from culturemanager.inference.runner import ModelRunner
from serve_app.adapters import ServedAdapters
from serve_app.engine_loop import EngineLoop
from tests.test_engine import CONTEXT, Setting, build_setting, tiny_model
from tests.test_engine_adapters import Shelf

OPTIONS = ("yes", "Tea first. Shoes off at the door.", "", "no", "a" * 30, "Who pays?", "é", "yes, at the door", "no tips")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Setting:
    return build_setting("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def work(monkeypatch) -> list[str]:
    """What the engines do, in order: a pass for each option, and steps."""
    monkeypatch.setattr(scoring, "SCORED_TOKENS", 1)
    done, compute, step = [], ModelRunner.options, Engine.step
    monkeypatch.setattr(ModelRunner, "options", lambda runner, rows: (done.append("pass"), compute(runner, rows))[1])
    monkeypatch.setattr(Engine, "step", lambda engine: (done.append("step"), step(engine))[1])
    return done


@pytest.fixture
def loop(llama) -> Iterator[EngineLoop]:
    running = EngineLoop(llama.engine())
    yield running
    running.stop()


def choosing(loop: EngineLoop, request: ScoreRequest, prepare: Callable[[], None] = lambda: None):
    def begin() -> scoring.Passes:
        prepare()
        return loop.engine.score_in_passes([request])

    return loop.in_turns(begin)


def test_a_stream_goes_on_while_two_requests_compare_many_answers(llama, loop, work):
    requests = [ScoreRequest(llama.prompts[0], OPTIONS, adapter) for adapter in ("greece", "")]
    alone = llama.engine().score(requests)
    asked = llama.request(1, "jordan", max_new_tokens=CONTEXT - len(llama.prompts[1]))
    (answer,) = llama.engine().generate([asked])
    work.clear()

    async def together() -> tuple:
        return await asyncio.gather(loop.complete(asked, lambda: None), *(choosing(loop, request) for request in requests))

    (streamed, _), *scores = asyncio.run(together())
    assert streamed.token_ids == answer.token_ids
    assert [one for (one,) in scores] == [pytest.approx(one, abs=2e-5) for one in alone]
    assert work.count("pass") == 2 * len(OPTIONS) and work.count("step") > len(OPTIONS)
    last_step = len(work) - work[::-1].index("step")
    assert max(len(list(run)) for what, run in itertools.groupby(work[:last_step]) if what == "pass") <= 2


def test_an_adapter_stays_from_the_first_pass_to_the_last(llama, work):
    weights = {name: (llama.bank.shapes[name], llama.bank.tensors(name)) for name in llama.bank.names}
    bank = AdapterBank(tiny_model("llama", len(llama.tokenizer)), slots=2, max_rank=8)
    loop = EngineLoop(Engine(bank.model, llama.tokenizer, bank))
    adapters = ServedAdapters(Shelf(weights).load, bank, loop.engine)

    async def others_come() -> list[tuple[float, ...]]:
        choice = choosing(loop, ScoreRequest(llama.prompts[0], OPTIONS, "greece"), lambda: adapters.require("greece"))
        choosing_now = asyncio.ensure_future(choice)
        while not work:
            await asyncio.sleep(0)
        for name in ("jordan", "mexico", "jordan"):
            await loop.call(lambda name=name: adapters.require(name))
            assert "greece" in bank.names
        assert len(work) < len(OPTIONS)  # it is still under way
        return await choosing_now

    try:
        assert asyncio.run(others_come()) == [pytest.approx(one, abs=2e-5) for one in
                                              llama.engine().score([ScoreRequest(llama.prompts[0], OPTIONS, "greece")])]
        assert asyncio.run(loop.call(lambda: loop.engine.adapters_in_use)) == set()
    finally:
        loop.stop()


def test_a_caller_that_leaves_ends_its_passes(llama, loop, work):
    begun, go_on = threading.Event(), threading.Event()

    def prepare() -> None:
        begun.set()
        go_on.wait(60)

    async def leave() -> None:
        asking = asyncio.ensure_future(choosing(loop, ScoreRequest(llama.prompts[0], OPTIONS, "greece"), prepare))
        assert await asyncio.to_thread(begun.wait, 60)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()
        assert await loop.call(lambda: loop.engine.adapters_in_use) == set()

    asyncio.run(leave())
    assert work == ["pass"]


def test_passes_that_all_fail_are_counted_as_steps_are(llama, loop, monkeypatch):
    request, compute = ScoreRequest(llama.prompts[0], OPTIONS[:1], ""), ModelRunner.options
    broken = [True, True, False, True, True, True]

    def fail_or_compute(runner: ModelRunner, rows: list) -> list:
        if broken.pop(0):
            raise RuntimeError("CUDA error")
        return compute(runner, rows)

    monkeypatch.setattr(ModelRunner, "options", fail_or_compute)
    alive = []
    while broken:
        with contextlib.suppress(RuntimeError):
            asyncio.run(choosing(loop, request))
        alive.append(loop.alive)
    assert alive == [True] * 5 + [False]


def test_an_error_in_a_later_pass_reaches_the_caller_and_the_loop_goes_on(llama, loop, work, monkeypatch):
    monkeypatch.setattr(scoring.math, "isfinite", lambda _: len(work) < 3)
    with pytest.raises(AdapterError, match="greece"):
        asyncio.run(choosing(loop, ScoreRequest(llama.prompts[0], OPTIONS, "greece")))
    assert work == ["pass"] * 3 and loop.engine.adapters_in_use == set()
    monkeypatch.undo()
    request = ScoreRequest(llama.prompts[0], OPTIONS[:1], "")
    assert asyncio.run(choosing(loop, request)) == [pytest.approx(one, abs=2e-5) for one in llama.engine().score([request])]
