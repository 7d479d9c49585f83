"""Whatever the architecture: adapters train in a pack as alone, and what is exported gives the same logits in plain PEFT."""

from __future__ import annotations

import logging
import random

import peft
import pytest
import torch
import transformers
from transformers import Gemma2Config, GemmaConfig, LlamaConfig, MistralConfig, Phi3Config, PhiConfig, Qwen2Config, Qwen3Config

from culturemanager.adapters import peft_format
from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.adapters.targets import on_last_layers
from culturemanager.training.loop import AdapterJob, PackTrainer, PlainEngine
from culturemanager.training.token_files import TokenRow

SIZE = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = SIZE | {"num_key_value_heads": 1}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=64),
    "qwen2": Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gemma": GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8, sliding_window=64),
    "phi": PhiConfig(**SIZE),
    "phi3": Phi3Config(**GROUPED),
}
logging.getLogger("transformers").setLevel(logging.ERROR)


def build_model(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(5)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]).eval().requires_grad_(False)


def job(name: str, seed: int) -> AdapterJob:
    draw = random.Random(seed)
    rows = [TokenRow(tuple(draw.randrange(3, 61) for _ in range(draw.randrange(6, 12))), 4) for _ in range(8)]
    return AdapterJob(name, rows, rows[:2], AdapterShape(4, 8, dropout=0.1), seed, epochs=4, batch_size=4, learning_rate=2e-2)


def train(kind: str, names: str, last_layers: int = 0) -> PackTrainer:
    model = build_model(kind)
    targets = on_last_layers(model, last_layers) if last_layers else None
    jobs = [job(name, seed) for seed, name in enumerate("ab") if name in names]
    trainer = PackTrainer(AdapterBank(model, slots=len(jobs), max_rank=4, targets=targets), jobs, PlainEngine, pad_id=0)
    trainer.run()
    return trainer


@pytest.mark.parametrize("last_layers", [0, 1])
@pytest.mark.parametrize("kind", CONFIGS)
def test_any_causal_language_model_trains_and_exports(kind, last_layers, tmp_path):
    pack, alone = train(kind, "ab", last_layers), train(kind, "b", last_layers)
    assert pack.progress["b"].losses == pytest.approx(alone.progress["b"].losses, rel=1e-3)
    assert pack.progress["b"].losses[-1] < pack.progress["b"].losses[0]
    shape = AdapterShape(4, 8)
    peft_format.save(tmp_path, pack.tensors("b"), shape, "org/base", pack.bank.targets)
    reference = peft.PeftModel.from_pretrained(build_model(kind), tmp_path).eval()
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        with pack.bank.rows([pack.bank.names["b"]] * 2):
            ours = pack.bank.model(input_ids=tokens).logits
        theirs, bare = reference(input_ids=tokens).logits, build_model(kind)(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - bare).abs().max() > 1e-2
