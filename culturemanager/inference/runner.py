"""The model's forward passes: prompts, single new tokens, answers to compare. Tensors in, logits out; no bookkeeping.

Rows are padded on the right, so a token's column is its position; the model gets positions and, wherever a row sees
less than the columns before it, a mask of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from culturemanager.errors import ModelError
from culturemanager.inference.cache import Extend, SlotCache
from culturemanager.inference.packing import PackedOptions

ATTENTION = ("sdpa", "eager")
"""Implementations that take a mask per row and token."""
LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers whose memory is keys and values."""


def context_length(model: PreTrainedModel) -> int:
    """Tokens a request may have, prompt and answer together.

    A model with sliding windows is used up to its window, within which it attends to everything.

    Raises:
        ModelError: the model has layers without keys and values (state space, linear attention), or no stated length.
    """
    config = model.config.get_text_config(decoder=True)
    types = set(getattr(config, "layer_types", None) or ())
    if types - LAYER_TYPES:
        raise ModelError(f"{type(model).__name__} has layers of the type {sorted(types - LAYER_TYPES)}; this engine serves "
                         f"{sorted(LAYER_TYPES)}. Use another base model, or a vLLM endpoint.")
    limits = [getattr(config, "max_position_embeddings", None)]
    if not types or "sliding_attention" in types:
        limits.append(getattr(config, "sliding_window", None))
    if "chunked_attention" in types:
        limits.append(getattr(config, "attention_chunk_size", None))
    known = [limit for limit in limits if limit]
    if not known:
        raise ModelError(f"{type(model).__name__} does not say how long its context is; set `max_position_embeddings` in "
                         "its config.json.")
    return min(known)


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model whose passes this engine cannot steer.

    Raises:
        ModelError: it takes no positions, no cache or no choice of logits, or its attention takes no mask.
    """
    missing = {"position_ids", "past_key_values", "logits_to_keep"} - set(inspect.signature(model.forward).parameters)
    if missing:
        raise ModelError(f"{type(model).__name__} does not take {sorted(missing)}, which mixed batches need. Use a causal "
                         "language model such as Llama, Qwen, Mistral, Gemma or GPT-2.")
    if model.config._attn_implementation not in ATTENTION:
        raise ModelError(f"{type(model).__name__} was loaded with attention {model.config._attn_implementation!r}, expected "
                         f"{' or '.join(ATTENTION)}; load it with attn_implementation=\"sdpa\".")


class ModelRunner:
    """A model and its cache.

    Args:
        model: a causal language model in evaluation mode.
        rows: sequences the cache holds.
        context: tokens of each.
    """

    def __init__(self, model: PreTrainedModel, rows: int, context: int) -> None:
        check_model(model)
        self.model = model
        self.vocabulary = model.config.get_text_config(decoder=True).vocab_size
        self.cache = SlotCache(rows, context, model.device)

    def prefill(self, tokens: Sequence[Sequence[int]], starts: Sequence[int], first_row: int, every: bool = False) -> Tensor:
        """Compute tokens of prompts into the cache rows from `first_row` on.

        Args:
            tokens: those of each row, at least one.
            starts: how many tokens each row holds already; either all 0, or none.
            every: return the logits after every token.

        Returns:
            Logits after each row's last token, [rows, 1, vocabulary]; or after every one, [rows, longest,
            vocabulary], of no meaning where the row has no token.
        """
        ends = [len(row) - 1 for row in tokens]
        longest = max(ends) + 1
        if any(starts):
            # A shorter row repeats its last token, so that what is written twice to its place is the same.
            places = [[min(place, end) for place in range(longest)] for end in ends]
            ids = torch.tensor([[row[i] for i in at] for row, at in zip(tokens, places, strict=True)], device=self.model.device)
            current = self.cache.extend(first_row, [[start + i for i in at] for start, at in zip(starts, places, strict=True)])
            positions, visible = current.columns, self._visible(current)
        else:
            # Without a mask the model is causal, and what stands to the right of a row's end reaches nothing before it.
            ids, visible = self._padded(tokens), None
            self.cache.begin(first_row, *ids.shape)
            positions = torch.arange(longest, device=ids.device).expand_as(ids)
        if every:
            kept = torch.arange(longest, device=ids.device).expand_as(ids)
        else:
            kept = torch.tensor(ends, device=ids.device).unsqueeze(1)
        return self._logits(ids, positions, visible, kept, self.cache)

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Compute one new token for each of the rows 0..n-1; logits [rows, vocabulary] after it."""
        current = self.cache.extend(0, [[position] for position in positions])
        ids = torch.tensor(tokens, device=self.model.device).unsqueeze(1)
        return self._logits(ids, current.columns, self._visible(current), torch.zeros_like(ids), self.cache)[:, 0]

    @staticmethod
    def _visible(current: Extend) -> Tensor:
        """What the new tokens attend to: themselves and what lies before them, [rows, 1, tokens, longest]."""
        columns = torch.arange(current.longest, device=current.columns.device)
        return (columns <= current.columns.unsqueeze(-1)).unsqueeze(1)

    def options(self, rows: Sequence[PackedOptions]) -> list[tuple[float, ...]]:
        """Mean log-probability per token of each row's options, the end token included."""
        ids, positions = self._padded([row.ids for row in rows]), self._padded([row.positions for row in rows])
        segments = self._padded([row.segments for row in rows], fill=-1)
        before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        # A token sees what stands before it, if that is the prompt or its own option.
        visible = before & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
        logits = self._logits(ids, positions, visible[:, None], self._padded([row.kept for row in rows]), None).float()
        number = torch.tensor([i for i, row in enumerate(rows) for _ in row.labels], device=ids.device)
        place = torch.tensor([place for row in rows for place in row.places], device=ids.device)
        label = torch.tensor([label for row in rows for label in row.labels], device=ids.device)
        chosen = (logits[number, place, label] - logits.logsumexp(dim=-1)[number, place]).double().tolist()
        means, start = [], 0
        for row in rows:
            means.append([])
            for size in row.sizes:
                means[-1].append(sum(chosen[start:start + size]) / size)
                start += size
        return [tuple(row) for row in means]

    def _padded(self, rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
        """[rows, longest], int64, filled up on the right."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=self.model.device)

    def _logits(self, ids: Tensor, positions: Tensor, visible: Tensor | None, kept: Tensor,
                cache: SlotCache | None) -> Tensor:
        """Logits [rows, kept, vocabulary] at the columns `kept` [rows, kept]; the others are not computed.

        Args:
            ids: [rows, tokens]; positions: likewise.
            visible: what a token attends to, [rows, 1, tokens, columns], bool; None: the tokens before it.
        """
        if visible is not None and self.model.config._attn_implementation == "eager":
            hidden = torch.finfo(self.model.dtype).min
            visible = torch.zeros_like(visible, dtype=self.model.dtype).masked_fill_(~visible, hidden)
        logits = self.model(input_ids=ids, position_ids=positions, attention_mask=visible, past_key_values=cache,
                            use_cache=cache is not None, logits_to_keep=kept).logits
        if logits.shape[:-1] != kept.shape:
            raise ModelError(f"{type(self.model).__name__} gave logits of shape {list(logits.shape)} for {list(kept.shape)} "
                             "positions; it cannot pick them row by row. Use another base model or a newer transformers.")
        return logits
