"""What a task is asked, how its answer is read, and when it is right.

A task is a YAML file. `render` turns inputs into a prompt, `parse_answer` reads a model's text
strictly (a text that is no answer is `None`, never a guess), `is_correct` scores it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.sandbox
from pydantic import BaseModel, ConfigDict, model_validator

from culturemanager.errors import ConfigError
from culturemanager.records import EvaluationItem, Task
from culturemanager.yamlfile import read_model

MAX_RENDERED_CHARACTERS = 20_000
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese letters: no spaces between words."""
DOTTED_I = "i\u0307"
"""What a Turkish capital I with a dot becomes in lower case."""
METRICS = {"classification": ("accuracy", "macro_f1"), "multiple_choice": ("accuracy",), "generation": ("keyphrases",)}
"""By a task's kind; macro-F1 is a mean over labels, and only a classification has the same ones for every item."""
FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What a template may raise."""


def examples_folder() -> Path:
    """The shipped examples: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "examples"
    return inside if inside.is_dir() else package.parent / "examples"


def is_task_file(path: Path) -> bool:
    """Whether a YAML file looks like a task: to name it to somebody who looks for one, not to read it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return all(re.search(rf"(?m)^{field}:", text) for field in ("kind", "fields", "template"))


class TaskFile(BaseModel):
    """The schema of a task's YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """Lower-case name, used in file and column names."""
    kind: Literal["classification", "multiple_choice", "generation"]
    """What an answer is: one of `labels`, one of the item's `options`, or free text."""
    instruction: str
    """What the task asks, in one sentence; a language model that writes examples is told this."""
    fields: tuple[str, ...]
    """Input fields the template uses; a multiple-choice task needs `options`, a list of texts."""
    template: str
    """Jinja2 text for the prompt, rendered in a sandbox."""
    labels: tuple[str, ...] = ()
    """Classification only: every answer there is, at least two."""
    metric: Literal["accuracy", "macro_f1", "keyphrases"]
    """Without it, the first that `METRICS` names for the kind. `macro_f1` is for classification only; `keyphrases` scores free
    text by the phrases an item accepts and rejects."""
    seeds: tuple[dict[str, Any], ...] = ()
    """Worked items, `{inputs: {...}, answer: ...}`, shown to a language model as a pattern."""

    @model_validator(mode="before")
    @classmethod
    def _metric_of_the_kind(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or "metric" in fields:
            return fields
        metrics = METRICS.get(str(fields.get("kind")), ("accuracy",))  # of a wrong kind only the kind is told
        return fields | {"metric": metrics[0]}

    @model_validator(mode="after")
    def _consistent(self) -> TaskFile:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.id):
            raise ValueError(f"id {self.id!r} must be lower-case letters, digits and underscores")
        if self.kind == "classification" and len(set(self.labels)) < 2:
            raise ValueError(f"a classification task needs at least two different labels, found {list(self.labels)}")
        if self.kind != "classification" and self.labels:
            raise ValueError(f"labels belong to classification tasks, this one is {self.kind}")
        if self.kind == "multiple_choice" and "options" not in self.fields:
            raise ValueError("a multiple_choice task needs the field `options`")
        if self.metric not in METRICS[self.kind]:
            raise ValueError(f"metric {self.metric!r} does not fit kind {self.kind!r}: it takes "
                             f"{' or '.join(METRICS[self.kind])}")
        normal = [normalise(label) for label in self.labels]
        if len(set(normal)) != len(normal) or "" in normal:
            raise ValueError(f"labels {list(self.labels)} cannot be told apart once case and punctuation are dropped")
        return self


def load_task(path: str | Path) -> Task:
    """Read and check a task file, its template and its seeds included.

    Raises:
        ConfigError: the file is missing or wrong; the message names file, place and what was expected.
    """
    path = Path(path)
    spec = read_model(path, TaskFile)
    task = Task(**spec.model_dump())
    for number, seed in enumerate(task.seeds, 1):
        if set(seed) != {"inputs", "answer"} or not isinstance(seed["inputs"], dict):
            raise ConfigError(f"{path}: seed {number} is {seed!r:.80}; expected `inputs`, with one value for each field, "
                              "and `answer`.")
        if isinstance(seed["answer"], bool):
            raise ConfigError(f"{path}: seed {number}: the answer is {seed['answer']}, since YAML reads an unquoted yes or no "
                              'as a truth value; put it in quotes, such as "yes".')
        for value in (seed["answer"], *seed["inputs"].values()):
            if not all(isinstance(one, str | int | float) for one in (value if isinstance(value, list) else [value])):
                raise ConfigError(f"{path}: seed {number}: {value!r:.80} is no text; put it in quotes if it is meant as one.")
        options = seed["inputs"].get("options", [])
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise ConfigError(f"{path}: seed {number}: the options are {options!r:.80}; expected a list of texts.")
        try:
            render(task, seed["inputs"])
            check_answer(task, seed["inputs"], str(seed["answer"]))
        except ConfigError as error:
            raise ConfigError(f"{path}: seed {number}: {error}") from error
    if not task.seeds:
        probe = {name: ["first", "second"] if name == "options" else "probe" for name in task.fields}
        try:
            render(task, probe)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return task


@functools.lru_cache(maxsize=256)
def _template(text: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    return environment.from_string(text)


def render(task: Task, inputs: Mapping[str, Any]) -> str:
    """The prompt for `inputs`, without culture or passages.

    Raises:
        ConfigError: a field is missing or unknown, or the template fails in its sandbox.
    """
    if set(inputs) != set(task.fields):
        raise ConfigError(f"task {task.id!r} takes the fields {list(task.fields)}, found {list(inputs)}.")
    try:
        text = _template(task.template).render(**inputs).strip()
    except FAILURES as error:
        raise ConfigError(f"the template of task {task.id!r} fails: {str(error).rstrip('.') or type(error).__name__}. It may use "
                          f"{', '.join(task.fields)} and plain Jinja2.") from error
    if len(text) > MAX_RENDERED_CHARACTERS:
        raise ConfigError(f"the template of task {task.id!r} renders {len(text)} characters; "
                          f"at most {MAX_RENDERED_CHARACTERS} are allowed.")
    return text


def read_inputs(task: Task, prompt: str) -> dict[str, str] | None:
    """`render` backwards: the text of every field that the template shows; `None` if the prompt is not in the task's words.

    A field ends where the template's next words first come. A template that shows no field says nothing about a prompt.
    """
    try:
        shown, words = _shown_fields(task.template, task.fields)
    except FAILURES:
        return None
    text = prompt.strip()
    start, end = len(words[0]), len(text) - len(words[-1])
    if start > end or not text.startswith(words[0]) or not text.endswith(words[-1]):
        return None
    inputs: dict[str, str] = {}
    for number, name in enumerate(shown, 1):
        stop = end if number == len(shown) else text.find(words[number], start, end)
        if stop < 0:
            return None
        inputs.setdefault(name, text[start:stop])
        start = stop + len(words[number])
    return inputs or None


@functools.lru_cache(maxsize=256)
def _shown_fields(template: str, fields: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fields in the order in which a template shows them, and the words before, between and after them."""
    marks = {name: f"\ue000{number}\ue001" for number, name in enumerate(fields)}
    marked = _template(template).render(**{name: [mark] if name == "options" else mark for name, mark in marks.items()})
    words = re.split("\ue000([0-9]+)\ue001", marked.strip())
    return tuple(fields[int(number)] for number in words[1::2]), tuple(words[0::2])


def normalise(text: str) -> str:
    """Lower case, words separated by one space, punctuation dropped; where a script writes no spaces, each letter is a word."""
    lowered = unicodedata.normalize("NFC", text.lower()).replace(DOTTED_I, "i")
    letters = set(lowered)
    # Vowel signs are marks to `re`, and letters to their readers.
    marks = "".join(sorted(letter for letter in letters if unicodedata.category(letter)[0] == "M"))
    apart = {ord(letter): f" {letter} " for letter in letters if UNSPACED.fullmatch(letter)}
    return " ".join(re.findall(rf"[\w{marks}]+", lowered.translate(apart)))


def answers(task: Task, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The closed set of answers for these inputs; empty for generation."""
    if task.kind == "classification":
        return task.labels
    if task.kind == "multiple_choice":
        return tuple(inputs["options"])
    return ()


def check_answer(task: Task, inputs: Mapping[str, Any], answer: str) -> None:
    """Raise `ConfigError` unless `answer` is one the task allows for these inputs."""
    allowed = answers(task, inputs)
    if allowed and answer not in allowed:
        raise ConfigError(f"answer {answer!r} is none of {list(allowed)}.")
    if not answer.strip():
        raise ConfigError("the answer is empty.")


def parse_answer(task: Task, inputs: Mapping[str, Any], text: str) -> str | None:
    """Read a model's text as an answer; `None` if it is none.

    A closed answer must be the whole text, or stand at its beginning and be followed by a word
    boundary, with no other allowed answer standing there too.
    """
    said = normalise(text)
    if not said:
        return None
    allowed = answers(task, inputs)
    if not allowed:
        return text.strip()
    fits = [answer for answer in allowed if said == normalise(answer)]
    if not fits:
        fits = [answer for answer in allowed if f"{said} ".startswith(f"{normalise(answer)} ")]
        fits = [answer for answer in fits if len(answer) == max(map(len, fits))]
    return fits[0] if len(fits) == 1 else None


def contains_phrase(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand in `text` in a row, case and punctuation aside."""
    return f" {normalise(phrase)} " in f" {normalise(text)} "


def is_correct(task: Task, item: EvaluationItem, answer: str | None) -> bool:
    """Whether a parsed answer is right; an unparsed one (`None`) never is."""
    if answer is None:
        return False
    if task.kind != "generation":
        return normalise(answer) == normalise(item.answer)
    accepted = any(contains_phrase(answer, phrase) for phrase in item.accept)
    rejected = any(contains_phrase(answer, phrase) for phrase in item.reject)
    return accepted and not rejected
