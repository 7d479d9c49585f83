"""Adapters asked in other people's words: what settings are chosen on, and never the evaluation items.

    python -m benchmarks.wording                               # after `make demo`; under ten minutes on two quiet cores
    python -m benchmarks.wording --set training.epochs=1       # the same with another setting
    python -m benchmarks.reading --rows wording                # the bare base, given the sentence that answers

Validation rows are asked in the words of the rules that also wrote the training rows, so they say little about the
questions that people ask. The 180 questions of `benchmarks/wording.jsonl`, 60 on each of three cultures, were written
from the pages alone, by writers who had seen neither the rules nor the evaluation items. Three adapters are trained
on their cultures' rows of the workspace, in one process, and asked with their culture known.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.circumstances import circumstances
from benchmarks.reading import ask, bare_prompt, from_wording
from culturemanager import project as projects
from culturemanager.adapters.bank import AdapterBank
from culturemanager.base_model import load_base_model
from culturemanager.config import Project
from culturemanager.inference.engine import Engine
from culturemanager.storage import write_json
from culturemanager.training.loop import PackTrainer, PlainEngine
from culturemanager.training.plan import SPLITS
from culturemanager.training.rows import tokenise
from culturemanager.training.trainer import plans_of
from culturemanager.training.worker import adapted_layers, make_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="examples/etiquette.yaml", help="project file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as `culturemanager --set`; may be repeated")
    parser.add_argument("--threads", type=int, default=2, help="of the processor (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    project = projects.load(arguments.project, arguments.set)
    questions = list(from_wording(project))
    model, tokenizer = load_base_model(project.base_path, project.base.dtype)
    trainer = train(project, sorted({question.culture for question in questions}), model, tokenizer)
    figures = ask(Engine(model, tokenizer, trainer.bank), tokenizer, questions, bare_prompt,
                  project.evaluation.max_new_tokens, adapter=lambda question: question.culture)
    figures["validation_loss"] = {name: progress.validation_losses for name, progress in trainer.progress.items()}
    figures["measured"] = circumstances(set=arguments.set)
    if arguments.json:
        write_json(arguments.json, figures)
    print(json.dumps(figures, indent=2))


def train(project: Project, names: list[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PackTrainer:
    """One pack of these cultures' adapters, trained to the end in this process."""
    plans = plans_of(project, names, extra=(), base=project.base_path, retrieve=None)
    jobs = [make_job(plan, *(tokenise(tokenizer, list(plan.rows[split]), project.training.max_length)[0] for split in SPLITS),
                     project.training) for plan in plans]
    bank = AdapterBank(model, slots=len(jobs), max_rank=project.training.rank, targets=adapted_layers(model, project.training))
    trainer = PackTrainer(bank, jobs, PlainEngine, tokenizer.pad_token_id)
    trainer.run()
    return trainer


if __name__ == "__main__":
    main()
