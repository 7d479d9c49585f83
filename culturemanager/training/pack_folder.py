"""A pack's folder: what is to be trained, its tokenised rows, and what the training puts beside them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from culturemanager.storage import MANIFEST, sha256_file, write_atomic, write_json
from culturemanager.training.plan import SPLITS, AdapterPlan
from culturemanager.training.token_files import SCHEMA, TokenRows, write_token_rows

if TYPE_CHECKING:
    from torch import Tensor

PLAN = "plan.json"
PACK = "pack.json"
PROGRESS = "progress.json"
RESULT = "result"
CURVES = "curves.json"
TARGETS = "targets.json"
ROWS = "rows"
CHECKPOINTS = "checkpoints"
TEXTS_AT_ONCE = 1000
"""Rows of one table."""


def pack_folders(training: Path) -> list[Path]:
    """The folders of all packs that were prepared, in a fixed order."""
    return sorted(plan.parent for plan in training.glob(f"*/{PLAN}"))


def is_prepared(folder: Path) -> bool:
    return (folder / PLAN).exists() and (folder / ROWS).is_dir()


def texts(plans: Sequence[AdapterPlan]) -> Iterator[pa.Table]:
    """The rows of all adapters, as `Tokenise` takes them."""
    for plan in plans:
        for split in SPLITS:
            rows = iter(plan.rows[split])
            while part := list(islice(rows, TEXTS_AT_ONCE)):
                yield pa.table({"file": [_file(plan.name, split)] * len(part), "prompt": [prompt for prompt, _ in part],
                                "completion": [completion for _, completion in part]})


class Tokenise:
    """Texts to token ids; in this process, or as an actor of Ray Data.

    Args:
        base_path: as `base_model.load_tokenizer` takes it.
        max_length: tokens; longer rows are left out.
    """

    def __init__(self, base_path: str, max_length: int) -> None:
        from culturemanager.base_model import load_tokenizer

        self._tokenizer = load_tokenizer(base_path)
        self._max_length = max_length

    def __call__(self, table: pa.Table) -> pa.Table:
        """Columns `file`, `prompt`, `completion` to `file`, `ids`, `prompt_length`."""
        from culturemanager.training.rows import tokenise

        columns: dict[str, list[Any]] = {"file": [], "ids": [], "prompt_length": []}
        for file, prompt, completion in zip(*(table[name].to_pylist() for name in ("file", "prompt", "completion")), strict=True):
            for row in tokenise(self._tokenizer, [(prompt, completion)], self._max_length)[0]:
                columns["file"].append(file)
                columns["ids"].append(row.ids)
                columns["prompt_length"].append(row.prompt_length)
        return pa.table(columns, pa.schema([("file", pa.string()), *SCHEMA]))


def prepare(folder: Path, plans: Sequence[AdapterPlan], tokenised: Iterable[pa.Table]) -> None:
    """Write the plan and the rows; both are whole or absent.

    Args:
        tokenised: what `Tokenise` made of `texts(plans)`, in that order.
    """
    beside = folder / f"{ROWS}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(folder / ROWS, ignore_errors=True)
    beside.mkdir(parents=True)
    for file, batches in groupby(_batches_by_file(tokenised), key=itemgetter(0)):
        write_token_rows(beside / file, (batch for _, batch in batches))
    for file in (_file(plan.name, split) for plan in plans for split in SPLITS):
        if not (beside / file).exists():
            write_token_rows(beside / file, ())
    beside.rename(folder / ROWS)
    write_json(folder / PLAN, [{key: value for key, value in vars(plan).items() if key != "rows"} for plan in plans])


def read_plans(folder: Path) -> list[AdapterPlan]:
    """The adapters to train, without their texts."""
    return [AdapterPlan(**values) for values in json.loads((folder / PLAN).read_text())]


def read_rows(folder: Path, adapter: str, split: str) -> TokenRows:
    """An adapter's rows of a split, `train` or `validation`.

    Raises:
        StorageError: they are not there or not whole.
    """
    return TokenRows(folder / ROWS / _file(adapter, split))


def write_result(folder: Path, weights: Iterable[tuple[str, Mapping[str, Tensor]]], curves: Mapping[str, Any],
                 targets: Sequence[str]) -> None:
    """Each adapter's finished weights, the curves and the adapted layers' names; the SHA-256 sums come last."""
    from safetensors.torch import save

    shutil.rmtree(folder / RESULT, ignore_errors=True)
    sums = {}

    def write(name: str, data: bytes) -> None:
        write_atomic(folder / RESULT / name, data)
        sums[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    for name, tensors in weights:
        write(f"{name}.safetensors", save(dict(tensors)))
    write(CURVES, json.dumps(curves).encode())
    write(TARGETS, json.dumps(targets).encode())
    write_json(folder / RESULT / MANIFEST, {"files": sums})


def result_is_whole(folder: Path) -> bool:
    """Whether the pack was trained to the end, and every file of the result has its sum."""
    try:
        sums = json.loads((folder / RESULT / MANIFEST).read_text())["files"]
        return all(sha256_file(folder / RESULT / name) == told["sha256"] for name, told in sums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _file(adapter: str, split: str) -> str:
    return f"{adapter}.{split}.arrow"


def _batches_by_file(tables: Iterable[pa.Table]) -> Iterator[tuple[str, pa.RecordBatch]]:
    for table in tables:
        for file in table["file"].unique().to_pylist():
            rows = table.filter(pc.equal(table["file"], file)).select(SCHEMA.names).cast(SCHEMA)
            for batch in rows.combine_chunks().to_batches():
                yield file, batch
