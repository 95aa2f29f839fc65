"""What a device has shown: the steps of `python -m repro.bench.evidence` in words. What a step found is its own, so each fact is looked for and may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from repro.documents import is_number
from repro.records.evidence import STATES

MOST_TEXT = 300  # of one fact


def _table(found: Any, *keys: str) -> dict[str, Any]:
    """Follows keys through tables; {} where they lead to none."""
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _number(found: Any, key: str) -> float | None:
    value = found.get(key) if isinstance(found, dict) else None
    return value if is_number(value) else None


def _facts(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Lists what a step found that a reader wants to know."""
    for key, value in sorted(_table(found, "versions").items()):
        if isinstance(value, str | int) and key in ("torch", "cuda", "driver"):
            yield f"{key} {value}"
    for call in [_table(found, "calls")] if name == "smoke" else []:
        same = sum(_table(call, one).get("bits_of_the_cpu") is True for one in call)
        yield f"{len(call)} calls, {same} with the CPU's bits; graph: {found.get('graph')}"
    for precision, one in sorted(_table(found, "precisions").items()):
        if (error := _number(one, "gradient_error")) is not None:
            yield f"{precision}: gradients {error:.2g} from the CPU's, {_number(one, 'tolerance') or 0:g} allowed"
        if (seconds := _number(one, "median_seconds")) is not None:
            memory = _number(one, "peak_bytes")
            peak = "" if memory is None else f", {memory / 2**30:.1f} GiB"
            others = "".join(
                f", {option} {other * 1e3:.0f} ms"
                for option in sorted(_table(one, "with"))
                if (other := _number(_table(one, "with", option), "median_seconds")) is not None
            )
            yield f"{precision}: {seconds * 1e3:.0f} ms for {_number(one, 'batch') or 0:g} images{peak}{others}"
    if name == "tests" and (passed := _number(found, "passed")) is not None:
        skipped = sum(number for number in _table(found, "skipped").values() if is_number(number))
        yield f"{passed:g} passed, {_number(found, 'failed') or 0:g} failed, {skipped:g} skipped"
    if (errors := _number(found, "of_our_kernels")) is not None:
        yield f"{errors:g} errors in our kernels, {_number(found, 'of_others') or 0:g} in others"
    if (speed := _number(found, "copy_gb_per_s")) is not None:
        missed = found["missed"] if isinstance(found.get("missed"), list) else []
        targets = _number(found, "targets") or 0
        yield f"copy {speed:.0f} GB/s; {targets - len(missed):g} of {targets:g} targets reached"
    if (value := _number(found, "value")) is not None:
        kept = _number(found, "value_kept")
        yield f"{value:.2f}" + ("" if kept is None else f", kept {kept:.2f}")
    streams = found["streams"] if isinstance(found.get("streams"), list) else []
    if rates := [rate for one in streams if (rate := _number(one, "images_per_second")) is not None]:
        yield f"{max(rates):.0f} images/s at most"


def evidence(document: dict[str, Any], href: str) -> dict[str, Any]:
    """Prepares one evidence for the page.

    Args:
        document: As `read_evidence` returns it.
        href: Its file's address from the page.
    """
    steps = document["steps"]
    counts = {state: sum(step["state"] == state for step in steps) for state in STATES}
    return {
        "href": href,
        "device": ", ".join(dict.fromkeys(step["device_name"] for step in steps)),
        "commits": ", ".join(dict.fromkeys(str(step.get("commit") or "unknown")[:12] for step in steps)),
        "counts": ", ".join(f"{number} {state}" for state, number in counts.items() if number),
        "steps": [
            {key: step[key] for key in ("name", "what", "state", "reason", "seconds")}
            | {"facts": [fact[:MOST_TEXT] for fact in _facts(step["name"], step["found"])]}
            for step in steps
        ],
    }
