"""Benchmarks: the JSON that `python -m repro.bench` writes, its one reader, and its targets in words. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro.documents import is_number
from repro.records.store import read_document

FORMAT = 1
MOST_RESULTS = 2000  # of one file: a figure has a bar for each
# What a target is about -> whether it is an upper bound, and how its numbers are written.
KINDS: dict[str, tuple[bool, Callable[[float], str]]] = {
    "never slower": (False, lambda value: f"{value:.3g}×"),  # than the faster eager layout
    "never slower as called": (False, lambda value: f"{value:.3g}×"),  # on CUDA: launches and Python included
    "time": (False, lambda value: f"{value:.3g}×"),  # than eager in PyTorch's default layout
    "memory": (True, lambda value: f"{value:.3g} of eager's"),
    "time of eager": (False, lambda value: f"{value:.3g}×"),  # in the faster of its layouts
    "time of opencv": (False, lambda value: f"{value:.3g}×"),
    "time of pydensecrf": (False, lambda value: f"{value:.3g}×"),
    "time of cpu": (False, lambda value: f"{value:.3g}×"),  # of the same op there, on two threads
    "memory of pydensecrf": (True, lambda value: f"{value:.3g} of pydensecrf's"),
    "bandwidth": (False, lambda value: f"{100 * value:.3g} % of a copy's"),
    "time of the device": (True, lambda value: f"{value:.3g} ms"),
    "launches": (True, lambda value: f"{value:g}"),
}


def required(target: dict[str, Any]) -> str:
    """Writes a target's bound: "≥ 5×", "≤ 0.2 of eager's"."""
    at_most, written = KINDS[target["what"]]
    return f"{'≤' if at_most else '≥'} {written(target['required'])}"


def measured(target: dict[str, Any]) -> str:
    """Writes what was measured of a target."""
    return KINDS[target["what"]][1](target["measured"])


def _is_result(result: Any) -> bool:
    return (
        isinstance(result, dict)
        and all(isinstance(result.get(key), str) for key in ("op", "case", "direction", "contestant"))
        and all(is_number(result.get(key)) and result[key] > 0 for key in ("median_ms", "p20_ms", "p80_ms", "ratio"))
        and all(is_number(result.get(key)) and result[key] >= 0 for key in ("gb_per_s", "share_of_copy"))
        and all(result.get(key) is None or is_number(result[key]) for key in ("called_ms", "least_ms"))
    )


def _is_target(target: Any) -> bool:
    return (
        isinstance(target, dict)
        and all(isinstance(target.get(key), str) for key in ("op", "case", "direction", "what"))
        and target["what"] in KINDS
        and all(is_number(target.get(key)) and target[key] >= 0 for key in ("required", "measured"))
        and isinstance(target.get("reached"), bool)
    )


def _are_conditions(conditions: Any) -> bool:
    if not isinstance(conditions, dict):
        return False
    versions = conditions.get("versions", {})
    texts = [conditions.get(key) for key in ("device", "device_name", "dtype")]
    return (
        all(isinstance(text, str) for text in texts)
        and type(conditions.get("threads")) is int
        and isinstance(versions, dict)
        and all(version is None or isinstance(version, str) for version in versions.values())
    )


def read_benchmark(path: Path) -> dict[str, Any]:
    """Reads a benchmark.

    Raises:
        ValueError: The file is damaged, foreign or newer than this program; the reason alone.
    """
    document, _ = read_document(path, "benchmark", FORMAT)
    checks = {
        f"results must be a list of at most {MOST_RESULTS} measurements": isinstance(document.get("results"), list)
        and len(document["results"]) <= MOST_RESULTS
        and all(map(_is_result, document["results"])),
        "targets must be a list of targets": isinstance(document.get("targets"), list)
        and all(map(_is_target, document["targets"])),
        "conditions must be a table with device, device_name, threads and dtype": _are_conditions(
            document.get("conditions")
        ),
        "copy_gb_per_s must be a number": is_number(document.get("copy_gb_per_s")),
        "quick must be true or false": isinstance(document.get("quick"), bool),
    }
    if wrong := next((what for what, good in checks.items() if not good), ""):
        raise ValueError(f"damaged: {wrong}")
    return document
