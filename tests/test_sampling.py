"""Picking tokens: the right distribution, one seed one result, and no influence from the neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from culturemanager.errors import RequestError
from culturemanager.inference.sampling import NUCLEUS, Sampling, TokenPicker, pick_tokens


def logits(seed: int, rows: int = 1, vocabulary: int = 50, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def draws(row: torch.Tensor, sampling: Sampling, count: int) -> torch.Tensor:
    """`count` tokens drawn from one row of logits."""
    picker = TokenPicker(sampling)
    return torch.tensor([pick_tokens(row, [picker])[0] for _ in range(count)])


def expected(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution that transformers draws from with these settings."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), row.double()).softmax(-1)[0]


def test_without_temperature_the_most_likely_token_is_picked():
    rows = logits(0, rows=4)
    assert pick_tokens(rows, [TokenPicker(Sampling())] * 4) == rows.argmax(-1).tolist()


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.5, seed=2),
    Sampling(temperature=1.3, top_k=5, seed=3),
    Sampling(temperature=1.0, top_p=0.6, seed=4),
    Sampling(temperature=1.5, top_k=12, top_p=0.8, seed=5),
], ids=str)
def test_tokens_come_with_the_probabilities_that_transformers_would_give_them(sampling):
    row = logits(7, vocabulary=30, spread=1.0)
    count = 3000
    seen = torch.bincount(draws(row, sampling, count), minlength=30).double() / count
    wanted = expected(row, sampling)
    assert not seen[wanted == 0].any()
    assert (seen - wanted).abs().max() < 4 * (0.25 / count) ** 0.5


def test_a_nucleus_wider_than_the_tokens_looked_at_first_is_drawn_from_as_a_whole():
    row = logits(1, vocabulary=4 * NUCLEUS, spread=0.01)  # nearly flat: 0.9 of the mass is 0.9 of the tokens
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=0)
    seen = draws(row, sampling, 300)
    wanted = expected(row, sampling)
    assert (wanted[seen] > 0).all()
    assert (row[0].argsort(descending=True).argsort()[seen] >= NUCLEUS).any()


def test_top_k_of_one_and_a_vanishing_temperature_pick_the_most_likely_token():
    row = logits(3)
    for sampling in (Sampling(temperature=2, top_k=1), Sampling(temperature=1e-300), Sampling(temperature=1, top_p=1e-9)):
        assert draws(row, sampling, 20).unique().tolist() == [row.argmax().item()]


SETTINGS = st.builds(Sampling, temperature=st.sampled_from([0.0, 0.7, 2.0]), top_p=st.sampled_from([0.3, 0.9, 1.0]),
                     top_k=st.sampled_from([0, 3, 20]), seed=st.integers(0, 5))


@settings(max_examples=40)
@given(mine=SETTINGS, others=st.lists(SETTINGS, max_size=5), place=st.integers(0, 5))
def test_a_seeded_row_gets_the_same_tokens_whoever_stands_beside_it(mine, others, place):
    steps = [logits(step, rows=6) for step in range(4)]
    place = min(place, len(others))
    company = [*others[:place], mine, *others[place:]]
    alone = TokenPicker(mine)
    pickers = [TokenPicker(sampling) for sampling in company]
    for step in steps:
        row = step[place:place + 1]
        assert pick_tokens(step[:len(company)], pickers)[place] == pick_tokens(row, [alone])[0]


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.5), Sampling(temperature=1.5, top_p=0.95),
                                      Sampling(temperature=1.5, top_k=1000)], ids=str)
def test_a_seed_gives_the_same_tokens_whatever_the_last_bits_of_the_logits(sampling):
    """A number that falls between the 49,152 running sums of the probabilities would give other tokens at once."""
    pickers = [[TokenPicker(replace(sampling, seed=seed)) for seed in range(20)] for _ in range(2)]
    for step in range(10):
        rows = logits(step, rows=20, vocabulary=49_152, spread=2.5)
        rounded = rows + 1e-4 * logits(10 + step, rows=20, vocabulary=49_152, spread=1.0)
        assert pick_tokens(rows, pickers[0]) == pick_tokens(rounded, pickers[1])


def test_noise_is_independent_between_tokens_steps_and_seeds():
    flat = torch.zeros(64, 512)
    pickers = [TokenPicker(Sampling(temperature=1.0, seed=seed)) for seed in range(64)]
    seen = torch.tensor([pick_tokens(flat, pickers) for _ in range(160)])  # [steps, seeds]
    counts = torch.bincount(seen.flatten(), minlength=512).double()
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi_squared - 511) < 4 * (2 * 511) ** 0.5
    for neighbours in (seen[1:] == seen[:-1], seen[:, 1:] == seen[:, :-1]):  # the same token again: 1 in 512
        assert neighbours.sum() < neighbours.numel() / 512 + 4 * (neighbours.numel() / 512) ** 0.5


@pytest.mark.parametrize("first", [0, 1])
def test_as_many_top_tokens_as_a_nucleus_is_looked_for_in_are_no_nucleus(first):
    row = logits(1, vocabulary=4 * NUCLEUS, spread=0.01)
    company = [Sampling(temperature=1.0, top_k=NUCLEUS, seed=0), Sampling(temperature=1.0, top_p=0.9, seed=0)]
    order = [company[first], company[1 - first]]
    pickers, alone = ([TokenPicker(sampling) for sampling in order] for _ in range(2))
    together = [pick_tokens(row.expand(2, -1), pickers) for _ in range(20)]
    assert together == [[pick_tokens(row, [picker])[0] for picker in alone] for _ in range(20)]


def test_without_a_seed_two_requests_differ():
    row = logits(0, spread=0.1)
    assert draws(row, Sampling(temperature=1.0), 30).tolist() != draws(row, Sampling(temperature=1.0), 30).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_told_and_leaves_its_neighbours_alone(bad, temperature):
    rows = logits(0, rows=3)
    wanted = pick_tokens(rows, [TokenPicker(Sampling(temperature=temperature, seed=i)) for i in range(3)])
    rows[1, 4] = bad
    got = pick_tokens(rows, [TokenPicker(Sampling(temperature=temperature, seed=i)) for i in range(3)])
    assert got == [wanted[0], None, wanted[2]]


@pytest.mark.parametrize(("setting", "value"), [("temperature", -0.1), ("temperature", float("nan")),
                                                ("temperature", float("inf")), ("top_p", 0.0), ("top_p", 1.1),
                                                ("top_k", -1)])
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(RequestError, match=f"{setting} is {value}, expected"):
        Sampling(**{setting: value})
