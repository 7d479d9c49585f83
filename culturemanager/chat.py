"""Messages to token ids, in the model's own chat template: the one way in training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from culturemanager.errors import ModelError


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's turn.

    Args:
        prompt: a user's turn, or messages ``{"role": ..., "content": ...}``, the oldest first.

    Raises:
        ModelError: the tokenizer has no chat template, or its template refuses these messages.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    if not tokenizer.chat_template:
        raise ModelError(f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, expected one in its folder "
                         "(chat_template.jinja); use an instruction-tuned base model, or add the file.")
    try:
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    except TemplateError as error:
        roles = [message.get("role") for message in messages]
        raise ModelError(f"The chat template of {tokenizer.name_or_path!r} refuses messages with the roles {roles}: {error}."
                         " Send the roles it knows, in its order.") from error
    return list(encoded["input_ids"])
