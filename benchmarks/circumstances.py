"""When and where figures were measured."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import torch

from culturemanager.training.precision import products_of


def circumstances(**more: Any) -> dict[str, Any]:
    """What stands beside the figures of a result file as `measured`: the day, and the machine with its precision in training."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    card = [torch.cuda.get_device_name()] if device == "cuda" else []
    machine = [f"{os.cpu_count()} cores", platform.machine(), *card,
               f"{products_of('auto', device)}".removeprefix("torch.") + " products"]
    return {"date": datetime.date.today().isoformat(), "machine": ", ".join(machine), **more}
