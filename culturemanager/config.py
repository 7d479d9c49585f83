"""The project file: one model a stage, each field explained under itself.

`load` reads YAML, applies `--set a.b=c` overrides, and refuses unknown fields. Relative paths in
a project file are relative to that file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    PrivateAttr,
    Tag,
    model_validator,
)

from culturemanager.errors import ConfigError
from culturemanager.yamlfile import read_yaml, validate_model, validate_overridden


class Section(BaseModel):
    """Base of every part of the project file: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _kind_or(default: str) -> Callable[[Any], Any]:
    """Reads a section without `kind` as the default kind, as a section that is left out is read."""
    return lambda value: {"kind": default, **value} if isinstance(value, dict) else value


def _yes_or_no(value: Any) -> Any:
    """YAML reads an unquoted yes or no as a truth value."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _server_address(value: str) -> str:
    """An address without a user name or password: those would end up in logs."""
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if not host or url.scheme not in ("http", "https") or "@" in url.netloc or url.query or url.fragment:
        raise ValueError("expected `http://host:8000/v1` or https, without a user name, a query or a fragment")
    return value


class CultureEntry(Section):
    """A culture of the user's own, or the catalogue's with other words."""

    id: str
    """Lower-case name used in adapter ids: `austria`."""
    name: str
    """As a prompt names it: `Austria`."""
    countries: tuple[str, ...] = ()
    """Country names as they appear in text."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes, most spoken first."""
    demonyms: tuple[str, ...] = ()
    """`Austrian`, `Austrians`."""
    cues: tuple[str, ...] = ()
    """Cities, festivals and other words that point to the culture."""


CultureName = Annotated[Annotated[str, Tag("_id")] | Annotated[CultureEntry, Tag("_entry")],
                        Discriminator(lambda value: "_entry" if isinstance(value, dict | CultureEntry) else "_id")]


class FolderSearch(Section):
    """Pages from a directory of .html, .md and .txt files."""

    kind: Literal["folder"] = "folder"
    path: str = "embedded"
    """The directory; `embedded` is the small web shipped with the package."""


class SearxngSearch(Section):
    """Pages from a SearXNG instance's JSON API."""

    kind: Literal["searxng"]
    url: str
    """Root of the instance, `https://search.example.org`; it must allow `format=json`."""
    timeout_s: float = Field(default=15, gt=0)
    """Seconds to wait for one answer."""


class WikipediaSearch(Section):
    """Pages from Wikipedia, through the MediaWiki API, in the culture's languages."""

    kind: Literal["wikipedia"]
    url: str = "https://{language}.wikipedia.org/w/api.php"
    """API address; `{language}` is replaced by the query's language."""
    timeout_s: float = Field(default=15, gt=0)
    """Seconds to wait for one answer."""


SearchConfig = Annotated[Annotated[FolderSearch | SearxngSearch | WikipediaSearch, Field(discriminator="kind")],
                         BeforeValidator(_kind_or("folder"))]


class QueriesConfig(Section):
    """Which questions are put to the search provider."""

    per_task: int = Field(default=12, ge=1)
    """Task-specific queries for each culture and task."""
    agnostic: int = Field(default=12, ge=0)
    """Task-agnostic queries for each culture."""
    topics: tuple[str, ...] = ("tipping", "table manners", "gift giving", "greetings", "visiting a home", "business meetings",
                               "body language", "conversation topics", "public behaviour", "drinking and toasts",
                               "public transport", "dress and flowers")
    """What the templates ask about."""
    llm: bool = False
    """Also ask the language model for queries; needs `generator.kind: openai`."""


class FetchConfig(Section):
    """Limits on what is fetched from the web."""

    timeout_s: float = Field(default=20, gt=0)
    """Seconds for one page, all redirects included."""
    max_bytes: int = Field(default=3_000_000, gt=0)
    """Largest body, counted compressed and decompressed."""
    max_redirects: int = Field(default=4, ge=0)
    """Redirects followed for one page."""
    allow_private_addresses: bool = False
    """Permit loopback, private and link-local addresses, for an intranet."""
    user_agent: str = "CultureManager/0.1 (+https://github.com/culturemanager/culturemanager)"
    """Sent with every request and matched against robots.txt."""


class PagesConfig(Section):
    """Search and fetch."""

    search: SearchConfig = FolderSearch()
    """Where pages come from."""
    hits_per_query: int = Field(default=8, ge=1)
    """Search results kept for each query."""
    per_culture: int = Field(default=60, ge=1)
    """Pages kept for each culture, those found by most queries first."""
    fetch: FetchConfig = FetchConfig()
    """Limits on what is fetched."""
    actors: int = Field(default=1, ge=1)
    """Ray Data actors that search and fetch."""


class PassagesConfig(Section):
    """Main text, cut into passages."""

    max_words: int = Field(default=90, ge=20)
    """Longest passage; sentences are not cut."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Estimated Jaccard similarity from which two passages of a culture count as one."""


class EmbeddingConfig(Section):
    """The model that turns passages into vectors."""

    model: str = "embedded"
    """`embedded` (all-MiniLM-L6-v2 from the `embedded` extra) or a sentence-transformers model."""
    batch_size: int = Field(default=64, ge=1)
    """Passages in one forward pass."""
    actors: int = Field(default=1, ge=1)
    """Ray Data actors that embed."""


class IndexConfig(Section):
    """The FAISS index over the passages."""

    kind: Literal["auto", "flat", "hnsw", "ivfpq"] = "auto"
    """`auto` takes flat up to 50,000 vectors a shard, HNSW up to 1,000,000, IVF-PQ beyond."""
    shard_size: int = Field(default=1_000_000, ge=1)
    """Vectors in one shard."""


class ExtractiveGenerator(Section):
    """Deterministic rules that turn norm sentences into examples; needs no model."""

    kind: Literal["extractive"] = "extractive"


class OpenAIGenerator(Section):
    """Any OpenAI-compatible endpoint: vLLM, Ollama, a vendor."""

    kind: Literal["openai"]
    base_url: str
    """`https://host/v1`."""
    model: str
    """Model name as the endpoint knows it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself never stands in a file."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds for one call."""
    max_attempts: int = Field(default=5, ge=1)
    """Tries on 429, 5xx and timeouts, with exponential backoff."""
    concurrency: int = Field(default=8, ge=1)
    """Calls in flight."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature."""
    max_tokens: int = Field(default=1024, ge=16)
    """Longest completion."""


GeneratorConfig = Annotated[Annotated[ExtractiveGenerator | OpenAIGenerator, Field(discriminator="kind")],
                            BeforeValidator(_kind_or("extractive"))]


class ExamplesConfig(Section):
    """Training rows from passages."""

    generator: GeneratorConfig = ExtractiveGenerator()
    """Who writes the rows."""
    per_culture_and_task: int = Field(default=400, ge=1)
    """At most so many rows."""
    rows_of_task: dict[str, PositiveInt] = {}
    """Tasks with another limit, by id: `{acceptability: 100}`."""
    minimum: int = Field(default=20, ge=1)
    """A culture with fewer rows in all is reported as failed."""
    max_label_share: float = Field(default=0.7, gt=0.5, le=1)
    """Rows of a classification task's most frequent label beyond this share are dropped."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Rows held back for early stopping and for calibrating the router."""


class BaseModelConfig(Section):
    """The frozen language model below every adapter."""

    path: str = "embedded"
    """`embedded`, or a Hugging Face causal LM: a folder or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen weights."""


class TrainingConfig(Section):
    """One LoRA adapter per culture, all in one pack."""

    rank: int = Field(default=8, ge=1)
    """LoRA rank."""
    alpha: float = Field(default=16, gt=0)
    """LoRA scale numerator; the delta is `alpha / rank * B A x`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    last_layers: int = Field(default=0, ge=0)
    """Adapters on so many of the last decoder layers; those below need no gradient. 0: on all."""
    epochs: int = Field(default=4, ge=1)
    """Passes over an adapter's rows."""
    batch_size: int = Field(default=8, ge=1)
    """Rows per adapter and step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate; linear warm-up, then linear decay to zero."""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm of one adapter."""
    early_stop_patience: int = Field(default=0, ge=0)
    """Epochs without a better validation loss before an adapter stops; 0 never stops early."""
    max_length: int = Field(default=256, ge=16)
    """Longest row in tokens; longer ones are dropped and counted."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; adapters and optimizer stay float32. `auto` is bfloat16 where the hardware has it."""
    accumulate: int = Field(default=1, ge=1)
    """Passes that the rows of one step are spread over: less memory, the same step."""
    activation_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping them: less memory, about half more arithmetic."""
    pack_size: int = Field(default=0, ge=0)
    """Adapters that train at once; the others wait for a slot. 0: as many as memory holds."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    workers: int = Field(default=1, ge=1)
    """Ray Train workers; each is one GPU where there are GPUs."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs reserved for a worker."""
    threads_per_worker: int = Field(default=0, ge=0)
    """torch threads in a worker; 0 takes every core of the machine."""
    use_gpu: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_yes_or_no)] = "auto"
    """`auto` uses GPUs if the cluster has them."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage. Workers share among them the adapters' optimizer state (1), their gradients too (2), or the
    frozen base (3), whose layers are gathered while they compute; adapters are then whole on every worker."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu` keeps the adapters' optimizer state in main memory and steps there; with `zero_stage` 1 or 2."""
    offload_base: Literal["none", "cpu"] = "none"
    """`cpu` keeps a worker's part of the frozen base in main memory (DeepSpeed's `offload_param`); with `zero_stage` 3."""
    max_failures: int = Field(default=2, ge=0)
    """Worker failures survived by resuming from the newest whole checkpoint."""

    @model_validator(mode="after")
    def _offload_what_is_shared(self) -> TrainingConfig:
        if self.offload_optimizer != "none" and self.zero_stage not in (1, 2):
            raise ValueError(f"`offload_optimizer: {self.offload_optimizer}` needs `zero_stage` 1 or 2, not {self.zero_stage}")
        if self.offload_base != "none" and self.zero_stage != 3:
            raise ValueError(f"`offload_base: {self.offload_base}` needs `zero_stage: 3`, not {self.zero_stage}")
        return self


class RouterConfig(Section):
    """Which culture a request is about."""

    target_precision: float = Field(default=0.97, gt=0, lt=1)
    """The threshold is the lowest confidence that reaches this precision on held-out rows."""


class EvaluationConfig(Section):
    """What is compared on which items."""

    items: str = "embedded"
    """`embedded`, or a JSON Lines file of evaluation items."""
    systems: tuple[str, ...] = ("base", "base_culture_prompt", "few_shot", "retrieval", "joint_culture_prompt",
                                "culturemanager", "oracle")
    """Systems compared; see `docs/evaluation.md`."""
    retrieved_passages: int = Field(default=2, ge=1)
    """Passages put into a prompt by the systems that retrieve."""
    shots: int = Field(default=3, ge=1)
    """Worked examples in a few-shot prompt."""
    interference_items: int = Field(default=30, ge=0)
    """Closed items of each culture that every culture's adapter answers, for the interference table; 0 leaves it out."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples behind every interval."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Longest free-text answer."""


class UpstreamConfig(Section):
    """A multi-LoRA server that answers in place of our own engine: vLLM, LoRAX, SGLang."""

    base_url: Annotated[str, AfterValidator(_server_address)]
    """`http://host:8000/v1`."""
    base_model: str | None = None
    """What the server calls the bare base; without it, the project's `base.path`."""
    model_format: str = Field(default="{adapter}", pattern=r"\{adapter\}")
    """What the server calls an adapter version: `{adapter}` is `turkey-v0001`, `{base}` the bare base's name."""
    api_key_env: str | None = None
    """Environment variable with the server's API key, set where the replicas run; without it, none is sent."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds until the server sends the first token, and then from one to the next."""
    connect_timeout_s: float = Field(default=5, gt=0)
    """Seconds until a connection stands."""
    retries: int = Field(default=2, ge=0)
    """Further tries where the server is not reached or answers 502 or 503; none once the first token has come."""


class ServingConfig(Section):
    """The endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 makes it reachable from elsewhere and needs API keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """HTTP port."""
    replicas: int = Field(default=1, ge=1)
    """Replicas of the model at the start."""
    max_replicas: int = Field(default=1, ge=1)
    """Upper bound for autoscaling."""
    max_batch_rows: int = Field(default=32, ge=1)
    """Requests a replica decodes together."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests waiting at a deployment before new ones get 429."""
    api_keys_env: str = "CULTUREMANAGER_API_KEYS"
    """Environment variable with comma-separated API keys; unset means no key is asked for (local use only)."""
    keys_file: str | None = None
    """YAML file with further keys as SHA-256 sums, their cultures and rates; `culturemanager keys new` writes it."""
    max_body_kb: int = Field(default=2048, ge=1)
    """Largest request body, in KiB; a larger one gets 413."""
    log_texts: bool = False
    """Whether the request log holds what was asked and answered, too."""
    prefix_cache_mb: int = Field(default=256, ge=0)
    """MiB a replica keeps of earlier prompts' beginnings, which later prompts with the same adapter need not compute again."""
    spare_adapters: int = Field(default=4, ge=1)
    """Adapter versions a replica holds beside the serving one of every culture, for pins and canaries."""
    cpus_per_replica: float = Field(default=0.5, ge=0)
    """CPUs reserved for a replica."""
    upstream: UpstreamConfig | None = None
    """A server that generates in place of our own engine. Replicas then only forward to it, with no model and 0.1 CPUs."""


class Project(Section):
    """A whole project file."""

    name: str
    """Name shown in reports."""
    workspace: str
    """Where outputs go: a folder or an fsspec URL."""
    seed: int = 0
    """Seed of everything random."""
    cultures: tuple[CultureName, ...] = Field(min_length=1)
    """Catalogue ids, or cultures of your own."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Task files."""
    queries: QueriesConfig = QueriesConfig()
    """Search queries."""
    pages: PagesConfig = PagesConfig()
    """Search and fetch."""
    passages: PassagesConfig = PassagesConfig()
    """Main text and passages."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """Passage vectors."""
    index: IndexConfig = IndexConfig()
    """FAISS."""
    examples: ExamplesConfig = ExamplesConfig()
    """Training rows."""
    base: BaseModelConfig = BaseModelConfig()
    """The frozen model."""
    training: TrainingConfig = TrainingConfig()
    """Adapters."""
    router: RouterConfig = RouterConfig()
    """Routing."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Comparison."""
    serving: ServingConfig = ServingConfig()
    """Endpoint."""

    _folder: Path = PrivateAttr(default=Path("."))
    _file: str = PrivateAttr(default="")
    _overridden: tuple[str, ...] = PrivateAttr(default=())

    def where(self, field: str) -> str:
        """Where a field's value comes from, for messages: `project.yaml: base.path`, or `--set base.path`."""
        if any(f"{field}.".startswith(f"{name}.") for name in self._overridden):
            return f"--set {field}"
        return f"{self._file}: {field}" if self._file else field

    def resolve(self, path: str) -> Path:
        """A path of this file, relative to the folder the file lies in."""
        return (self._folder / path).resolve()

    @property
    def workspace_url(self) -> str:
        """The workspace as an absolute path or a URL."""
        return self.workspace if "://" in self.workspace else str(self.resolve(self.workspace))

    @property
    def base_path(self) -> str:
        """The base model as `base_model.load_base_model` takes it: `embedded`, an absolute folder, or a hub name."""
        local = self.resolve(self.base.path)
        return str(local) if self.base.path != "embedded" and local.exists() else self.base.path


def load(path: str | Path, overrides: Sequence[str] = ()) -> Project:
    """Read a project file and apply overrides of the form `training.epochs=2`.

    Raises:
        ConfigError: the file or an override is wrong; the message names file, place and expectation.
    """
    path = Path(path)
    data = read_yaml(path, "Check the path, or start with `culturemanager init`.")
    if not overrides or not isinstance(data, dict):
        project, names = validate_model(data, Project, str(path)), ()
    else:
        overridden = copy.deepcopy(data)
        texts = dict(_override(overridden, override) for override in overrides)
        project, names = validate_overridden(data, overridden, Project, str(path), texts), tuple(texts)
    project._folder, project._file, project._overridden = path.resolve().parent, str(path), names
    return project


def _override(data: dict[Any, Any], override: str) -> tuple[str, str]:
    """Put an override into the data, and return its field and its text."""
    name, separator, text = override.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set {override!r}: expected `field.field=value`, such as `training.epochs=2`.")
    *parents, last = name.strip().split(".")
    node = data
    for parent in parents:
        if not isinstance(node, dict):
            break
        node = node.setdefault(parent, {})
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(parents)} is not a group of fields.")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value.") from error
    return name.strip(), text
