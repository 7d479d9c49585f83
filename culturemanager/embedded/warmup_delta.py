"""The file format of a weight change: matrices as 4-bit integers, everything else as float16.

A parameter `p` of shape [out, in] with `in` a multiple of 64 is stored as

    p.packed  uint8   [out, in / 2]    two integers in 0..15 a byte, even columns in the low half
    p.scale   float16 [out, in / 64]   one scale for each run of 64 columns

and is (integer - 8) * scale. Other parameters are stored as `p.delta`. A quarter of float16's size,
for an error of a few percent of the change, which is itself small beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from culturemanager.errors import ModelError

RUN = 64
SHRINKS = torch.linspace(0.6, 1.0, 9)
"""Scales tried, as shares of the largest value: clipping a few outliers often costs less than coarser steps."""


def save_delta(delta: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a weight change, by parameter name."""
    tensors = {}
    for name, change in delta.items():
        if change.ndim == 2 and change.shape[1] % RUN == 0 and change.numel() > RUN * RUN:
            tensors[f"{name}.packed"], tensors[f"{name}.scale"] = pack(change)
        else:
            tensors[f"{name}.delta"] = change.half().contiguous()
    save_file(tensors, path, metadata=dict(metadata))


def load_delta(path: Path) -> dict[str, torch.Tensor]:
    """The float32 weight change that a file holds, by parameter name.

    Raises:
        ModelError: the file is no safetensors file, or half of a pair is missing.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}. Reinstall culturemanager.") from error
    delta = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part == "delta":
            delta[name] = tensor.float()
        elif part == "packed":
            if f"{name}.scale" not in tensors:
                raise ModelError(f"{path} holds {key!r} without {name}.scale. Reinstall culturemanager.")
            delta[name] = unpack(tensor, tensors[f"{name}.scale"])
    return delta


def pack(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix [out, in] as packed integers and scales; each run takes the scale with the least squared error."""
    runs = change.float().reshape(change.shape[0], -1, RUN)
    peak = runs.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 7
    best, scale = torch.full_like(peak, torch.inf), peak
    for shrink in SHRINKS:
        tried = (peak * shrink).half().float()
        error = ((runs / tried).round().clamp(-8, 7) * tried - runs).square().sum(-1, keepdim=True)
        scale = torch.where(error < best, tried, scale)
        best = torch.minimum(error, best)
    integers = ((runs / scale).round().clamp(-8, 7) + 8).to(torch.uint8).reshape(change.shape)
    return integers[:, ::2] | (integers[:, 1::2] << 4), scale.squeeze(-1).half()


def unpack(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What `pack` stored, as float32 [out, in]."""
    integers = torch.stack([packed & 15, packed >> 4], dim=-1).reshape(packed.shape[0], -1, RUN)
    return ((integers.float() - 8) * scale.float().unsqueeze(-1)).reshape(packed.shape[0], -1)
