"""What we write, PEFT reads and computes alike; what is no plain LoRA is refused by name."""

from __future__ import annotations

import copy
import json
import logging
import warnings

import peft
import pytest
import safetensors.torch
import torch
import transformers
from transformers import BertConfig, GPT2Config, LlamaConfig

from culturemanager.adapters import peft_format
from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.errors import AdapterError

SMALL = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "bert": BertConfig(**SMALL, is_decoder=True),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2),
}
every_model = pytest.mark.parametrize("kind", CONFIGS)
logging.getLogger("transformers").setLevel(logging.ERROR)


def base(kind: str):
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()


def random_adapter(bank: AdapterBank, shape: AdapterShape) -> dict[str, torch.Tensor]:
    """Weights of a fresh adapter, with B no longer zero."""
    bank.add("random", shape, seed=1)
    generator = torch.Generator().manual_seed(2)
    tensors = {key: tensor + torch.randn(tensor.shape, generator=generator) * 0.2
               for key, tensor in bank.tensors("random").items()}
    bank.remove("random")
    return tensors


def by_peft(model, folder) -> peft.PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        return peft.PeftModel.from_pretrained(model, folder).eval()


@every_model
@pytest.mark.parametrize("only_first_layer", [False, True])
@pytest.mark.parametrize("with_module_names", [False, True])
def test_an_exported_adapter_gives_the_same_logits_in_peft(kind, only_first_layer, with_module_names, tmp_path):
    model = base(kind)
    every = AdapterBank(copy.deepcopy(model), slots=1, max_rank=1).targets
    targets = [name for name in every if ".0." in name] if only_first_layer else None
    names = [name for name, _ in model.named_modules()] if with_module_names else None
    bank = AdapterBank(copy.deepcopy(model), slots=2, max_rank=4, targets=targets)
    shape = AdapterShape(3, 7.5, dropout=0.1)
    tensors = random_adapter(bank, shape)
    slot = bank.load("exported", shape, tensors)
    peft_format.save(tmp_path, bank.tensors("exported"), shape, "org/base", bank.targets, names)

    reference = by_peft(model, tmp_path)
    adapted = {name.removeprefix("base_model.model.") for name, module in reference.named_modules()
               if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert adapted == set(bank.targets)
    tokens = torch.randint(3, 61, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), bank.rows([slot] * 3):
        ours = bank.model(input_ids=tokens).logits
        theirs = reference(input_ids=tokens).logits
        bare = base(kind)(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours - bare).abs().max() > 1e-2

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    leaves = sorted({name.rpartition(".")[2] for name in bank.targets})
    assert config["target_modules"] == (leaves if with_module_names and not only_first_layer else sorted(bank.targets))
    assert config["base_model_name_or_path"] == "org/base" and config["modules_to_save"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@every_model
def test_names_and_shapes_are_those_of_pefts_own_save(kind, tmp_path):
    bank = AdapterBank(base(kind), slots=1, max_rank=4)
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.2, target_modules=list(bank.targets), task_type="CAUSAL_LM",
                             fan_in_fan_out=kind == "gpt2", init_lora_weights=False)
    peft.get_peft_model(base(kind), config).save_pretrained(tmp_path / "theirs")
    shape, tensors, read = peft_format.load(tmp_path / "theirs")
    assert shape == AdapterShape(4, 6, 0.2) and read["task_type"] == "CAUSAL_LM"
    assert bank.load("theirs", shape, tensors) == 1
    peft_format.save(tmp_path / "ours", tensors, shape, "org/base", bank.targets)
    theirs, ours = (safetensors.torch.load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_rank_stabilised_adapters_keep_their_scale(tmp_path):
    bank = AdapterBank(base("llama"), slots=1, max_rank=4)
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "up_proj"],
                             init_lora_weights=False, task_type="CAUSAL_LM")
    reference = peft.get_peft_model(base("llama"), config).eval()
    reference.save_pretrained(tmp_path)
    shape, tensors, _ = peft_format.load(tmp_path)
    assert shape.scale == pytest.approx(6 / 2)
    slot = bank.load("stable", shape, tensors)
    tokens = torch.arange(3, 11)[None]
    with torch.inference_mode(), bank.rows([slot]):
        torch.testing.assert_close(bank.model(input_ids=tokens).logits, reference(input_ids=tokens).logits,
                                   rtol=1e-5, atol=1e-5)


# ---- refusals

TENSORS = {"h.q.lora_A": torch.ones(2, 4), "h.q.lora_B": torch.ones(6, 2)}


@pytest.fixture
def folder(tmp_path):
    peft_format.save(tmp_path, TENSORS, AdapterShape(2, 4), "org/base", ["h.q"])
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_weights(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("changes", [
    {"peft_type": "IA3"}, {"peft_type": None}, {"bias": "all"}, {"use_dora": True}, {"modules_to_save": ["lm_head"]},
    {"rank_pattern": {"q": 3}}, {"alpha_pattern": {"q": 3}}, {"lora_bias": True}, {"layer_replication": [[0, 2]]},
    {"use_some_future_variant": {"x": 1}}, {"init_lora_weights": "pissa"}, {"target_modules": None}, {"r": "8"}, {"r": 2.5},
    {"r": 0}, {"lora_alpha": None}, {"lora_alpha": -1}, {"lora_dropout": 1.5}, {"r": True},
    {"r": -1, "use_rslora": True}, {"trainable_token_indices": [1]},
])
def test_what_is_no_plain_lora_is_refused_naming_the_file(folder, changes):
    edit_config(folder, **changes)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        peft_format.load(folder)


@pytest.mark.parametrize(("problem", "tensors"), [
    ("NaN or infinity", {"h.q.lora_A": torch.full((2, 4), float("nan"))}),
    ("NaN or infinity", {"h.q.lora_B": torch.full((6, 2), float("inf"))}),
    ("expected", {"h.q.lora_A": torch.ones(3, 4)}),
    ("expected", {"h.q.lora_B": torch.ones(6, 2, 1)}),
    ("stands alone", {"h.k.lora_A": torch.ones(2, 4)}),
    ("no LoRA matrix", {"h.q.lora_magnitude_vector": torch.ones(6)}),
    ("do not belong together", {"h.k.lora_A": torch.ones(2, 4), "h.k.lora_B": torch.ones(6, 2)}),
])
def test_wrong_weights_are_refused_naming_the_file(folder, problem, tensors):
    write_weights(folder, {f"base_model.model.{key}.weight": value for key, value in (TENSORS | tensors).items()})
    with pytest.raises(AdapterError, match=rf"adapter_model\.safetensors.*{problem}"):
        peft_format.load(folder)


def test_a_target_without_weights_is_refused(folder):
    edit_config(folder, target_modules=["q", "v"])
    with pytest.raises(AdapterError, match=r"no weights for \['v'\]"):
        peft_format.load(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\x00garbage", b"[1, 2]"])
def test_missing_and_unreadable_files_are_named(folder, file, content):
    if content is None:
        (folder / file).unlink()
        (folder / "adapter_model.bin").write_bytes(b"a pickle is never read")
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(AdapterError, match=file.replace(".", r"\.")):
        peft_format.load(folder)


@pytest.mark.parametrize("tensors", [
    TENSORS | {"h.q.lora_A": torch.full((2, 4), float("nan"))},
    TENSORS | {"h.q.lora_A": torch.ones(4, 2)},
    {"h.q.lora_A": torch.ones(2, 4)},
    TENSORS | {"h.k.lora_A": torch.ones(2, 4), "h.k.lora_B": torch.ones(6, 2)},
    {},
])
def test_nothing_wrong_is_written(tmp_path, tensors):
    with pytest.raises(AdapterError):
        peft_format.save(tmp_path / "new", tensors, AdapterShape(2, 4), "org/base", ["h.q"])
    assert not (tmp_path / "new").exists()


def test_half_precision_files_are_read_as_float32(folder):
    write_weights(folder, {f"base_model.model.{key}.weight": value.to(torch.bfloat16) for key, value in TENSORS.items()})
    _, tensors, _ = peft_format.load(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
