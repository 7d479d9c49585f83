"""Many adapters answered in one batch, side by side with the ways people serve them today.

    python -m benchmarks.serving --json benchmarks/results/serving.json

One random model of 30M parameters, ten adapters of rank 8 on all linear layers, 32 requests of 64 prompt
tokens and 32 new ones each. `base`: our engine on the bare base; `bank`: on mixed adapters;
`peft_adapter_names`: PEFT's mixed batch; `group_and_switch`: PEFT, one batch per adapter; `generate_batch`:
the continuous batching of transformers on the bare base. The ways take turns and the median of all turns counts.
Decoding is what 33 new tokens take longer than one. With `--project` the endpoint of a finished
run is measured over HTTP too, against the same engine without it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import torch
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.circumstances import circumstances
from culturemanager import artifacts
from culturemanager import project as projects
from culturemanager.adapters import peft_format
from culturemanager.adapters.bank import AdapterBank
from culturemanager.adapters.shape import AdapterShape
from culturemanager.chat import chat_ids
from culturemanager.inference.engine import Engine, GenerationRequest
from culturemanager.storage import write_json

REQUESTS, PROMPT_TOKENS, NEW_TOKENS = 32, 64, 32
ADAPTERS, MANY_ADAPTERS, FEW_ADAPTERS = 10, 100, 5
SHAPE = AdapterShape(rank=8, alpha=16)
VOCABULARY = 32_000
CLIENTS, HTTP_REQUESTS, PORT = 32, 256, 8437

Way = Callable[[int], None]
"""Answers every request with so many new tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--turns", type=int, default=5, help="times each way is measured (default: %(default)s)")
    parser.add_argument("--project", help="project file of a finished run, to measure its endpoint")
    arguments = parser.parse_args()
    decode = decoding(arguments.turns)
    figures: dict[str, Any] = {"decode": {name: round(REQUESTS * NEW_TOKENS / seconds, 1) for name, seconds in decode.items()}}
    many = decoding_with_many(arguments.turns)
    batching = arrivals()
    figures["ratios"] = {
        "bank_to_base": ratio(decode["base"], decode["bank"]),
        "bank_to_peft_adapter_names": ratio(decode["peft_adapter_names"], decode["bank"]),
        "bank_to_group_and_switch": ratio(decode["group_and_switch"], decode["bank"]),
        "hundred_adapters_to_five": ratio(many[FEW_ADAPTERS], many[MANY_ADAPTERS]),
        "continuous_to_static": ratio(batching["static"], batching["continuous"]),
    }
    if arguments.project:
        figures["http"], figures["router_ms_p50"] = over_http(arguments.project), router_milliseconds(arguments.project)
    figures["measured"] = circumstances(torch=torch.__version__)
    if arguments.json:
        write_json(arguments.json, figures)
    Console().print_json(data=figures)


def ratio(slower: float, faster: float) -> float:
    """How many times the throughput of `slower` seconds `faster` seconds mean."""
    return round(slower / faster, 3)


def build_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=10, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.1)).eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<end>": 1} | {f"w{number}": number for number in range(2, VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>",
                                   eos_token="<end>")


def build_bank(model: LlamaForCausalLM, adapters: int) -> AdapterBank:
    """A bank of random adapters a0, a1, ..."""
    bank = AdapterBank(model, slots=adapters, max_rank=SHAPE.rank)
    for number in range(adapters):
        bank.add(f"a{number}", SHAPE, seed=number)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter[1:] += 0.01 * torch.randn(parameter[1:].shape, generator=draw)
    return bank


def prompts() -> torch.Tensor:
    """[requests, tokens], int64."""
    return torch.randint(2, VOCABULARY, (REQUESTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))


def requests(adapters: int, new_tokens: int) -> list[GenerationRequest]:
    """Requests over `adapters` adapters in turn; 0 means the bare base."""
    return [GenerationRequest(tuple(ids), f"a{number % adapters}" if adapters else "", new_tokens)
            for number, ids in enumerate(prompts().tolist())]


def decoding(turns: int) -> dict[str, float]:
    """Way to the seconds that 32 requests take for 32 tokens each, prompts not counted."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = build_model(), build_tokenizer()
        engine = Engine(model, tokenizer, bank := build_bank(model, ADAPTERS), max_batch_rows=REQUESTS, context=128)
        peft = peft_model(bank, Path(folder))
        plain = build_model()
        ways: dict[str, Way] = {
            "base": lambda new: answer(engine, requests(0, new)),
            "bank": lambda new: answer(engine, requests(ADAPTERS, new)),
            "peft_adapter_names": lambda new: mixed_batch(peft, new),
            "group_and_switch": lambda new: batch_per_adapter(peft, new),
            "generate_batch": lambda new: continuous(plain, new),
        }
        return seconds_to_decode(ways, turns)


def decoding_with_many(turns: int) -> dict[int, float]:
    """Number of resident adapters to seconds, each answering requests for five of them."""
    engines = {}
    for resident in (FEW_ADAPTERS, MANY_ADAPTERS):
        model = build_model()
        engines[resident] = Engine(model, build_tokenizer(), build_bank(model, resident), max_batch_rows=REQUESTS, context=128)
    ways = {
        resident: lambda new, engine=engine: answer(engine, requests(FEW_ADAPTERS, new)) for resident, engine in engines.items()
    }
    return seconds_to_decode(ways, turns)


def seconds_to_decode(ways: dict[Any, Way], turns: int) -> dict[Any, float]:
    taken: dict[Any, list[float]] = defaultdict(list)
    for turn in range(turns + 1):
        for name, way in ways.items():
            seconds = timed(way, NEW_TOKENS + 1) - timed(way, 1)
            if turn:  # the first prepares kernels and caches
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def timed(way: Way, new_tokens: int) -> float:
    started = time.perf_counter()
    way(new_tokens)
    return time.perf_counter() - started


def answer(engine: Engine, asked: Sequence[GenerationRequest]) -> None:
    for request, generation in zip(asked, engine.generate(asked), strict=True):
        if len(generation.token_ids) != request.max_new_tokens:
            raise SystemExit("a request ended early, so the ways did not do the same work; draw another model")


def peft_model(bank: AdapterBank, folder: Path) -> Any:
    from peft import PeftModel

    for name in bank.names:
        peft_format.save(folder / name, bank.tensors(name), SHAPE, "random", bank.targets)
    names = list(bank.names)
    wrapped = PeftModel.from_pretrained(build_model(), folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        wrapped.load_adapter(folder / name, adapter_name=name)
    return wrapped.eval()


def mixed_batch(peft: Any, new_tokens: int) -> None:
    ids = prompts()
    peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=[f"a{i % ADAPTERS}" for i in range(REQUESTS)],
                  do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0)


def batch_per_adapter(peft: Any, new_tokens: int) -> None:
    ids = prompts()
    for adapter in range(ADAPTERS):
        peft.set_adapter(f"a{adapter}")
        own = ids[adapter::ADAPTERS]
        peft.generate(input_ids=own, attention_mask=torch.ones_like(own), do_sample=False, max_new_tokens=new_tokens,
                      min_new_tokens=new_tokens, pad_token_id=0)


def continuous(model: LlamaForCausalLM, new_tokens: int) -> None:
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0)
    model.generate_batch(prompts().tolist(), generation_config=settings)


def arrivals() -> dict[str, float]:
    """Seconds for 64 requests of mixed lengths that arrive at random: let in at every step, or batch after batch."""
    draw = random.Random(0)
    model = build_model()
    engine = Engine(model, build_tokenizer(), build_bank(model, ADAPTERS), max_batch_rows=16, context=256)
    asked = [GenerationRequest(tuple(draw.randrange(2, VOCABULARY) for _ in range(draw.choice((16, 32, 64, 96)))),
                               f"a{number % ADAPTERS}", draw.choice((4, 8, 16, 64))) for number in range(64)]
    gaps = [draw.expovariate(1.0) for _ in asked]
    answer(engine, asked[:16])
    started = time.perf_counter()
    answer(engine, asked)
    # three quarters of what the engine can do: waiting for arrivals must not hide how well it batches
    scale = (time.perf_counter() - started) * 0.75 / sum(gaps)
    times = [sum(gaps[:number + 1]) * scale for number in range(len(gaps))]
    return {"continuous": drive(engine, asked, times, together=False), "static": drive(engine, asked, times, together=True)}


def drive(engine: Engine, asked: Sequence[GenerationRequest], times: Sequence[float], together: bool) -> float:
    started, next_one = time.perf_counter(), 0
    while next_one < len(asked) or engine.pending:
        if not (together and engine.pending):
            let_in = 0
            while next_one < len(asked) and times[next_one] <= time.perf_counter() - started and not (together and let_in == 16):
                engine.submit(asked[next_one])
                next_one, let_in = next_one + 1, let_in + 1
        if engine.pending:
            engine.step()
        else:
            time.sleep(0.001)
    return time.perf_counter() - started


# ---- over HTTP


def over_http(path: str) -> dict[str, float]:
    """The endpoint of a finished run at 32 clients, beside its engine alone on the same requests."""
    project = projects.load(path)
    cultures = [culture.id for culture in artifacts.cultures(project)]
    aliases = artifacts.registry(project).aliases()
    texts = [item.inputs.get("question") or item.inputs["behaviour"] for item in artifacts.items(project).items]
    asked = [(texts[i % len(texts)], cultures[i % len(cultures)]) for i in range(HTTP_REQUESTS)]
    engine, tokenizer, _ = artifacts.open_serving(project, [aliases[culture] for culture in cultures])
    alone = [GenerationRequest(tuple(chat_ids(tokenizer, text)), aliases[culture], NEW_TOKENS) for text, culture in asked]
    engine.generate(alone[:REQUESTS])
    engine_rate = tokens_per_second(engine, alone)
    single = statistics.median(timed(lambda _, one=one: engine.generate([one]), 0) for one in alone[:20])
    every_core = torch.get_num_threads()
    torch.set_num_threads(max(1, every_core - 1))  # as many as a replica takes
    replica_rate = tokens_per_second(engine, alone)
    torch.set_num_threads(every_core)
    with endpoint(path) as client, ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda pair: chat(client, *pair), asked[:REQUESTS]))
        one_by_one = statistics.median(chat(client, *pair)[0] for pair in asked[:20])
        started = time.perf_counter()
        answers = list(pool.map(lambda pair: chat(client, *pair), asked))
        rate = sum(tokens for _, tokens in answers) / (time.perf_counter() - started)
        first = statistics.median(time_to_first_token(client, *pair) for pair in asked[:20])
    seconds = sorted(seconds for seconds, _ in answers)
    return {"p50_ms": round(1000 * seconds[len(seconds) // 2], 1), "p95_ms": round(1000 * seconds[int(len(seconds) * 0.95)], 1),
            "p99_ms": round(1000 * seconds[int(len(seconds) * 0.99)], 1), "time_to_first_token_ms": round(1000 * first, 1),
            "throughput_ratio": round(rate / engine_rate, 3),
            "throughput_ratio_same_threads": round(rate / replica_rate, 3),
            "overhead_ms_p50": round(1000 * (one_by_one - single), 1)}


def tokens_per_second(engine: Engine, asked: Sequence[GenerationRequest]) -> float:
    started = time.perf_counter()
    tokens = sum(len(generation.token_ids) for generation in engine.generate(asked))
    return tokens / (time.perf_counter() - started)


@contextlib.contextmanager
def endpoint(path: str) -> Iterator[httpx2.Client]:
    """`culturemanager serve` in a process of its own, until the block is left."""
    server = subprocess.Popen([sys.executable, "-m", "culturemanager", "serve", path, "--set", f"serving.port={PORT}"])
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120) as client:
            until = time.monotonic() + 180
            while not healthy(client):
                if time.monotonic() > until or server.poll() is not None:
                    raise SystemExit("the endpoint did not start")
                time.sleep(1)
            yield client
    finally:
        server.terminate()
        server.wait()


def healthy(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.HTTPError:
        return False


def chat(client: httpx2.Client, text: str, culture: str) -> tuple[float, int]:
    """Seconds of one request, and the tokens it brought."""
    started = time.perf_counter()
    response = client.post("/v1/chat/completions", json={"model": culture, "max_tokens": NEW_TOKENS, "temperature": 0,
                                                         "messages": [{"role": "user", "content": text}]})
    response.raise_for_status()
    return time.perf_counter() - started, response.json()["usage"]["completion_tokens"]


def time_to_first_token(client: httpx2.Client, text: str, culture: str) -> float:
    started = time.perf_counter()
    body = {"model": culture, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True,
            "messages": [{"role": "user", "content": text}]}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if '"content"' in line and '"content":""' not in line.replace(" ", ""):
                return time.perf_counter() - started
    return time.perf_counter() - started


def router_milliseconds(path: str) -> float:
    """Median time to route one text."""
    project = projects.load(path)
    router = artifacts.open_router(project, artifacts.open_embedder(project))
    texts = [item.inputs.get("question") or item.inputs["behaviour"] for item in artifacts.items(project).items]
    router.route_many(texts[:3])
    return round(1000 * statistics.median(timed(lambda _, one=text: router.route_many([one]), 0) for text in texts[:200]), 2)


if __name__ == "__main__":
    main()
