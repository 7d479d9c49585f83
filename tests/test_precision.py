"""Products in bfloat16: weights are rounded once, and the attention that goes back faster is the same attention."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from culturemanager.base_model import load_base_model
from culturemanager.training import loss
from culturemanager.training.loss import PackLoss
from culturemanager.training.precision import attention, attention_is_plain, plain_attention, round_weights
from culturemanager.training.rows import collate, tokenise
from tests.tiny_model import WORDS, bank_of_two, build_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def losses_and_gradients(folder: Path) -> tuple[PackLoss, Tensor, list[Tensor]]:
    """Of two adapters' rows, some of which share sequences."""
    model, tokenizer = load_base_model(folder)
    bank = bank_of_two(model)
    pairs = [(" ".join(WORDS[n:n + 6]), WORDS[n]) for n in range(12)]
    rows = [(number % 2 + 1, row) for number, row in enumerate(tokenise(tokenizer, pairs, 64)[0])]
    module = PackLoss(bank, torch.bfloat16)
    total, sums = module(collate(rows, tokenizer.pad_token_id, 40), torch.ones(3), None)
    total.backward()
    return module, sums, [parameter.grad for parameter in bank.parameters()]


def test_weights_rounded_once_give_what_weights_rounded_in_every_pass_give(folder, monkeypatch) -> None:
    once, sums, gradients = losses_and_gradients(folder)
    monkeypatch.setattr(loss, "round_weights", lambda *_: None)
    each_time, expected_sums, expected_gradients = losses_and_gradients(folder)
    assert torch.equal(sums, expected_sums)
    assert all(map(torch.equal, gradients, expected_gradients))
    assert {module.weight.dtype for module in once.model.modules() if isinstance(module, torch.nn.Linear)} == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in once.bank.parameters())
    assert {module.weight.dtype for module in each_time.model.modules() if isinstance(module, torch.nn.Linear)} == {torch.float32}


def test_a_head_that_shares_the_embeddings_is_rounded_and_they_are_not() -> None:
    model, _ = load_base_model("embedded")
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head.weight is embeddings.weight
    before = embeddings.weight.clone()
    round_weights(model, torch.bfloat16)
    assert torch.equal(embeddings.weight, before) and embeddings.weight.dtype == torch.float32
    assert torch.equal(head.weight, before.to(torch.bfloat16))


def test_plain_attention_is_the_fused_one(folder, monkeypatch) -> None:
    _, sums, gradients = losses_and_gradients(folder)
    monkeypatch.setattr(loss, "attention", lambda *_: contextlib.nullcontext())
    _, fused_sums, fused_gradients = losses_and_gradients(folder)
    torch.testing.assert_close(sums, fused_sums, rtol=0.01, atol=0.01)
    for own, fused in zip(gradients, fused_gradients, strict=True):
        torch.testing.assert_close(own, fused, rtol=0.1, atol=0.03 * fused.abs().max().item())


def test_attention_is_plain_where_a_processor_goes_back_through_bfloat16() -> None:
    with attention(CPU, torch.bfloat16):
        assert attention_is_plain()
    assert not attention_is_plain() and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with plain_attention():
        assert attention_is_plain()
    with torch.no_grad(), attention(CPU, torch.bfloat16):
        assert not attention_is_plain()
    for device, products in ((CPU, torch.float32), (torch.device("cuda"), torch.bfloat16)):
        with attention(device, products):
            assert not attention_is_plain()
        with plain_attention(), attention(device, products):
            assert attention_is_plain()  # whoever chose it keeps it
    with pytest.raises(KeyError), attention(CPU, torch.bfloat16):
        raise KeyError
    assert not attention_is_plain()
