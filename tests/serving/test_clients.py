"""Programs that people use already, unchanged: lm-eval's two clients, and a fuzzer that reads our schema."""

from __future__ import annotations

import json
from pathlib import Path

import lm_eval
import openai
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from peft import PeftModel

from culturemanager.adapters.registry import AdapterRegistry
from culturemanager.base_model import load_base_model
from serving.conftest import KEYS

QUESTIONS = ("Is this acceptable, yes or no? Leaving a tip.", "Is this acceptable, yes or no? Arriving late for dinner.",
             "Is this acceptable, yes or no? Wearing shoes inside.")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm_eval") / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": question, "answer": 0}) + "\n" for question in QUESTIONS))
    return path


def evaluate(kind: str, url: str, rows: Path, patch: pytest.MonkeyPatch, chat: bool, **task) -> list[dict]:
    """lm-eval's samples of a task of our own, asked of the endpoint."""
    patch.setenv("OPENAI_API_KEY", KEYS[0])
    config = {"task": "manners", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
              "test_split": "test", "doc_to_text": "{{question}}", **task}
    model = {"model": "turkey", "base_url": url, "tokenizer_backend": "remote", "auth_token": KEYS[0], "num_concurrent": 2,
             "max_retries": 1, "max_length": 2048}
    told = lm_eval.simple_evaluate(model=kind, model_args=model, tasks=[config], batch_size=1 if chat else 4, bootstrap_iters=0,
                                   apply_chat_template=chat)
    return sorted(told["samples"]["manners"], key=lambda sample: sample["doc_id"])


def test_lm_eval_scores_as_peft_does(endpoint: str, registry: AdapterRegistry, rows: Path, monkeypatch) -> None:
    samples = evaluate("local-completions", f"{endpoint}/v1/completions", rows, monkeypatch, chat=False,
                       output_type="multiple_choice", doc_to_choice=["yes", "no"], doc_to_target="answer",
                       metric_list=[{"metric": "acc"}])
    base, tokenizer = load_base_model("embedded")
    model = PeftModel.from_pretrained(base, registry.folder / registry.aliases()["turkey"])
    assert len(samples) == len(QUESTIONS)
    for sample, question in zip(samples, QUESTIONS, strict=True):
        for (told,), option in zip(sample["resps"], (" yes", " no"), strict=True):
            start, ids = len(tokenizer(question)["input_ids"]), tokenizer(question + option)["input_ids"]
            with torch.inference_mode():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(start - 1, len(ids) - 1)
            assert float(told[0]) == pytest.approx(sum(logprobs[i, ids[i + 1]].item() for i in places), abs=2e-3)
            assert (str(told[1]) == "True") == all(logprobs[i].argmax().item() == ids[i + 1] for i in places)


def test_lm_eval_chats(endpoint: str, client: openai.OpenAI, rows: Path, monkeypatch) -> None:
    samples = evaluate("local-chat-completions", f"{endpoint}/v1/chat/completions", rows, monkeypatch, chat=True,
                       output_type="generate_until", doc_to_target="{{answer}}", metric_list=[{"metric": "exact_match"}],
                       generation_kwargs={"until": ["\n"], "max_gen_toks": 6})
    for sample, question in zip(samples, QUESTIONS, strict=True):
        answer = client.chat.completions.create(model="turkey", messages=[{"role": "user", "content": question}], max_tokens=6,
                                                temperature=0, stop=["\n"])
        assert sample["resps"] == [[answer.choices[0].message.content]]


def test_no_request_that_the_schema_allows_breaks_the_endpoint(endpoint: str) -> None:
    key = {"Authorization": f"Bearer {KEYS[0]}"}
    schema = schemathesis.openapi.from_url(f"{endpoint}/openapi.json", headers=key)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:
        @settings(max_examples=20, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case) -> None:
            response = case.call(headers=key, timeout=120)
            assert response.status_code < 500, (case.as_curl_command(), response.text)
            if response.status_code >= 400:
                assert response.json()["error"]["message"]

        ask()
