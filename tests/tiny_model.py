"""A tiny random causal LM folder with a tokenizer made on the spot: real classes, no download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.base_model import resolve_base_model

WORDS = ("yes no take off your shoes at the door leave ten percent wait for host bring sweets flowers is this acceptable or "
         "a guest soup slurp tip in what should i do about").split()


def build_tiny_model(folder: Path, seed: int = 0, layers: int = 2, width: int = 32) -> Path:
    """Save a Llama-shaped model and a word-level tokenizer; returns the folder."""
    vocabulary = {
        word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", "<user>", "<model>", *dict.fromkeys(WORDS)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    fast.chat_template = (
        "{% for message in messages %}{{ '<user> ' if message.role == 'user' else '<model> ' }}{{ message.content }} "
        "{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), hidden_size=width, intermediate_size=2 * width,
                                         num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
                                         max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def build_small_base(folder: Path, layers: int = 5, width: int = 32) -> Path:
    """Save a random model that reads whatever the embedded base reads, for whole runs in little time; returns the folder."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_base_model("embedded"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
                         pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bank_of_two(model: PreTrainedModel) -> AdapterBank:
    """Two adapters that change what the model computes."""
    bank = AdapterBank(model, slots=2, max_rank=4)
    for number, name in enumerate("ab"):
        bank.add(name, AdapterShape(4, 8), seed=number)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return bank
