"""Evidence from a device: the JSON that `python -m repro.bench.evidence` writes, and its one reader. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repro.documents import is_number
from repro.records.store import read_document

FORMAT = 1
FILE = "evidence.json"
PASSED, FAILED, TIMED_OUT, LEFT_OUT = "passed", "failed", "timed out", "left out"
STATES = (PASSED, FAILED, TIMED_OUT, LEFT_OUT)
MOST_STEPS = 100


def _is_step(step: Any) -> bool:
    return (
        isinstance(step, dict)
        and all(
            isinstance(step.get(key), str) for key in ("name", "what", "state", "reason", "device_name", "finished")
        )
        and step["state"] in STATES
        and is_number(step.get("seconds"))
        and isinstance(step.get("found"), dict)
    )


def read_evidence(path: Path) -> dict[str, Any]:
    """Reads evidence.

    Returns:
        "rehearsal": whether no GPU was meant, so that it is evidence of nothing but the machinery; "steps": each with name, what, state (one of STATES), reason,
        seconds, device_name, commit, finished and found, which is the step's own.

    Raises:
        ValueError: The file is damaged, foreign or newer than this program; the reason alone.
    """
    document, _ = read_document(path, "evidence", FORMAT)
    if not isinstance(document.get("rehearsal"), bool):
        raise ValueError("damaged: rehearsal must be true or false")
    steps = document.get("steps")
    if not isinstance(steps, list) or len(steps) > MOST_STEPS or not all(map(_is_step, steps)):
        raise ValueError(f"damaged: steps must be a list of at most {MOST_STEPS} steps")
    return document
