"""Cultures, and the stages that lead to training rows: queries, pages, passages, index, examples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PositiveInt, Tag

from culturemanager.sections.base import Section, kind_or


def _readable(value: str) -> str:
    if not any(map(str.isalnum, value)):
        raise ValueError(f"{value!r} holds no letter; expected a word as it stands in a text")
    return value


Words = Annotated[str, AfterValidator(_readable)]


class CultureEntry(Section):
    """A culture of the user's own, or the catalogue's with other words."""

    id: str
    """Lower-case name used in adapter ids: `austria`."""
    name: Words
    """As a prompt names it: `Austria`."""
    countries: tuple[Words, ...] = ()
    """Country names as they appear in text."""
    languages: tuple[Words, ...] = ()
    """ISO 639-1 codes, most spoken first."""
    demonyms: tuple[Words, ...] = ()
    """`Austrian`, `Austrians`."""
    cues: tuple[Words, ...] = ()
    """Cities, festivals and other words that point to the culture."""


CultureName = Annotated[Annotated[str, Tag("_id")] | Annotated[CultureEntry, Tag("_entry")],
                        Discriminator(lambda value: "_entry" if isinstance(value, dict | CultureEntry) else "_id")]


class FolderSearch(Section):
    """Pages from a directory of .html, .htm, .md and .txt files."""

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
    """Pages from Wikipedia, through the MediaWiki API."""

    kind: Literal["wikipedia"]
    url: str = "https://{language}.wikipedia.org/w/api.php"
    """API address; `{language}` is replaced by the queries' language, which is `en`."""
    timeout_s: float = Field(default=15, gt=0)
    """Seconds to wait for one answer."""


SearchConfig = Annotated[Annotated[FolderSearch | SearxngSearch | WikipediaSearch, Field(discriminator="kind")],
                         BeforeValidator(kind_or("folder"))]


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
    """Also ask the language model for queries; needs `examples.generator.kind: openai`."""


def _header(value: str) -> str:
    if not value.isascii() or not value.isprintable() or value != value.strip() or not value:
        raise ValueError(f"{value!r} cannot be sent; expected printable ASCII, without blanks at its ends")
    return value


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
    user_agent: Annotated[str, AfterValidator(_header)] = "CultureManager/0.1 (+https://github.com/culturemanager/culturemanager)"
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
    may_fail: float = Field(default=0.5, ge=0, lt=1)
    """Share of the pages that may stay out of reach (no network, no answer in time) once the stage is complete; with more, it
    ends with an error, and the next run tries them again."""
    actors: int = Field(default=1, ge=1)
    """Ray Data actors that search and fetch."""


class PassagesConfig(Section):
    """Main text, cut into passages."""

    max_words: int = Field(default=90, ge=20)
    """Longest passage; a sentence is cut only if it is longer."""
    near_duplicate: float = Field(default=0.8, gt=0, le=0.96)
    """Estimated Jaccard similarity from which two passages of a culture count as one; the estimate tells no more than 0.96."""


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
                            BeforeValidator(kind_or("extractive"))]


class ExamplesConfig(Section):
    """Training rows from passages."""

    generator: GeneratorConfig = ExtractiveGenerator()
    """Who writes the rows."""
    per_culture_and_task: int = Field(default=400, ge=1)
    """At most so many rows."""
    rows_of_task: dict[str, PositiveInt] = Field(default={})
    """Tasks with another limit, by id: `{acceptability: 100}`."""
    minimum: int = Field(default=20, ge=1)
    """A culture with fewer rows in all is reported as failed."""
    max_label_share: float = Field(default=0.7, gt=0.5, le=1)
    """Rows of a classification task's most frequent label beyond this share are dropped."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Rows held back for early stopping and for calibrating the router."""
