"""Where the operators' large results live: on huge pages, where Linux has them."""

import os

import pytest
import torch

from repro.bench.least import empty_like_ours
from repro.ops import domain_transform, interp, merge_scores

KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"
pytestmark = pytest.mark.skipif(not os.path.exists(KERNEL), reason="needs a Linux with transparent huge pages")


def asks_for_huge_pages(tensor):
    """Whether the mapping that holds the middle of a tensor is flagged for them."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    holds = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                begin, end = (int(address, 16) for address in first.split("-"))
                holds = begin <= middle < end
            elif holds and first == "VmFlags:":
                return "hg" in line.split()
    pytest.skip("/proc/self/smaps does not tell flags")


def test_large_results_ask_for_huge_pages():
    size = (1025, 1025)  # 67 MB of 16 channels: malloc maps such a block afresh
    x = torch.rand(1, 16, 65, 65)
    enlarged = interp(x, size)
    assert asks_for_huge_pages(enlarged)
    assert asks_for_huge_pages(merge_scores([x, x], mode="max", size=size)[0])
    assert asks_for_huge_pages(domain_transform(enlarged, enlarged[:, :1], 1, 10.0, 1.0, 0.0))


def test_the_benchmarks_least_work_asks_for_them_too():
    result = torch.rand(1, 16, 1025, 1025)
    made = empty_like_ours(result)
    assert asks_for_huge_pages(made)
    assert (made.shape, made.stride()) == (result.shape, result.stride())
