"""Where drawn data sets are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from repro.data.synthetic.dataset import write_dataset


def cache_folder() -> Path:
    """Says where synthetic data are kept: REPRO_CACHE, else the user's cache folder."""
    base = os.environ.get("REPRO_CACHE")
    return (
        Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-to-scale"
    )


def draw_data(settings: dict[str, dict[str, Any]]) -> Path:
    """Draws the synthetic data set that a row's settings describe, unless it is cached already; returns its folder."""
    drawn = settings["synthetic"]
    return write_dataset(
        cache_folder() / "person-part-synthetic",
        drawn["num_train"],
        drawn["num_val"],
        tuple(drawn["size"]),
        drawn["seed"],
        workers=os.cpu_count() or 1,
    )
