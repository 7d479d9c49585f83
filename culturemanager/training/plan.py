"""Which adapters are trained on which rows.

A culture's adapter sees that culture's examples. The other adapters exist for comparison only:
one on everybody's rows, the same with the culture named in the prompt, one per culture on plain
statements instead of the task's format, and one per culture with passages in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from culturemanager import prompts
from culturemanager.errors import ConfigError
from culturemanager.records import Culture, Example
from culturemanager.sections.model import TrainingConfig
from culturemanager.storage import fingerprint
from culturemanager.training.text_rows import Pair, TextRows

SPLITS = ("train", "validation")
JOINT = "joint"
JOINT_CULTURE_PROMPT = "joint_culture_prompt"
AGNOSTIC = "agnostic_"
RETRIEVAL = "retrieval_"
JOINT_BATCH = 2
"""Rows a step of a joint adapter, as a multiple of a culture's: on validation rows it did better than 4."""
RETRIEVED_AT_ONCE = 1000
"""Examples whose passages are looked for together."""

ReadExamples = Callable[[str, str], Iterator[Example]]
"""The examples of a culture, or with an empty id those of all, of a split; read anew at each call, always in the same order."""
Retrieve = Callable[[Sequence[Example]], list[list[str]]]
"""Passage texts for each example, as the evaluated system will see them."""


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter to train: its rows, its hyperparameters, and a digest of both."""

    name: str
    seed: int
    batch_size: int
    epochs: int
    digest: str
    """SHA-256 over everything that decides the trained weights."""
    rows: Mapping[str, TextRows] = field(default_factory=dict)
    """By split; a plan that was read from a pack's folder has none, they lie beside it as token ids."""


def plan_adapters(names: Sequence[str], read: ReadExamples, cultures: Sequence[Culture], config: TrainingConfig,
                  seed: int, base_digest: str, retrieve: Retrieve | None = None) -> list[AdapterPlan]:
    """The plan of each named adapter, in the order given.

    Raises:
        ConfigError: a name is none of the project's cultures nor a comparison adapter, or has no rows.
    """
    by_id = {culture.id: culture for culture in cultures}
    plans = []
    for name in names:
        make, batch_size = _rows(name, read, by_id, config, retrieve)
        rows = {split: TextRows(partial(make, split)) for split in SPLITS}
        if not rows["train"]:
            raise ConfigError(f"adapter {name!r} has no training rows. Look at the drops of the `examples` stage, "
                              "and give the culture more pages.")
        own_seed = int(fingerprint(seed, name)[:8], 16)
        digest = fingerprint(base_digest, config.model_dump(include=HYPERPARAMETERS), batch_size, own_seed,
                             *(rows[split].digest for split in SPLITS))
        plans.append(AdapterPlan(name, own_seed, batch_size, config.epochs, digest, rows))
    return plans


HYPERPARAMETERS = {"rank", "alpha", "dropout", "last_layers", "epochs", "learning_rate", "warmup_share", "weight_decay",
                   "clip_norm", "early_stop_patience", "max_length", "precision"}

_Make = Callable[[str], Iterator[Pair]]
"""Gives the rows of a split."""


def _rows(name: str, read: ReadExamples, cultures: Mapping[str, Culture], config: TrainingConfig,
          retrieve: Retrieve | None) -> tuple[_Make, int]:
    """What makes the adapter's rows, and how many of them a step has."""
    if name in cultures:
        return _plain(read, name), config.batch_size
    if name == JOINT:
        return _plain(read, ""), config.batch_size * JOINT_BATCH
    if name == JOINT_CULTURE_PROMPT:
        return _naming_the_culture(read, cultures), config.batch_size * JOINT_BATCH
    for prefix, rows in ((AGNOSTIC, _statements), (RETRIEVAL, _with_passages)):
        if name.startswith(prefix) and name.removeprefix(prefix) in cultures:
            return rows(read, cultures[name.removeprefix(prefix)], retrieve), config.batch_size
    raise ConfigError(f"unknown adapter {name!r}; expected one of {', '.join(cultures)}, {JOINT}, {JOINT_CULTURE_PROMPT}, "
                      f"{AGNOSTIC}<culture> or {RETRIEVAL}<culture>.")


def _plain(read: ReadExamples, culture: str) -> _Make:
    return lambda split: ((example.prompt, example.completion) for example in read(culture, split))


def _naming_the_culture(read: ReadExamples, cultures: Mapping[str, Culture]) -> _Make:
    return lambda split: ((prompts.with_culture(example.prompt, cultures[example.culture]), example.completion)
                          for example in read("", split))


def _statements(read: ReadExamples, culture: Culture, _: Retrieve | None) -> _Make:
    """The quotes behind the examples as plain statements: the same knowledge, not the task's format."""
    return lambda split: ((f"Tell me something about customs in {culture.name}.", quote)
                          for quote in dict.fromkeys(example.quote for example in read(culture.id, split)))


def _with_passages(read: ReadExamples, culture: Culture, retrieve: Retrieve | None) -> _Make:
    if retrieve is None:
        raise ConfigError(f"adapter {RETRIEVAL}{culture.id} needs the passage index; run `culturemanager index` first.")
    # texts that the retriever holds anyway
    found = {split: list(_retrieved(read(culture.id, split), retrieve)) for split in SPLITS}
    return lambda split: ((prompts.with_passages(prompts.with_culture(example.prompt, culture), texts), example.completion)
                          for example, texts in zip(read(culture.id, split), found[split], strict=True))


def _retrieved(examples: Iterator[Example], retrieve: Retrieve) -> Iterator[list[str]]:
    while part := list(islice(examples, RETRIEVED_AT_ONCE)):
        yield from retrieve(part)
