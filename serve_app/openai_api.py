"""The OpenAI wire format, inbound: what a request may hold. Outbound: `responses.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

MAX_TEXT = 200_000
"""Characters of one message or prompt; longer ones are refused before they are tokenised."""
MAX_CHOICES = 128
"""Answers one request may ask for: its prompts times `n`."""
MAX_LOGPROBS = 20
NOT_GUIDED = ("n", "stream", "logprobs", "echo")
"""Fields that mean nothing where the answer is one of given ones."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
ChoiceText = Annotated[str, Field(min_length=1, max_length=2000)]
StopText = Annotated[str, Field(min_length=1, max_length=500)]


def _refuse_unless(*harmless: Any) -> BeforeValidator:
    """For a field of OpenAI's that is not supported: refused where it would change the answer, and never ignored."""

    def check(value: Any, info: ValidationInfo) -> None:
        if value is not None and value not in harmless:
            raise ValueError(f"{info.field_name} is not supported; leave it out")

    return BeforeValidator(check)


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class GenerationFields(BaseModel):
    """Fields that chat and plain completions share. Unknown fields are ignored, as clients send many."""

    model_config = ConfigDict(extra="ignore")

    model: Name
    """`auto`, a culture, an adapter version, or the base; `<base>:<adapter>` too."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=2**31)
    """0: no limit; an extension of the format that vLLM has too."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    culture: Name | None = None
    """The culture the answer is for, where the caller knows it; an extension of the format."""
    guided_choice: Annotated[list[ChoiceText], Field(min_length=1, max_length=64)] | None = None
    """Answer with the likeliest of these texts; an extension that vLLM has too. All are scored, none is generated."""

    frequency_penalty: Annotated[None, _refuse_unless(0)] = None
    presence_penalty: Annotated[None, _refuse_unless(0)] = None
    logit_bias: Annotated[None, _refuse_unless({})] = None
    response_format: Annotated[None, _refuse_unless({"type": "text"})] = None

    @model_validator(mode="after")
    def _guided_alone(self) -> GenerationFields:
        fields = type(self).model_fields
        beside = [name for name in NOT_GUIDED if name in fields and getattr(self, name) != fields[name].default]
        if self.guided_choice and beside:
            raise ValueError(f"guided_choice gives one answer in one piece and nothing else; leave out {', '.join(beside)}")
        return self

    def sampling(self) -> dict[str, Any]:
        """What a replica is asked for, for every choice of the request alike."""
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        return {"model": self.model, "culture": self.culture, "temperature": self.temperature, "top_p": self.top_p,
                "top_k": self.top_k, "stop": stop, "guided_choice": self.guided_choice}

    def seeds(self) -> Iterator[int | None]:
        """One for each of the `n` choices: the same seed for all would give the same answer `n` times."""
        for number in range(self.n):
            yield None if self.seed is None else (self.seed + number) % 2**63


class ContentPart(BaseModel):
    """A piece of a message; text only."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(max_length=100)]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1, max_length=200)]


class ChatRequest(GenerationFields):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[None, _refuse_unless([])] = None
    tool_choice: Annotated[None, _refuse_unless("none")] = None
    functions: Annotated[None, _refuse_unless([])] = None
    function_call: Annotated[None, _refuse_unless("none")] = None
    modalities: Annotated[None, _refuse_unless(["text"])] = None
    web_search_options: Annotated[None, _refuse_unless()] = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("top_logprobs needs logprobs: true")
        return value

    def choices(self) -> list[dict[str, Any]]:
        """One request to a replica for each answer that is wanted."""
        asked = self.sampling() | {
            "messages": [message.plain() for message in self.messages],
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None, "echo": False,
        }
        return [asked | {"seed": seed} for seed in self.seeds()]


class CompletionRequest(GenerationFields):
    """`POST /v1/completions`: texts or token ids go to the model as they are, without a chat template."""

    prompt: Text | TokenIds | Annotated[list[Text], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: int = Field(default=16, ge=0, le=2**31)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    suffix: Annotated[None, _refuse_unless("")] = None
    best_of: Annotated[None, _refuse_unless(1)] = None

    @model_validator(mode="after")
    def _fits(self) -> CompletionRequest:
        if not self.max_tokens and not (self.echo and self.logprobs is not None):
            raise ValueError("max_tokens: 0 needs echo and logprobs, since nothing else would come back")
        if len(self.prompts()) * self.n > MAX_CHOICES:
            raise ValueError(f"{len(self.prompts())} prompts times n {self.n} are more than {MAX_CHOICES} answers")
        if not all(self.prompts()):
            raise ValueError("a prompt is empty")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]

    def choices(self) -> list[dict[str, Any]]:
        """One request to a replica for each answer that is wanted: `n` for the first prompt, `n` for the second."""
        asked = self.sampling() | {"max_new_tokens": self.max_tokens, "logprobs": self.logprobs, "echo": self.echo}
        return [asked | {"prompt": prompt, "seed": seed} for prompt in self.prompts() for seed in self.seeds()]


class RouteRequest(BaseModel):
    """`POST /v1/route`: the routing alone."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=1000)]


class TokenizeRequest(BaseModel):
    """`POST /tokenize`: a text, or a conversation as the model would see it."""

    model_config = ConfigDict(extra="ignore")

    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(BaseModel):
    """`POST /detokenize`: token ids back to text."""

    model_config = ConfigDict(extra="ignore")

    tokens: TokenIds
