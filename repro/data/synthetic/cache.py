"""Where drawn data sets are kept."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from repro.data.pool import interruptible
from repro.data.synthetic.dataset import parameters, write_dataset


def cache_folder() -> Path:
    """Says where synthetic data are kept: REPRO_CACHE, else the user's cache folder."""
    base = os.environ.get("REPRO_CACHE")
    return (
        Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-to-scale"
    )


def draw_data(settings: dict[str, dict[str, Any]]) -> Path:
    """Draws the synthetic data set that a row's settings describe, unless it is cached already.

    Every set has its own folder, named after all that its pictures depend on, so that runs of other settings never meet in one.

    Args:
        settings: With the section `synthetic`.

    Returns:
        The folder.

    Raises:
        ValueError: As `write_dataset`.
        KeyboardInterrupt: SIGINT or SIGTERM came while it was drawn; nothing is left behind.
    """
    drawn = settings["synthetic"]
    what = (drawn["num_train"], drawn["num_val"], tuple(drawn["size"]), drawn["seed"])
    name = hashlib.sha256(json.dumps(parameters(*what), sort_keys=True).encode()).hexdigest()[:16]
    with interruptible():
        return write_dataset(cache_folder() / f"person-part-synthetic-{name}", *what, workers=os.cpu_count() or 1)
