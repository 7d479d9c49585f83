"""Tokenised rows on disk, mapped into memory: a worker reads the rows of a step from the file and holds no copy of them all.

The file is an Arrow IPC file with the columns `ids` (list of int32) and `prompt_length` (int32).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from culturemanager.errors import StorageError

SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("prompt_length", pa.int32())])


@dataclass(frozen=True)
class TokenRow:
    """One prompt and completion; the loss counts the completion's tokens only."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def label_count(self) -> int:
        return len(self.ids) - self.prompt_length


def write_token_rows(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches of `SCHEMA` one after another, so that no more than one is in memory."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def as_batch(rows: Sequence[TokenRow]) -> pa.RecordBatch:
    """Rows in the file's columns."""
    return pa.record_batch([pa.array([row.ids for row in rows], SCHEMA.field("ids").type),
                            pa.array([row.prompt_length for row in rows], pa.int32())], schema=SCHEMA)


class TokenRows(Sequence[TokenRow]):
    """The rows of a file; each is read when it is asked for.

    Raises:
        StorageError: there is no such file, or it is not whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise StorageError(f"{path}: the tokenised rows cannot be read ({error}). Delete the folder {path.parent} and run "
                               "the training again: it makes them anew.") from error
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...

    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        place = index - (int(self._ends[number - 1]) if number else 0)
        ids, prompt_lengths = batch.columns
        return TokenRow(tuple(ids[place].values.to_pylist()), prompt_lengths[place].as_py())
