"""The DeepSpeed engine around a pack."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from culturemanager.config import TrainingConfig
from culturemanager.training.optimizer import PackedAdamW


def deepspeed_config(config: TrainingConfig, rows_per_step: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. Clipping stays off there: the optimizer clips per adapter.

    Args:
        rows_per_step: rows of all adapters on one worker, for DeepSpeed's throughput figures only.
    """
    return {
        "train_micro_batch_size_per_gpu": max(1, rows_per_step // config.accumulate),
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def build_engine(module: nn.Module, optimizer: PackedAdamW, config: TrainingConfig, rows_per_step: int) -> Any:
    """`deepspeed.initialize` over an initialised process group.

    On CPUs DeepSpeed would compile a shared-memory collective on first use, which needs a C++ compiler and
    minutes of it; adapters' gradients are small, so there it is told to keep to gloo.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    import deepspeed.ops

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=deepspeed_config(config, rows_per_step),
                                      model_parameters=[p for p in module.parameters() if p.requires_grad])
    if config.zero_stage:
        optimizer.share_out(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return engine
