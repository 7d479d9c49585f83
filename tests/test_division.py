"""Adapters are divided into packs so that the slowest worker is done first."""

from __future__ import annotations

import pytest

from culturemanager.sections.model import TrainingConfig
from culturemanager.training.division import Division, Work
from culturemanager.training.division import divide as divisions


def divide(some: list[Work], config: TrainingConfig) -> Division:
    """The division that comes first."""
    return divisions(some, config)[0]


def works(*rows: int, batch_size: int = 4, characters: int = 200) -> list[Work]:
    return [Work(f"a{number}", count, count * characters, batch_size, epochs=2) for number, count in enumerate(rows)]


def test_one_worker_trains_one_pack():
    assert divide(works(80, 40), TrainingConfig()).packs == (("a0", "a1"),)


def test_equal_adapters_train_side_by_side_without_an_exchange_of_gradients():
    division = divide(works(*[80] * 8), TrainingConfig(workers=4))
    assert [len(pack) for pack in division.packs] == [2, 2, 2, 2] and division.workers == 1


def test_a_single_adapter_is_spread_over_all_workers():
    division = divide(works(80, batch_size=8, characters=3000), TrainingConfig(workers=4))
    assert division.packs == (("a0",),) and division.workers == 4


def test_adapters_that_do_not_divide_evenly_share_workers():
    # Three adapters on two workers: side by side one worker would have two of them.
    division = divide(works(*[80] * 3, characters=3000), TrainingConfig(workers=2))
    assert len(division.packs) == 1 and division.workers == 2


def test_more_workers_than_rows_of_a_step_are_worth_nothing_to_one_pack():
    division = divide(works(*[80] * 8, batch_size=1, characters=3000), TrainingConfig(workers=8))
    assert len(division.packs) == 8


def test_long_adapters_are_spread_over_the_packs():
    division = divide(works(400, 400, 40, 40), TrainingConfig(workers=2, packs=2))
    assert {frozenset(pack) for pack in division.packs} == {frozenset({"a0", "a2"}), frozenset({"a1", "a3"})}


def test_a_base_shared_out_among_workers_makes_one_pack():
    assert len(divide(works(*[80] * 8), TrainingConfig(workers=4, zero_stage=3)).packs) == 1


def test_a_division_does_not_depend_on_the_order_of_the_adapters():
    config = TrainingConfig(workers=2)
    some = works(100, 90, 80, 70, 60)
    found = [{frozenset(pack) for pack in divide(order, config).packs} for order in (some, some[::-1])]
    assert found[0] == found[1]


def test_packs_have_equal_parts_of_the_workers():
    with pytest.raises(ValueError, match=r"`packs: 2` does not divide `workers: 3`"):
        TrainingConfig(workers=3, packs=2)
