"""Tokenised rows come back from disk as they were, row by row, and are not held in memory."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from culturemanager.errors import StorageError
from culturemanager.training.rows import TokenRow, epoch_batches
from culturemanager.training.token_files import TokenRows, as_batch, write_token_rows


def random_rows(count: int, longest: int = 12) -> list[TokenRow]:
    draw = random.Random(count)
    return [TokenRow(tuple(draw.choices(range(1000), k=length)), draw.randrange(1, length))
            for length in (draw.randint(2, longest) for _ in range(count))]


def test_rows_come_back_as_written_and_in_their_order(tmp_path):
    rows = random_rows(50)
    write_token_rows(tmp_path / "rows.arrow", (as_batch(rows[start:start + 7]) for start in range(0, 50, 7)))
    read = TokenRows(tmp_path / "rows.arrow")
    assert list(read) == rows
    assert read[-1] == rows[-1] and read[6:16:3] == rows[6:16:3] and len(read) == 50
    with pytest.raises(IndexError, match="row 50 of 50"):
        read[50]


def test_a_file_without_rows_is_an_empty_sequence(tmp_path):
    write_token_rows(tmp_path / "rows.arrow", ())
    assert list(TokenRows(tmp_path / "rows.arrow")) == []


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_rows_that_are_not_whole_are_refused_with_what_to_do(tmp_path, damage):
    path = tmp_path / "rows.arrow"
    if damage == "torn":
        write_token_rows(path, [as_batch(random_rows(50))])
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match=r"rows\.arrow.*Delete the folder.*run the training again"):
        TokenRows(path)


def test_an_epoch_is_read_without_a_copy_of_it_in_memory(tmp_path):
    path = tmp_path / "rows.arrow"
    few = random_rows(500, longest=200)
    write_token_rows(path, (as_batch(few) for _ in range(100)))
    rows = TokenRows(path)
    next(epoch_batches(rows, 8, seed=0, epoch=0))
    before, seen, most = own_memory(), 0, 0
    for number, batch in enumerate(epoch_batches(rows, 8, seed=0, epoch=1)):
        seen += sum(len(row.ids) for row in batch)
        if number % 1000 == 0:
            most = max(most, own_memory() - before)
    assert seen == 100 * sum(len(row.ids) for row in few)
    assert path.stat().st_size > 15 * 2**20
    assert most < 3 * 2**20  # the file's own pages are the system's to keep or drop


def own_memory() -> int:
    """Bytes of this process that no file stands behind."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))
