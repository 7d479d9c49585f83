"""Log-probabilities: the model's own, of the same tokens that the answer has, and free for who does not ask."""

from __future__ import annotations

import pytest
import torch

from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import RequestError
from culturemanager.inference import engine as engine_module
from culturemanager.inference.engine import GenerationRequest, Sampling, TokenLogprob
from culturemanager.inference.logprobs import token_logprobs
from tests.test_engine import ADAPTERS, LONG_TEXTS, TEXTS, Setting, build_setting

PROMPTS = range(len(TEXTS) + len(LONG_TEXTS))


@pytest.fixture(scope="module", params=["bert", "llama", "gpt2"])
def setting(request, tmp_path_factory) -> Setting:
    return build_setting(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Setting:
    return build_setting("llama", tmp_path_factory.mktemp("llama"))


def reference(setting: Setting, adapter: str, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities [tokens - 1, vocabulary] of all but the first token, as PEFT computes them in one pass."""
    with torch.no_grad(), setting.reference(adapter):
        return setting.peft(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)


def assert_these(told: tuple[TokenLogprob, ...], wanted: torch.Tensor, tokens: tuple[int, ...], alternatives: int) -> None:
    assert [one.token_id for one in told] == list(tokens)
    for one, row in zip(told, wanted, strict=True):
        assert one.logprob == pytest.approx(row[one.token_id].item(), abs=1e-4)
        assert [logprob for _, logprob in one.top] == pytest.approx(row.topk(alternatives).values.tolist(), abs=1e-4)
        assert all(row[token].item() == pytest.approx(logprob, abs=1e-4) for token, logprob in one.top)
        assert dict(one.top).get(one.token_id, one.logprob) == one.logprob  # the very same number


def test_a_new_tokens_logprob_is_the_models_own_whatever_is_drawn(setting):
    requests = [setting.request(prompt, ADAPTERS[prompt % 4], logprobs=prompt % 4,
                                sampling=Sampling(temperature=0.8 * (prompt % 2), top_p=0.7, seed=prompt)) for prompt in PROMPTS]
    for request, answer in zip(requests, setting.engine(max_batch_rows=4).generate(requests), strict=True):
        wanted = reference(setting, request.adapter, request.prompt_ids + answer.token_ids)[len(request.prompt_ids) - 1:]
        assert_these(answer.logprobs, wanted, answer.token_ids, request.logprobs)
        assert answer.prompt_logprobs == ()


@pytest.mark.parametrize("options", [{}, {"prefill_tokens": 7}, {"max_batch_rows": 1}])
def test_a_prompts_logprobs_are_those_of_one_whole_pass(setting, options, monkeypatch):
    monkeypatch.setattr(engine_module, "SCORED_LOGITS", 50 * len(setting.tokenizer))  # less than the longest prompts need
    engine = setting.engine(**options)
    requests = [setting.request(prompt, adapter, logprobs=2, prompt_logprobs=True, max_new_tokens=2)
                for prompt in PROMPTS for adapter in ADAPTERS[:2]]
    plain = [setting.request(prompt, "greece") for prompt in PROMPTS]
    engine.generate(plain)  # leaves beginnings that must not be used in place of scores
    for request, answer in zip(requests, engine.generate([*requests, *plain]), strict=False):
        assert answer.prompt_logprobs[0] is None
        wanted = reference(setting, request.adapter, request.prompt_ids)
        assert_these(answer.prompt_logprobs[1:], wanted, request.prompt_ids[1:], 2)
        assert answer.token_ids == setting.greedy(requests.index(request) // 2, request.adapter)[:2]


def test_the_first_event_tells_the_prompts_logprobs_and_every_event_its_tokens(llama):
    engine = llama.engine(prefill_tokens=5)
    number = engine.submit(llama.request(1, "jordan", logprobs=1, prompt_logprobs=True))
    events = []
    while engine.pending:
        events += engine.step()
    whole = events[-1].generation
    assert events[0].request_id == number and events[0].prompt_logprobs == whole.prompt_logprobs
    assert not any(event.prompt_logprobs for event in events[1:])
    assert tuple(event.logprob for event in events if event.token_id is not None) == whole.logprobs
    assert len(whole.logprobs) == len(whole.token_ids) > 1


def test_a_prompt_can_be_scored_without_an_answer(llama):
    requests = [llama.request(prompt, "mexico", max_new_tokens=0, prompt_logprobs=True) for prompt in (1, 2)]
    for request, answer in zip(requests, llama.engine().generate(requests), strict=True):
        assert (answer.token_ids, answer.text, answer.finish_reason, answer.logprobs) == ((), "", "length", ())
        assert_these(answer.prompt_logprobs[1:], reference(llama, "mexico", request.prompt_ids), request.prompt_ids[1:], 0)


def test_the_end_token_has_no_logprob_and_the_tokens_of_a_stop_string_have(llama):
    free = llama.engine().generate([llama.request(1, "")])[0]
    llama.model.generation_config.eos_token_id = [1, free.token_ids[3]]
    try:
        ended = llama.engine().generate([llama.request(1, "", logprobs=1)])[0]
    finally:
        llama.model.generation_config.eos_token_id = 1
    assert ended.finish_reason == "stop" and len(ended.logprobs) == len(ended.token_ids)
    stopped = llama.engine().generate([llama.request(1, "", logprobs=1, stop=(free.text[3:5],))])[0]
    assert stopped.finish_reason == "stop" and len(stopped.logprobs) == len(stopped.token_ids) > 0


def test_who_does_not_ask_is_not_charged(llama, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(engine_module, "token_logprobs", refuse)
    answers = llama.engine().generate([llama.request(prompt, "greece") for prompt in PROMPTS])
    assert not any(answer.logprobs or answer.prompt_logprobs for answer in answers)


def test_a_request_cancelled_within_its_prompt_tells_no_logprobs(llama):
    engine = llama.engine(prefill_tokens=5)
    number = engine.submit(llama.request(len(TEXTS), "", prompt_logprobs=True))
    engine.step()
    assert engine.running == 1 and engine.cancel(number) and engine.running == 0
    (event,) = engine.step()
    assert event.finish_reason == "cancelled" and event.prompt_logprobs == event.generation.prompt_logprobs == ()


def test_scores_that_are_not_finite_are_an_error_also_without_an_answer(llama):
    bank = llama.bank
    weights = {key: torch.full_like(value, float("nan")) for key, value in bank.tensors("greece").items()}
    bank.load("broken", AdapterShape(2, 2.0), weights)
    try:
        engine = llama.engine()
        engine.submit(llama.request(0, "broken", max_new_tokens=0, prompt_logprobs=True))
        assert [event.finish_reason for event in engine.step()] == ["error"]
    finally:
        bank.remove("broken")


def test_the_most_likely_tokens_are_told_in_order_and_as_many_as_asked():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
    told = token_logprobs(logits, [2, 1], [3, 0])
    assert [token for token, _ in told[0].top] == [1, 2, 0] and told[1].top == ()
    assert told[0].logprob == dict(told[0].top)[2] == pytest.approx(logits[0].log_softmax(-1)[2].item())
    assert len(token_logprobs(logits, [0, 0], [20, 20])[0].top) == 3


@pytest.mark.parametrize("wrong", [{"logprobs": -1}, {"logprobs": 21}, {"max_new_tokens": 0},
                                   {"max_new_tokens": -1, "prompt_logprobs": True}])
def test_a_number_out_of_range_is_refused(wrong):
    with pytest.raises(RequestError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}, expected"):
        GenerationRequest((3,), **wrong)
