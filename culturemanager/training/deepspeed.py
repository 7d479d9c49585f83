"""The DeepSpeed engine around a pack.

ZeRO 1 and 2 share out what belongs to the adapters: the optimizer's state, and the gradients too. ZeRO 3 shares out the
frozen base, which is by far the larger part: every worker holds its piece of each matrix, and a layer's weights
are gathered while it computes. The adapters are then whole on every worker.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from culturemanager.sections.model import TrainingConfig
from culturemanager.training.loop import PlainEngine
from culturemanager.training.loss import PackLoss
from culturemanager.training.optimizer import PackedAdamW


def deepspeed_config(config: TrainingConfig, rows_per_step: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. Clipping stays off there: the optimizer clips per adapter.

    Args:
        rows_per_step: rows of all adapters on one worker, for DeepSpeed's throughput figures only.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": config.offload_optimizer}
    if config.offload_base != "none":
        zero["offload_param"] = {"device": config.offload_base}
    return {
        "train_micro_batch_size_per_gpu": max(1, rows_per_step // config.accumulate),
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def build_engine(module: PackLoss, optimizer: PackedAdamW, config: TrainingConfig, rows_per_step: int, device: str) -> Any:
    """`deepspeed.initialize` over an initialised process group.

    On CPUs DeepSpeed would compile a shared-memory collective on first use, which needs a C++ compiler and
    minutes of it; adapters' gradients are small, so there it is told to keep to gloo.

    Args:
        rows_per_step: as in `deepspeed_config`.
        device: where the workers compute, `cuda` or `cpu`; DeepSpeed by itself would take any GPU it sees.
    """
    os.environ["DS_ACCELERATOR"] = device
    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = deepspeed_config(config, rows_per_step)
    if config.zero_stage == 3:
        return SharedBaseEngine(module, optimizer, settings)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings,
                                      model_parameters=[p for p in module.parameters() if p.requires_grad])
    if config.zero_stage:
        optimizer.share_out(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return engine


class SharedBaseEngine(PlainEngine):
    """ZeRO 3 for the frozen base; the adapters' gradients are averaged over the workers, and each takes the same step.

    Gathering a layer is a collective, so every worker makes as many passes a step as the others.

    Args:
        module: its base may lie on the CPU; the pieces and the adapters go where the workers compute.
        settings: DeepSpeed's.
    """

    same_passes = True

    def __init__(self, module: PackLoss, optimizer: PackedAdamW, settings: dict[str, Any]) -> None:
        import deepspeed

        super().__init__(module, optimizer, settings["gradient_accumulation_steps"])
        module.bank.keep_apart(deepspeed.get_accelerator().current_device_name())
        vectors = [parameter.numel() for parameter in module.parameters() if parameter.dim() < 2]
        settings["zero_optimization"] |= {
            "stage3_param_persistence_threshold": max(vectors, default=0),  # norms and biases stay whole, matrices do not
            # By itself DeepSpeed holds a base of up to 1e9 elements whole between two uses, and what it has fetched ahead.
            # Fetching ahead is of little use where the passes differ from step to step.
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        }
        engine, *_ = deepspeed.initialize(model=module, config=settings)
        self._release = engine.optimizer.release_backward_leftovers

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        self._release()  # a layer used by several passes is not let go by the last of them

    def step(self) -> None:
        if (self._passes + 1) % self._accumulate == 0:
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            flat /= torch.distributed.get_world_size()
            for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(averaged.view_as(gradient))
        super().step()


def held_bytes(model: nn.Module) -> int:
    """Bytes of the base's weights that this worker holds, with ZeRO 3 its pieces and what is gathered at this moment."""
    return sum(part.numel() * part.element_size() for parameter in model.parameters()
               for part in (parameter.data, getattr(parameter, "ds_tensor", None)) if part is not None)
