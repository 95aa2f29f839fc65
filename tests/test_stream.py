"""ImageSegData against the batches of Caffe's own layer."""

import itertools
import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repro.data.caffe_rng import CaffeRNG
from repro.data.lists import Item, read_item, read_items
from repro.data.stream import ImageSegData, plan_batches, read_test_item
from repro.data.transforms import TransformationParameter, place

GOLDEN = Path(__file__).parent / "golden" / "data_stream"
BATCHES = np.load(GOLDEN / "batches.npz")
MEAN_BGR = tuple(BATCHES["mean_bgr"].tolist())
RUNS = ["train", "train_scale", "train_noshuffle_nomirror"]


def items():
    return read_items(GOLDEN, "list", "", "")


def stream(run="train", **changes):
    settings = {
        "batch_size": 2,
        "crop_size": 65,
        "mean_bgr": MEAN_BGR,
        "mirror": run != "train_noshuffle_nomirror",
        "scale_factors": BATCHES[f"{run}/scale_factors"].tolist(),
        "shuffle": run != "train_noshuffle_nomirror",
        "ignore_label": 255,
        "seed": int(BATCHES[f"{run}/seed"]),
    }
    return ImageSegData(changes.pop("items", None) or items(), **(settings | changes))


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(batches, run, of=slice(None)):
    """Fails unless batches are those that Caffe's run made."""
    caffe = [BATCHES[f"{run}/{top}"][of] for top in ("data", "label", "dim")]
    assert len(batches) == len(caffe[0]) > 0
    for got, data, label, dim in zip(batches, *caffe, strict=True):
        np.testing.assert_array_equal(got[0], data)
        np.testing.assert_array_equal(got[1], np.squeeze(label, 1))
        np.testing.assert_array_equal(got[2], np.squeeze(dim, (1, 2)))


@pytest.mark.parametrize("run", RUNS)
def test_batches_equal_caffe(run):
    # Every value, resized images included: OpenCV's fixed-point arithmetic is followed to the bit.
    assert_same(take(stream(run), len(BATCHES[f"{run}/data"])), run)


@pytest.mark.parametrize("run", RUNS)
def test_resuming_at_every_batch_equals_caffe(run):
    count = len(BATCHES[f"{run}/data"])
    for start in range(count):
        batches = take(stream(run, start_batch=start), min(2, count - start))
        assert_same(batches, run, slice(start, start + 2))


@pytest.mark.parametrize("run", RUNS)
def test_plan_equals_caffe(run):
    values = dict(
        zip(BATCHES[f"{run}/global_draw_names"].tolist(), BATCHES[f"{run}/global_draw_values"].tolist(), strict=True)
    )
    scale_factors = tuple(BATCHES[f"{run}/scale_factors"].tolist())
    params = TransformationParameter(65, MEAN_BGR, run != "train_noshuffle_nomirror", scale_factors)
    shuffle_rng = CaffeRNG(values["shuffle_seed"]) if "shuffle_seed" in values else None
    plans = plan_batches(6, 2, params.draws_per_item("TRAIN"), shuffle_rng, CaffeRNG(values["transformer_seed"]), 0)
    expected = BATCHES[f"{run}/items"]
    for plan, rows in zip(plans, expected, strict=False):
        for index, draws, row in zip(plan.indices, plan.draws, rows, strict=True):
            size = BATCHES[f"decoded/lab{index}"].shape
            assert [index, *map(int, place(size, params, draws, "TRAIN"))] == row.tolist()


@pytest.mark.parametrize("run", RUNS)
def test_global_generator_goes_on_after_the_layers_draws(run):
    values = BATCHES[f"{run}/global_draw_values"]
    rng = CaffeRNG(int(BATCHES[f"{run}/seed"]))
    assert rng.draw(len(values)).tolist() == values.tolist()
    assert stream(run).global_rng.draw(3).tolist() == rng.draw(3).tolist()


def test_iterating_again_starts_again():
    source = stream()
    assert_same(take(source, 1), "train", slice(1))
    assert_same(take(source, 1), "train", slice(1))


@pytest.mark.parametrize("batch_size", [1, 6, 15])
def test_batches_of_any_size_cut_one_stream(batch_size):
    data = BATCHES["train/data"].reshape(-1, 3, 65, 65)
    got = torch.cat([batch.data for batch in take(stream(batch_size=batch_size), -(-24 // batch_size))])
    np.testing.assert_array_equal(got[:24], data)


def test_types_and_memory():
    data, label, dim = next(iter(stream()))
    assert (data.dtype, label.dtype, dim.dtype) == (torch.float32, torch.uint8, torch.int64)
    assert data.is_contiguous(memory_format=torch.channels_last)


def test_cache_keeps_what_fits(monkeypatch):
    reads = []

    def counting(item):
        reads.append(item.name)
        return read_item(item)

    monkeypatch.setattr("repro.data.stream.read_item", counting)
    in_order = [f"img{i}" for i in range(6)]
    run = "train_noshuffle_nomirror"
    cached = take(stream(run), 9)
    assert reads == in_order
    reads.clear()
    fresh = take(stream(run, cache=False), 9)
    assert reads == in_order * 3
    reads.clear()
    monkeypatch.setattr(
        "repro.data.stream.CACHE_BYTES", BATCHES["decoded/img0"].nbytes + BATCHES["decoded/lab0"].nbytes
    )
    take(stream(run), 9)
    assert reads == [*in_order, *in_order[1:], *in_order[1:]]
    for pair in zip(cached, fresh, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_passing_over_thousands_of_batches_is_quick_and_right():
    def plans(start):
        return plan_batches(1058, 30, 4, CaffeRNG(1), CaffeRNG(2), start)

    expected = next(itertools.islice(plans(0), 600, None))
    began = time.perf_counter()
    got = next(plans(600))
    assert time.perf_counter() - began < 1
    assert got.indices == expected.indices
    np.testing.assert_array_equal(got.draws, expected.draws)


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (2, 3), (3, 4), (4, 4)])
def test_ranks_share_every_batch(world_size, batch_size):
    own = [
        take(stream("train_scale", batch_size=batch_size, rank=n, world_size=world_size), 4) for n in range(world_size)
    ]
    assert all(
        len(batch[0]) in (batch_size // world_size, -(-batch_size // world_size)) for part in own for batch in part
    )
    joined = [[torch.cat(parts) for parts in zip(*batch, strict=True)] for batch in zip(*own, strict=True)]
    for batch, whole in zip(joined, take(stream("train_scale", batch_size=batch_size), 4), strict=True):
        assert all(torch.equal(part, expected) for part, expected in zip(batch, whole, strict=True))


def truncated(folder):
    """Returns an item whose image ends too early."""
    path = folder / "broken.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    return Item("broken", path, GOLDEN / "lab0.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named_in_one_line(tmp_path, workers):
    item = truncated(tmp_path)
    batches = iter(stream(items=[*items(), item], workers=workers))
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(item.image))}: image must decode; got OSError [^\n]*; replace the file$"
    ):
        take(batches, 4)
    del batches
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanished_is_named_in_one_line(tmp_path, workers):
    gone = Item("gone", tmp_path / "gone.jpg", GOLDEN / "lab0.png")
    with pytest.raises(
        FileNotFoundError, match=r"gone.jpg: image must exist; got no such file; complete the data folder$"
    ):
        next(iter(stream(items=[gone], workers=workers)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 0},
            "batch_size must be at least 1, start_batch and workers at least 0; got 0, 0, 0; correct them",
        ),
        (
            {"start_batch": -1},
            "batch_size must be at least 1, start_batch and workers at least 0; got 2, -1, 0; correct them",
        ),
        (
            {"workers": -2},
            "batch_size must be at least 1, start_batch and workers at least 0; got 2, 0, -2; correct them",
        ),
        (
            {"world_size": 3},
            "world_size must be at most batch_size 2 and above rank; got world_size 3, rank 0; change batch_size or the number of processes",
        ),
        (
            {"world_size": 2, "rank": 2},
            "world_size must be at most batch_size 2 and above rank; got world_size 2, rank 2; change batch_size or the number of processes",
        ),
        (
            {"items": [Item("a", Path("a.jpg"), None)]},
            "training items must have labels; got 1 without, the first a; train on a list with labels",
        ),
    ],
)
def test_arguments_outside_their_range(changes, message):
    with pytest.raises(ValueError, match=f"^ImageSegData: {re.escape(message)}$"):
        stream(**changes)


def test_no_items():
    with pytest.raises(
        ValueError, match=r"^ImageSegData: items must not be empty; got none; give a list that names images$"
    ):
        ImageSegData(
            [],
            batch_size=1,
            crop_size=9,
            mean_bgr=MEAN_BGR,
            mirror=False,
            scale_factors=(),
            shuffle=False,
            ignore_label=255,
            seed=0,
        )


@pytest.mark.parametrize(("crop", "side"), [(65, 97), (97, 97), (129, 129)])
def test_test_items_are_padded_to_a_square(crop, side):
    item = items()[5]  # 71 x 97 pixels.
    data, label, size = read_test_item(item, MEAN_BGR, crop)
    assert size == (71, 97)
    assert data.shape == (1, 3, side, side)
    assert (data.dtype, label.dtype) == (torch.float32, torch.uint8)
    mean = BATCHES["mean_bgr"]
    np.testing.assert_array_equal(
        data[0, :, :71, :97].permute(1, 2, 0), BATCHES["decoded/img5"].astype(np.float32) - mean
    )
    assert not data[..., 71:, :].any()
    assert not data[..., 97:].any()
    np.testing.assert_array_equal(label, BATCHES["decoded/lab5"])


def test_test_square_grows_to_the_next_8k_plus_1(tmp_path):
    for longest, side in [(17, 17), (18, 25), (25, 25), (26, 33)]:
        path = tmp_path / f"{longest}.png"
        Image.new("RGB", (longest, 3)).save(path)
        data, label, size = read_test_item(Item("x", path, None), MEAN_BGR, 9)
        assert data.shape == (1, 3, side, side)
        assert label is None
        assert size == (3, longest)


def test_test_item_at_the_crop_equals_caffes_padding():
    # Caffe's TEST batches pad images 0 (50 x 70, cut) and 4 (40 x 43, whole); the latter is what read_test_item gives.
    data, _, _ = read_test_item(items()[4], MEAN_BGR, 65)
    np.testing.assert_array_equal(data[0], BATCHES["test/data"][2, 0])
