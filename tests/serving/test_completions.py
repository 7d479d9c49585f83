"""Plain completions in every form that clients send, and what comes back beside the text."""

from __future__ import annotations

import math
import time

import httpx2
import openai
import pytest
import torch

from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.base_model import load_base_model

QUESTION = "Is this acceptable, yes or no? Leaving a tip."


@pytest.fixture(scope="module")
def base():
    """The bare base, computed by transformers alone."""
    return load_base_model("embedded")


def complete(client: openai.OpenAI, prompt=QUESTION, **more):
    return client.completions.create(**{"model": "embedded", "prompt": prompt, "max_tokens": 4, "temperature": 0} | more)


# Prompts


def test_a_prompt_may_be_text_or_token_ids_alone_or_in_lists(client: openai.OpenAI, http: httpx2.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": QUESTION}).json()["tokens"]
    alone = complete(client).choices[0].text
    assert complete(client, ids).choices[0].text == alone
    for several in ([QUESTION, "Tea, please:"], [ids, http.post("/tokenize", json={"prompt": "Tea, please:"}).json()["tokens"]]):
        choices = complete(client, several).choices
        assert [choice.index for choice in choices] == [0, 1]
        assert choices[0].text == alone
        assert choices[1].text == complete(client, "Tea, please:").choices[0].text


def test_each_of_several_prompts_is_routed_by_itself(client: openai.OpenAI) -> None:
    answer = complete(client, ["Do people tip in Istanbul?", "Do people tip in Hamburg?"], model="auto")
    assert [choice.culturemanager["culture"] for choice in answer.choices] == ["turkey", "germany"]
    told = {}
    for chunk in complete(client, ["Do people tip in Istanbul?", "Do people tip in Hamburg?"], model="auto", stream=True):
        told.setdefault(chunk.choices[0].index, getattr(chunk, "culturemanager", None))
    assert [told[number]["culture"] for number in (0, 1)] == ["turkey", "germany"]


def test_n_answers_come_from_seeds_next_to_each_other(client: openai.OpenAI) -> None:
    several = complete(client, n=3, temperature=1.5, seed=7, max_tokens=12)
    alone = [complete(client, temperature=1.5, seed=7 + i, max_tokens=12).choices[0].text for i in range(3)]
    assert [choice.text for choice in several.choices] == alone
    assert len(set(alone)) > 1


def test_several_answers_are_streamed_side_by_side(client: openai.OpenAI) -> None:
    texts = ["", "", ""]
    for chunk in complete(client, n=3, temperature=1.5, seed=7, max_tokens=12, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in complete(client, n=3, temperature=1.5, seed=7, max_tokens=12).choices]


@pytest.mark.parametrize("stream", [True, False])
def test_no_replica_goes_on_for_a_request_that_failed(http: httpx2.Client, stream: bool) -> None:
    long = {"model": "embedded", "prompt": [QUESTION, "tea " * 3000], "max_tokens": 1500, "temperature": 2, "seed": 1,
            "stream": stream}
    assert http.post("/v1/completions", json=long).status_code == 400
    until = time.monotonic() + 20  # 1500 tokens take longer
    while (engine := http.get("/v1/status").json()["engine"])["running"] or engine["waiting"]:
        assert time.monotonic() < until
        time.sleep(0.2)


# Log-probabilities


def test_echoed_logprobs_are_those_of_the_model(client: openai.OpenAI, base) -> None:
    model, tokenizer = base
    choice = complete(client, echo=True, logprobs=1, max_tokens=1).choices[0]
    ids = tokenizer(QUESTION)["input_ids"]
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    got = choice.logprobs
    assert len(got.tokens) == len(got.token_logprobs) == len(got.top_logprobs) == len(got.text_offset) == len(ids) + 1
    assert got.token_logprobs[0] is None and got.top_logprobs[0] is None
    for place, token in enumerate(ids[1:]):
        assert got.token_logprobs[place + 1] == pytest.approx(wanted[place, token].item(), abs=1e-3)
        assert max(got.top_logprobs[place + 1].values()) == pytest.approx(wanted[place].max().item(), abs=1e-3)
    assert "".join(got.tokens[:-1]) == QUESTION and choice.text.startswith(QUESTION)
    assert [choice.text[start:start + len(token)] for start, token in
            zip(got.text_offset[:-1], got.tokens[:-1], strict=True)] == got.tokens[:-1]
    # Whoever asks whether a token was the likeliest compares the two floats.
    likeliest = [top[token] == max(top.values()) for token, top in zip(got.tokens[1:], got.top_logprobs[1:], strict=True)]
    assert likeliest[-1]


def test_the_end_token_counts_where_one_token_is_asked_for(client: openai.OpenAI, base) -> None:
    """Clients that score texts ask for the prompt and one token, and cut that one off: it has to be there always."""
    _, tokenizer = base
    for prompt in (QUESTION, f"{QUESTION} no{tokenizer.eos_token}", "The end."):
        ids = tokenizer(prompt)["input_ids"]
        assert len(complete(client, ids, echo=True, logprobs=1, max_tokens=1).choices[0].logprobs.token_logprobs) == len(ids) + 1


def test_an_echo_without_new_tokens_scores_the_prompt(client: openai.OpenAI) -> None:
    whole = complete(client, echo=True, logprobs=0, max_tokens=1).choices[0].logprobs.token_logprobs
    alone = complete(client, echo=True, logprobs=0, max_tokens=0).choices[0].logprobs.token_logprobs
    assert alone[1:] == pytest.approx(whole[1:-1], abs=1e-4)


def test_chat_logprobs_are_those_of_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="turkey", messages=[{"role": "user", "content": QUESTION}], max_tokens=4,
                                            logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs.content
    assert len(told) == answer.usage.completion_tokens
    assert "".join(token.token for token in told) == answer.choices[0].message.content
    for token in told:
        assert len(token.top_logprobs) == 2
        assert token.logprob == max(one.logprob for one in token.top_logprobs)  # the answer is greedy
        assert bytes(token.bytes).decode() == token.token


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = complete(client, echo=True, logprobs=2).choices[0].logprobs
    streamed = [chunk.choices[0].logprobs for chunk in complete(client, echo=True, logprobs=2, stream=True)]
    assert [token for told in streamed for token in told.tokens] == whole.tokens
    assert [start for told in streamed for start in told.text_offset] == whole.text_offset


# Answers among given ones


def test_a_guided_choice_is_the_likeliest_answer(client: openai.OpenAI, base) -> None:
    model, tokenizer = base
    ids = tokenizer(QUESTION)["input_ids"]
    scores = []
    for option in (" yes", " no"):
        spelled = [*tokenizer(option, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            told = model(torch.tensor([ids + spelled])).logits[0].log_softmax(-1)
        scores.append(sum(told[len(ids) - 1 + i, token].item() for i, token in enumerate(spelled)) / len(spelled))
    assert not math.isclose(*scores)
    answer = complete(client, extra_body={"guided_choice": [" yes", " no"]})
    assert answer.choices[0].text == (" yes" if scores[0] > scores[1] else " no")
    assert answer.choices[0].finish_reason == "stop"


# Tokens


def test_tokens_go_out_and_come_back(http: httpx2.Client, registry: AdapterRegistry) -> None:
    told = http.post("/tokenize", json={"prompt": "Çay içer misiniz?"}).json()
    assert told["count"] == len(told["tokens"]) and told["max_model_len"] == 2048
    assert http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "Çay içer misiniz?"}
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "Tea?"}]}).json()
    assert chat["count"] > http.post("/tokenize", json={"prompt": "Tea?"}).json()["count"]
    assert http.get("/tokenizer_info").json()["eos_token"]
    assert http.post("/detokenize", json={"tokens": [2**31 - 1]}).status_code == 400
    assert http.post("/tokenize", json={}).status_code == 400


@pytest.mark.parametrize(("changes", "param"), [
    ({"prompt": []}, "prompt"), ({"prompt": [""]}, "body"), ({"prompt": [[]]}, "prompt"), ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**31 - 1]}, None), ({"max_tokens": 0}, "body"), ({"logprobs": 99}, "logprobs"),
    ({"prompt": ["a"] * 100, "n": 2}, "body"), ({"best_of": 3}, "best_of"), ({"suffix": "x"}, "suffix"),
    *(({"guided_choice": ["yes", "no"]} | beside, "body")
      for beside in ({"n": 2}, {"stream": True}, {"logprobs": 0}, {"echo": True})),
])
def test_a_wrong_completion_names_the_field(http: httpx2.Client, changes: dict, param: str | None) -> None:
    response = http.post("/v1/completions", json={"model": "embedded", "prompt": QUESTION} | changes)
    assert response.status_code == 400, response.text
    told = response.json()["error"]
    assert told["param"] is None or told["param"].startswith(param)
