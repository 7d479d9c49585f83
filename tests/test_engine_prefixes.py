"""The memory of prompt beginnings: what is found is what was stored for exactly these tokens, within its room."""

from __future__ import annotations

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from culturemanager.inference.cache import SlotCache, reserved
from culturemanager.inference.prefixes import BLOCK, NOTHING, PrefixCache

ROWS, HEADS, WIDTH, LAYERS = 3, 2, 4, 2
BLOCK_BYTES = LAYERS * 2 * HEADS * BLOCK * WIDTH * 4
CONTEXT = 5 * BLOCK


def slot_cache() -> SlotCache:
    cache = SlotCache(ROWS, CONTEXT, torch.device("cpu"))
    cache.begin(0, 1, 1)
    for layer in range(LAYERS):
        cache.update(torch.zeros(1, HEADS, 1, WIDTH), torch.zeros(1, HEADS, 1, WIDTH), layer)
    return cache


def fill(cache: SlotCache, row: int, content: str, prompt: tuple[int, ...]) -> None:
    """Write keys and values that tell, in every column, the adapter and all tokens up to it."""
    for column in range(len(prompt)):
        said = hash((content, prompt[:column + 1])) % 9973
        for number, stored in enumerate(cache.tensors):
            stored[row, :, column] = said + number


def prompt_of(blocks: str, tail: int = 1) -> tuple[int, ...]:
    """A prompt of whole blocks, one a letter, and a few tokens more."""
    return tuple(ord(letter) for letter in blocks for _ in range(BLOCK)) + (0,) * tail


BATCH = st.lists(st.tuples(st.sampled_from("xy"), st.text("ab", max_size=4), st.integers(0, BLOCK - 1)), min_size=1,
                 max_size=ROWS)


@settings(max_examples=40)
@given(batches=st.lists(BATCH, max_size=12), room=st.integers(1, 8))
def test_what_is_found_is_what_the_row_would_compute(batches, room):
    cache = slot_cache()
    prefixes = PrefixCache(cache, room * BLOCK_BYTES + 100)
    for batch in batches:
        prompts = [(content, prompt_of(blocks, tail) or (1,)) for content, blocks, tail in batch]
        matches = [prefixes.find(*prompt) for prompt in prompts]
        for stored in cache.tensors:
            stored[:] = -1
        prefixes.restore(matches, 0)
        found = [stored.clone() for stored in cache.tensors]
        for row, prompt in enumerate(prompts):
            fill(cache, row, *prompt)
        for row, match in enumerate(matches):
            assert match.tokens < len(prompts[row][1])
            for restored, computed in zip(found, cache.tensors, strict=True):
                assert torch.equal(restored[row, :, :match.tokens], computed[row, :, :match.tokens])
                assert (restored[row, :, match.tokens:] == -1).all()
        prefixes.store(prompts, 0)
        assert prefixes.memory_bytes <= room * BLOCK_BYTES + 100
        if sum(len(prompt) // BLOCK for _, prompt in prompts) <= room:
            assert all(prefixes.find(*prompt).missing is None for prompt in prompts)


def stored(room: int, *prompts: tuple[int, ...]) -> PrefixCache:
    prefixes = PrefixCache(slot_cache(), room * BLOCK_BYTES)
    for prompt in prompts:
        prefixes.store([("x", prompt)], 0)
    return prefixes


def test_the_blocks_used_longest_ago_make_room_and_a_beginning_outlives_what_follows_it():
    prefixes = stored(4, prompt_of("abc"), prompt_of("d"))
    prefixes.find("x", prompt_of("abc"))  # now "d" was used longest ago
    prefixes.store([("x", prompt_of("e"))], 0)
    assert prefixes.find("x", prompt_of("d")).tokens == 0
    assert prefixes.find("x", prompt_of("abc")).tokens == 3 * BLOCK
    prefixes.find("x", prompt_of("e"))
    prefixes.store([("x", prompt_of("f"))], 0)
    assert prefixes.find("x", prompt_of("abc")).tokens == 2 * BLOCK


def test_a_prompt_longer_than_the_room_leaves_its_beginning():
    assert stored(2, prompt_of("abcd")).find("x", prompt_of("abcd")).tokens == 2 * BLOCK


def test_the_last_token_is_never_taken_from_memory():
    prefixes = stored(4, prompt_of("ab", 0))
    assert prefixes.find("x", prompt_of("ab", 0)).tokens == BLOCK
    assert prefixes.find("x", prompt_of("ab", 1)).tokens == 2 * BLOCK


def test_two_prompts_miss_the_same_block_only_if_all_before_it_is_the_same():
    prefixes = stored(4, prompt_of("a"))
    missing = {case: prefixes.find(case[0], prompt_of(case[1])).missing
               for case in (("x", "ab"), ("x", "abd"), ("x", "cb"), ("y", "ab"), ("x", "a"))}
    assert missing["x", "ab"] == missing["x", "abd"] and missing["x", "a"] is None
    assert len(set(missing.values())) == 4


@pytest.mark.parametrize("budget", [0, BLOCK_BYTES - 1])
def test_without_room_for_a_block_nothing_is_kept_nor_waited_for(budget):
    prefixes = PrefixCache(slot_cache(), budget)
    prefixes.store([("x", prompt_of("ab"))], 0)
    assert prefixes.find("x", prompt_of("ab")) is NOTHING and prefixes.memory_bytes == 0


def test_reserved_memory_is_taken_when_it_is_written():
    process = psutil.Process()
    before = process.memory_info().rss
    held = reserved((64, 1024, 1024), torch.zeros(1, dtype=torch.bfloat16))
    assert held.shape == (64, 1024, 1024) and held.dtype == torch.bfloat16 and not held[3, :10].any()
    assert process.memory_info().rss - before < 2**25 < held.nbytes
    held[:, 0] = 1  # the first column of each row: what serving writes first
    assert process.memory_info().rss - before < 2**25 and held[:, 0].all()
    held[:, 0] = 0
    held[:16] = 1
    assert held[:16].all() and not held[16:].any()
