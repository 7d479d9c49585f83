"""The engine: every row of a mixed batch is answered as if it ran alone, whatever joins and leaves beside it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from culturemanager.adapters import peft_format
from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.chat import chat_ids
from culturemanager.embedded.base_model import bare_model, build_tokenizer, weights_file
from culturemanager.errors import AdapterError, ModelError, RequestError, ServingError
from culturemanager.inference import scoring
from culturemanager.inference.engine import Engine, Generation, GenerationRequest, Sampling, ScoreRequest
from culturemanager.inference.runner import ModelRunner
from culturemanager.inference.scheduler import PADDING_SHARE, PADDING_TOKENS, by_length
from culturemanager.inference.text import TextStream
from culturemanager.providers.embedding import minilm_folder
from serve_app.engine_loop import EngineLoop

CONTEXT = 96
NEW = 8
SHAPES = {"greece": AdapterShape(2, 4.0), "jordan": AdapterShape(8, 16.0), "mexico": AdapterShape(4, 2.0)}
ADAPTERS = ("", *SHAPES)
TEXTS = ("Is tipping rude?", "Shoes off at the door: yes or no, and why is that?", "A", "Tea first. " * 4, "Who pays?",
         "東京 naïve")
POLITE = "You are a guest: shoes off, tea first, no tips, who pays is who asked; say yes or no, and why. "
LONG_TEXTS = (POLITE + "Tip?", POLITE + "Is tipping rude?", POLITE[:60] + "Who pays?")
"""Prompts that begin alike."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over a few words, so that characters fall into several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([text for text in TEXTS if text.isascii()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


def tiny_model(kind: str, vocabulary: int, **more) -> torch.nn.Module:
    torch.manual_seed(5)
    size = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    wide = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT, "initializer_range": 0.3}
    grouped = {"num_key_value_heads": 2}
    model = {
        "bert": lambda: BertLMHeadModel(BertConfig(**size, **wide, is_decoder=True, **more)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**size, **wide, **grouped, **more)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**size, **wide, **grouped, **more)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**size, **wide, **grouped, **more)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT,
                                                   initializer_range=0.3, **more)),
    }[kind]()
    return model.eval()


@dataclass
class Setting:
    """A model with a bank of adapters, and the same adapters as PEFT runs them."""

    model: torch.nn.Module
    bank: AdapterBank
    peft: PeftModel
    tokenizer: PreTrainedTokenizerFast
    prompts: list[tuple[int, ...]]
    known: dict

    def engine(self, **options) -> Engine:
        return Engine(self.model, self.tokenizer, self.bank, **options)

    def request(self, prompt: int, adapter: str, **options) -> GenerationRequest:
        return GenerationRequest(self.prompts[prompt], adapter, **{"max_new_tokens": NEW, **options})

    def reference(self, adapter: str):
        """The model with this adapter alone."""
        if not adapter:
            return self.peft.disable_adapter()
        self.peft.set_adapter(adapter)
        return torch.no_grad()

    def greedy(self, prompt: int, adapter: str) -> tuple[int, ...]:
        """What `model.generate` of transformers, with PEFT's adapter, says to this prompt alone; no end token."""
        if (prompt, adapter) not in self.known:
            ids = torch.tensor([self.prompts[prompt]])
            with self.reference(adapter):
                out = self.peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                         max_new_tokens=NEW)
            new = out[0, ids.shape[1]:].tolist()
            self.known[prompt, adapter] = tuple(new[:new.index(1)] if 1 in new else new)
        return self.known[prompt, adapter]


def build_setting(kind: str, folder: Path) -> Setting:
    """A tiny model of a kind with the adapters of `SHAPES`; the prompts of `TEXTS`, then of `LONG_TEXTS`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(kind, len(tokenizer))
    bare = copy.deepcopy(model)
    bank = AdapterBank(model, slots=4, max_rank=8)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        bank.add(name, shape, seed=seed)
        random = torch.Generator().manual_seed(seed)
        weights = {key: torch.randn(value.shape, generator=random) * 0.2 for key, value in bank.tensors(name).items()}
        bank.remove(name)
        bank.load(name, shape, weights)
        peft_format.save(folder / name, weights, shape, "tiny", bank.targets)
    peft = PeftModel.from_pretrained(bare, folder / "greece", adapter_name="greece")
    for name in ("jordan", "mexico"):
        peft.load_adapter(folder / name, adapter_name=name)
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in (*TEXTS, *LONG_TEXTS)]
    return Setting(model, bank, peft.eval(), tokenizer, prompts, {})


@pytest.fixture(scope="module", params=["bert", "llama", "qwen2", "gpt2"])
def setting(request, tmp_path_factory) -> Setting:
    return build_setting(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Setting:
    """One adapterless model for what does not depend on the architecture."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    bank = AdapterBank(model, slots=2, max_rank=4)
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
    return Setting(model, bank, None, tokenizer, prompts, {})


def drain(engine: Engine) -> tuple[dict[int, Generation], dict[int, str]]:
    """Step to the end; the generations, and the deltas put together."""
    generations, deltas = {}, {}
    while engine.pending:
        for event in engine.step():
            deltas[event.request_id] = deltas.get(event.request_id, "") + event.text_delta
            assert (event.generation is None) == (event.finish_reason is None)
            if event.generation:
                assert event.request_id not in generations
                generations[event.request_id] = event.generation
    return generations, deltas


# ---- equivalence


def test_the_adapters_and_the_base_answer_differently(setting):
    assert len({setting.greedy(1, adapter) for adapter in ADAPTERS}) == len(ADAPTERS)


def test_the_base_without_adapter_answers_as_plain_generate_does(setting):
    engine = setting.engine()
    answers = engine.generate([setting.request(prompt, "") for prompt in range(len(TEXTS))])
    assert [answer.token_ids for answer in answers] == [setting.greedy(prompt, "") for prompt in range(len(TEXTS))]


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_mixed_batch_answers_as_peft_does_for_each_adapter_alone(setting, rows):
    pairs = [(prompt, adapter) for prompt in range(len(TEXTS)) for adapter in ADAPTERS]
    answers = setting.engine(max_batch_rows=rows).generate([setting.request(*pair) for pair in pairs])
    assert [answer.token_ids for answer in answers] == [setting.greedy(*pair) for pair in pairs]
    assert [answer.prompt_tokens for answer in answers] == [len(setting.prompts[prompt]) for prompt, _ in pairs]


ARRIVAL = st.tuples(st.integers(0, len(TEXTS) + len(LONG_TEXTS) - 1), st.sampled_from(ADAPTERS), st.integers(1, NEW),
                    st.integers(0, 4), st.none() | st.integers(0, 9))


@settings(max_examples=15)
@given(arrivals=st.lists(ARRIVAL, min_size=1, max_size=10), rows=st.integers(1, 5),
       prefill_tokens=st.sampled_from([3, 40, 2048]), prefix_cache_mb=st.sampled_from([0, 0.05, 8]))
def test_answers_do_not_depend_on_who_comes_and_goes_nor_on_how_prompts_are_computed(setting, arrivals, rows, prefill_tokens,
                                                                                    prefix_cache_mb):
    engine = setting.engine(max_batch_rows=rows, prefill_tokens=prefill_tokens, prefix_cache_mb=prefix_cache_mb)
    wanted, events, cancelled = {}, [], set()
    for prompt, adapter, new, steps_after, cancelled_number in arrivals:
        number = engine.submit(setting.request(prompt, adapter, max_new_tokens=new))
        wanted[number] = setting.greedy(prompt, adapter)[:new]
        for _ in range(steps_after):
            events += engine.step()
        if cancelled_number is not None and engine.cancel(cancelled_number):
            cancelled.add(cancelled_number)
    while engine.pending:
        events += engine.step()
        assert engine.running <= rows
    ended = {event.request_id: event.generation for event in events if event.generation}
    assert {number for number, generation in ended.items() if generation.finish_reason == "cancelled"} == cancelled
    for number in cancelled:
        wanted[number] = wanted[number][:len(ended[number].token_ids)]
    assert {number: generation.token_ids for number, generation in ended.items()} == wanted
    told = {number: tuple(event.token_id for event in events if event.request_id == number and event.token_id is not None)
            for number in wanted}
    assert told == wanted


def test_eager_attention_gives_the_same_answers():
    tokenizer = tiny_tokenizer()
    answers, scores = [], []
    for attention in ("sdpa", "eager"):
        model = tiny_model("llama", len(tokenizer), attn_implementation=attention)
        engine = Engine(model, tokenizer, AdapterBank(model, slots=1, max_rank=1))
        prompts = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
        answers.append(engine.generate([GenerationRequest(prompt, max_new_tokens=NEW) for prompt in prompts]))
        scores.append(engine.score([ScoreRequest(prompt, ("yes", "no")) for prompt in prompts]))
    assert answers[0] == answers[1]
    assert scores[0] == [pytest.approx(pair, abs=1e-5) for pair in scores[1]]


def test_with_the_real_weights_and_tokenizer_the_cache_changes_nothing():
    model, tokenizer = bare_model(weights_file()), build_tokenizer(weights_file())
    bank = AdapterBank(model, slots=2, max_rank=4)
    for seed, name in enumerate(("china", "brazil")):
        bank.add(name, AdapterShape(4, 32.0), seed=seed)
        random = torch.Generator().manual_seed(seed)
        weights = {key: torch.randn(value.shape, generator=random) * 0.02 for key, value in bank.tensors(name).items()}
        bank.remove(name)
        bank.load(name, AdapterShape(4, 32.0), weights)
    questions = ["May I tip the waiter?", "You are a guest. Where do you leave your shoes, and what do you bring the hosts?"]
    pairs = [(tuple(chat_ids(tokenizer, text)), adapter) for text in questions for adapter in ("", "china", "brazil")]
    answers = Engine(model, tokenizer, bank).generate([GenerationRequest(*pair, max_new_tokens=6) for pair in pairs])
    for (prompt, adapter), answer in zip(pairs, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6:
            with torch.no_grad(), bank.rows([bank.names.get(adapter, 0)]):
                ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
        whole = ids[len(prompt):]
        assert answer.token_ids == tuple(token for token in whole if token != tokenizer.eos_token_id)


# ---- scoring


def test_a_score_is_the_mean_log_probability_of_the_whole_text(setting):
    options = [("yes", "no"), ("", "Tea first.", "Shoes off"), ("Who pays?",), ("é", "a" * 20, "no", "yes, at the door")]
    requests = [ScoreRequest(setting.prompts[i % len(TEXTS)], options[i % len(options)], ADAPTERS[i % len(ADAPTERS)])
                for i in range(9)]
    scores = setting.engine().score(requests)
    for request, got in zip(requests, scores, strict=True):
        for option, score in zip(request.options, got, strict=True):
            answer = [*setting.tokenizer(option)["input_ids"], setting.tokenizer.eos_token_id]
            with torch.no_grad(), setting.reference(request.adapter):
                logits = setting.peft(input_ids=torch.tensor([[*request.prompt_ids, *answer]])).logits[0]
            chosen = logits.log_softmax(-1)[len(request.prompt_ids) - 1:-1].gather(1, torch.tensor(answer)[:, None])
            assert score == pytest.approx(chosen.mean().item(), abs=2e-5)


@pytest.mark.parametrize(("tokens", "logits"), [(60, 2**26), (4096, 12), (1, 1)])
def test_options_that_are_more_than_a_pass_may_hold_take_several_and_score_the_same(setting, monkeypatch, tokens, logits):
    options = ("yes", "Tea first. Shoes off at the door.", "", "no", "a" * 30, "Who pays?", "é", "yes, at the door", "no tips")
    requests = [ScoreRequest(setting.prompts[i], options[i:], ADAPTERS[i]) for i in range(3)]
    wanted = setting.engine().score(requests)
    vocabulary = len(setting.tokenizer)
    monkeypatch.setattr(scoring, "SCORED_TOKENS", tokens)
    monkeypatch.setattr(scoring, "SCORED_LOGITS", logits * vocabulary)
    passes, compute = [], ModelRunner.options
    monkeypatch.setattr(ModelRunner, "options", lambda runner, rows: (passes.append(rows), compute(runner, rows))[1])
    told = []
    for got, one in zip(setting.engine().score(requests, lambda *progress: told.append(progress)), wanted, strict=True):
        assert got == pytest.approx(one, abs=2e-5)
    assert told[-1] == (3, 3, "score") and [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    for rows in passes:
        padded, kept = (len(rows) * max(len(getattr(row, field)) for row in rows) for field in ("ids", "kept"))
        assert (padded <= tokens and kept <= logits) or (len(rows) == 1 and len(rows[0].sizes) == 1)


def test_scoring_leaves_running_requests_alone(setting):
    engine = setting.engine()
    number = engine.submit(setting.request(1, "jordan"))
    engine.step()
    engine.score([ScoreRequest(setting.prompts[0], ("yes", "no"), "mexico")])
    generations, _ = drain(engine)
    assert generations[number].token_ids == setting.greedy(1, "jordan")


# ---- text and stopping


def test_streamed_deltas_put_together_are_the_text(setting):
    engine = setting.engine()
    numbers = [engine.submit(setting.request(prompt, adapter)) for prompt in range(3) for adapter in ADAPTERS]
    generations, deltas = drain(engine)
    for number in numbers:
        assert deltas[number] == generations[number].text
        assert generations[number].text == setting.tokenizer.decode(generations[number].token_ids)


def test_a_stop_string_ends_the_text_before_it_and_never_shows(llama):
    engine = llama.engine()
    free = engine.generate([llama.request(1, "", max_new_tokens=20)])[0]
    stop = next(free.text[i:i + 2] for i in range(4, len(free.text)) if free.text[i:i + 2].isascii())
    number = engine.submit(llama.request(1, "", max_new_tokens=20, stop=("not in there", stop)))
    generations, deltas = drain(engine)
    assert generations[number].finish_reason == "stop"
    assert generations[number].text == deltas[number] == free.text[:free.text.index(stop)]
    assert generations[number].token_ids == free.token_ids[:len(generations[number].token_ids)]
    assert len(generations[number].token_ids) < len(free.token_ids)


@pytest.mark.parametrize(("text", "stop", "wanted"), [
    ("one two three", ("two",), "one "),
    ("one two three", ("three four", "e t"), "on"),
    ("one two th", ("three",), "one two th"),
    ("aab", ("ab",), "a"),
    ("naïve 東京 🙂!", ("!",), "naïve 東京 🙂"),
    ("東京 🙂", (), "東京 🙂"),
])
def test_text_is_told_in_whole_characters_and_never_runs_into_a_stop_string(text, stop, wanted):
    tokenizer = tiny_tokenizer()
    stream = TextStream(tokenizer, stop)
    told = []
    for token in tokenizer(text)["input_ids"]:
        told.append(stream.push(token))
        if stream.stopped:
            break
    assert all("\ufffd" not in delta for delta in told)
    assert all(wanted.startswith("".join(told[:n])) for n in range(len(told) + 1))
    assert "".join(told) + stream.finish() == stream.text == wanted


def test_word_pieces_are_told_as_the_whole_text_is_spelled():
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    ids = tokenizer("guests' shoes [UNK] stay outside, aren't they? (unshakeable)", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    told = "".join(stream.push(token) for token in ids) + stream.finish()
    assert told == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_end_token_ends_the_answer_and_is_not_part_of_it(llama):
    engine = llama.engine()
    free = engine.generate([llama.request(1, "")])[0]
    llama.model.generation_config.eos_token_id = [1, free.token_ids[3]]
    try:
        answer = llama.engine().generate([llama.request(1, "")])[0]
    finally:
        llama.model.generation_config.eos_token_id = 1
    assert free.finish_reason == "length" and answer.finish_reason == "stop"
    assert answer.token_ids == free.token_ids[:free.token_ids.index(free.token_ids[3])]


# ---- sampling


def test_a_seeded_answer_is_the_same_alone_in_company_and_again(setting):
    mine = setting.request(1, "jordan", sampling=Sampling(temperature=1.2, top_p=0.9, seed=11))
    others = [setting.request(i % len(TEXTS), ADAPTERS[i % 4], sampling=Sampling(temperature=float(i % 2), seed=i))
              for i in range(7)]
    engine = setting.engine(max_batch_rows=4)
    alone = engine.generate([mine])[0]
    assert engine.generate([*others, mine])[-1] == alone
    assert engine.generate([mine, *others])[0] == alone
    other_seed = engine.generate([replace(mine, sampling=replace(mine.sampling, seed=12))])[0]
    assert other_seed.token_ids != alone.token_ids


# ---- rows


def test_a_cancelled_request_frees_its_row_for_the_next_one(setting):
    engine = setting.engine(max_batch_rows=1)
    first, second, third = (engine.submit(setting.request(prompt, "jordan")) for prompt in (0, 1, 2))
    engine.step()
    assert (engine.running, engine.waiting) == (1, 2)
    assert engine.cancel(first) and engine.cancel(second)
    assert not engine.cancel(first) and not engine.cancel(999)
    assert (engine.running, engine.waiting) == (0, 1)
    generations, _ = drain(engine)
    assert generations[first].finish_reason == generations[second].finish_reason == "cancelled"
    assert generations[second].token_ids == () and generations[first].token_ids == setting.greedy(0, "jordan")[:2]
    assert generations[third].token_ids == setting.greedy(2, "jordan")
    assert engine.running == engine.waiting == engine.pending == 0


@pytest.mark.parametrize("whole", [True, False])
def test_a_caller_that_leaves_while_its_request_is_submitted_frees_its_row(llama, whole):
    loop = EngineLoop(llama.engine())
    begun, go_on = threading.Event(), threading.Event()

    def prepare() -> None:
        begun.set()
        go_on.wait(60)

    async def leave() -> tuple[int, int]:
        request = llama.request(0, "", max_new_tokens=60)
        answer = loop.complete(request, prepare) if whole else anext(loop.generate(request, prepare))
        asking = asyncio.ensure_future(answer)
        assert await asyncio.to_thread(begun.wait, 60)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()
        return await loop.call(lambda: (loop.engine.waiting, loop.engine.running))

    try:
        assert asyncio.run(leave()) == (0, 0)
    finally:
        loop.stop()


def test_a_device_that_is_broken_for_good_leaves_no_caller_waiting(llama, monkeypatch):
    loop = EngineLoop(llama.engine())

    def broken(*_) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(Engine, "step", broken)
    monkeypatch.setattr(Engine, "cancel", broken)  # it writes to the device, too

    async def ask() -> list:
        asked = (loop.complete(llama.request(number, ""), lambda: None) for number in range(3))
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)

    try:
        assert [type(error) for error in asyncio.run(ask())] == [ServingError] * 3
        assert [type(error) for error in asyncio.run(ask())] == [ServingError] * 3
        until = time.monotonic() + 60
        while loop.alive:
            assert time.monotonic() < until
    finally:
        loop.stop()


def test_a_loop_whose_every_step_fails_is_not_alive_and_one_that_fails_now_and_then_is(llama, monkeypatch):
    loop, step = EngineLoop(llama.engine()), Engine.step
    broken = [True, True, False, True, True, False]

    def fail_or_step(engine: Engine) -> list:
        if (engine.waiting or engine.running) and broken and broken.pop(0):
            raise RuntimeError("CUDA error")
        return step(engine)

    monkeypatch.setattr(Engine, "step", fail_or_step)

    async def ask() -> bool:
        with contextlib.suppress(ServingError):
            await loop.complete(llama.request(0, "", max_new_tokens=1), lambda: None)
        await loop.in_turns(lambda: (turn for turn in ()))  # turns that work do not speak for steps
        return loop.alive

    try:
        assert [asyncio.run(ask()) for _ in range(6)] == [True] * 6
        broken += [True] * 3
        assert [asyncio.run(ask()) for _ in range(3)] == [True, True, False]
    finally:
        loop.stop()


def test_an_interrupted_generate_leaves_an_empty_engine(llama):
    engine = llama.engine(max_batch_rows=2)

    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([llama.request(prompt, "", max_new_tokens=prompt + 1) for prompt in range(5)], interrupt)
    assert engine.pending == 0
    assert engine.generate([llama.request(0, "")]) == llama.engine().generate([llama.request(0, "")])


def test_the_memory_for_keys_and_values_is_reserved_once_and_never_grows(llama):
    engine = llama.engine(max_batch_rows=3, context=40, prefix_cache_mb=0.125)
    assert engine.cache_bytes == 0
    engine.generate([llama.request(0, "")])
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    reserved = engine.cache_bytes
    assert 3 * 40 * token < reserved <= 3 * 40 * token + 2**17
    engine.generate([GenerationRequest((2, 3 + i, *range(4, 38)), max_new_tokens=2) for i in range(60)])
    assert engine.cache_bytes == reserved


def test_requests_start_in_the_order_they_came_and_within_the_steps_share_of_prompt_tokens(llama):
    engine = llama.engine(max_batch_rows=3, prefill_tokens=len(llama.prompts[1]))
    for _ in range(4):
        engine.submit(llama.request(1, ""))
    started = []
    while engine.pending:
        before = engine.waiting
        started += sorted({event.request_id for event in engine.step()} - set(started))
        assert before - engine.waiting <= 1
    assert started == [1, 2, 3, 4]


def test_a_request_that_was_asked_earlier_is_let_in_before_those_that_came_meanwhile(llama):
    engine = llama.engine(max_batch_rows=1)
    first = engine.submit(llama.request(0, "", asked_at=5.0))
    engine.step()
    later, again, last = (engine.submit(llama.request(1, "", asked_at=second)) for second in (7.0, 6.0, 7.0))
    ended = [event.request_id for _ in range(200) if engine.pending for event in engine.step() if event.finish_reason]
    assert ended == [first, again, later, last]


def test_progress_counts_to_the_end(llama):
    seen = []
    engine = llama.engine(max_batch_rows=2)
    engine.generate([llama.request(prompt, "") for prompt in range(5)], lambda *told: seen.append(told))
    assert seen[-1] == (5, 5, "generate") and [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    engine.score([ScoreRequest(prompt, ("a",)) for prompt in llama.prompts], lambda *told: seen.append(told))
    assert seen[-1] == (6, 6, "score")


@given(sizes=st.lists(st.integers(1, 500), max_size=60), rows=st.integers(1, 40), tokens=st.integers(1, 4000))
def test_batches_by_length_hold_everything_once_within_their_bounds(sizes, rows, tokens):
    batches = by_length(range(len(sizes)), lambda i: sizes[i], rows, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        padded = len(batch) * max(sizes[i] for i in batch)
        assert len(batch) <= rows
        assert len(batch) == 1 or padded <= tokens
        assert padded - sum(sizes[i] for i in batch) <= PADDING_TOKENS + PADDING_SHARE * padded


# ---- refusals


def test_a_request_longer_than_the_context_is_refused_with_both_lengths(llama):
    engine = llama.engine()
    prompt = (5,) * (CONTEXT - 3)
    fits = GenerationRequest(prompt, max_new_tokens=3)
    with pytest.raises(RequestError, match=f"{CONTEXT + 1} tokens .*context holds {CONTEXT}"):
        engine.generate([fits, replace(fits, max_new_tokens=4)])
    assert engine.pending == 0
    assert len(engine.generate([fits])[0].token_ids) == 3
    with pytest.raises(RequestError, match=f"context holds {CONTEXT}"):
        engine.score([ScoreRequest(prompt, ("a", "Is tipping rude? Is tipping rude?"))])


@pytest.mark.parametrize("make", [
    lambda: GenerationRequest(()), lambda: ScoreRequest((), ("a",)), lambda: ScoreRequest((3,), ()),
    lambda: GenerationRequest((3,), max_new_tokens=0), lambda: GenerationRequest((3,), stop=("",)),
])
def test_a_request_that_asks_for_nothing_is_refused(make):
    with pytest.raises(RequestError):
        make()


def test_an_adapter_that_is_not_loaded_is_named(llama):
    with pytest.raises(AdapterError, match="'atlantis'"):
        llama.engine().submit(GenerationRequest((3,), "atlantis"))
    with pytest.raises(AdapterError, match="'atlantis'"):
        llama.engine().score([ScoreRequest((3,), ("a",), "atlantis")])


def test_an_adapter_removed_while_in_use_is_an_error_and_never_anothers_weights(llama):
    engine, bank = llama.engine(), llama.bank
    bank.add("old", AdapterShape(2, 2.0), seed=0)
    number = engine.submit(llama.request(0, "old"))
    engine.step()
    assert engine.adapters_in_use == {"old"}
    bank.remove("old")
    bank.add("new", AdapterShape(2, 2.0), seed=1)  # takes the same slot
    try:
        with pytest.raises(AdapterError, match="'old'"):
            engine.step()
        engine.cancel(number)
        drain(engine)
        assert engine.adapters_in_use == set()
        assert engine.generate([llama.request(0, "new")])[0].token_ids
    finally:
        bank.remove("new")


def test_an_adapter_with_broken_numbers_fails_alone_and_leaves_no_trace_in_its_row(llama):
    engine, bank = llama.engine(max_batch_rows=2), llama.bank
    bank.add("broken", AdapterShape(2, 2.0), seed=0)
    weights = {key: torch.full_like(value, float("nan")) for key, value in bank.tensors("broken").items()}
    bank.remove("broken")
    bank.load("broken", AdapterShape(2, 2.0), weights)
    try:
        wanted = llama.engine().generate([llama.request(prompt, "") for prompt in (1, 2, 3)])
        numbers = [engine.submit(llama.request(prompt, adapter)) for prompt, adapter in
                   ((1, ""), (1, "broken"), (2, ""), (3, ""))]
        generations, _ = drain(engine)
        assert generations[numbers[1]].finish_reason == "error" and generations[numbers[1]].token_ids == ()
        assert [generations[number] for number in (numbers[0], *numbers[2:])] == wanted
        for ask in (lambda: engine.generate([llama.request(1, "broken")]),
                    lambda: engine.score([ScoreRequest(llama.prompts[0], ("a",), "broken")])):
            with pytest.raises(AdapterError, match="'broken' gives scores that are not finite"):
                ask()
        assert engine.pending == 0
    finally:
        bank.remove("broken")


def test_generate_is_refused_while_streamed_requests_run(llama):
    engine = llama.engine()
    engine.submit(llama.request(0, ""))
    with pytest.raises(RequestError, match="have not ended"):
        engine.generate([llama.request(0, "")])
    drain(engine)


def test_a_sliding_window_bounds_the_context_within_which_answers_are_exact():
    tokenizer = tiny_tokenizer()
    model = tiny_model("mistral", len(tokenizer), sliding_window=24)
    engine = Engine(model, tokenizer, AdapterBank(copy.deepcopy(model), slots=1, max_rank=1))
    assert engine.context == 24
    prompt = tuple(tokenizer(TEXTS[0])["input_ids"])
    answer = engine.generate([GenerationRequest(prompt, max_new_tokens=24 - len(prompt))])[0]
    ids = torch.tensor([prompt])
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24 - len(prompt))
    assert answer.token_ids == tuple(token for token in wanted[0, len(prompt):].tolist() if token != 1)


def test_a_model_without_keys_and_values_is_refused():
    tokenizer = tiny_tokenizer()
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        Engine(model, tokenizer, AdapterBank(model, slots=1, max_rank=1, targets=["in_proj"]))


@pytest.mark.parametrize("sizes", [{"max_batch_rows": 0}, {"context": 0}, {"prefill_tokens": 0}, {"context": CONTEXT + 1},
                                   {"prefix_cache_mb": -1}])
def test_sizes_that_cannot_be_are_refused(llama, sizes):
    with pytest.raises(RequestError):
        llama.engine(**sizes)
