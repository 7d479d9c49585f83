"""The base model, training, routing, evaluation and serving."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from culturemanager.sections.base import Section, server_address, yes_or_no


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
    packs: int = Field(default=0, ge=0)
    """Packs that train side by side, each on an equal part of the workers. 0: as many as are estimated to be done first."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs reserved for a worker."""
    threads_per_worker: int = Field(default=0, ge=0)
    """torch threads in a worker; 0 takes every core of the machine."""
    use_gpu: Annotated[Literal["auto", "yes", "no"], BeforeValidator(yes_or_no)] = "auto"
    """`auto` uses GPUs if the cluster has one for every worker; `no` leaves them alone."""
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

    @model_validator(mode="after")
    def _equal_parts_of_the_workers(self) -> TrainingConfig:
        if self.packs and self.workers % self.packs:
            raise ValueError(f"`packs: {self.packs}` does not divide `workers: {self.workers}` into equal parts")
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

    base_url: Annotated[str, AfterValidator(server_address)]
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

    system: Literal["culturemanager", "culturemanager_retrieval"] = "culturemanager"
    """Which of the compared systems answers: the cultures' adapters alone, or those trained to read, with the culture and the
    passages nearest to the question in a chat's prompt (`docs/serving.md`)."""
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
    """Environment variable with comma-separated API keys; without it and `keys_file` no key is asked for (local use only)."""
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
    threads_per_replica: int = Field(default=0, ge=0)
    """torch threads in a replica; 0 leaves one core to the router and HTTP, and shares the others out among `replicas`."""
    upstream: UpstreamConfig | None = None
    """A server that generates in place of our own engine. Replicas then only forward to it, with no model and 0.1 CPUs."""
