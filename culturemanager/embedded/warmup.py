"""The warm-up: a short, culture-neutral training that turns MiniLM into a model that reads and answers.

    python -m culturemanager.embedded.warmup --output culturemanager/embedded/warmup.safetensors --seed 0

Raw MiniLM answers at chance, and beating chance proves nothing. The warm-up teaches the forms of the
three tasks and to read notes in a prompt, on invented customs of invented places; about real cultures
it teaches nothing. All weights but the word embeddings are trained, from questions that repeat their
notes towards questions in other words, as fast as yes and no are learnt (`Pace`); half of the sheets have
words swapped (`warmup_swaps`), so that words never seen in training can be copied. The weights' change is
kept as 4-bit integers. Equal seed, machine and thread count give an equal file.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from culturemanager.embedded.base_model import apply_delta, bare_model, build_tokenizer
from culturemanager.embedded.warmup_batches import Batch, batches
from culturemanager.embedded.warmup_customs import split_customs
from culturemanager.embedded.warmup_delta import save_delta
from culturemanager.embedded.warmup_scores import reading_items, score, score_paragraphs
from culturemanager.embedded.warmup_sheets import Sheets
from culturemanager.embedded.warmup_swaps import Swapper, vocabulary
from culturemanager.embedded.warmup_text import Writer
from culturemanager.providers.embedding import minilm_folder

if TYPE_CHECKING:
    from transformers import BertLMHeadModel

STEPS = 1600
TOKENS_PER_STEP = 2048
LEARNING_RATE = 4e-4
WARMUP_SHARE = 0.04
FROZEN = ("bert.embeddings.word_embeddings.weight", "bert.embeddings.token_type_embeddings.weight", "cls.predictions.bias")


def learning_rate(share: float) -> float:
    """Linear warm-up, then linear decay to zero; `share` of the run is done."""
    return LEARNING_RATE * min(share / WARMUP_SHARE, (1 - share) / (1 - WARMUP_SHARE))


class Pace:
    """Makes the sheets harder while yes and no are told apart, and easier when they no longer are.

    On a fixed timetable the model never learns to compare a question with its notes: hard sheets come
    first, it falls back on the tone of the notes, and yes and no stay near chance to the end.
    """

    HARDER_FROM, EASIER_BELOW = 0.86, 0.80
    HARDER, EASIER = 0.001, 0.0005
    """Change of difficulty a step."""
    MEMORY = 0.97

    def __init__(self) -> None:
        self.difficulty = 0.0
        self._right = 0.5

    def step(self, right: torch.Tensor) -> None:
        """Take note of one step's verdicts, `right` [verdicts] bool."""
        if len(right):
            self._right = self.MEMORY * self._right + (1 - self.MEMORY) * right.float().mean().item()
        if self._right > self.HARDER_FROM:
            self.difficulty = min(1.0, self.difficulty + self.HARDER)
        elif self._right < self.EASIER_BELOW:
            self.difficulty = max(0.0, self.difficulty - self.EASIER)


def train_step(model: BertLMHeadModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean weighted loss of the answers' tokens, and which verdicts were right; logits only where an answer stands."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.bert(input_ids=batch.input_ids, attention_mask=batch.mask, position_ids=batch.position_ids,
                            use_cache=False).last_hidden_state
        logits = model.cls(hidden[batch.where[:, 0], batch.where[:, 1]])
    losses = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
    right = (logits.argmax(-1) == batch.targets)[batch.verdicts]
    return (losses * batch.weights).sum() / batch.weights.sum(), right


def train(model: BertLMHeadModel, seed: int, steps: int) -> Iterator[tuple[int, float, float]]:
    """Train in place; every fifty steps yields the steps done, their mean loss, and the difficulty reached."""
    writer, pace = Writer(split_customs()[0], seed), Pace()
    tokenizer = build_tokenizer(minilm_folder())
    stream = batches(Swapper(vocabulary(tokenizer), seed)(Sheets(writer)), tokenizer, TOKENS_PER_STEP)
    trained = [parameter for name, parameter in model.named_parameters() if name not in FROZEN]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    recent: deque[float] = deque(maxlen=50)
    for step in range(steps):
        writer.difficulty = pace.difficulty
        optimizer.param_groups[0]["lr"] = learning_rate((step + 0.5) / steps)
        loss, right = train_step(model, next(stream))
        pace.step(right)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            yield step + 1, sum(recent) / len(recent), pace.difficulty
    model.requires_grad_(False)
    model.eval()


def held_out_report(model: BertLMHeadModel, count: int = 240) -> str:
    """Scores on customs held out of training, by number of passages, and on unrelated paragraphs."""
    tokenizer = build_tokenizer(minilm_folder())
    lines = []
    for passages in (1, 2, 3):
        items = reading_items(Writer(split_customs()[1], seed=1000 + passages), passages, count)
        lines.append((f"{passages} passage{'s' * (passages > 1)}", score(model, tokenizer, items)))
    lines.append(("paragraphs", score_paragraphs(model, tokenizer)))
    return "\n".join(f"{name:12s} " + "  ".join(f"{task} {value:.3f}" for task, value in scores.items())
                     for name, scores in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: train, write the delta, and print the scores of the model built from the written file."""
    parser = argparse.ArgumentParser(prog="python -m culturemanager.embedded.warmup", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="the delta, a safetensors file")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    start = time.monotonic()
    model = bare_model(minilm_folder())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for step, loss, difficulty in train(model, options.seed, options.steps):
        print(f"step {step}/{options.steps}  loss {loss:.3f}  difficulty {difficulty:.2f}  {time.monotonic() - start:.0f} s",
              flush=True)
    delta = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters() if name not in FROZEN}
    save_delta(delta, options.output, {"seed": str(options.seed), "steps": str(options.steps)})
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")

    rebuilt = bare_model(minilm_folder())
    apply_delta(rebuilt, options.output)
    print(held_out_report(rebuilt))


if __name__ == "__main__":
    main()
