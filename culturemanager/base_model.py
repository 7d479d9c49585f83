"""Loading the frozen language model below every adapter: `embedded` or any Hugging Face causal LM.

Left padding and absolute positions
-----------------------------------
BERT adds a learned vector for each absolute position, and its forward pass numbers the columns of
`input_ids` from 0, whatever the attention mask says. A left-padded row would start at the wrong
position, so a caller always passes `position_ids`:

    whole prompts       position_ids(attention_mask)
    one cached step     position_ids(attention_mask)[:, -1:]   with the mask over cache and new token
    packed or ragged    each row's own count of real tokens before the token

That is right for every other architecture too (rotary models need the same numbers).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from culturemanager import hub
from culturemanager.errors import CorruptFileError, ModelError
from culturemanager.storage import MANIFEST, fingerprint, sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
DTYPES = ("float32", "bfloat16", "float16")
CONFIG = "config.json"
LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What architectures call their number of decoder layers."""
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
"""One of them holds the vocabulary."""
TOKENIZER_SETTINGS = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                      "chat_template.jinja")
SAMPLE_BYTES, SAMPLED_BYTES = 2**20, 2**26
"""Of so many bytes of a weights file so many are read to tell it from another: 240 MiB of 15 GiB."""
EXPECTED = ("Expected `embedded`, a folder, or a hub name of a causal language model with safetensors weights and no code of "
            "its own.")


def resolve_base_model(path: str) -> str:
    """The folder or hub name behind a project's `base.path`; `embedded` is built if need be."""
    if path != EMBEDDED:
        return path
    from culturemanager.embedded.base_model import base_model_path

    return str(base_model_path())


def load_outline(path: str | Path) -> PreTrainedModel:
    """A base model without its weights, on torch's `meta` device: to plan with.

    Raises:
        ModelError: as `load_base_model`, as far as it shows without reading weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = resolve_base_model(str(path))
    local = is_local(source)
    if not local:
        require_on_hub(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=local)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"Cannot read the base model {source!r}: {error} {EXPECTED}") from error


def load_base_model(path: str | Path, dtype: str = "float32",
                    device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, frozen and in evaluation mode, with its tokenizer.

    Weights are read from safetensors only, and code that comes with a model is never run. The
    tokenizer pads on the left and has a pad token.

    Args:
        path: `embedded`, a Hugging Face folder, or a hub name (`owner/name`).
        dtype: `float32`, `bfloat16` or `float16`.
        device: torch device.

    Raises:
        ModelError: a file is missing (it is named), the hub cannot be asked, or this is no causal language model.
        UnknownModelError: the hub has no model of that name.
        CorruptFileError: the embedded model's files are damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}.")
    source = resolve_base_model(str(path))
    local = is_local(source)
    if local:
        check_folder(Path(source))
    else:
        require_on_hub(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=False,
                                                  local_files_only=local)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), use_safetensors=True,
                                                     trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"Cannot load the base model {source!r}: {error} {EXPECTED}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    return model.to(device).eval(), tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A base model's tokenizer alone.

    Raises:
        ModelError: its files are missing or cannot be read.
    """
    from transformers import AutoTokenizer

    source = resolve_base_model(str(path))
    if not is_local(source):
        require_on_hub(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=is_local(source))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"Cannot read the tokenizer of {source!r}: {error} {EXPECTED}") from error


def position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """Absolute positions [batch, length] (int64) of a padded batch: real tokens count from 0, padding gets 0."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def is_local(source: str) -> bool:
    """Whether `source` is meant as a path; a hub name is `name` or `owner/name` and no existing folder."""
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    return looks_like_path or Path(source).exists()


def require_on_hub(name: str) -> None:
    """Raise unless the model is in the local cache or can be had from the Hugging Face hub.

    Raises:
        ModelError: as `hub.require`.
    """
    if not hub.cached(name, CONFIG) or not (hub.cached(name, WEIGHTS) or hub.cached(name, WEIGHTS_INDEX)):
        hub.require(name, "base.path")


def count_layers(path: str, online: bool = False) -> int | None:
    """How many decoder layers a base model has, without loading it; `None` if that is not known.

    Args:
        path: as `load_base_model` takes it.
        online: ask the hub for the `config.json` of a model that is not in the local cache.

    Raises:
        ModelError: `config.json` cannot be read; with `online`, as `hub.require`.
    """
    if path == EMBEDDED:
        from culturemanager.embedded.base_model import LAYERS

        return LAYERS
    if is_local(path):
        return _layers_in(Path(path) / CONFIG)
    file = hub.cached(path, CONFIG)
    if file is None and online:
        hub.require(path, "base.path")
        file = hub.fetch_config(path)
    return _layers_in(file) if file else None


def _layers_in(file: Path) -> int | None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config = config.get("text_config", config)  # a model that also sees or hears
        return next((int(config[name]) for name in LAYER_FIELDS if name in config), None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read as a model's settings ({error}). Save the model again, or set `base.path` to "
                         "another one.") from error


def content_digest(path: str) -> str:
    """SHA-256 that stands for what a base model computes, wherever it lies: other weights give another one.

    A folder's small files are read whole, of its weights a part; a hub name has the commit that is in the local cache.

    Args:
        path: as `load_base_model` takes it.

    Raises:
        ModelError: a file is missing or cannot be read, or the hub cannot be asked.
    """
    source = resolve_base_model(path)
    if not is_local(source):
        return fingerprint(_commit(source))
    folder = Path(source)
    try:
        small = {name: sha256_file(folder / name) for name in (CONFIG, *TOKENIZER_FILES, *TOKENIZER_SETTINGS)
                 if (folder / name).is_file()}
        return fingerprint(small, {name: _sampled_digest(folder / name) for name in _weight_files(folder)})
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read ({error.strerror}). {EXPECTED}") from error


def _commit(name: str) -> str:
    """Which state of a hub's model this machine uses; the cache keeps files in a folder of that name."""
    file = hub.cached(name, CONFIG)
    if file is None:
        hub.require(name, "base.path")
        file = hub.fetch_config(name)
    return file.parent.name


def _sampled_digest(file: Path) -> str:
    """SHA-256 over a file's size, its last MiB, and one MiB at its start and after every 64."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(file, "rb") as opened:
        for start in (*range(0, size, SAMPLED_BYTES), max(0, size - SAMPLE_BYTES)):
            opened.seek(start)
            digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def check_folder(folder: Path) -> None:
    """Name what is missing in a model folder before a library fails on it less clearly.

    Raises:
        ModelError: the folder or one of its files is missing.
    """
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder} to load a base model from. "
                         "Set `base.path` to `embedded`, a folder, or a hub name.")
    for name in (CONFIG, *_weight_files(folder)):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing. A base model folder holds config.json, the tokenizer's files and "
                             f"{WEIGHTS} (or its shards and {WEIGHTS_INDEX}).")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{folder / 'tokenizer.json'} is missing. Save the tokenizer beside the model: "
                         "tokenizer.save_pretrained(folder).")


def _weight_files(folder: Path) -> list[str]:
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return [WEIGHTS]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ModelError(f"{index} is not a safetensors index: expected a JSON object with `weight_map`.") from error


def verify_manifest(folder: Path) -> None:
    """Compare a folder's files with the SHA-256 in its `manifest.json`; a folder without one passes.

    Raises:
        CorruptFileError: naming the first file that is missing or differs, or an unreadable manifest.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    try:
        files = dict(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{manifest} cannot be read. Delete {folder}, then run the same command again.") from error
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected["sha256"]:
            what = "does not have the SHA-256 of its manifest" if path.is_file() else "is missing"
            raise CorruptFileError(f"{path} {what}. Delete {folder}, then run the same command again.")
