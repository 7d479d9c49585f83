"""When and where figures were measured."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any


def circumstances(**more: Any) -> dict[str, Any]:
    """What stands beside the figures of a result file as `measured`."""
    return {"date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores, {platform.machine()}", **more}
