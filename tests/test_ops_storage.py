"""Storage of 16 bits: what the kernels read and write is what torch converts, bit for bit."""

import numpy as np
import pytest
import torch

from repro.ops import domain_transform, interp, merge_scores, predict

EVERY = torch.arange(2**16, dtype=torch.int32).to(torch.int16)  # every pattern of 16 bits
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def bits(x):
    """The patterns of a 16-bit map, every NaN as one."""
    x = x.cpu()
    return torch.where(x.isnan(), torch.full((), 0x7FFF, dtype=torch.int16), x.view(torch.int16))


def floats():
    """Every kind of float32: each exponent and sign with every top-16-bit pattern, and just beside each rounding border of both dtypes."""
    patterns = np.arange(2**16, dtype=np.uint32) << 16
    near = [0, 1, 0x1000, 0x0FFF, 0x1001, 0x3000, 0x2FFF, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    drawn = np.random.RandomState(0).randint(0, 2**32, 2**19, dtype=np.uint64).astype(np.uint32)
    every = np.concatenate([*(patterns | tail for tail in map(np.uint32, near)), drawn]).view(np.float32)
    return torch.tensor(every)


@DTYPES
@pytest.mark.parametrize("channels", [1, 3, 8, 16])  # one by one, and eight at once
def test_what_is_loaded_and_stored_again_stays_the_same(dtype, channels, device):
    count = 2**16 // channels * channels
    x = EVERY[:count].view(dtype).reshape(1, channels, 1, -1)
    expected = x.float()
    x, nothing_valid = x.to(device), torch.zeros(1, 2, dtype=torch.int64, device=device)
    unfiltered = domain_transform(x, torch.zeros_like(x[:, :1]), 1, 5.0, 2.0, 0.0, nothing_valid)
    for copy in (interp(x, x.shape[2:]), merge_scores([x], mode="max")[0], unfiltered):
        assert torch.equal(bits(copy), bits(expected.to(dtype)))
    summed = expected + 0.0  # from 0, as Eltwise sums: -0 becomes 0
    assert torch.equal(bits(merge_scores([x], mode="average")[0]), bits(summed.to(dtype)))


@DTYPES
def test_every_value_is_read_as_torch_reads_it(dtype, device):
    x = EVERY.view(dtype)
    finite = x[x.isfinite()].reshape(1, 1, 1, -1)
    beside_zero = torch.cat([finite, torch.zeros_like(finite)], dim=1).to(device)
    _, gap = predict([beside_zero], mode="average", probability=True)
    expected = torch.sigmoid(finite[:, 0].double().abs())
    assert (gap.cpu().double() - expected).abs().max() < 1e-6
    neighbours = torch.cat([finite[..., :-1], finite[..., 1:]], dim=1).to(device)
    labels = predict([neighbours], mode="average")[0].cpu()
    assert torch.equal(labels.bool(), finite[:, 0, :, 1:].float() > finite[:, 0, :, :-1].float())


@DTYPES
@pytest.mark.parametrize("channels", [1, 8])
def test_every_kind_of_float_is_stored_as_torch_rounds_it(dtype, channels, device):
    # y = 1/2 a + 1/2 b of two stored values takes a float32 that need not be storable; so does the product with a weight.
    values = floats()
    values = values[values.isfinite()]
    high = values.to(dtype)
    low = (values - high.float()).to(dtype)
    pairs = torch.stack([high, low], dim=-1)[high.isfinite()]
    pairs = pairs[: len(pairs) // channels * channels].reshape(1, -1, channels, 2).permute(0, 2, 1, 3)
    exact = 0.5 * pairs.float()[..., :1] + 0.5 * pairs.float()[..., 1:]
    assert torch.equal(bits(interp(pairs.to(device), (pairs.shape[2], 3))[..., 1:2]), bits(exact.to(dtype)))


@DTYPES
def test_the_averages_of_three_are_stored_as_torch_rounds_them(dtype, device):
    x = torch.randn(3, 1, 1, 256, 257).to(dtype)
    third = torch.tensor(1 / 3)
    expected = (third * x[0].float() + third * x[1].float()) + third * x[2].float()
    assert torch.equal(bits(merge_scores(list(x.to(device)), mode="average")[0]), bits(expected.to(dtype)))
