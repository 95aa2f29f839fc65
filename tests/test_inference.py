"""repro.load: a network as a library, from a caffemodel or a run's folder."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import main, run_command

import repro
from repro.data.lists import Item
from repro.device import Compute
from repro.evaluate.labels import label_maps
from repro.models import build
from repro.models.weights import save_caffemodel
from repro.protocol import load_protocol
from repro.visualize.photos import read_photo

ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (30, 41, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run of tiny.PROTOCOL."""
    folder = tmp_path_factory.mktemp("ran")
    assert main(run_command(folder)) == 0
    return folder


@pytest.fixture
def model(ran):
    return repro.load(ran / "out" / "tiny" / "attention3-extra-seed1", device="cpu")


def full_width_file(path, table, row):
    """Writes a thin network under a full-width row's layer names: enough to tell the row."""
    settings = load_protocol(table).row(row).settings
    network = build(settings["model"] | {"width": 1 / 64}, len(settings["data"]["class_names"]), seed=1)
    save_caffemodel(network, path)
    return path


def test_a_runs_network_labels_as_its_test_does(ran, model):
    assert model.class_names == ["background", "box", "ball"]
    assert model.scales == (1, 0.75, 0.5)
    image = ran / "data" / "JPEGImages" / "val0.jpg"
    seen = model.predict(image)
    ((_, expected, _),) = next(
        label_maps(model.network, [Item("a", image, None)], model.settings, Compute(torch.device("cpu")))
    )
    assert np.array_equal(seen.labels, expected.numpy())
    assert seen.labels.dtype == np.uint8
    assert (seen.probabilities.argmax(0) == seen.labels).mean() > 0.999
    np.testing.assert_allclose(seen.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(seen.weights.sum(0), 1, atol=1e-5)
    assert seen.probabilities.shape[1:] == seen.weights.shape[1:] == seen.labels.shape == (36, 30)


def test_paths_pillow_images_and_arrays_are_the_same(model, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    given = (PIXELS, Image.fromarray(PIXELS), tmp_path / "a.png", str(tmp_path / "a.png"))
    first, *others = (model.predict(image) for image in given)
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_any_size(model):
    for size in ((1, 1), (7, 100), (120, 9)):
        assert model.predict(np.zeros((*size, 3), np.uint8)).labels.shape == size


def test_a_network_without_attention_has_no_weights(ran):
    assert repro.load(ran / "out" / "tiny" / "max2-seed1", device="cpu").predict(PIXELS).weights is None


def test_a_caffemodel_of_a_named_row(ran, model, tmp_path):
    path = tmp_path / "a.caffemodel"
    save_caffemodel(model.network, path)
    again = repro.load(path, row=f"{ran}/tiny.toml/attention3-extra", device="cpu")
    assert np.array_equal(again.predict(PIXELS).probabilities, model.predict(PIXELS).probabilities)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("table1", "attention3"),
        ("table3", "baseline"),
        ("table6", "attention2"),
        ("text", "msc-person-part"),
        ("table4", "msc-largefov"),
        ("table4", "attention-dt-coco"),
    ],
)
def test_the_row_that_a_caffemodel_fits(table, row, tmp_path):
    from repro.inference import _row_that_fits

    found = _row_that_fits(full_width_file(tmp_path / "a.caffemodel", table, row))
    expected = load_protocol(table).row(row).settings
    assert found.settings["data"]["class_names"] == expected["data"]["class_names"]
    assert found.settings["model"]["scales"] == expected["model"]["scales"]
    assert found.settings["model"]["merge"] == expected["model"]["merge"]
    assert found.settings["model"].keys() == expected["model"].keys()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4)), "predict: an array must be (H, W, 3) uint8 RGB; got float64 of shape (4, 4); convert it"),
        (
            np.zeros((0, 4, 3), np.uint8),
            "predict: an array must be (H, W, 3) uint8 RGB; got uint8 of shape (0, 4, 3); convert it",
        ),
    ],
)
def test_what_is_no_image(model, image, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.predict(image)


def test_what_cannot_be_loaded(ran, model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be the folder of a recorded row; got no record\.json in it; "):
        repro.load(ran / "out", device="cpu")
    path = tmp_path / "a.caffemodel"
    save_caffemodel(model.network, path)  # three classes: no table of the paper
    with pytest.raises(
        ValueError, match=r"must fit a row of the paper's tables; got 3 classes and 3 scales; name its row"
    ):
        repro.load(path, device="cpu")


def test_readmes_example_runs(ran, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("photo.jpg")
    names = {}
    exec(
        code.replace("runs/table1/attention3-extra-seed1", str(ran / "out" / "tiny" / "attention3-extra-seed1")), names
    )
    assert read_photo(Path("photo.jpg")).shape[:2] == names["seen"].labels.shape


def test_torch_hub_loads_from_a_checkout(ran, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = str(ran / "out" / "tiny" / "attention3-extra-seed1")
    model = torch.hub.load(str(ROOT), "attention_to_scale", folder, source="local", device="cpu")
    assert model.predict(PIXELS).labels.shape == (30, 41)
