"""A tiny random causal LM folder with a tokenizer made on the spot: real classes, no download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
