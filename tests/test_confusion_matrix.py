"""confusion_matrix: by hand, against the reference, and as an operator."""

import numpy as np
import pytest
import torch
from drawn import given, settings, st

from repro.ops import confusion_matrix, reference

IMPLEMENTATIONS = pytest.mark.parametrize(
    "op", [confusion_matrix, reference.confusion_matrix], ids=["kernel", "reference"]
)
DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@IMPLEMENTATIONS
def test_by_hand(op, device):
    label = torch.tensor([[0, 1, 1, 2], [255, 2, 0, 1]], device=device)
    prediction = torch.tensor([[0, 1, 2, 2], [1, 0, 0, 2]], device=device)
    counts, outside = op(prediction, label, 3)
    assert counts.tolist() == [[2, 0, 0], [0, 1, 2], [1, 0, 1]]
    assert outside.item() == 0
    assert counts.dtype == outside.dtype == torch.int64


@IMPLEMENTATIONS
def test_pixels_outside_the_classes_are_counted_apart(op, device):
    label = torch.tensor([0, 1, 3, -1, 255, 1, 1, 2], device=device)
    prediction = torch.tensor([0, 3, 1, 0, 300, -5, 255, 2], device=device)
    counts, outside = op(prediction, label, 3)
    assert counts.diag().tolist() == [1, 0, 1]
    assert counts.sum().item() == 2
    assert outside.item() == 5


@IMPLEMENTATIONS
def test_the_ignored_label_may_be_a_class_or_none(op, device):
    label = torch.tensor([0, 1, 1, 0], dtype=torch.uint8, device=device)
    prediction = torch.tensor([0, 0, 1, 1], dtype=torch.uint8, device=device)
    assert op(prediction, label, 2, ignore_label=0)[0].tolist() == [[0, 0], [1, 1]]
    assert op(prediction, label, 2, ignore_label=-1)[0].tolist() == [[1, 1], [1, 1]]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 70), st.integers(1, 90)),
    st.integers(1, 90),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape_type_and_stride_counts_as_numpy_does(device, shape, classes, from_type, to_type, transposed, seed):
    rng = np.random.RandomState(seed)
    prediction, label = (rng.randint(0, classes + (seed % 2), shape) for _ in range(2))
    label[rng.rand(*shape) < 0.2] = 100
    expected = np.zeros((classes, classes), dtype=np.int64)
    inside = (label < classes) & (prediction < classes)
    np.add.at(expected, (label[inside], prediction[inside]), 1)
    maps = [torch.tensor(prediction).to(device, from_type), torch.tensor(label).to(device, to_type)]
    if transposed:
        maps = [m.transpose(1, 2).contiguous().transpose(1, 2) for m in maps]
    counts, outside = confusion_matrix(*maps, classes, ignore_label=100)
    assert np.array_equal(counts.cpu().numpy(), expected)
    assert outside.item() == ((label != 100) & ~inside).sum()


@pytest.mark.parametrize("classes", [32, 81, 91])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_maps_that_are_nearly_all_background(classes, dtype, device):
    random = torch.Generator().manual_seed(classes)
    maps = []
    for _ in range(2):
        drawn = torch.randint(1, classes + 2, (1301,), generator=random)
        maps.append(torch.where(torch.rand(1301, generator=random) < 0.1, drawn, 0).to(device, dtype))
    counts, outside = confusion_matrix(*maps, classes)
    expected, expected_outside = reference.confusion_matrix(*maps, classes)
    assert torch.equal(counts, expected)
    assert outside == expected_outside


@pytest.mark.parametrize("classes", [32, 33, 81, 91])  # a block on CUDA has 1024 counters, 8192 or none
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_maps_that_begin_anywhere_in_memory(classes, dtype, device):
    maps = [torch.randint(0, classes + 2, (518,)).to(device, dtype)[1:] for _ in range(2)]
    counts, outside = confusion_matrix(*maps, classes)
    expected, expected_outside = reference.confusion_matrix(*maps, classes)
    assert torch.equal(counts, expected)
    assert outside == expected_outside


def test_many_pixels_of_one_kind_are_all_counted(device):
    label = torch.ones(3, 513, 513, dtype=torch.uint8, device=device)
    counts, outside = confusion_matrix(label, label, 21)
    assert counts[1, 1].item() == counts.sum().item() == label.numel()
    assert outside.item() == 0


@pytest.mark.slow
def test_more_than_two_to_the_31_pixels():
    label = torch.ones(2**31 + 5, dtype=torch.uint8)
    label[-1] = 0
    counts, outside = confusion_matrix(label, label, 2)
    assert counts.tolist() == [[1, 0], [0, 2**31 + 4]]
    assert outside.item() == 0


def test_no_pixels(device):
    empty = torch.zeros(0, 4, 5, dtype=torch.uint8, device=device)
    counts, outside = confusion_matrix(empty, empty, 3)
    assert counts.tolist() == [[0] * 3] * 3
    assert outside.item() == 0


def test_opcheck(device):
    prediction, label = (torch.randint(0, 7, (2, 9, 11), device=device) for _ in range(2))
    for dtype in (torch.uint8, torch.int64):
        torch.library.opcheck(torch.ops.repro.confusion_matrix.default, (prediction.to(dtype), label.to(dtype), 7, 255))


def test_compiles_without_a_graph_break(device):
    def count(prediction, label):
        counts, outside = confusion_matrix(prediction + 1, label, 8)
        return counts.sum(dim=0), outside

    prediction, label = (torch.randint(0, 7, (2, 9, 11), device=device) for _ in range(2))
    compiled = torch.compile(count, backend="aot_eager", fullgraph=True)(prediction, label)
    assert all(torch.equal(a, b) for a, b in zip(compiled, count(prediction, label), strict=True))


LABEL = torch.zeros(3, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("prediction", "label", "num_classes", "message"),
    [
        (LABEL[:2], LABEL, 3, r"confusion_matrix: prediction must have the shape of label \[3, 4\]; got \[2, 4\]; cut"),
        (LABEL.float(), LABEL, 3, r"confusion_matrix: prediction must be integers; got Float; convert it with"),
        (LABEL, LABEL.bool(), 3, r"confusion_matrix: label must be integers; got Bool; convert it with"),
        (LABEL, LABEL, 0, r"confusion_matrix: num_classes must be 1 to 32767; got 0"),
        (LABEL, LABEL, 32768, r"confusion_matrix: num_classes must be 1 to 32767; got 32768"),
        (LABEL.to("meta"), LABEL, 3, r"confusion_matrix: all tensors must be on one device; got meta, cpu; move them"),
    ],
)
def test_messages(prediction, label, num_classes, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(prediction, label, num_classes)
