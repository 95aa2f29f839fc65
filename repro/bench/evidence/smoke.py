"""Every operator in four element types against the CPU's kernels, twice for equal bits, and once in a captured graph."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from repro import ops
from repro.bench.evidence.calls import DTYPES, FINE, IMAGE, Call, calls, results
from repro.device import choose_device
from repro.files import write_json

# Of max|a - b| / max|b|: float32 as the benchmark's; of 16 bits one unit in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2**-7, torch.float16: 2**-10}
CRF_TOLERANCE = 1e-4  # the benchmark's
OTHER_LABELS = 1e-3  # share of pixels whose two best classes are so near that a last bit decides


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Measures max|a - b| / max|b|; of labels the share that differs. NaN where the shapes differ."""
    if actual.shape != expected.shape:
        return float("nan")
    if actual.dtype == torch.uint8:
        return (actual != expected).double().mean().item()
    difference = (actual.double() - expected.double()).abs().max().item()
    return difference / (expected.double().abs().max().item() or 1.0)


def tolerance(call: Call, expected: torch.Tensor, dtype: torch.dtype) -> float:
    if expected.dtype == torch.uint8:
        return OTHER_LABELS
    if not expected.is_floating_point():
        return 0.0
    return CRF_TOLERANCE if call.name == "dense_crf" else TOLERANCE[dtype]


def compare(call: Call, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Runs a call on both, and on the device twice."""
    expected = results(call, torch.device("cpu"))
    first, again = results(call, device), results(call, device)
    errors = [error(a, b) for a, b in zip(first, expected, strict=True)]
    return {
        "error": max((e for e in errors), key=lambda e: (e != e, e)),
        "close": all(e <= tolerance(call, b, dtype) for e, b in zip(errors, expected, strict=True)),
        "bits_of_the_cpu": all(torch.equal(bits(a), bits(b)) for a, b in zip(first, expected, strict=True)),
        "same_bits_again": all(torch.equal(bits(a), bits(b)) for a, b in zip(first, again, strict=True)),
    }


def graph(device: torch.device) -> bool:
    """Captures forward passes in a CUDA graph; says whether its replay on other inputs gives the bits of plain calls."""
    maps = [torch.randn(2, 21, *size, device=device) for size in (FINE, (5, 4))]
    logits = torch.randn(2, 2, *FINE, device=device)
    target = torch.randint(21, (2, *IMAGE), dtype=torch.uint8, device=device)

    def forward() -> list[torch.Tensor]:
        merged, weights = ops.merge_scores(maps, logits)
        labels, _ = ops.predict(maps, logits, size=IMAGE)
        return [ops.interp(maps[0], IMAGE), merged, weights, labels, ops.segmentation_loss(merged, target, 8)]

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            forward()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            replayed = forward()
        for x in (*maps, logits):
            x.copy_(torch.randn(x.shape))
        captured.replay()
        return all(torch.equal(bits(a.cpu()), bits(b.cpu())) for a, b in zip(replayed, forward(), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    device = choose_device(options.device, "fp32")
    found: dict[str, Any] = {"calls": {}, "failures": [], "graph": "left out: no CUDA device"}
    for dtype in DTYPES:
        for call in calls(dtype):
            name = f"{call.name} {str(dtype).removeprefix('torch.')}"
            try:
                one = compare(call, dtype, device)
            except Exception as failure:  # the next call is tried in any case
                one = {
                    "error": None,
                    "close": False,
                    "same_bits_again": False,
                    "reason": " ".join(str(failure).split())[:300],
                }
            if one["error"] is not None and one["error"] != one["error"]:
                one |= {"error": None, "reason": "not a number, or of another shape"}
            found["calls"][name] = one
            if not (one["close"] and one["same_bits_again"]):
                found["failures"].append(name)
                print(f"FAILED {name}: {one}", flush=True)
        write_json(options.result, found)
        print(f"{dtype}: done", flush=True)
    if device.type == "cuda":
        try:
            found["graph"] = "same bits" if graph(device) else "other bits"
        except Exception as failure:
            found["graph"] = "failed: " + " ".join(str(failure).split())[:300]
        if found["graph"] != "same bits":
            found["failures"].append("graph")
    write_json(options.result, found)
    print(f"{len(found['calls'])} calls, failed: {', '.join(found['failures']) or 'none'}; graph: {found['graph']}")
    return bool(found["failures"])


if __name__ == "__main__":
    sys.exit(main())
