"""What is recorded of a request."""

from __future__ import annotations

import json
import logging
import time

import pytest

from serve_app.request_log import LOGGER, RequestRecord


@pytest.mark.parametrize("told_late", [False, True])
def test_the_first_token_counts_from_the_requests_arrival(caplog, monkeypatch, told_late: bool) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    record = RequestRecord("1", "shop", "auto", not told_late)
    now[0] += 3  # routing, waiting for a row
    if not told_late:
        record.first_token()
    now[0] += 5
    if told_late:  # a whole answer: the replica says for how long it has had a token
        record.first_token(ago=5)
    with caplog.at_level(logging.INFO, logger=LOGGER.name):
        monkeypatch.setattr(LOGGER, "propagate", True)
        record.finish(200)
    told = json.loads(caplog.messages[-1].removeprefix("request "))
    assert (told["first_token_seconds"], told["seconds"]) == (3, 8)
