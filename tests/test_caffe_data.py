"""ImageSegData and ImageData of prototxts: Caffe's batches, every parameter of the fork, and one line for what cannot be used."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_layers import data_layer
from PIL import Image

from caffe_weights.files.solverstate import write_binaryproto
from repro.data.caffe_rng import CaffeRNG
from repro.data.transforms import resize_image

GOLDEN = Path(__file__).parent / "golden" / "data_stream"
BATCHES = np.load(GOLDEN / "batches.npz")


@pytest.mark.parametrize("run", ["train", "train_scale", "train_noshuffle_nomirror", "test"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_caffes_own_layers_give_caffes_batches(run, dtype):
    text = (GOLDEN / f"{run}.prototxt").read_text()
    phase = "TEST" if run == "test" else "TRAIN"
    layer, shapes = data_layer(text, GOLDEN, phase, int(BATCHES[f"{run}/seed"]), dtype)
    assert shapes == [(2, 3, 65, 65), (2, 1, 65, 65), (2, 1, 1, 2)]
    for data, label, dim in zip(*(BATCHES[f"{run}/{top}"] for top in ("data", "label", "dim")), strict=True):
        tops = layer.next()
        assert all(top.dtype == dtype for top in tops)
        np.testing.assert_array_equal(tops[0].to(torch.float32), data)
        np.testing.assert_array_equal(tops[1], label)
        np.testing.assert_array_equal(tops[2], dim)
    assert layer.position == len(BATCHES[f"{run}/data"])


def test_the_layer_draws_from_the_global_generator_what_caffe_draws():
    layer, _ = data_layer((GOLDEN / "train.prototxt").read_text(), GOLDEN, seed=5)
    after = CaffeRNG(5)
    after.skip(4)
    assert layer.context.rng.draw(1) == after.draw(1)


def test_seeking_finds_every_batch():
    text = (GOLDEN / "train_scale.prototxt").read_text()
    layer, _ = data_layer(text, GOLDEN, seed=int(BATCHES["train_scale/seed"]))
    for position in (7, 2, 0, 11):
        layer.seek(position)
        np.testing.assert_array_equal(layer.next()[0], BATCHES["train_scale/data"][position])
        assert layer.position == position + 1


def picture(path: Path, size, seed=0, mode="RGB"):
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels[..., ::-1] if mode == "RGB" else pixels


@pytest.fixture
def folder(tmp_path):
    """Three pictures of one size with labels, and their list."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.png", (6, 8), i)
        picture(tmp_path / "images" / f"l{i}.png", (6, 8), 10 + i, "L")
    (tmp_path / "list.txt").write_text("".join(f"/{i}.png /l{i}.png\n" for i in range(3)))
    (tmp_path / "classes.txt").write_text("".join(f"/{i}.png {i * 2}\n" for i in range(3)))
    return tmp_path


def seg(params: str, transform: str = "", tops: int = 2, kind: str = "ImageSegData") -> str:
    names = " ".join(f'top: "{name}"' for name in ("data", "label", "dim")[:tops])
    return (
        f'layer {{ name: "data" type: "{kind}" {names}\n'
        f'image_data_param {{ root_folder: "images" {params} }} transform_param {{ {transform} }} }}'
    )


PIXEL = 'source: "list.txt" label_type: PIXEL '


def pixels(folder, name):
    return np.asarray(Image.open(folder / "images" / name)).astype(np.float32)


def test_without_crop_images_stay_whole(folder):
    layer, shapes = data_layer(seg(PIXEL + "batch_size: 2", "mean_value: 10 scale: 0.5", 3), folder, "TEST")
    assert shapes == [(2, 3, 6, 8), (2, 1, 6, 8), (2, 1, 1, 2)]
    data, label, dim = layer.next()
    np.testing.assert_array_equal(data[1], (pixels(folder, "1.png")[..., ::-1].transpose(2, 0, 1) - 10) * 0.5)
    np.testing.assert_array_equal(label[1, 0], pixels(folder, "l1.png"))
    assert dim.flatten().tolist() == [6, 8, 6, 8]


def test_a_crop_need_not_be_square(folder):
    text = seg(PIXEL, "mirror: true crop_height: 4 crop_width: 10 mean_value: 1 mean_value: 2 mean_value: 3")
    layer, shapes = data_layer(text, folder)
    assert shapes == [(1, 3, 4, 10), (1, 1, 4, 10)]
    data, label = layer.next()
    padding = label[0, 0] == 255
    assert padding.sum() >= 4 * 2
    assert (data[0][:, padding.all(0)[None].expand(4, 10)] == 0).all()


@pytest.mark.parametrize(("kind", "values"), [("IMAGE", {0, 2, 4}), ("NONE", {7})])
def test_labels_of_whole_images(kind, values, folder):
    text = seg(f'source: "classes.txt" label_type: {kind} ignore_label: 7 batch_size: 3')
    layer, _ = data_layer(text, folder, "TEST")
    assert {int(v) for v in layer.next()[1].unique()} == values


@pytest.mark.parametrize(
    ("params", "values"),
    [
        ('source: "list.txt"', "PIXEL"),  # label pictures
        ('source: "classes.txt"', {0, 2, 4}),  # numbers
        ('source: "list.txt" has_label: false', {255}),
        ('source: "single.txt" has_label: false', {255}),
        ('source: "list.txt" has_label: false label_type: PIXEL', "PIXEL"),
    ],
)
def test_files_older_than_label_type(params, values, folder):
    (folder / "single.txt").write_text("/0.png\n/1.png\n/2.png\n")
    said = []
    layer, _ = data_layer(seg(params + " batch_size: 3"), folder, "TEST", log=said.append)
    label = layer.next()[1]
    if values == "PIXEL":
        np.testing.assert_array_equal(label[:, 0], [pixels(folder, f"l{i}.png") for i in range(3)])
    else:
        assert {int(v) for v in label.unique()} == values
    guessed = ["data: without label_type the second column, /l0.png, is read as PIXEL"]
    assert said == (guessed if params == 'source: "list.txt"' else [])


def test_new_sizes_are_bilinear_for_images_and_for_labels(folder):
    layer, shapes = data_layer(seg(PIXEL + "new_height: 3 new_width: 5", "", 3), folder, "TEST")
    assert shapes == [(1, 3, 3, 5), (1, 1, 3, 5), (1, 1, 1, 2)]
    data, label, dim = layer.next()
    image = np.asarray(Image.open(folder / "images" / "0.png"))[..., ::-1]
    np.testing.assert_array_equal(data[0], resize_image(image, (3, 5)).transpose(2, 0, 1))
    grey = np.asarray(Image.open(folder / "images" / "l0.png"))[..., None]
    np.testing.assert_array_equal(label[0, 0], resize_image(grey, (3, 5))[..., 0])
    assert dim.flatten().tolist() == [3, 5]


def test_grey_images_have_one_channel(folder):
    text = seg('source: "grey.txt" label_type: PIXEL is_color: false', "mean_value: 100")
    (folder / "grey.txt").write_text("/l0.png /l1.png\n/0.png /l1.png\n")
    layer, shapes = data_layer(text, folder, "TEST")
    assert shapes[0] == (1, 1, 6, 8)
    np.testing.assert_array_equal(layer.next()[0][0, 0], pixels(folder, "l0.png") - 100)
    colour = pixels(folder, "0.png")
    weighted = colour @ np.array([0.299, 0.587, 0.114], np.float32)
    assert np.abs(layer.next()[0][0, 0].numpy() + 100 - weighted).max() <= 0.51  # one rounding


def test_what_caffe_ignores_is_told(folder):
    said = []
    _, shapes = data_layer(seg(PIXEL + "crop_size: 4 mirror: true"), folder, log=said.append)
    assert shapes[0] == (1, 3, 6, 8)
    text = seg('source: "classes.txt" scale: 2', kind="ImageData")
    layer, _ = data_layer(text, folder, log=said.append)
    np.testing.assert_array_equal(layer.next()[0][0], pixels(folder, "0.png")[..., ::-1].transpose(2, 0, 1))
    end = "of image_data_param have no effect, as in Caffe; use transform_param"
    assert said == [f"data: crop_size, mirror {end}", f"data: scale {end}"]


def test_rand_skip_starts_within_the_list(folder):
    text = seg(PIXEL + "rand_skip: 3")
    skips = set()
    for seed in range(6):
        layer, _ = data_layer(text, folder, "TEST", seed)
        skip = int(CaffeRNG(seed).draw(1)[0]) % 3
        np.testing.assert_array_equal(layer.next()[1][0, 0], pixels(folder, f"l{skip}.png"))
        skips.add(skip)
    assert len(skips) > 1


def test_image_data_gives_classes_and_crops(folder):
    text = seg('source: "classes.txt" batch_size: 3', "crop_size: 4", kind="ImageData")
    layer, shapes = data_layer(text, folder, "TEST")
    assert shapes == [(3, 3, 4, 4), (3,)]
    data, label = layer.next()
    assert label.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(data[2], pixels(folder, "2.png")[1:5, 2:6, ::-1].transpose(2, 0, 1))


def test_image_data_mirrors_and_crops_at_random_as_caffe_draws(folder):
    text = seg('source: "classes.txt"', "crop_size: 4 mirror: true mean_value: 5", kind="ImageData")
    layer, _ = data_layer(text, folder, seed=3)
    drawn = CaffeRNG(3)
    drawn.skip(1)
    transformer = CaffeRNG(int(drawn.draw(1)[0]))
    for i in range(3):
        mirror, h, w = transformer.draw(3).tolist()
        h, w = h % 3, w % 5
        crop = pixels(folder, f"{i}.png")[h : h + 4, w : w + 4, ::-1]
        crop = crop[:, ::-1] if mirror % 2 else crop
        np.testing.assert_array_equal(layer.next()[0][0], crop.transpose(2, 0, 1) - 5)


def test_image_data_subtracts_a_mean_image_before_it_scales(folder):
    mean = np.random.RandomState(4).rand(1, 3, 6, 8).astype(np.float32) * 100
    write_binaryproto(folder / "mean.binaryproto", mean)
    text = seg('source: "classes.txt"', 'mean_file: "mean.binaryproto" scale: 0.25 crop_size: 4', kind="ImageData")
    layer, _ = data_layer(text, folder, "TEST")
    image = pixels(folder, "0.png")[..., ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(layer.next()[0][0], (image - mean[0])[:, 1:5, 2:6] * np.float32(0.25))


REFUSED = {
    seg(PIXEL + "batch_size: 0"): "batch_size must be at least 1; got 0",
    seg(PIXEL + "new_height: 3"): "new_height and new_width must be given together; got 3 and 0",
    seg(
        PIXEL + "new_height: 100000 new_width: 100000"
    ): "new_height * new_width must be at most 89478485; got 10000000000",
    seg('source: "classes.txt" has_label: false', kind="ImageData"): "has_label of DeepLab v1's ImageData must be left",
    seg(PIXEL + "max_labels: 2"): "max_labels of DeepLab v1's ImageData must be left out; got 2",
    seg("label_type: PIXEL"): "image_data_param must name its list in source; got none",
    seg(PIXEL, "mean_value: 1 mean_value: 2"): "mean_value must be given once or 3 times; got 2 values",
    seg(PIXEL, 'mean_file: "m"'): "mean_file must not be given, as in Caffe; got m; give mean_value",
    seg(
        PIXEL, "crop_height: 4"
    ): "either crop_size or both crop_height and crop_width must be given; got another mixture",
    seg(
        PIXEL, "crop_height: 4 crop_width: 4"
    ): "a random crop or scale must come with mirror or, for training, crop_size",
    seg(
        PIXEL, "mirror: true crop_height: 0 crop_width: 4"
    ): "transform_param must be usable; got crop_size: must be at least 1",
    seg(PIXEL, "mirror: true scale_factors: 0"): "transform_param must be usable; got scale_factors: must be positive",
    seg(PIXEL + "ignore_label: 256"): "ignore_label must lie in 0 .. 255; got 256",
    seg(PIXEL + "rand_skip: 4000000000"): "rand_skip must leave one of the 3 images",
    seg('source: "none.txt"'): "list must exist; got no such file",
    seg(
        'source: "missing.txt" label_type: PIXEL'
    ): "missing.png must exist; got no such file; complete the data folder",
    seg('source: "list.txt" label_type: IMAGE'): "an image's label must be a whole number; got '/l0.png'",
    seg('source: "outside.txt" label_type: NONE'): "a picture must lie in the root_folder images; got '/../list.txt'",
    seg('source: "single.txt" label_type: PIXEL'): "a line must name an image and its label; got one column",
    seg(
        'source: "single.txt"', kind="ImageData"
    ): "a line must read 'image label', the label a whole number; got '/0.png'",
    seg('source: "classes.txt"', 'mean_file: "list.txt"', kind="ImageData"): "list.txt",
    seg(
        'source: "classes.txt"', 'mean_value: 1 mean_file: "m"', kind="ImageData"
    ): "mean_file and mean_value must not be given together",
}


@pytest.mark.parametrize("text", REFUSED)
def test_one_line_for_what_cannot_be_set_up(text, folder):
    (folder / "outside.txt").write_text("/../list.txt\n")
    (folder / "single.txt").write_text("/0.png\n")
    (folder / "missing.txt").write_text("/0.png /missing.png\n")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(REFUSED[text])) as failure:
        data_layer(text, folder)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            seg(PIXEL, "crop_size: 9 mirror: true"),
            "mean_value must be given where an image is smaller than the crop (9, 9)",
        ),
        (
            seg('source: "sizes.txt" label_type: NONE batch_size: 2'),
            "every image must have the first one's size (6, 8)",
        ),
        (
            seg('source: "sizes.txt" label_type: PIXEL'),
            "label must have its image's (height, width) (6, 8); got (7, 9)",
        ),
        (seg('source: "classes.txt"', "crop_size: 9", kind="ImageData"), "images must not be smaller than crop_size 9"),
        (seg('source: "mixed.txt" batch_size: 2', kind="ImageData"), "the images of a batch must have one size"),
        (
            seg('source: "classes.txt"', 'mean_file: "small"', kind="ImageData"),
            "mean_file must have the images' size (6, 8)",
        ),
    ],
)
def test_one_line_for_what_cannot_be_made(text, message, folder):
    picture(folder / "images" / "big.png", (7, 9))
    picture(folder / "images" / "lbig.png", (7, 9), mode="L")
    (folder / "sizes.txt").write_text("/0.png /lbig.png\n/big.png /l0.png\n")
    (folder / "mixed.txt").write_text("/0.png 1\n/big.png 2\n")
    write_binaryproto(folder / "small", np.zeros((1, 3, 2, 2), np.float32))
    layer, _ = data_layer(text, folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.next()
