"""Tensors of several devices are one clear error, whichever implementation meets them first."""

import pytest
import torch

from repro import ops
from repro.ops import reference

HERE, ELSEWHERE = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3, device="meta")
LABELS = torch.zeros(1, 3, 3, dtype=torch.uint8)
CALLS = {
    "merge_scores": (
        ([HERE, ELSEWHERE], None, "max", (3, 3), True),
        ([HERE, HERE], ELSEWHERE, "attention", (3, 3), True),
        ([ELSEWHERE], HERE[:, :1], "attention", (3, 3), True),
    ),
    "predict": (
        ([HERE, ELSEWHERE], None, "max", (3, 3), (3, 3), False),
        ([HERE, HERE], ELSEWHERE, "attention", (3, 3), (3, 3), True),
    ),
    "segmentation_loss": ((HERE, LABELS.to("meta"), 1, 255), (ELSEWHERE, LABELS, 1, 255)),
    "dense_crf": (
        (HERE, ELSEWHERE[:, :1].expand(1, 3, 3, 3), 1, 3.0, 3.0, 5.0, 50.0, 10.0),
        (ELSEWHERE, HERE[:, :1].expand(1, 3, 3, 3), 1, 3.0, 3.0, 5.0, 50.0, 10.0),
    ),
    "domain_transform": (
        (HERE, ELSEWHERE[:, :1], 1, 5.0, 2.0, 0.0, None),
        (HERE, HERE[:, :1], 1, 5.0, 2.0, 0.0, torch.ones(1, 2, dtype=torch.int64, device="meta")),
        (ELSEWHERE, HERE[:, :1], 1, 5.0, 2.0, 0.0, None),
    ),
    "confusion_matrix": ((LABELS, LABELS.to("meta"), 3, 255), (LABELS.to("meta"), LABELS, 3, 255)),
}
CASES = pytest.mark.parametrize(
    ("name", "arguments"), [(name, arguments) for name, calls in CALLS.items() for arguments in calls]
)
MESSAGE = r"^{}: all tensors must be on one device; got (cpu, meta|meta, cpu); move them with \.to\(\)"


@CASES
@pytest.mark.parametrize("implementation", [ops, reference], ids=["kernel", "reference"])
def test_the_public_function(implementation, name, arguments):
    with pytest.raises(ValueError, match=MESSAGE.format(name)):
        getattr(implementation, name)(*arguments)


@CASES
def test_the_kernel_itself(name, arguments):
    """As on a machine with a GPU, where the dispatcher takes CPU tensors to the CUDA kernel if one of the others is there."""
    gradient = (True,) if name == "segmentation_loss" else ()
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with pytest.raises(ValueError, match=MESSAGE.format(name)):
        getattr(torch.ops.repro, name).default.redispatch(cpu, *arguments, *gradient)


def test_the_kernel_of_the_gradient():
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    backward = torch.ops.repro.merge_scores_backward.default
    for arguments in (
        (ELSEWHERE, None, [HERE], None, "max"),
        (HERE, ELSEWHERE[:, :1], [HERE], HERE[:, :1], "attention"),
    ):
        with pytest.raises(ValueError, match=MESSAGE.format("merge_scores_backward")):
            backward.redispatch(cpu, *arguments)
    backward = torch.ops.repro.domain_transform_backward.default
    with pytest.raises(ValueError, match=MESSAGE.format("domain_transform_backward")):
        backward.redispatch(cpu, ELSEWHERE, HERE, HERE[:, :1], 1, 5.0, 2.0, 0.0, None)
