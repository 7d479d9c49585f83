"""Adapters as PEFT files: `adapter_config.json` and `adapter_model.safetensors` in one folder.

What `save` writes, PEFT, vLLM, LoRAX and SGLang load. `load` reads plain LoRA from any of them and
refuses every variant whose result would differ from ``alpha / rank * B A x`` on the untouched base.
Pickled weights are never read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from culturemanager.adapters.shape import AdapterShape
from culturemanager.adapters.targets import matches
from culturemanager.errors import AdapterError
from culturemanager.storage import write_atomic

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<matrix>lora_[AB])\.weight")

_MUST_BE_EMPTY = ("modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication", "target_parameters",
                  "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
                  "monteclora_config", "megatron_config")
"""Settings of PEFT that put more than one A and one B into a layer, or weights elsewhere."""

_INITS_LEAVING_THE_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""The others (PiSSA, OLoRA, LoftQ, CorDA, ...) also change the base's weights, which this file does not hold."""


def save(folder: str | Path, tensors: Mapping[str, Tensor], shape: AdapterShape, base_model: str, targets: Sequence[str],
         module_names: Iterable[str] | None = None) -> None:
    """Write one adapter; each file is synced and renamed into place, the weights first.

    Args:
        tensors: ``{module}.lora_A`` [rank, in] and ``{module}.lora_B`` [out, rank]; written as float32.
        base_model: exactly the name or path under which the base is served.
        targets: full names of the adapted modules, those of `tensors`.
        module_names: names of every module of the base. With them `target_modules` holds leaf names
            (``q_proj``) if these select just the targets; without, or if they select more, full names.

    Raises:
        AdapterError: `tensors` and `targets` do not belong together, a shape is wrong, or a weight is NaN or infinite.
        StorageError: the disk refused.
    """
    modules = {key.rpartition(".")[0] for key in tensors}
    if modules != set(targets):
        raise AdapterError(f"The adapter's weights and its targets differ in {sorted(modules ^ set(targets))[:3]}; "
                           "pass the targets of the bank that the weights come from.")
    _check(tensors, shape.rank, f"The adapter for {folder}")
    config = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": shape.alpha,
        "lora_dropout": shape.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": shape.rank,
        "target_modules": list(_target_modules(targets, module_names)),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    named = {f"base_model.model.{key}.weight": tensor.detach().to("cpu", torch.float32).contiguous()
             for key, tensor in tensors.items()}
    write_atomic(Path(folder, WEIGHTS_FILE), safetensors.torch.save(named, metadata={"format": "pt"}))
    write_atomic(Path(folder, CONFIG_FILE), (json.dumps(config, indent=2) + "\n").encode())


def _target_modules(targets: Sequence[str], module_names: Iterable[str] | None) -> Sequence[str]:
    leaves = sorted({target.rpartition(".")[2] for target in targets})
    if module_names is not None:
        selected = {name for name in module_names if any(matches(name, leaf) for leaf in leaves)}
        if selected == set(targets):
            return leaves
    return sorted(targets)


def load(folder: str | Path) -> tuple[AdapterShape, dict[str, Tensor], dict[str, Any]]:
    """Read one adapter: its shape, its float32 weights under the keys of `save`, and the whole config.

    Rank-stabilised LoRA (``use_rslora``: scale alpha / sqrt(rank)) is read as the alpha that gives
    the same scale.

    Raises:
        AdapterError: a file is missing or unreadable, the adapter is no plain LoRA, a tensor is
            missing, has another shape or a name that is not LoRA's, or holds NaN or infinity. The
            message names the file.
    """
    config_path, weights_path = Path(folder, CONFIG_FILE), Path(folder, WEIGHTS_FILE)
    config = _read_config(config_path)
    shape = _shape(config, config_path)
    try:
        named = safetensors.torch.load_file(weights_path)
    except FileNotFoundError as error:
        raise AdapterError(f"{weights_path} is missing. Weights are read from safetensors only; save the adapter with "
                           "`safe_serialization=True`.") from error
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{weights_path} is no readable safetensors file ({error}). Copy or export it again.") from error
    tensors = {}
    for key, tensor in named.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"{weights_path} holds {key!r}, which is no LoRA matrix of a linear layer. "
                               "Export the adapter without embeddings, heads and other saved modules.")
        tensors[f"{match['module']}.{match['matrix']}"] = tensor.to(torch.float32)
    _check(tensors, shape.rank, str(weights_path))
    _check_targets(config["target_modules"], {key.rpartition(".")[0] for key in tensors}, weights_path)
    return shape, tensors, config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterError(f"{path} is missing; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}.") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is not readable as JSON ({error}). Copy or export it again.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{path}: peft_type is {kind!r}, expected 'LORA'.")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {config['bias']!r}, expected 'none'. Train the adapter without biases.")
    variants = [name for name, value in config.items() if value and name.startswith("use_") and name != "use_rslora"]
    for name in (*variants, *_MUST_BE_EMPTY):
        if config.get(name):
            raise AdapterError(f"{path}: {name} is {config[name]!r}; only plain LoRA is supported, "
                               "with one rank and one alpha for every layer and nothing else trained.")
    if config.get("init_lora_weights") not in _INITS_LEAVING_THE_BASE:
        raise AdapterError(f"{path}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base as well. "
                           "Convert the adapter to plain LoRA (PEFT: `path_initial_model_for_weight_conversion`).")
    if not isinstance(config.get("target_modules"), (list, str)):
        raise AdapterError(f"{path}: target_modules is {config.get('target_modules')!r}, expected a list of module names.")
    return config


def _shape(config: Mapping[str, Any], path: Path) -> AdapterShape:
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    numbers = [value for value in (rank, alpha, dropout) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < 3 or not isinstance(rank, int):
        raise AdapterError(f"{path}: r is {rank!r}, lora_alpha {alpha!r} and lora_dropout {dropout!r}; "
                           "expected a whole number and two numbers.")
    try:
        return AdapterShape(rank, float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1), float(dropout))
    except (AdapterError, ValueError) as error:
        raise AdapterError(f"{path}: {error}") from error


def _check(tensors: Mapping[str, Tensor], rank: int, where: str) -> None:
    if not tensors:
        raise AdapterError(f"{where} holds no weights.")
    for key, tensor in tensors.items():
        module, _, matrix = key.rpartition(".")
        if matrix not in ("lora_A", "lora_B") or f"{module}.lora_A" not in tensors or f"{module}.lora_B" not in tensors:
            raise AdapterError(f"{where}: {key} stands alone; each module needs one lora_A and one lora_B.")
        if tensor.dim() != 2 or tensor.shape[0 if matrix == "lora_A" else 1] != rank:
            expected = f"[{rank}, in]" if matrix == "lora_A" else f"[out, {rank}]"
            raise AdapterError(f"{where}: {key} has shape {list(tensor.shape)}, expected {expected} for rank {rank}.")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{where}: {key} holds NaN or infinity. The training run that made it diverged; train it "
                               "again, with a lower learning rate.")


def _check_targets(target_modules: Sequence[str] | str, modules: set[str], path: Path) -> None:
    """A list must name the modules with weights, no more and no fewer; a text is a pattern over the base's modules."""
    if isinstance(target_modules, str):
        return
    idle = [target for target in target_modules if not any(matches(module, target) for module in modules)]
    foreign = [module for module in modules if not any(matches(module, target) for target in target_modules)]
    if idle or foreign:
        raise AdapterError(f"{path} and its target_modules do not belong together: no weights for {sorted(idle)[:3]}, "
                           f"weights beyond them for {sorted(foreign)[:3]}. Export the adapter again.")
