"""Prompts: long ones in chunks while others go on, and beginnings that are computed once."""

from __future__ import annotations

import pytest
import torch

from culturemanager.adapters.shape import AdapterShape
from culturemanager.inference.engine import GenerationRequest
from culturemanager.inference.prefixes import BLOCK
from tests.test_engine import CONTEXT, LONG_TEXTS, NEW, TEXTS, Setting, build_setting, drain

LONG = range(len(TEXTS), len(TEXTS) + len(LONG_TEXTS))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Setting:
    return build_setting("llama", tmp_path_factory.mktemp("llama"))


# ---- chunks


def test_running_requests_go_on_while_a_long_prompt_is_computed(llama):
    engine = llama.engine(prefill_tokens=16, prefix_cache_mb=0)
    short = engine.submit(llama.request(2, "greece"))
    engine.step()
    long = engine.submit(llama.request(LONG[0], "jordan"))
    chunks = -(-len(llama.prompts[LONG[0]]) // 16)
    events = [engine.step() for _ in range(chunks)]
    assert all(any(event.request_id == short for event in told) for told in events[:min(chunks, NEW - 2)])
    assert [any(event.request_id == long for event in told) for told in events] == [False] * (chunks - 1) + [True]
    generations = {event.request_id: event.generation for told in events for event in told if event.generation}
    generations |= drain(engine)[0]
    assert generations[short].token_ids == llama.greedy(2, "greece")
    assert generations[long].token_ids == llama.greedy(LONG[0], "jordan")


def test_a_step_computes_no_more_prompt_tokens_than_its_share(llama, monkeypatch):
    engine = llama.engine(prefill_tokens=24)
    computed, prefill = [], engine._runner.prefill

    def count(tokens, *rest):
        computed.extend(map(len, tokens))
        return prefill(tokens, *rest)

    monkeypatch.setattr(engine._runner, "prefill", count)
    numbers = [engine.submit(llama.request(prompt, "")) for prompt in (*LONG, 0, 2)]
    generations = {}
    while engine.pending:
        before = sum(computed)
        generations |= {event.request_id: event.generation for event in engine.step() if event.generation}
        assert sum(computed) - before <= 24
    assert [generations[number].token_ids for number in numbers] == [llama.greedy(prompt, "") for prompt in (*LONG, 0, 2)]


def test_a_row_that_ends_beside_a_prompt_in_chunks_takes_nothing_from_it(llama):
    engine = llama.engine(prefill_tokens=8, prefix_cache_mb=0)
    first = [engine.submit(llama.request(prompt, "mexico", max_new_tokens=new)) for prompt, new in ((2, 3), (2, 8), (2, 4))]
    engine.step()
    long, after = engine.submit(llama.request(LONG[1], "greece")), engine.submit(llama.request(1, ""))
    generations, _ = drain(engine)
    assert generations[long].token_ids == llama.greedy(LONG[1], "greece")
    assert generations[after].token_ids == llama.greedy(1, "")
    assert [generations[number].token_ids for number in first] == [llama.greedy(2, "mexico")[:new] for new in (3, 8, 4)]


def test_a_prompt_goes_on_where_a_failed_pass_left_it(llama, monkeypatch):
    engine = llama.engine(prefill_tokens=20)
    forward, calls = llama.model.forward, []

    def fail_at_times(*args, **kwargs):
        calls.append(1)
        if len(calls) in (2, 4):
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama.model, "forward", fail_at_times)
    number, failures, generations = engine.submit(llama.request(LONG[0], "jordan")), 0, {}
    while engine.pending:
        try:
            generations |= {event.request_id: event.generation for event in engine.step() if event.generation}
        except RuntimeError:
            failures += 1
    assert failures == 2 and generations[number].token_ids == llama.greedy(LONG[0], "jordan")


# ---- beginnings


def shared(llama: Setting) -> int:
    """Tokens of whole blocks that the first two long prompts share."""
    first, second = llama.prompts[LONG[0]], llama.prompts[LONG[1]]
    same = next(i for i, (ours, theirs) in enumerate(zip(first, second, strict=False)) if ours != theirs)
    assert same > BLOCK
    return same // BLOCK * BLOCK


def test_a_beginning_is_computed_once_for_each_adapter(llama):
    engine = llama.engine()
    for adapter in ("", "greece"):
        before = engine.reused_tokens
        answers = [engine.generate([llama.request(prompt, adapter)])[0] for prompt in LONG[:2]]
        assert [answer.token_ids for answer in answers] == [llama.greedy(prompt, adapter) for prompt in LONG[:2]]
        assert engine.reused_tokens - before == shared(llama)


def test_requests_that_come_together_share_their_beginning(llama):
    engine = llama.engine()
    numbers = [engine.submit(llama.request(prompt, "jordan")) for prompt in (LONG[0], LONG[1]) * 3]
    engine.step()
    assert engine.waiting == 0 and engine.reused_tokens >= 5 * shared(llama)
    generations, _ = drain(engine)
    assert [generations[number].token_ids for number in numbers] == [llama.greedy(prompt, "jordan") for prompt in LONG[:2]] * 3


def test_a_whole_prompt_that_is_held_still_gets_its_first_token(llama):
    engine = llama.engine()
    prompt = llama.prompts[LONG[0]][:2 * BLOCK]
    assert len(prompt) == 2 * BLOCK
    first, again = (engine.generate([GenerationRequest(prompt, "mexico", NEW)])[0] for _ in range(2))
    assert first == again and engine.reused_tokens == BLOCK
    assert (first.reused_tokens, again.reused_tokens) == (0, BLOCK)


def test_an_adapter_put_in_anew_under_its_name_never_meets_what_the_old_one_left(llama):
    bank, shape = llama.bank, AdapterShape(2, 2.0)
    old = {key: value * 3 for key, value in bank.tensors("greece").items()}
    bank.load("again", shape, old)
    try:
        engine = llama.engine()
        before = engine.generate([llama.request(LONG[0], "again")])[0]
        bank.remove("again")
        bank.load("again", shape, {key: -value if key.endswith("B") else value for key, value in old.items()})
        after = engine.generate([llama.request(LONG[0], "again")])[0]
        assert engine.reused_tokens == 0
        assert after == llama.engine(prefix_cache_mb=0).generate([llama.request(LONG[0], "again")])[0] != before
        with torch.no_grad():
            for parameter in bank.parameters()[1::2]:  # every B
                parameter[bank.names["again"]] *= -1  # as an optimizer writes
        assert engine.generate([llama.request(LONG[0], "again")])[0] == before and engine.reused_tokens == 0
    finally:
        bank.remove("again")


def test_what_is_not_wanted_is_not_kept(llama):
    engine = llama.engine(max_batch_rows=2, prefix_cache_mb=0)
    engine.generate([llama.request(prompt, "") for prompt in (*LONG, *LONG)])
    assert engine.reused_tokens == 0
    assert engine.cache_bytes == 2 * CONTEXT * 2 * 2 * 2 * 8 * 4  # rows, tokens; layers, keys and values, heads, width, bytes


def test_memory_too_small_for_a_block_is_as_good_as_none(llama):
    engine = llama.engine(prefix_cache_mb=1e-4)
    answers = engine.generate([llama.request(prompt, "") for prompt in (*LONG, *LONG)])
    assert [answer.token_ids for answer in answers] == [llama.greedy(prompt, "") for prompt in (*LONG, *LONG)]
    assert engine.reused_tokens == 0
