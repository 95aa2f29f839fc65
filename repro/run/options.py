"""How a command runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from repro.device import Compute


@dataclass(frozen=True)
class Options:
    """How to run: everything that is not the protocol's.

    out: The output folder.
    compute: Where and how.
    should_stop: Asked between iterations; where it says so the row is saved and KeyboardInterrupt raised.
    """

    out: Path
    compute: Compute
    should_stop: Callable[[], bool] = lambda: False
