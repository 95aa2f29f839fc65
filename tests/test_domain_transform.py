"""The domain transform: by hand, against Caffe, against the float64 reference, and as an operator."""

import math

import pytest
import torch
from conftest import (
    assert_as_exact_as_reference,
    assert_close,
    assert_equals_caffe,
    cpu_kernels_only,
    cuda_kernels_only,
    golden,
)
from op_inputs import LAYOUTS, laid_out

from repro.ops import domain_transform, reference

CAFFE = golden("domain_transform.npz")
CASES = pytest.mark.parametrize("case", CAFFE["case_names"].tolist())
IMPLEMENTATIONS = pytest.mark.parametrize(
    "op", [domain_transform, reference.domain_transform], ids=["kernel", "reference"]
)
FLOORS = {torch.float32: 3e-7, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 5e-4}
DTYPES = pytest.mark.parametrize("dtype", FLOORS, ids=lambda dtype: str(dtype).removeprefix("torch."))
NUMBERS = (3, 20.0, 2.0, 0.0)  # num_iter, spatial_sigma, range_sigma, min_weight
BACKWARD = torch.ops.repro.domain_transform_backward
LOG2 = math.log(2)


def caffe_case(case, dtype, device="cpu"):
    """x, edge, the gradient of y and the other arguments."""
    x, edge, dy = (torch.tensor(CAFFE[f"{case}/{name}"]).to(device, dtype) for name in ("x", "ref", "dy"))
    num_iter, spatial_sigma, range_sigma = CAFFE[f"{case}/params"].tolist()
    valid_size = torch.tensor(CAFFE[f"{case}/dim"], device=device).reshape(-1, 2).long()
    return x, edge, dy, (int(num_iter), spatial_sigma, range_sigma, 0.0, valid_size)


def differentiate(op, x, edge, dy, *arguments):
    """y, dx and dedge."""
    x, edge = (leaf.detach().clone().requires_grad_() for leaf in (x, edge))
    y = op(x, edge, *arguments)
    return y.detach(), *torch.autograd.grad(y, (x, edge), dy, materialize_grads=True)


def random_case(dtype, n, c, size, valid_size=None, num_iter=3):
    """x, edge, the gradient of y and the other arguments, rounded to the dtype."""
    x, edge, dy = torch.randn(n, c, *size), torch.rand(n, 1, *size) * 3, torch.randn(n, c, *size)
    valid = None if valid_size is None else torch.tensor(valid_size)
    return x.to(dtype), edge.to(dtype), dy.to(dtype), (num_iter, *NUMBERS[1:], valid)


def assert_as_exact(found, x, edge, dy, arguments, dtype):
    """Each result within twice the error of the reference in the accumulator's type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    low, high = (
        differentiate(reference.domain_transform, *(t.to(computed) for t in (x, edge, dy)), *arguments)
        for computed in (wide, torch.float64)
    )
    for name, actual, reference_low, truth in zip(("y", "dx", "dedge"), found, low, high, strict=True):
        assert actual.dtype == dtype
        assert_as_exact_as_reference(actual.double(), reference_low, truth, FLOORS[dtype], name)


@IMPLEMENTATIONS
def test_by_hand(op, device):
    # One iteration: sigma = 4 * sqrt(3) / sqrt(3) = 4. The weight of an edge g is exp(-sqrt(2) / 4 * (1 + g * 4 / 2)).
    half, quarter = ((4 * k * LOG2 / math.sqrt(2) - 1) / 2 for k in (1, 2))
    x = torch.tensor([[[[8.0, 0.0, 4.0], [16.0, 0.0, 8.0]]]], dtype=torch.float64, device=device)
    edge = torch.tensor([[[[1e6, half, half], [1e6, half, quarter]]]], dtype=torch.float64, device=device)
    # There: 8 4 4 and 16 8 8. Back, 4 + 0 and then 8 + (4 - 8) / 2: 6 4 4; 8 + 0, 16 + (8 - 16) / 2: 12 8 8.
    # Down: 12, 8 + (4 - 8) / 2 = 6, 8 + (4 - 8) / 4 = 7. Up: 6 (weight 0), 4 + (6 - 4) / 2 = 5, 4 + (7 - 4) / 4 = 4.75.
    expected = [[6.0, 5.0, 4.75], [12.0, 6.0, 7.0]]
    y = op(x, edge, 1, 4.0, 2.0, 0.0)
    assert_close(y[0, 0], torch.tensor(expected, dtype=torch.float64), 1e-14)
    # A least weight of a half links everything: every weight is a half.
    same = op(x, edge, 1, 4.0, 2.0, 0.5)
    assert_close(same, op(x, torch.full_like(edge, half), 1, 4.0, 2.0, 0.0), 1e-14)
    # Only the left column is filtered.
    y = op(x, torch.full_like(edge, half), 1, 4.0, 2.0, 0.0, torch.tensor([[2, 1]], device=device))
    assert_close(y[0, 0], torch.tensor([[10.0, 0.0, 4.0], [12.0, 0.0, 8.0]], dtype=torch.float64), 1e-14)


@IMPLEMENTATIONS
@CASES
def test_equals_caffe(op, case, device):
    results = []
    for dtype in (torch.float32, torch.float64):
        x, edge, dy, arguments = caffe_case(case, dtype, device)
        results.append(differentiate(op, x, edge, dy, *arguments))
    for name, low, high in zip(("y", "dx", "dref"), *results, strict=True):
        assert_equals_caffe(low, high, CAFFE, f"{case}/{name}")


SHAPES = pytest.mark.parametrize(
    ("n", "c", "size", "valid_size"),
    [
        (1, 21, (19, 23), None),
        (2, 7, (9, 14), [[9, 14], [5, 3]]),
        (1, 1, (33, 40), None),
        (1, 1, (3, 140), None),
        (3, 3, (2, 3), [[0, 3], [2, 1], [1, 3]]),
        (2, 8, (6, 5), [[0, 5], [6, 1]]),
        (1, 33, (7, 9), [[1, 9]]),
        (1, 91, (5, 6), None),
        (3, 3, (1, 1), None),
        (1, 5, (1, 17), None),
        (1, 20, (17, 1), None),
        (0, 4, (3, 3), None),
        (2, 0, (3, 4), [[2, 2], [3, 4]]),
    ],
    ids=str,
)


@DTYPES
@SHAPES
def test_agrees_with_the_float64_reference(dtype, n, c, size, valid_size, device):
    x, edge, dy, arguments = random_case(dtype, n, c, size, valid_size)
    found = differentiate(domain_transform, x.to(device), edge.to(device), dy.to(device), *arguments)
    assert_as_exact(found, x, edge, dy, arguments, dtype)


@pytest.mark.parametrize("num_iter", [1, 2, 5])
def test_any_number_of_iterations(num_iter):
    x, edge, dy, arguments = random_case(torch.float32, 1, 9, (12, 11), num_iter=num_iter)
    assert_as_exact(differentiate(domain_transform, x, edge, dy, *arguments), x, edge, dy, arguments, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, device):
    x, edge, dy, arguments = (
        t.to(device) if torch.is_tensor(t) else t for t in random_case(torch.float64, 2, 5, (6, 7))
    )
    if layout == "expanded":
        x, edge, dy = (t[:1].expand(t.shape).contiguous() for t in (x, edge, dy))
    expected = differentiate(domain_transform, x, edge, dy, *arguments)
    found = BACKWARD(*(laid_out(t, layout) for t in (dy, x, edge)), *arguments)
    assert torch.equal(domain_transform(laid_out(x, layout), laid_out(edge, layout), *arguments), expected[0])
    assert torch.equal(found[0], expected[1])
    assert torch.equal(found[1], expected[2])


def test_blocks_of_columns_meet_nowhere():
    """A map so high that a task holds few columns, and so wide that there are many tasks: as its transpose filtered by rows."""
    x, edge = torch.randn(1, 16, 700, 90), torch.rand(1, 1, 700, 90) * 3
    whole = domain_transform(x, edge, 1, 20.0, 2.0, 0.0)
    for first in (0, 41, 89):
        cut = slice(first, first + 1)
        rows = reference._there_and_back(x, reference_weight(edge), 3)[..., cut]
        assert torch.equal(whole[..., cut], reference._there_and_back(rows, reference_weight(edge)[..., cut], 2))


def reference_weight(edge):
    """The only iteration's weights for spatial_sigma 20 and range_sigma 2."""
    decay = torch.tensor(-math.sqrt(2) / 20)
    return (decay * (1 + edge * 10)).double().exp().float().clamp(0, 1)


def test_the_derivative_of_a_clipped_weight_is_taken_as_if_it_were_not():
    # Caffe: the weight is min_weight, far below it would be exp(-...): dedge = decay * spatial / range * dw * min_weight.
    x = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    edge = torch.full((1, 1, 1, 2), 1e3, dtype=torch.float64)
    dy = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64)
    for found in (
        differentiate(domain_transform, x, edge, dy, 1, 4.0, 2.0, 0.25),
        differentiate(reference.domain_transform, x, edge, dy, 1, 4.0, 2.0, 0.25),
    ):
        assert found[0].tolist() == [[[[0.8125, 0.25]]]]  # 1/4 there; 1 + (1/4 - 1) / 4 back
        assert_close(found[2], torch.tensor([[[[0.0, -math.sqrt(2) / 4 * 2 * 0.25]]]], dtype=torch.float64), 1e-15)


@pytest.mark.parametrize("channels", [3, 9])
def test_gradcheck(channels, device):
    x = torch.randn(2, channels, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    edge = torch.rand(2, 1, 4, 5, dtype=torch.float64, device=device).add(0.1).requires_grad_()
    valid_size = torch.tensor([[4, 5], [3, 2]], device=device)
    assert torch.autograd.gradcheck(lambda x, edge: domain_transform(x, edge, 2, 5.0, 2.0, 0.0, valid_size), (x, edge))


def test_a_second_derivative_is_a_clear_error(device):
    x, edge = torch.randn(1, 2, 3, 3, device=device, requires_grad=True), torch.rand(1, 1, 3, 3, device=device)
    (first,) = torch.autograd.grad(domain_transform(x, edge, *NUMBERS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="domain_transform_backward: must not be differentiated; got a request for"):
        first.sum().backward()


def test_the_reference_is_differentiated_twice():
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    edge = torch.rand(1, 1, 3, 3, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, edge: reference.domain_transform(x, edge, *NUMBERS), (x, edge))


@pytest.mark.parametrize("valid_size", [None, [[4, 3], [2, 5]]], ids=str)
def test_opcheck(valid_size, device):
    x, edge = torch.randn(2, 3, 4, 5, device=device), torch.rand(2, 1, 4, 5, device=device)
    valid_size = None if valid_size is None else torch.tensor(valid_size, device=device)
    torch.library.opcheck(torch.ops.repro.domain_transform.default, (x, edge, *NUMBERS, valid_size))
    leaves = x.clone().requires_grad_(), edge.clone().requires_grad_()
    torch.library.opcheck(torch.ops.repro.domain_transform.default, (*leaves, *NUMBERS, valid_size))
    torch.library.opcheck(BACKWARD.default, (torch.randn_like(x), x, edge, *NUMBERS, valid_size))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "edge"])
@DTYPES
def test_what_is_no_number(where, bad, dtype):
    """NaN of the edge map is a NaN weight, infinity min_weight, minus infinity 1; in x it goes wherever the recursion carries it."""
    x, edge, _, arguments = random_case(dtype, 1, 9, (5, 6))
    {"x": x, "edge": edge}[where][0, 0, 2, 3] = bad
    truth = reference.domain_transform(x.double(), edge.double(), *arguments)
    for y in (
        domain_transform(x, edge, *arguments),
        reference.domain_transform(x, edge, *arguments),
    ):
        assert torch.equal(y.isnan(), truth.isnan())
        assert torch.equal(y.isinf() * y.sign(), (truth.isinf() * truth.sign()).to(dtype))
    if where == "edge" and math.isinf(bad):
        assert truth.isfinite().all()
        other = torch.where(edge == bad, torch.tensor(1e4 if bad > 0 else -1e3).to(dtype), edge)
        assert torch.equal(domain_transform(x, edge, *arguments), domain_transform(x, other, *arguments))


@cuda_kernels_only
def test_a_valid_size_beyond_the_map_is_nan_where_asking_would_wait():
    x, edge, dy, _ = random_case(torch.float32, 3, 2, (3, 4))
    for beyond in ([4, 4], [3, 5], [-1, 2]):
        arguments = *NUMBERS, torch.tensor([[3, 4], beyond, [3, 4]])
        y, dx, dedge = differentiate(domain_transform, x, edge, dy, *arguments)
        for result in (y, dx, dedge):
            assert result[1].isnan().all()
            assert result[::2].isfinite().all()


ONE, EDGE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5)
GOOD = {"x": ONE, "edge": EDGE, "num_iter": 3, "spatial_sigma": 50.0, "range_sigma": 5.0, "min_weight": 0.0}
SIZES = torch.tensor([[4, 5], [4, 5]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": ONE[0]}, r"x must have 4 dimensions \(N, C, H, W\); got shape \[3, 4, 5\]"),
        ({"x": ONE.int()}, r"x must be float32, float64, bfloat16 or float16; got Int; convert it with"),
        ({"x": ONE[:, :, :0]}, r"x must have at least one row and one column; got shape \[2, 3, 0, 5\]"),
        ({"edge": EDGE.double()}, r"edge must have the dtype of x \(Float\); got Double; convert it with"),
        (
            {"edge": EDGE[:, :, :3]},
            r"edge must have shape \[2, 1, 4, 5\]; got \[2, 1, 3, 5\]; give one edge map of x's",
        ),
        ({"edge": EDGE[..., :1]}, r"edge must have shape \[2, 1, 4, 5\]; got \[2, 1, 4, 1\]; give one edge map of x's"),
        ({"edge": ONE}, r"edge must have shape \[2, 1, 4, 5\]; got \[2, 3, 4, 5\]; give one edge map of x's size"),
        ({"edge": EDGE[:1]}, r"edge must have shape \[2, 1, 4, 5\]; got \[1, 1, 4, 5\]; give one edge map of x's size"),
        ({"num_iter": 0}, r"num_iter must be at least 1; got 0; use 3 as Caffe's nets do"),
        ({"spatial_sigma": 0.0}, r"spatial_sigma must be positive and finite in float32; got 0; give a standard dev"),
        ({"spatial_sigma": -1.5}, r"spatial_sigma must be positive and finite in float32; got -1.5; give a standard"),
        ({"range_sigma": -5.0}, r"range_sigma must be positive and finite in float32; got -5; give a standard devia"),
        ({"range_sigma": math.nan}, r"range_sigma must be positive and finite in float32; got nan; give a standard"),
        ({"range_sigma": 1e-60}, r"range_sigma must be positive and finite in float32; got 1e-60; give a standard"),
        ({"min_weight": -0.1}, r"min_weight must be 0 or more and below 1; got -0.1; use 0 for no least weight"),
        ({"min_weight": 1.0}, r"min_weight must be 0 or more and below 1; got 1; use 0 for no least weight"),
        (
            {"valid_size": SIZES.int()},
            r"valid_size must be int64 of shape \(N=2, 2\); got (Int|torch.int32) of shape \[2, 2\]; give",
        ),
        (
            {"valid_size": SIZES[:1]},
            r"valid_size must be int64 of shape \(N=2, 2\); got (Long|torch.int64) of shape \[1, 2\]; give",
        ),
        (
            {"valid_size": SIZES[0]},
            r"valid_size must be int64 of shape \(N=2, 2\); got (Long|torch.int64) of shape \[2\]; give each",
        ),
        pytest.param(
            {"valid_size": SIZES + 1},
            r"valid_size must lie within the map of 4 x 5; got 5 x 6 for image 0; give the",
            marks=cpu_kernels_only,
        ),
        pytest.param(
            {"valid_size": -SIZES},
            r"valid_size must lie within the map of 4 x 5; got -4 x -5 for image 0; give the",
            marks=cpu_kernels_only,
        ),
        ({"edge": EDGE.to("meta")}, r"all tensors must be on one device; got cpu, meta; move them with \.to\(\)"),
    ],
)
def test_messages(wrong, message):
    arguments = GOOD | wrong
    with pytest.raises(ValueError, match=f"^domain_transform: {message}"):
        domain_transform(**arguments)
    if not message.startswith("x ") and "dtype" not in message:
        with pytest.raises(ValueError, match=f"^domain_transform: {message}"):
            reference.domain_transform(**arguments)
    with pytest.raises(ValueError, match=f"^domain_transform_backward: {message}"):
        BACKWARD(dy=ONE, **({"valid_size": None} | arguments))


@pytest.mark.parametrize(
    ("dy", "message"),
    [
        (ONE[:, :2], r"dy must have the shape of x, \[2, 3, 4, 5\]; got \[2, 2, 4, 5\]; pass the gradient of y"),
        (ONE.double(), r"dy must have the dtype of x \(Float\); got Double; convert it with"),
    ],
)
def test_messages_of_the_gradient(dy, message):
    with pytest.raises(ValueError, match=f"^domain_transform_backward: {message}"):
        BACKWARD(dy, ONE, EDGE, *NUMBERS, None)
