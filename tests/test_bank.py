"""The bank's contract: a row, and an adapter in training, never notice who shares the batch."""

from __future__ import annotations

import copy
import functools
import logging

import hypothesis.strategies as st
import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from transformers import BertConfig, GPT2Config, LlamaConfig, Qwen2Config, Qwen2MoeConfig

from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError

VOCABULARY = 61
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "bert": BertConfig(**SMALL, is_decoder=True),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=1),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=1, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
                       eos_token_id=2, pad_token_id=0),
}
every_model = pytest.mark.parametrize("kind", CONFIGS)
logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small lose more time to threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _base(kind: str):
    torch.manual_seed(7)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()


def base(kind: str = "llama"):
    return copy.deepcopy(_base(kind))


def weights(bank: AdapterBank, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Random weights large enough to move the logits."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in bank._layers:
        found[f"{layer.name}.lora_A"] = torch.randn(rank, layer.fan_in, generator=generator) * 0.3
        found[f"{layer.name}.lora_B"] = torch.randn(layer.fan_out, rank, generator=generator) * 0.3
    return found


SHAPES = {"a": AdapterShape(2, 4), "b": AdapterShape(5, 3), "c": AdapterShape(8, 8)}


def filled(model, slots: int = 4, **options) -> AdapterBank:
    """A bank with adapters of three ranks and scales in slots 1, 2 and 3."""
    bank = AdapterBank(model, slots=slots, max_rank=8, **options)
    for number, (name, shape) in enumerate(SHAPES.items()):
        bank.load(name, shape, weights(bank, shape.rank, number))
    return bank


def ids(rows: int, tokens: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def logits(bank: AdapterBank, slots, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), bank.rows(slots):
        return bank.model(input_ids=tokens).logits


@every_model
@pytest.mark.parametrize("slots", [(3, 0, 1, 2, 1), (1, 1, 2, 2, 3, 3), (2, 2, 2), (0, 1, 2, 3), (3, 3, 1, 1, 0, 0)])
def test_each_row_of_a_mixed_batch_is_what_peft_computes_for_its_adapter(kind, slots):
    bank = filled(base(kind))
    tokens = ids(len(slots))
    mixed = logits(bank, slots, tokens)
    names = {slot: name for name, slot in bank.names.items()}
    for slot in set(slots):
        reference = base(kind)
        if slot:
            shape = SHAPES[names[slot]]
            config = peft.LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=list(bank.targets),
                                     fan_in_fan_out=kind == "gpt2", task_type="CAUSAL_LM")
            reference = peft.get_peft_model(reference, config).eval()
            state = {f"base_model.model.{key}.weight": value for key, value in bank.tensors(names[slot]).items()}
            assert not peft.set_peft_model_state_dict(reference, state).unexpected_keys
        with torch.inference_mode():
            alone = reference(input_ids=tokens).logits
        for row in (row for row in range(len(slots)) if slots[row] == slot):
            torch.testing.assert_close(mixed[row], alone[row], rtol=1e-5, atol=1e-5)


@every_model
def test_slot_zero_is_exactly_the_bare_model(kind):
    tokens = ids(4)
    with torch.inference_mode():
        bare = base(kind)(input_ids=tokens).logits
    bank = filled(base(kind))
    with torch.inference_mode():
        assert torch.equal(bank.model(input_ids=tokens).logits, bare)
    assert torch.equal(logits(bank, [0, 0, 0, 0], tokens), bare)
    mixed = logits(bank, [0, 2, 0, 1], tokens)
    assert torch.equal(mixed[[0, 2]], bare[[0, 2]])
    assert not torch.isclose(mixed[[1, 3]], bare[[1, 3]]).all()


@every_model
def test_only_layers_between_embeddings_and_head_are_wrapped(kind):
    model = base(kind)
    bank = AdapterBank(model, slots=1, max_rank=2)
    head = model.get_output_embeddings()
    assert all(model.get_submodule(name) is not head for name in bank.targets)
    assert list(bank.targets) == [name for name, _ in model.named_modules() if name in bank.targets]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in bank.parameters()}
    assert bank.memory_bytes == sum(4 * parameter.numel() for parameter in bank.parameters())


# ---- training

PACK = {  # name: shape, row lengths of every step
    "small": (AdapterShape(2, 8), (5,)),
    "dropped": (AdapterShape(3, 3, dropout=0.4), (4, 6)),
    "large": (AdapterShape(8, 16), (3, 9, 7)),
}


def parts_of(slots, lengths) -> list[list[tuple[int, int]]]:
    """One part a row, numbered among its slot's rows."""
    return [[(slots[:row].count(slot), length)] for row, (slot, length) in enumerate(zip(slots, lengths, strict=True))]


def train(names, kind: str, max_rank: int, order=None, steps: int = 20) -> dict[str, dict[str, torch.Tensor]]:
    """A plain loop: the loss is the sum over adapters of each one's own token mean."""
    bank = AdapterBank(base(kind), slots=len(names), max_rank=max_rank)
    for name in names:
        bank.add(name, PACK[name][0], seed=len(name))
    optimizer = torch.optim.AdamW(bank.parameters(), lr=3e-3, weight_decay=0.01)
    for step in range(steps):
        rows = []
        for name in names:
            rows += [(name, ids(1, length, seed=1000 * step + 10 * length)[0]) for length in PACK[name][1]]
        rows = [rows[index] for index in order] if order else rows
        lengths = [len(tokens) for _, tokens in rows]
        padded = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for row, (_, tokens) in enumerate(rows):
            padded[row, :len(tokens)] = tokens
        mask = torch.arange(padded.shape[1])[None] < torch.tensor(lengths)[:, None]
        slots = [bank.names[name] for name, _ in rows]
        with bank.rows(slots, step=step, parts=parts_of(slots, lengths)):
            scores = bank.model(input_ids=padded, attention_mask=mask.long()).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(scores.transpose(1, 2), padded[:, 1:], reduction="none") * mask[:, 1:]
        loss = 0
        for name in names:
            own = [row for row, (owner, _) in enumerate(rows) if owner == name]
            loss = loss + losses[own].sum() / mask[own, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: bank.tensors(name) for name in names}


@pytest.mark.parametrize(("kind", "order"), [("llama", None), ("llama", (4, 1, 0, 5, 3, 2)), ("bert", None), ("gpt2", None)])
def test_an_adapter_trained_in_a_pack_ends_where_it_ends_alone(kind, order):
    packed = train(tuple(PACK), kind, max_rank=8, order=order)
    for name, (shape, lengths) in PACK.items():
        # The order of an adapter's own rows is part of its run; what the pack may change is everything around them.
        first = {"small": 0, "dropped": 1, "large": 3}[name]
        own = [row - first for row in order or range(6) if first <= row < first + len(lengths)]
        alone = train((name,), kind, max_rank=shape.rank, order=own)[name]
        for key, expected in alone.items():
            assert (packed[name][key] - expected).norm() <= 1e-4 * expected.norm(), key
            if key.endswith("lora_B"):
                assert expected.norm() > 1e-3


@pytest.mark.parametrize("slots", [(1, 1, 3, 3), (0, 3, 1, 3, 0), (3, 3), (0, 1)])
def test_gradients_reach_only_the_ranks_and_slots_in_use(slots):
    bank = filled(base())
    with bank.rows(slots):
        bank.model(input_ids=ids(len(slots))).logits.square().sum().backward()
    ranks = {bank.names[name]: shape.rank for name, shape in bank.shapes.items()}
    for A, B in zip(bank.parameters()[::2], bank.parameters()[1::2], strict=True):
        for slot in range(bank.slots + 1):
            used = ranks[slot] if slot and slot in slots else 0
            assert not A.grad[slot, :, used:].any() and not B.grad[slot, used:].any()
            assert used == 0 or (A.grad[slot, :, :used].any() and B.grad[slot, :used].any())
    base_parameters = [p for n, p in bank.model.named_parameters() if not n.endswith(("bank_A", "bank_B"))]
    assert all(parameter.grad is None for parameter in base_parameters)


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("slots", [(1, 2), (1, 1, 2), (2, 1, 1)])
def test_an_adapter_that_diverged_leaves_the_others_finite(slots, tokens):
    bank = filled(base())
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter[1] = float("nan")
    with bank.rows(slots):
        out = bank.model(input_ids=ids(len(slots), tokens)).logits
    losses = out.square().sum((1, 2))
    assert losses.isfinite().tolist() == [slot == 2 for slot in slots]
    losses.sum().backward()
    norms = bank.slot_gradient_norms()
    assert norms[1].isnan() and norms[2].isfinite() and norms[2] > 0


def test_slot_gradient_norms_are_each_adapters_whole_gradient():
    bank = filled(base())
    assert torch.equal(bank.slot_gradient_norms(), torch.zeros(5))
    with bank.rows([1, 3, 3]):
        bank.model(input_ids=ids(3)).logits.square().sum().backward()
    expected = torch.stack([torch.cat([p.grad[slot].flatten() for p in bank.parameters()]).norm() for slot in range(5)])
    torch.testing.assert_close(bank.slot_gradient_norms(), expected)


def test_dropout_depends_on_the_adapters_own_rows_seed_and_step_alone():
    bank = filled(base())
    bank.set_dropout("b", 0.5, seed=11)
    tokens = ids(2, 5)

    def run(slots, batch, own, lengths=None, step: int | None = 3):
        with torch.no_grad(), bank.rows(slots, step=step, parts=lengths and parts_of(slots, lengths)):
            return bank.model(input_ids=batch).logits[own, :5]

    alone = run([2, 2], tokens, [0, 1], [5, 4])
    longer = torch.cat([tokens, torch.zeros(2, 4, dtype=torch.long)], dim=1)  # causal: padding changes nothing
    packed = torch.stack([ids(1, 9, 1)[0], longer[0], ids(1, 9, 2)[0], longer[1]])
    torch.testing.assert_close(run([1, 2, 3, 2], packed, [1, 3], [9, 5, 8, 4]), alone)
    assert torch.equal(run([2, 2], tokens, [0, 1], [5, 4]), alone)
    assert not torch.allclose(run([2, 2], tokens, [0, 1], [5, 4], step=4), alone)
    torch.testing.assert_close(run([2, 2], tokens, [0, 1], step=None), logits(bank, [2, 2], tokens))
    assert bank.dropout_state("b") == (0.5, 11)
    bank.set_dropout("b", 0.5, seed=12)
    assert not torch.allclose(run([2, 2], tokens, [0, 1], [5, 4]), alone)


def test_dropout_keeps_the_expected_input():
    bank = filled(base(), targets=["model.layers.0.mlp.gate_proj"])
    bank.set_dropout("a", 0.25, seed=0)
    layer = bank.model.get_submodule(bank.targets[0])
    x = torch.ones(1, 4000, 16)
    with torch.no_grad():
        with bank.rows([1]):
            full = layer(x) - torch.nn.functional.linear(x, layer.weight)
        with bank.rows([1], step=0):
            dropped = layer(x) - torch.nn.functional.linear(x, layer.weight)
    torch.testing.assert_close(dropped.mean(1), full.mean(1), rtol=0.1, atol=0.02)


# ---- membership and the cache

def test_the_same_seed_gives_the_same_adapter_in_any_slot_beside_any_others():
    shape = AdapterShape(4, 8)
    first, second = AdapterBank(base(), slots=1, max_rank=4), AdapterBank(base(), slots=3, max_rank=9)
    first.add("x", shape, seed=5)
    second.add("other", AdapterShape(9, 1), seed=6)
    assert second.add("x", shape, seed=5) == 2
    for key, tensor in first.tensors("x").items():
        assert torch.equal(tensor, second.tensors("x")[key])
    for key, tensor in first.tensors("x").items():
        if key.endswith("lora_B"):
            assert not tensor.any()
        else:  # Kaiming uniform with a = sqrt(5) is uniform in +-1/sqrt(in)
            bound = tensor.shape[1] ** -0.5
            assert tensor.abs().max() <= bound and tensor.abs().mean() == pytest.approx(bound / 2, rel=0.35)


def test_load_gives_back_through_tensors_what_was_put_in():
    bank = filled(base("gpt2"))
    for number, (name, shape) in enumerate(SHAPES.items()):
        for key, tensor in weights(bank, shape.rank, number).items():
            assert torch.equal(bank.tensors(name)[key], tensor)


OPERATIONS = st.lists(st.tuples(st.sampled_from(["replace", "step", "uncounted step"]), st.integers(0, 2)), max_size=6)
BATCHES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=3)


@functools.cache
def _shared_bank() -> AdapterBank:
    return AdapterBank(base("gpt2"), slots=3, max_rank=3, cache_bytes=60_000)  # room for about two of the batches


def check_rows(bank: AdapterBank, batches, tokens: torch.Tensor) -> None:
    for slots in batches:
        mixed = logits(bank, slots, tokens[:len(slots)])
        for row, slot in enumerate(slots):  # a single row reads the stacked weights directly, without the cache
            torch.testing.assert_close(mixed[row], logits(bank, [slot], tokens[row:row + 1])[0], rtol=1e-4, atol=1e-5)


@settings(max_examples=15)
@given(OPERATIONS, BATCHES)
def test_no_row_is_ever_computed_with_weights_that_are_gone(operations, batches):
    bank = _shared_bank()
    for name in list(bank.names):
        bank.remove(name)
    names = ["p", "q", "r"]
    for number, name in enumerate(names):
        bank.load(name, AdapterShape(number + 1, 2), weights(bank, number + 1, number))
    tokens, batches = ids(5, 3), [*batches, [2, 1, 3, 1, 0]]
    check_rows(bank, batches, tokens)
    for count, (what, which) in enumerate(operations):
        slot = bank.names[names[which]]
        if what == "replace":
            bank.remove(names[which])
            bank.load(names[which], AdapterShape(1 + count % 3, 2), weights(bank, 1 + count % 3, 100 + count))
        elif what == "step":
            with torch.no_grad():
                for parameter in bank.parameters():
                    parameter[slot] *= -0.9
        else:  # as some of DeepSpeed's optimizers write, behind the version counters; a training pass goes before it
            with bank.rows([slot, 0]):
                bank.model(input_ids=tokens[:2])
            for parameter in bank.parameters():
                parameter.data[slot] *= -0.9
        check_rows(bank, batches, tokens)


def test_weights_changed_while_a_block_is_open_count_from_the_next_pass():
    bank, tokens, slots = filled(base()), ids(3), [3, 1, 2]
    with bank.rows(slots):
        for _ in range(2):
            with torch.no_grad():
                before = bank.model(input_ids=tokens).logits
        bank.model(input_ids=tokens)
        for parameter in bank.parameters():
            parameter.data *= 1.1
        with torch.no_grad():
            after = bank.model(input_ids=tokens).logits
    assert not torch.allclose(before, after)
    alone = [logits(bank, [slot], tokens[row:row + 1]) for row, slot in enumerate(slots)]
    torch.testing.assert_close(after, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_removed_adapters_slot_is_clean_for_the_next():
    bank = filled(base(), slots=3)
    with bank.rows([2, 1]):
        bank.model(input_ids=ids(2)).logits.sum().backward()
    bank.remove("b")
    assert "b" not in bank.names and "b" not in bank.shapes
    assert all(not parameter[2].any() and not parameter.grad[2].any() for parameter in bank.parameters())
    with pytest.raises(AdapterError, match=r"slots \[2\]"), bank.rows([1, 2]):
        pass
    assert bank.add("d", AdapterShape(1, 1), seed=0) == 2


def test_detach_gives_back_the_bare_model():
    model, tokens = base(), ids(2)
    keys = set(model.state_dict())
    bank = filled(model)
    bank.detach()
    assert set(model.state_dict()) == keys
    with torch.inference_mode(), bank.rows([1, 2]):
        assert torch.equal(model(input_ids=tokens).logits, base()(input_ids=tokens).logits)
    AdapterBank(model, slots=1, max_rank=1)


# ---- inputs and precision

def test_generation_of_a_mixed_batch_is_each_rows_own():
    bank = filled(base())
    tokens = ids(4)
    slots = [3, 1, 0, 1]
    with torch.inference_mode(), bank.rows(slots):
        together = bank.model.generate(tokens, max_new_tokens=6, do_sample=False)
    for row, slot in enumerate(slots):
        with torch.inference_mode(), bank.rows([slot]):
            alone = bank.model.generate(tokens[row:row + 1], max_new_tokens=6, do_sample=False)
        assert torch.equal(together[row, :alone.shape[1]], alone[0])


def test_inputs_flattened_to_rows_times_tokens_keep_their_rows():
    config = Qwen2MoeConfig(**SMALL, num_key_value_heads=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
                            num_experts=2, num_experts_per_tok=1)
    torch.manual_seed(0)
    bank = filled(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert any("shared_expert" in name for name in bank.targets)
    tokens, slots = ids(3), [2, 0, 3]
    mixed = logits(bank, slots, tokens)
    for row, slot in enumerate(slots):
        torch.testing.assert_close(mixed[row], logits(bank, [slot], tokens[row:row + 1])[0], rtol=1e-4, atol=1e-5)


def test_label_positions_go_through_the_head_under_their_own_slots():
    bank = filled(base("bert"))
    tokens, slots = ids(3), [1, 0, 2]
    rows, positions = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 4, 2, 5])
    with torch.no_grad(), bank.rows(slots):
        full = bank.model(input_ids=tokens).logits
        hidden = bank.model.bert(input_ids=tokens).last_hidden_state
        with bank.rows([slots[row] for row in rows]):
            picked = bank.model.cls(hidden[rows, positions])
        again = bank.model(input_ids=tokens).logits
    torch.testing.assert_close(picked, full[rows, positions])
    torch.testing.assert_close(again, full)


@pytest.mark.parametrize("tokens", [1, 5])  # few tokens regroup the rows, many copy weights for every row
def test_rows_in_any_order_and_number_get_their_own_gradients(tokens):
    slots = [3, 1, 0, 3, 2, 1, 3]
    mixed, apart = filled(base()), filled(base())
    batch = ids(len(slots), tokens)
    with mixed.rows(slots):
        out = mixed.model(input_ids=batch).logits
    out.square().sum().backward()
    for row, slot in enumerate(slots):
        with apart.rows([slot]):
            alone = apart.model(input_ids=batch[row:row + 1]).logits
        torch.testing.assert_close(out[row], alone[0], rtol=1e-4, atol=1e-5)
        if slot:
            alone.square().sum().backward()
    # With one token attention has nothing to choose from: gradients of queries and keys are rounding alone.
    rounding = 1e-6 * max(theirs.grad.norm() for theirs in apart.parameters())
    for ours, theirs in zip(mixed.parameters(), apart.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-3 * theirs.grad.norm() + rounding


def test_a_bfloat16_base_carries_float32_adapters():
    exact, rounded = filled(base()), filled(base().to(torch.bfloat16))
    tokens, slots = ids(3), [1, 0, 3]
    out = logits(rounded, slots, tokens)
    assert out.dtype == torch.bfloat16 and rounded.parameters()[0].dtype == torch.float32
    torch.testing.assert_close(out.float(), logits(exact, slots, tokens), rtol=0.1, atol=0.1)
    with rounded.rows(slots):
        rounded.model(input_ids=tokens).logits.float().sum().backward()
    assert rounded.slot_gradient_norms()[1] > 0


def test_an_input_whose_rows_cannot_be_told_apart_is_refused():
    bank = filled(base())
    with pytest.raises(AdapterError, match="rows cannot be told apart"), bank.rows([1, 2, 3]):
        bank.model(input_ids=ids(2))
    layer = bank.model.get_submodule(bank.targets[0])
    with pytest.raises(AdapterError, match=bank.targets[0]), torch.inference_mode(), bank.rows([1, 2]):
        layer(torch.zeros(7, 16))
    with torch.inference_mode():  # the failed block is closed
        assert torch.equal(bank.model(input_ids=ids(2)).logits, base()(input_ids=ids(2)).logits)


def test_an_adapters_content_changes_with_its_weights_and_with_nothing_else():
    bank = filled(base())
    shape, kept = bank.shapes["a"], bank.tensors("a")
    seen = [bank.content("a")]
    with torch.inference_mode(), bank.rows([1, 2]):
        bank.model(input_ids=ids(2))
    bank.remove("b")
    bank.add("z", AdapterShape(1, 1.0), seed=0)
    assert bank.content("a") == seen[0] != bank.content("z")
    bank.remove("a")
    bank.load("a", shape, kept)
    seen.append(bank.content("a"))
    with torch.no_grad():
        bank.parameters()[-1][1] += 0.1
    bank.remove("z")  # the bank's own write after another's
    seen.append(bank.content("a"))
    bank.parameters()[0].data += 0.1
    bank.weights_changed()
    seen.append(bank.content("a"))
    with bank.rows([1]):
        bank.model(input_ids=ids(1)).logits.sum().backward()
    torch.optim.SGD(bank.parameters(), lr=0.1).step()
    seen.append(bank.content("a"))
    assert len(set(seen)) == len(seen)
    with pytest.raises(AdapterError, match="'b'"):
        bank.content("b")


@pytest.mark.parametrize(("message", "action"), [
    ("no linear layer 'nothing'", lambda: AdapterBank(base(), slots=1, max_rank=1, targets=["nothing"])),
    ("cannot carry adapters", lambda: AdapterBank(base(), slots=1, max_rank=1, targets=["lm_head"])),
    ("already carries", lambda: AdapterBank(filled(base()).model, slots=1, max_rank=1)),
    ("holds nothing", lambda: AdapterBank(base(), slots=0, max_rank=1)),
    ("already holds", lambda: filled(base()).add("a", AdapterShape(1, 1), seed=0)),
    ("max_rank is 8", lambda: filled(base()).add("x", AdapterShape(9, 1), seed=0)),
    ("All 3 slots are taken", lambda: filled(base(), slots=3).add("x", AdapterShape(1, 1), seed=0)),
    ("does not wrap", lambda: filled(base()).load("x", AdapterShape(1, 1), {"h.lora_A": torch.zeros(1, 1)})),
    ("no weights", lambda: filled(base()).load("x", AdapterShape(1, 1), {})),
    ("has shape", lambda: filled(base()).load("x", AdapterShape(1, 1), weights(filled(base("llama")), 2, 0))),
    ("but not", lambda: filled(base()).load("x", AdapterShape(1, 1), {"model.layers.0.mlp.up_proj.lora_A":
                                                                      torch.ones(1, 16)})),
    ("holds no adapter 'x'", lambda: filled(base()).tensors("x")),
    ("those of every row", lambda: filled(base()).rows([1, 2], parts=[[(0, 3)]]).__enter__()),
    ("no adapter: expected", lambda: AdapterShape(0, 1)),
    ("no adapter: expected", lambda: AdapterShape(1, 1, 1.0)),
    ("no adapter: expected", lambda: AdapterShape(1, float("nan"))),
])
def test_what_cannot_work_is_refused_with_a_reason(message, action):
    with pytest.raises(AdapterError, match=message):
        action()
