"""Health is told while a replica is too busy to tell, once for all who ask."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError

from serve_app import replica_status
from serve_app.replica_status import ReplicaStatus


class Replica:
    """Answers what a test lets it answer, when it lets it."""

    def __init__(self) -> None:
        self.asked = 0
        self.free = asyncio.Event()
        self.error: Exception | None = None

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        number = self.asked
        await self.free.wait()
        if self.error:
            raise self.error
        return {"number": number}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_status, "FRESH_S", 0.0)
    monkeypatch.setattr(replica_status, "PATIENCE_S", 0.05)


def test_all_who_ask_together_share_one_question_and_one_who_leaves_takes_nothing_away() -> None:
    async def ask() -> tuple[list[dict], int]:
        replica = Replica()
        status = ReplicaStatus(replica.status)
        callers = [asyncio.ensure_future(status.get()) for _ in range(3)]
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.sleep(0)
        replica.free.set()
        return await asyncio.gather(*callers[1:]), replica.asked

    assert asyncio.run(ask()) == ([{"number": 1}] * 2, 1)


def test_a_busy_replica_is_as_it_was_for_a_while_and_its_late_answer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[dict]:
        replica = Replica()
        status = ReplicaStatus(replica.status)
        replica.free.set()
        told = [await status.get()]
        replica.free.clear()
        told.append(await status.get())
        replica.free.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        monkeypatch.setattr(replica_status, "FRESH_S", 60.0)
        return [*told, await status.get()]

    assert asyncio.run(ask()) == [{"number": 1}, {"number": 1}, {"number": 2}]


@pytest.mark.parametrize(("error", "told"), [(BackPressureError(1, 1), True), (RuntimeError("dead"), False)])
def test_a_full_queue_is_no_failure_where_something_is_known_and_a_failure_is_one(error: Exception, told: bool) -> None:
    async def ask() -> dict:
        replica = Replica()
        replica.free.set()
        status = ReplicaStatus(replica.status)
        replica.error = error
        with pytest.raises(type(error)):
            await status.get()
        replica.error = None
        known = await status.get()
        replica.error = error
        if told:
            assert await status.get() == known
        else:
            with pytest.raises(type(error)):
                await status.get()
        replica.error = None
        return await status.get()

    assert asyncio.run(ask()) == {"number": 4}


def test_where_nothing_is_known_the_first_answer_is_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(first_answer_s: float) -> dict:
        replica = Replica()
        asyncio.get_running_loop().call_later(first_answer_s, replica.free.set)
        return await ReplicaStatus(replica.status).get()

    assert asyncio.run(ask(0.2)) == {"number": 1}
    monkeypatch.setattr(replica_status, "FIRST_PATIENCE_S", 0.1)
    with pytest.raises(TimeoutError):
        asyncio.run(ask(30))


@pytest.mark.parametrize("answers", [True, False])
def test_what_was_told_long_ago_will_do_while_others_are_answered(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    monkeypatch.setattr(replica_status, "KNOWN_S", 0.2)
    monkeypatch.setattr(replica_status, "FIRST_PATIENCE_S", 0.1)

    async def ask() -> dict:
        replica = Replica()
        status = ReplicaStatus(replica.status)
        replica.free.set()
        told = await status.get()
        replica.free.clear()
        await asyncio.sleep(0.3)
        if answers:
            status.heard()
            assert await status.get() == told
        else:
            with pytest.raises(TimeoutError):
                await status.get()
        replica.free.set()
        return await status.get()

    assert asyncio.run(ask()) == {"number": 2}


def test_answers_do_not_prolong_what_was_told_of_a_server_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_status, "KNOWN_S", 0.2)

    async def told() -> dict[str, Any]:
        return {"reachable": False}

    async def ask() -> None:
        status = ReplicaStatus(told)
        assert not (await status.get())["reachable"]
        await asyncio.sleep(0.3)
        status.heard()
        monkeypatch.setattr(status, "_ask", full)
        await status.get()

    async def full() -> dict[str, Any]:
        raise BackPressureError(1, 1)

    with pytest.raises(BackPressureError):  # `/health` calls that busy
        asyncio.run(ask())
