"""Files that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from caffe_weights.files.atomic import replacing


def write_text(path: Path, text: str) -> None:
    """Writes a text file, with its folder: a killed program leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Writes a document with sorted keys, as `write_text` does.

    Raises:
        ValueError: It holds NaN or an infinity, which JSON has no word for.
    """
    write_text(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")
