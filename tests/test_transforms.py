"""Reading, resizing and ImageSegData's transform, against OpenCV's and Caffe's own output."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.data.transforms import (
    Placement,
    TransformationParameter,
    _fixed_point,
    _linear_taps,
    place,
    read_image_bgr,
    read_label,
    resize_image,
    resize_label,
    transform,
)

GOLDEN = Path(__file__).parent / "golden" / "data_stream"
BATCHES = np.load(GOLDEN / "batches.npz")
MEAN_BGR = (104.008, 116.669, 122.675)


def parameter(crop_size=4, mirror=False, scale_factors=(), mean_bgr=MEAN_BGR, ignore_label=255):
    return TransformationParameter(crop_size, mean_bgr, mirror, scale_factors, ignore_label)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("index", range(6))
def test_reading_equals_opencv(index):
    np.testing.assert_array_equal(read_image_bgr(next(GOLDEN.glob(f"img{index}.*"))), BATCHES[f"decoded/img{index}"])
    np.testing.assert_array_equal(read_label(GOLDEN / f"lab{index}.png"), BATCHES[f"decoded/lab{index}"])


def test_image_modes(tmp_path, rng):
    rgb = rng.integers(0, 256, (3, 4, 3), np.uint8)
    alpha = rng.integers(0, 256, (3, 4, 1), np.uint8)
    for name, pixels, expected in [
        ("rgb", rgb, rgb),
        ("grey", rgb[..., 0], rgb[..., :1].repeat(3, 2)),
        ("rgba", np.concatenate([rgb, alpha], 2), rgb),
        ("grey_alpha", np.concatenate([rgb[..., :1], alpha], 2), rgb[..., :1].repeat(3, 2)),
    ]:
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        np.testing.assert_array_equal(read_image_bgr(path), expected[..., ::-1], err_msg=name)


def test_palette_and_bilevel_images(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([1, 2, 3, 40, 50, 60, 7, 8, 9])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    assert read_image_bgr(tmp_path / "palette.png").tolist() == [[[3, 2, 1], [60, 50, 40], [9, 8, 7]]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bilevel.png")
    assert read_image_bgr(tmp_path / "bilevel.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_cmyk_by_opencvs_formula(tmp_path):
    # Pillow stores inks so that 255 - ink is what OpenCV's decoder sees: it then computes k - ((255 - c) * k >> 8).
    ink = np.array([[[0, 100, 255, 55]]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(ink, "CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    with Image.open(tmp_path / "cmyk.jpg") as saved:
        seen = 255 - np.asarray(saved)[0, 0].astype(int)
    red, green, blue = (seen[3] - ((255 - channel) * seen[3] >> 8) for channel in seen[:3])
    assert read_image_bgr(tmp_path / "cmyk.jpg")[0, 0].tolist() == [blue, green, red]
    assert red == 200
    assert abs(green - 122) <= 2
    assert blue <= 2


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image_bgr(tmp_path / "turned.jpg").shape == (4, 6, 3)


def test_palette_label_is_read_as_indices(tmp_path):
    ids = np.array([[0, 1, 20, 255]], np.uint8)
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(tmp_path / "label.png")
    with Image.open(tmp_path / "label.png") as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), ids)


def broken_file(tmp_path, kind):
    """Writes a file that cannot be used, and returns its path."""
    path = tmp_path / f"{kind}.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    if kind == "truncated jpeg":
        path = tmp_path / "truncated.jpg"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "truncated png":
        Image.fromarray(noise[..., 0]).save(path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not found\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "rgb":
        Image.fromarray(noise).save(path)
    elif kind == "16 bit":
        Image.fromarray(noise[..., 0].astype(np.uint16)).save(path)
    elif kind == "1 bit":
        Image.fromarray(noise[..., 0] > 99).save(path)
    return path


NO_FORMAT = r"none of JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM"


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        ("truncated jpeg", r"OSError [^\n]+"),
        ("truncated png", r"\w+ [^\n]+"),
        ("empty", NO_FORMAT),
        ("text", NO_FORMAT),
    ],
)
@pytest.mark.parametrize(("read", "what"), [(read_image_bgr, "image"), (read_label, "label")])
def test_files_that_do_not_decode(tmp_path, kind, got, read, what):
    path = broken_file(tmp_path, kind)
    told = rf"{what} must decode; got {got}; replace the file"
    if (kind, what) == ("truncated jpeg", "label"):
        told = r"label must be a PNG or TIFF; got JPEG; save class ids as 8-bit PNG"
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {told}$"):
        read(path)


@pytest.mark.parametrize(("read", "what"), [(read_image_bgr, "image"), (read_label, "label")])
def test_missing_file(tmp_path, read, what):
    with pytest.raises(
        FileNotFoundError, match=rf"none.png: {what} must exist; got no such file; complete the data folder$"
    ):
        read(tmp_path / "none.png")


def write_grey_png(path, ids, bits):
    """Writes a grey PNG of so many bits a pixel, which Pillow cannot write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    each = np.unpackbits(ids.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    rows = np.packbits(each.reshape(len(ids), -1), axis=1)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grey_labels_of_few_bits_are_read_as_stored(tmp_path, bits):
    ids = np.arange(2**bits, dtype=np.uint8)[:21].repeat(3).reshape(3, -1, order="F")
    write_grey_png(tmp_path / "a.png", ids, bits)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)
    # As an image they are stretched, as OpenCV does it.
    stretched = read_image_bgr(tmp_path / "a.png")[..., 0]
    np.testing.assert_array_equal(stretched, ids * (255 // (2**bits - 1)))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.jpg", "label must be a PNG or TIFF; got JPEG; save class ids as 8-bit PNG"),
        ("a.bmp", "label must be a PNG or TIFF; got BMP; save class ids as 8-bit PNG"),
        ("a.pgm", "label must be a PNG or TIFF; got PPM; save class ids as 8-bit PNG"),
    ],
)
def test_labels_of_formats_that_lose_or_stretch_values(tmp_path, name, told):
    Image.fromarray(np.array([[0, 1, 20]], np.uint8)).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / name))}: {told}$"):
        read_label(tmp_path / name)


def test_inverted_tiff_label(tmp_path):
    ids = np.array([[0, 1, 20]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), ids)
    Image.fromarray(ids).save(tmp_path / "b.tif", tiffinfo={262: 0})  # WhiteIsZero
    with pytest.raises(ValueError, match=r"got mode L stored as L;I; save class ids as 8-bit PNG$"):
        read_label(tmp_path / "b.tif")


@pytest.mark.parametrize(("kind", "mode"), [("rgb", "RGB"), ("16 bit", "I;16"), ("1 bit", "1")])
def test_labels_of_another_kind(tmp_path, kind, mode):
    path = broken_file(tmp_path, kind)
    with pytest.raises(
        ValueError,
        match=r"label must have one 8-bit channel \(grey or palette\); got mode "
        + mode
        + "; save class ids as 8-bit PNG$",
    ):
        read_label(path)


def test_16_bit_image(tmp_path):
    path = broken_file(tmp_path, "16 bit")
    with pytest.raises(
        ValueError, match=r"image must have 8-bit grey, colour or palette pixels; got mode I;16; convert it$"
    ):
        read_image_bgr(path)


def test_flipped_bytes_never_escape_as_another_error(tmp_path, rng):
    for suffix in ("jpg", "png"):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        messages = []
        for _ in range(300):
            flipped = whole.copy()
            flipped[rng.integers(0, len(whole), 2)] = rng.integers(0, 256, 2)
            path.write_bytes(flipped.tobytes())
            try:
                read_image_bgr(path)
            except ValueError as error:
                messages.append(str(error))
        assert len(messages) > 20
        assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)


@pytest.mark.parametrize("size", [(110, 82), (366, 274)])
def test_resize_label_divides_in_double_as_opencv_does(size):
    """Sizes at which floor(i * (1 / (new / old))) is not floor(i * (old / new))."""
    old, new = size
    rows = resize_label(np.arange(old)[:, None].astype(np.uint16), (new, 1))[:, 0].tolist()
    assert rows == [min(int(i * (1 / (new / old))), old - 1) for i in range(new)]
    assert rows != [int(i * (old / new)) for i in range(new)]


def test_resize_image_by_hand():
    row = np.array([[0, 100, 200, 40]], np.uint8)[..., None]
    # Doubled: source positions -0.25, 0.25, 0.75, ...; the border pixels are repeated.
    assert resize_image(row, (1, 8))[0, :, 0].tolist() == [0, 25, 75, 125, 175, 160, 80, 40]
    # Halved: positions 0.5 and 2.5, so means of pairs.
    assert resize_image(row, (1, 2))[0, :, 0].tolist() == [50, 120]
    column = row.transpose(1, 0, 2)
    assert resize_image(column, (8, 1))[:, 0, 0].tolist() == [0, 25, 75, 125, 175, 160, 80, 40]
    assert resize_image(column, (2, 1))[:, 0, 0].tolist() == [50, 120]


@pytest.mark.parametrize("size", [(9, 7), (18, 14), (5, 3), (1, 1), (20, 3), (36, 28)])
def test_resize_image_is_near_exact_interpolation(rng, size):
    image = rng.integers(0, 256, (9, 7, 3), np.uint8)
    expected = image.astype(float)
    for axis, (n_in, n_out) in enumerate(zip(image.shape, size, strict=False)):
        position = ((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5).clip(0, n_in - 1)
        lower = np.floor(position).astype(int)
        fraction = (position - lower).reshape([-1 if a == axis else 1 for a in range(3)])
        expected = (
            expected.take(lower, axis) * (1 - fraction) + expected.take((lower + 1).clip(0, n_in - 1), axis) * fraction
        )
    assert np.abs(resize_image(image, size) - expected).max() < 1.2


def test_weights_are_those_of_float32_positions():
    # OpenCV keeps the source position in float32: exactly, position 76.9177 of output 69 would weigh the upper pixel with round(1879.49).
    index, fraction = (values[69] for values in _linear_taps(88, 79, 0, 79))
    exact = 69.5 * 88 / 79 - 0.5
    assert (index, round((exact - index) * 2048)) == (76, 1879)
    assert [int(weight) for weight in _fixed_point(fraction)] == [168, 1880]


def test_resize_label_by_hand():
    label = np.array([[1, 2, 3, 4, 5]], np.uint8)
    assert resize_label(label, (1, 3))[0].tolist() == [1, 2, 4]  # floor(0, 1.67, 3.33)
    assert resize_label(label, (2, 8)).tolist() == [[1, 1, 2, 2, 3, 4, 4, 5]] * 2


def test_windows_are_parts_of_the_whole(rng):
    image = rng.integers(0, 256, (23, 31, 3), np.uint8)
    for size in [(17, 40), (32, 21), (46, 62)]:
        for _ in range(20):
            top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
            window = (slice(top, top + 12), slice(left, left + 9))
            np.testing.assert_array_equal(resize_image(image, size, window), resize_image(image, size)[window])
            np.testing.assert_array_equal(
                resize_label(image[..., 0], size, window), resize_label(image[..., 0], size)[window]
            )


def test_place_reads_draws_in_caffes_order():
    params = parameter(crop_size=4, mirror=True, scale_factors=(0.5, 2.0))
    assert params.draws_per_item("TRAIN") == 4
    assert place((6, 8), params, [7, 5, 19, 27], "TRAIN") == Placement(True, 1, 19 % 9, 27 % 13, 12, 16)
    assert place((6, 8), params, [4, 4, 19, 27], "TRAIN") == Placement(False, 0, 0, 27 % 1, 3, 4)


def test_place_without_mirror_and_scale_takes_two_draws():
    params = parameter(crop_size=4)
    assert params.draws_per_item("TRAIN") == 2
    assert place((6, 8), params, [2**32 - 1, 4], "TRAIN") == Placement(False, -1, (2**32 - 1) % 3, 4, 6, 8)


def test_place_at_test_is_central():
    assert parameter().draws_per_item("TEST") == 0
    assert place((7, 9), parameter(crop_size=4), [], "TEST") == Placement(False, -1, 1, 2, 7, 9)


def test_scaled_size_is_truncated_in_float32():
    # 0.6f is a little above 0.6, but its product with 5 rounds to 3 exactly in float32; 0.7f * 10 rounds to 7, in doubles it is below.
    assert place((5, 10), parameter(scale_factors=(0.6,)), [0, 0, 0], "TRAIN")[4:] == (3, 6)
    assert place((10, 10), parameter(scale_factors=(0.7,)), [0, 0, 0], "TRAIN")[4:] == (7, 7)
    assert int(10 * float(np.float32(0.7))) == 6


def test_transform_by_hand():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, 2)
    label = image[..., 0] + np.uint8(10)
    params = parameter(crop_size=3, mirror=True, mean_bgr=(1.0, 2.0, 0.5), ignore_label=77)
    data, cropped = transform(image, label, params, [1, 0, 0], "TRAIN")
    assert data.dtype == np.float32
    assert cropped.dtype == np.uint8
    assert data.tolist() == [
        [[1, 0, -1], [4, 3, 2], [0, 0, 0]],
        [[0, -1, -2], [3, 2, 1], [0, 0, 0]],
        [[1.5, 0.5, -0.5], [4.5, 3.5, 2.5], [0, 0, 0]],
    ]
    assert cropped.tolist() == [[12, 11, 10], [15, 14, 13], [77, 77, 77]]


def test_padding_is_on_the_left_after_mirroring():
    label = np.array([[1, 2]], np.uint8)
    _, cropped = transform(
        label[..., None].repeat(3, 2), label, parameter(crop_size=3, mirror=True), [1, 0, 0], "TRAIN"
    )
    assert cropped[0].tolist() == [255, 2, 1]


def test_test_phase_equals_caffe():
    params = TransformationParameter(65, tuple(BATCHES["mean_bgr"].tolist()), False)
    for batch, items in enumerate(BATCHES["test/items"]):
        for n, item in enumerate(items):
            label = BATCHES[f"decoded/lab{item[0]}"]
            assert place(label.shape, params, [], "TEST")[2:] == tuple(item[3:])
            data, cropped = transform(BATCHES[f"decoded/img{item[0]}"], label, params, [], "TEST")
            np.testing.assert_array_equal(data, BATCHES["test/data"][batch, n])
            np.testing.assert_array_equal(cropped, BATCHES["test/label"][batch, n, 0])


def test_transform_of_a_wrong_pair():
    with pytest.raises(
        ValueError, match=r"^transform: label must have its image's size \(4, 5\); got \(5, 4\); pair the right files$"
    ):
        transform(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8), parameter(), [0, 0], "TRAIN")


def test_scale_that_leaves_nothing():
    with pytest.raises(
        ValueError,
        match=r"^scale_factors: must leave at least one pixel; got 0.125 on \(7, 9\); leave out this factor$",
    ):
        place((7, 9), parameter(scale_factors=(0.125,)), [0, 0, 0], "TRAIN")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 0}, "crop_size: must be at least 1; got 0; give the crop's side in pixels"),
        (
            {"mean_bgr": (1.0, 2.0)},
            "mean_bgr: must be three values, or one for grey; got (1.0, 2.0); give blue, green, red",
        ),
        (
            {"scale_factors": (1.0, 0.0)},
            "scale_factors: must be positive and finite; got (1.0, 0.0); leave out what is not",
        ),
    ],
)
def test_settings_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parameter(**settings)
