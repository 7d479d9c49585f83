"""The warm-up: a short, culture-neutral training that teaches the base model the tasks and to read notes.

    python -m culturemanager.embedded.warmup --output culturemanager/embedded/warmup.safetensors --seed 0

A small instruction model answers yes to nearly everything, and beating that proves nothing. The warm-up
teaches the forms of the three tasks and to read notes in a prompt, on invented customs of invented places;
about real cultures it teaches nothing. It trains a LoRA (Hu et al. 2021) on every linear layer, which
`base_model.py` merges, from questions that repeat their notes towards questions in other words, as fast as
yes and no are learnt (`Pace`). It needs the extra `warmup`. Equal seeds show equal sheets, while
rounding differs between machines and thread counts.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from culturemanager.embedded.base_model import bare_model, build_tokenizer, merge_warmup, weights_file
from culturemanager.embedded.warmup_batches import Batch, batches
from culturemanager.embedded.warmup_customs import split_customs
from culturemanager.embedded.warmup_scores import reading_items, score, score_paragraphs
from culturemanager.embedded.warmup_sheets import Sheets
from culturemanager.embedded.warmup_text import Writer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

STEPS = 560
TOKENS_PER_STEP = 1024
LEARNING_RATE = 1e-3
WARMUP_SHARE = 0.05
RANK, ALPHA = 8, 16


def learning_rate(share: float) -> float:
    """Linear warm-up, then linear decay to zero; `share` of the run is done."""
    return LEARNING_RATE * min(share / WARMUP_SHARE, (1 - share) / (1 - WARMUP_SHARE))


class Pace:
    """Makes the sheets harder while yes and no are told apart, and easier when they no longer are.

    On a fixed timetable a model falls back on the tone of the notes before it has learnt to compare a
    question with them, and yes and no stay near chance to the end.
    """

    HARDER_FROM, EASIER_BELOW = 0.86, 0.80
    HARDER, EASIER = 0.01, 0.005
    """Change of difficulty a step."""
    MEMORY = 0.9

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


def with_lora(model: LlamaForCausalLM) -> PeftModel:
    """The model with a trainable LoRA on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))


def train_step(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean weighted loss of the answers' tokens, and which verdicts were right; logits only where an answer stands."""
    hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.mask, position_ids=batch.position_ids,
                         use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[batch.where[:, 0], batch.where[:, 1]]).float()
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    right = (logits.argmax(-1) == batch.targets)[batch.verdicts]
    return (losses * batch.weights).sum() / batch.weights.sum(), right


def train(adapted: PeftModel, tokenizer: PreTrainedTokenizerBase, seed: int,
          steps: int) -> Iterator[tuple[int, float, float, float]]:
    """Train in place; every tenth step yields the steps done, loss, share of right verdicts, and the difficulty reached."""
    writer, pace = Writer(split_customs()[0], seed), Pace()
    stream = batches(Sheets(writer), tokenizer, TOKENS_PER_STEP)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    model = adapted.get_base_model()
    losses: deque[float] = deque(maxlen=10)
    verdicts: deque[float] = deque(maxlen=200)
    for step in range(steps):
        writer.difficulty = pace.difficulty
        optimizer.param_groups[0]["lr"] = learning_rate((step + 0.5) / steps)
        loss, right = train_step(model, next(stream))
        pace.step(right)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        verdicts.extend(right.float().tolist())
        if (step + 1) % 10 == 0:
            yield step + 1, sum(losses) / len(losses), sum(verdicts) / max(1, len(verdicts)), pace.difficulty


def lora_tensors(adapted: PeftModel) -> dict[str, torch.Tensor]:
    """What `merge_warmup` reads: A and the scaled B of every changed parameter, in float16."""
    tensors = {}
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            tensors[f"{name}.weight.A"] = module.lora_A["default"].weight.detach().half()
            tensors[f"{name}.weight.B"] = (module.scaling["default"] * module.lora_B["default"].weight.detach()).half()
    return tensors


def save_warmup(tensors: Mapping[str, torch.Tensor], path: Path, seed: int, steps: int) -> None:
    """Write the file that the package ships."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path,
              metadata={"seed": str(seed), "steps": str(steps)})


def held_out_report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int = 120) -> str:
    """Scores on customs held out of training, by number of passages, and on unrelated paragraphs."""
    lines = []
    for passages in (1, 2, 3):
        items = reading_items(Writer(split_customs()[1], seed=1000 + passages), passages, count)
        lines.append((f"{passages} passage{'s' * (passages > 1)}", score(model, tokenizer, items)))
    lines.append(("paragraphs", score_paragraphs(model, tokenizer)))
    return "\n".join(f"{name:12s} " + "  ".join(f"{task} {value:.3f}" for task, value in scores.items())
                     for name, scores in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: train, write the file, and print the scores of the model built from it."""
    parser = argparse.ArgumentParser(prog="python -m culturemanager.embedded.warmup", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="a safetensors file")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    start = time.monotonic()
    weights = weights_file()
    tokenizer = build_tokenizer(weights)
    adapted = with_lora(bare_model(weights))
    for step, loss, right, difficulty in train(adapted, tokenizer, options.seed, options.steps):
        print(f"step {step}/{options.steps}  loss {loss:.3f}  verdicts {right:.2f}  difficulty {difficulty:.2f}  "
              f"{time.monotonic() - start:.0f} s", flush=True)
    save_warmup(lora_tensors(adapted), options.output, options.seed, options.steps)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")

    rebuilt = bare_model(weights)
    merge_warmup(rebuilt, options.output)
    print(held_out_report(rebuilt, tokenizer))


if __name__ == "__main__":
    main()
