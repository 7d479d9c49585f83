"""Matrix products in bfloat16, and what makes them worth it: adapters, losses and the optimizer stay float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers import PreTrainedModel

from culturemanager.adapters.targets import LINEAR


def products_of(precision: str, device: str) -> torch.dtype:
    """The type of matrix products that `training.precision` means on this machine; device: `cpu` or `cuda`."""
    native = (torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda"
              else torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else torch.float32


def autocast(device: torch.device, products: torch.dtype) -> torch.autocast:
    """Inside, matrix products are of this type."""
    return torch.autocast(device.type, products, enabled=products != torch.float32)


def round_weights(model: PreTrainedModel, products: torch.dtype) -> None:
    """Bring the frozen matrices to the type of the products once: autocast would in every pass, for it keeps no frozen ones.

    Embeddings stay as they are, also where the output head shares theirs: what they look up is no product.
    """
    if products == torch.float32:
        return
    for module in model.modules():
        if isinstance(module, LINEAR) and module.weight.dtype == torch.float32:
            module.weight = nn.Parameter(module.weight.detach().to(products), requires_grad=False)


def attention(device: torch.device, products: torch.dtype) -> AbstractContextManager[None]:
    """Inside, attention is computed by what is fastest where gradients are wanted.

    On a processor torch's fused attention goes back through bfloat16 two to four times slower than plain products do.
    """
    plain = device.type == "cpu" and products == torch.bfloat16 and torch.is_grad_enabled()
    return plain_attention() if plain else contextlib.nullcontext()


def attention_is_plain() -> bool:
    """Whether `plain_attention` is in force."""
    return not torch.backends.cuda.flash_sdp_enabled()


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, attention is plain products. These switches of torch's are for processors, too, whatever their module is called."""
    switches = torch.backends.cuda
    fused, rounded = switches.flash_sdp_enabled(), switches.fp16_bf16_reduction_math_sdp_allowed()
    switches.enable_flash_sdp(False)
    switches.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        switches.enable_flash_sdp(fused)
        switches.allow_fp16_bf16_reduction_math_sdp(rounded)
