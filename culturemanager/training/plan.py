"""Which adapters are trained on which rows.

A culture's adapter sees that culture's examples. The other adapters exist for comparison only:
one on everybody's rows, the same with the culture named in the prompt, one per culture on plain
statements instead of the task's format, and one per culture with passages in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from culturemanager import prompts
from culturemanager.errors import ConfigError
from culturemanager.records import Culture, Example
from culturemanager.sections.model import TrainingConfig
from culturemanager.storage import fingerprint

JOINT = "joint"
JOINT_CULTURE_PROMPT = "joint_culture_prompt"
AGNOSTIC = "agnostic_"
RETRIEVAL = "retrieval_"
JOINT_BATCH = 2
"""Rows a step of a joint adapter, as a multiple of a culture's: on validation rows it did better than 4."""

Retrieve = Callable[[Sequence[Example]], list[list[str]]]
"""Passage texts for each example, as the evaluated system will see them."""


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter to train: its rows, its hyperparameters, and a digest of both."""

    name: str
    train: tuple[tuple[str, str], ...]
    """(prompt, completion) pairs."""
    validation: tuple[tuple[str, str], ...]
    seed: int
    batch_size: int
    epochs: int
    digest: str
    """SHA-256 over everything that decides the trained weights."""


def plan_adapters(names: Sequence[str], examples: Sequence[Example], cultures: Sequence[Culture], config: TrainingConfig,
                  seed: int, base_digest: str, retrieve: Retrieve | None = None) -> list[AdapterPlan]:
    """The plan of each named adapter, in the order given.

    Raises:
        ConfigError: a name is none of the project's cultures nor a comparison adapter, or has no rows.
    """
    by_id = {culture.id: culture for culture in cultures}
    plans = []
    for name in names:
        rows, batch_size = _rows(name, examples, by_id, config, retrieve)
        train = tuple((prompt, completion) for prompt, completion, split in rows if split == "train")
        validation = tuple((prompt, completion) for prompt, completion, split in rows if split == "validation")
        if not train:
            raise ConfigError(f"adapter {name!r} has no training rows. Look at the drops of the `examples` stage, "
                              "and give the culture more pages.")
        own_seed = int(fingerprint(seed, name)[:8], 16)
        digest = fingerprint(base_digest, config.model_dump(include=HYPERPARAMETERS), batch_size, own_seed, train, validation)
        plans.append(AdapterPlan(name, train, validation, own_seed, batch_size, config.epochs, digest))
    return plans


HYPERPARAMETERS = {"rank", "alpha", "dropout", "last_layers", "epochs", "learning_rate", "warmup_share", "weight_decay",
                   "clip_norm", "early_stop_patience", "max_length", "precision"}


def _rows(name: str, examples: Sequence[Example], cultures: dict[str, Culture], config: TrainingConfig,
          retrieve: Retrieve | None) -> tuple[list[tuple[str, str, str]], int]:
    if name in cultures:
        return [(e.prompt, e.completion, e.split) for e in examples if e.culture == name], config.batch_size
    joint_batch = config.batch_size * JOINT_BATCH
    if name == JOINT:
        return [(e.prompt, e.completion, e.split) for e in examples], joint_batch
    if name == JOINT_CULTURE_PROMPT:
        return [(prompts.with_culture(e.prompt, cultures[e.culture]), e.completion, e.split) for e in examples], joint_batch
    for prefix, make in ((AGNOSTIC, _statements), (RETRIEVAL, _with_passages)):
        if name.startswith(prefix) and name.removeprefix(prefix) in cultures:
            culture = cultures[name.removeprefix(prefix)]
            return make([e for e in examples if e.culture == culture.id], culture, retrieve), config.batch_size
    raise ConfigError(f"unknown adapter {name!r}; expected one of {', '.join(cultures)}, {JOINT}, {JOINT_CULTURE_PROMPT}, "
                      f"{AGNOSTIC}<culture> or {RETRIEVAL}<culture>.")


def _statements(examples: Sequence[Example], culture: Culture, _: Retrieve | None) -> list[tuple[str, str, str]]:
    """The quotes behind the examples as plain statements: the same knowledge, not the task's format."""
    quotes = dict.fromkeys((example.quote, example.split) for example in examples)
    return [(f"Tell me something about customs in {culture.name}.", quote, split) for quote, split in quotes]


def _with_passages(examples: Sequence[Example], culture: Culture, retrieve: Retrieve | None) -> list[tuple[str, str, str]]:
    if retrieve is None:
        raise ConfigError(f"adapter {RETRIEVAL}{culture.id} needs the passage index; run `culturemanager index` first.")
    found = retrieve(examples)
    return [(prompts.with_passages(prompts.with_culture(e.prompt, culture), texts), e.completion, e.split)
            for e, texts in zip(examples, found, strict=True)]
