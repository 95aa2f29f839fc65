"""The domain transform: by hand, against Caffe, against the float64 reference, and as an operator."""

import math

import pytest
import torch
from conftest import assert_equals_caffe, golden

from repro.ops import domain_transform, reference

CAFFE = golden("domain_transform.npz")
CASES = CAFFE["case_names"].tolist()
IMPLEMENTATIONS = pytest.mark.parametrize("op", [domain_transform, reference.domain_transform], ids=["op", "reference"])


def caffe_case(case, dtype, device="cpu"):
    """x and edge as leaves, and the other arguments."""
    x, edge = (
        torch.tensor(CAFFE[f"{case}/{name}"]).to(device=device, dtype=dtype).requires_grad_() for name in ("x", "ref")
    )
    num_iter, spatial_sigma, range_sigma = CAFFE[f"{case}/params"].tolist()
    valid_size = torch.tensor(CAFFE[f"{case}/dim"], device=device).reshape(-1, 2).long()
    return x, edge, (int(num_iter), spatial_sigma, range_sigma, 0.0, valid_size)


@IMPLEMENTATIONS
@pytest.mark.parametrize("case", CASES)
def test_equals_caffe(op, case, device):
    results = []
    for dtype in (torch.float32, torch.float64):
        x, edge, arguments = caffe_case(case, dtype, device)
        y = op(x, edge, *arguments)
        y.backward(torch.tensor(CAFFE[f"{case}/dy"]).to(y))
        results.append((y, x.grad, edge.grad))
    for name, low, high in zip(("y", "dx", "dref"), *results, strict=True):
        assert_equals_caffe(low, high, CAFFE, f"{case}/{name}")


@IMPLEMENTATIONS
def test_by_hand(op, device):
    # One iteration: sigma = 2 * sqrt(3) / sqrt(3) = 2; an edge of log(2) * sqrt(2) - 1, times 2/2, makes a weight of 1/2, a large one 0.
    half = math.log(2) * math.sqrt(2) - 1
    x = torch.tensor([[[[8.0, 0.0, 4.0], [16.0, 0.0, 8.0]]]], dtype=torch.float64, device=device)
    edge = torch.tensor([[[[0.0, half, half], [1e6, half, half]]]], dtype=torch.float64, device=device)
    # Rows there: (8, 4, 4), (16, 8, 8); back: (6, 4, 4), (12, 8, 8). Columns there: the first stays, (4, 6), (4, 6); back: the first stays, (5, 6), (5, 6).
    y = op(x, edge, 1, 2.0, 2.0, 0.0)
    expected = torch.tensor([[[[6.0, 5.0, 5.0], [12.0, 6.0, 6.0]]]], dtype=torch.float64, device=device)
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
