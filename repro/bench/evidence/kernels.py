"""The four kernels that matter, once each at the sizes of the benchmark's targets: what ncu looks at."""

from __future__ import annotations

import argparse
import sys

import torch

from repro import ops
from repro.bench.agreement import call, make_inputs, prepare
from repro.bench.cases import FORWARD, LARGE, TEST_CROP, select
from repro.device import choose_device

CASES = (
    ("interp", f"large-{LARGE}"),
    ("merge_scores", f"large-{LARGE}-3"),
    ("predict", f"table3-test-{TEST_CROP}-3"),
    ("segmentation_loss", "table3-train"),
)
NAMES = ("interp_kernel", "merge_kernel", "predict_kernel", "loss_kernel")  # in csrc/cuda
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    device = choose_device(parser.parse_args().device, "fp32")
    for op, name in CASES:
        (case,) = select([op], [name])
        inputs = make_inputs(case, torch.float32).convert(torch.float32, torch.channels_last, device)
        prepare(lambda *tensors, case=case: call(ops, case, *tensors), FORWARD, inputs)()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        print(f"{op} {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
