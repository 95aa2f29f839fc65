"""How torch's threads wait for each other."""

from __future__ import annotations

import os
from collections.abc import MutableMapping


def wait_passively_where_busy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets OpenMP's threads sleep while they wait, where other programs want the processor; must be called before torch is loaded.

    By default they spin, which is fastest on a machine of one's own (sleeping cost a demo row 8 to 38 % of its time there) and slows all programs on a
    busy one many times over. What the user has set stays.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.25 * cores:
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
