"""What the kernels must reach, and whether they did."""

from __future__ import annotations

from typing import Any

from repro.bench.cases import BACKWARD, BOTH, CPU_THREADS, FORWARD, LARGE, MANY_LARGE, TEST_CROP
from repro.records import benchmark

Result = dict[str, Any]

# op, case, direction -> how many times faster than eager in PyTorch's default layout (contiguous NCHW), on the CPU with 2 threads. Beside that, in every
# case: never slower than the faster of the two eager layouts.
_CPU_TIME = {
    ("merge_scores", "table3-train-3", FORWARD): 5.0,
    ("merge_scores", "table3-train-3", BOTH): 4.0,
    ("predict", f"table3-test-{TEST_CROP}-3", FORWARD): 15.0,
    ("predict", f"table6-test-{TEST_CROP}-3", FORWARD): 15.0,
    ("interp", f"table3-test-{TEST_CROP}", FORWARD): 1.5,
    ("interp", f"table3-test-{TEST_CROP}", BACKWARD): 1.5,
    ("segmentation_loss", "table3-train", BOTH): 2.0,
}
# -> the largest share of the leaner eager layout's peak extra memory.
_CPU_MEMORY = {
    ("merge_scores", "table3-train-3", FORWARD): 1 / 5,
    ("merge_scores", "table3-train-3", BOTH): 1 / 5,
    ("predict", f"table3-test-{TEST_CROP}-3", FORWARD): 1 / 20,
    ("predict", f"table6-test-{TEST_CROP}-3", FORWARD): 1 / 20,
}
# -> another contestant, how many times faster than the faster of its layouts, and the largest share of its memory, by the resident set of both, if any.
_CPU_RIVALS = {
    ("domain_transform", f"table3-test-{TEST_CROP}", FORWARD): ("opencv", 2.0, None),
    ("domain_transform", f"table3-test-{TEST_CROP}", BOTH): ("eager", 20.0, None),
    ("dense_crf", "table4-test-375x500", FORWARD): ("pydensecrf", 4.0, 1.0),  # which runs one thread
}
_CUDA_RIVALS = {
    ("domain_transform", f"table3-test-{TEST_CROP}", FORWARD): ("cpu", 30.0, None),
    ("domain_transform", f"table3-test-{TEST_CROP}", BOTH): ("cpu", 30.0, None),
    ("dense_crf", "table4-test-375x500", FORWARD): ("cpu", 30.0, None),
}
_CUDA_TIME = {"merge_scores": 5.0, "predict": 5.0}
# -> the least share of a copy's bandwidth.
_CUDA_BANDWIDTH = {
    **{("interp", f"large-{LARGE}", direction): 0.8 for direction in (FORWARD, BACKWARD)},
    **{("interp", f"table3-train-fc7-{s:g}", direction): 0.8 for s in (0.75, 0.5) for direction in (FORWARD, BACKWARD)},
    ("merge_scores", f"large-{LARGE}-3", FORWARD): 0.8,
    **{("merge_scores", MANY_LARGE, direction): 0.8 for direction in (FORWARD, BOTH)},
}
# -> the most milliseconds of the device's time.
_CUDA_MS = {
    ("predict", f"table3-test-{TEST_CROP}-3", FORWARD): 0.010,
    ("predict", f"table6-test-{TEST_CROP}-3", FORWARD): 0.025,
    ("domain_transform", f"table3-test-{TEST_CROP}", FORWARD): 2.0,
    ("dense_crf", "table4-test-375x500", FORWARD): 10.0,
}
_CUDA_LAUNCHES = 2  # of a forward pass


def target_cases() -> set[tuple[str, str]]:
    """Lists op and case of every case of which a target asks more than not to be slower."""
    return {
        key[:2]
        for table in (_CPU_TIME, _CPU_MEMORY, _CPU_RIVALS, _CUDA_RIVALS, _CUDA_BANDWIDTH, _CUDA_MS)
        for key in table
    }


def apply_to(conditions: dict[str, Any]) -> bool:
    """Says whether the targets are meant for these conditions: float32, and on the CPU 2 threads."""
    return conditions["dtype"] == "float32" and (conditions["device"] != "cpu" or conditions["threads"] == CPU_THREADS)


def _memory_share(ours: Result, eager: list[Result]) -> float:
    """Our peak extra memory, by the larger of its two measures, as a share of the leaner eager layout's by the allocator."""
    return max(ours["extra_bytes"], ours["resident_bytes"] or 0) / max(1, min(r["extra_bytes"] for r in eager))


def evaluate(results: list[Result], conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """Compares our results with the targets.

    Args:
        results: Of one run, every contestant's.
        conditions: Of the run.

    Returns:
        A list of op, case, direction, what, required, measured, reached. `what` is "never slower" (times faster than the faster eager layout, at least 1),
        "never slower as called" (the same of the caller's time, on CUDA),
        "time" (times faster than eager in PyTorch's default layout, at least), "time of NAME" (times faster than that contestant, the faster of its layouts, at
        least), "memory" (share of the leaner eager layout's peak extra memory, at most), "memory of NAME" (share of its resident set, at most), "bandwidth" (share
        of the copy's, at least), "time of the device" (milliseconds, at most) or "launches" (at most).
        Empty where the targets do not apply.
    """
    if not apply_to(conditions):
        return []
    found: list[dict[str, Any]] = []
    for ours in (r for r in results if r["contestant"] == "ours"):
        key = ours["op"], ours["case"], ours["direction"]
        eager = [
            r
            for r in results
            if (r["op"], r["case"], r["direction"]) == key and r["contestant"] in ("eager", "eager-nchw")
        ]

        def add(what: str, required: float, measured: float, reached: bool, key=key) -> None:
            where = dict(zip(("op", "case", "direction"), key, strict=True))
            found.append({**where, "what": what, "required": required, "measured": measured, "reached": reached})

        on_cpu = conditions["device"] == "cpu"
        add("never slower", 1.0, ours["ratio"], ours["ratio"] >= 1)
        called = [r["called_ms"] for r in eager if r.get("called_ms")]
        if called and ours["called_ms"]:
            faster = min(called) / ours["called_ms"]
            add("never slower as called", 1.0, faster, faster >= 1)
        required = _CPU_TIME.get(key) if on_cpu else _CUDA_TIME.get(key[0])
        default = next((r for r in eager if r["contestant"] == "eager-nchw"), None)
        if required is not None and default is not None:
            faster = default["median_ms"] / ours["median_ms"]
            add("time", required, faster, faster >= required)
        if on_cpu and key in _CPU_MEMORY:
            share = _memory_share(ours, eager)
            add("memory", _CPU_MEMORY[key], share, share <= _CPU_MEMORY[key])
        rivals = _CPU_RIVALS if on_cpu else _CUDA_RIVALS
        if key in rivals:
            rival, faster, share = rivals[key]
            theirs = [
                r for r in results if (r["op"], r["case"], r["direction"]) == key and r["contestant"].startswith(rival)
            ]
            if theirs:
                times = min(r["median_ms"] for r in theirs) / ours["median_ms"]
                add(f"time of {rival}", faster, times, times >= faster)
            if share is not None and theirs and theirs[0]["resident_bytes"]:
                used = ours["resident_bytes"] / theirs[0]["resident_bytes"]
                add(f"memory of {rival}", share, used, used <= share)
        if not on_cpu and key in _CUDA_BANDWIDTH:
            share = ours["share_of_copy"]
            add("bandwidth", _CUDA_BANDWIDTH[key], share, share >= _CUDA_BANDWIDTH[key])
        if not on_cpu and key in _CUDA_MS:
            add("time of the device", _CUDA_MS[key], ours["median_ms"], ours["median_ms"] <= _CUDA_MS[key])
        if not on_cpu and key[2] == FORWARD and key[0] != "dense_crf":
            add("launches", _CUDA_LAUNCHES, ours["launches"], ours["launches"] <= _CUDA_LAUNCHES)
    return found


def as_text(targets: list[dict[str, Any]]) -> str:
    """Renders one line for every target; a missed one is marked."""
    if not targets:
        return "targets: none apply (they are for float32, and on the CPU for 2 threads)\n"
    lines = [f"targets: {sum(t['reached'] for t in targets)} of {len(targets)} reached"]
    for t in targets:
        state = "reached" if t["reached"] else "MISSED "
        lines.append(
            f"  {state}  {t['op']} {t['case']} {t['direction']}: {t['what']} {benchmark.measured(t)}, required {benchmark.required(t)}"
        )
    return "\n".join(lines) + "\n"
