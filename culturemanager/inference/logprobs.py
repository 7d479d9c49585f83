"""Log-probabilities of tokens, from the model's scores as they come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from culturemanager.inference.requests import TokenLogprob
from culturemanager.inference.scheduler import Chunk


def token_logprobs(logits: Tensor, tokens: Sequence[int], alternatives: Sequence[int]) -> list[TokenLogprob]:
    """The log-probability of one token a row, with the row's most likely tokens beside it.

    Args:
        logits: [rows, vocabulary].
        tokens: one a row.
        alternatives: how many of the most likely tokens, one number a row.
    """
    logits = logits.float()
    whole = logits.logsumexp(dim=-1, keepdim=True)
    # The same subtraction for both, so that a token among the most likely has the very same number in both places.
    chosen = (logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)) - whole)[:, 0].tolist()
    values, ids = logits.topk(min(max(alternatives), logits.shape[1]), dim=-1)
    likely = [list(zip(*row, strict=True)) for row in zip(ids.tolist(), (values - whole).tolist(), strict=True)]
    return [TokenLogprob(token, logprob, tuple(row[:count]))
            for token, logprob, row, count in zip(tokens, chosen, likely, alternatives, strict=True)]


def score_prompts(chunks: Sequence[Chunk], logits: Tensor) -> None:
    """Note the log-probabilities of the prompt tokens that follow those of the chunks; logits [rows, longest, vocabulary]."""
    for chunk, scores in zip(chunks, logits, strict=True):
        request = chunk.active.request
        following = request.prompt_ids[chunk.start + 1:chunk.end + 1]
        if following:
            alternatives = [request.logprobs or 0] * len(following)
            chunk.active.prompt_logprobs += token_logprobs(scores[:len(following)], following, alternatives)
