"""The commands of `python -m caffe_weights`, run in this process; and what they stand on: statistics, shrink-vgg, sources.toml."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import caffe_weights
from caffe_weights import read_caffemodel, write_binaryproto, write_caffemodel
from caffe_weights.__main__ import main
from caffe_weights.deeplab.shrink import shrink_vgg
from caffe_weights.files import checksum
from caffe_weights.files.stats import blob_stats

GOLDEN = Path(__file__).parent / "golden"
THIN = GOLDEN / "weights/thin_iter_4.caffemodel"
W = np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3)


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.caffemodel"
    write_caffemodel(path, {"conv": ("Convolution", [W, W[0, 0, 0]]), "relu": ("ReLU", [])}, "net")
    return path


def test_list(small, capsys):
    assert main(["list", str(small)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["layer", "type", "blob", "shape", "count", "mean", "std"]
    assert lines[1] == ["conv", "Convolution", "0", "2x2x3x3", "36", "17.5", f"{W.std():.6g}"]
    assert lines[2][:5] == ["conv", "Convolution", "1", "3", "3"]
    assert lines[3] == ["relu", "ReLU"]
    assert " ".join(lines[4]) == f"{small}: V2, network 'net', 2 layers, 1 with blobs, 39 parameters"


def test_list_of_a_large_file_leaves_its_values_alone(small, capsys, monkeypatch):
    monkeypatch.setattr("caffe_weights.__main__.STATS_BYTES", 10)
    assert main(["list", str(small)]) == 0
    output = capsys.readouterr().out
    assert "39 parameters (mean and standard deviation: --stats)" in output
    assert "17.5" not in output
    assert output.split()[:5] == ["layer", "type", "blob", "shape", "count"]
    assert "mean" not in output.splitlines()[0]
    assert main(["list", "--stats", str(small)]) == 0
    assert "17.5" in capsys.readouterr().out


def test_list_of_states_and_means(tmp_path, capsys):
    assert main(["list", str(GOLDEN / "weights/thin_iter_4.solverstate")]) == 0
    output = capsys.readouterr().out
    assert "solver state, iter 4, current_step 1, learned_net 'thin_iter_4.caffemodel'" in output
    assert len(output.splitlines()) == 38
    write_binaryproto(tmp_path / "m.binaryproto", W[None, 0])
    assert main(["list", str(tmp_path / "m.binaryproto")]) == 0
    assert "1x2x3x3" in capsys.readouterr().out


def test_nonfinite_values_are_a_warning_with_the_count(tmp_path, capsys):
    bad = W.copy()
    bad[0, 0, 0] = np.nan, np.inf, -np.inf
    path = tmp_path / "bad.caffemodel"
    write_caffemodel(path, {"conv": ("Convolution", [bad])})
    assert main(["list", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"caffe_weights: warning: {path}: 3 values are NaN or infinite\n"
    assert "3 NaN or infinite" in captured.out
    assert main(["convert", str(path), str(tmp_path / "bad.h5")]) == 0
    assert capsys.readouterr().err == f"caffe_weights: warning: {path}: 3 values are NaN or infinite, in conv[0]\n"
    assert read_caffemodel(tmp_path / "bad.h5")["conv"].blobs[0].tobytes() == bad.tobytes()


def test_convert_there_and_back(tmp_path, capsys):
    h5, back = tmp_path / "thin.h5", tmp_path / "thin.caffemodel"
    assert main(["convert", str(THIN), str(h5), "--prototxt", str(GOLDEN / "weights/net.prototxt")]) == 0
    assert main(["convert", str(h5), str(back)]) == 0
    assert main(["diff", str(THIN), str(h5)]) == 0
    assert main(["diff", str(THIN), str(back)]) == 0
    assert capsys.readouterr().out.count("equal: 50 layers, bit for bit") == 2
    with h5py.File(h5) as file:
        assert file["fc6"].attrs["dilation"].tolist() == [12, 12]
        assert file.attrs["source_sha256"].decode() == hashlib.sha256(THIN.read_bytes()).hexdigest()
        assert file.attrs["tool"].decode() == f"caffe_weights {caffe_weights.__version__}"


def test_convert_with_the_wrong_prototxt(small, tmp_path, capsys):
    net = tmp_path / "net.prototxt"
    for param in (
        "num_output: 3 kernel_size: 3",
        "num_output: 2 kernel_size: ${K}",
        "num_output: 2 kernel_h: 3 kernel_w: 1",
    ):
        net.write_text(f'layer {{ name: "conv" type: "Convolution" convolution_param {{ {param} }} }}')
        assert main(["convert", str(small), str(tmp_path / "x.h5"), "--prototxt", str(net), "--define", "K=5"]) == 2
        assert "layer 'conv' must have the model's weight [2, 2, 3, 3]; got num_output" in capsys.readouterr().err
    assert main(["convert", str(small), str(tmp_path / "x.h5"), "--prototxt", str(net), "--define", "K"]) == 2
    assert "--define: must read VAR=VALUE; got 'K'; correct it" in capsys.readouterr().err
    assert not (tmp_path / "x.h5").exists()


def test_convert_renames(small, tmp_path, capsys):
    out = tmp_path / "out.caffemodel"
    assert main(["convert", str(small), str(out), "--rename", "conv=fc8"]) == 0
    assert [layer.name for layer in read_caffemodel(out).layers] == ["fc8", "relu"]
    assert main(["convert", str(small), str(out), "--rename", "fc9=fc8"]) == 2
    assert "rename must name layers of the file; got 'fc9'; choose from conv" in capsys.readouterr().err
    assert main(["convert", str(small), str(out), "--rename", "conv"]) == 2
    assert "--rename: must read OLD=NEW; got 'conv'; correct it" in capsys.readouterr().err


def test_convert_of_partly_shared_layers(tmp_path, capsys):
    """A .caffemodel cannot say which blobs a layer holds; HDF5 can."""
    part, out, same = tmp_path / "part.h5", tmp_path / "out.caffemodel", tmp_path / "same.h5"
    with h5py.File(part, "w") as file:
        file["data/a/1"], file["data/b/0"], file["data/b/1"] = W, W, W[0]
    assert main(["convert", str(part), str(out)]) == 2
    assert "got a part of those of 'a', the others being shared; write HDF5" in capsys.readouterr().err
    assert main(["convert", str(part), str(same)]) == 0
    assert main(["diff", str(part), str(same)]) == 0
    assert main(["list", str(same)]) == 0
    assert [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[-4:-1]] == [
        ["1", "2x2x3x3"],
        ["0", "2x2x3x3"],
        ["1", "2x3x3"],
    ]


def test_what_a_terminal_cannot_show_is_escaped(tmp_path):
    path = tmp_path / "mod\u00e8le.caffemodel"
    write_caffemodel(path, {"couche\u00e9": ("X", [W])})
    run = subprocess.run(
        [sys.executable, "-m", "caffe_weights", "list", str(path)],
        capture_output=True,
        cwd=Path(caffe_weights.__file__).parents[1],
        env=dict(os.environ, PYTHONIOENCODING="ascii"),
        check=True,
    )
    assert b"couche\\xe9" in run.stdout
    assert b"mod\\xe8le.caffemodel: V2" in run.stdout


def test_diff(small, tmp_path, capsys):
    other = tmp_path / "other.caffemodel"
    changed = W.copy()
    changed[1, 1, 2, 2] += 0.5
    write_caffemodel(other, {"conv": ("Convolution", [changed, W[0, 0, :2]]), "new": ("X", [W])})
    assert main(["diff", str(small), str(other)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "conv[0]: 1 of 36 values differ, by at most 0.5",
        "conv[1]: [3] float32 against [2, 3] float32",
        f"new: only in {other}",
    ]
    write_caffemodel(other, {"conv": ("Convolution", [W])})
    assert main(["diff", str(small), str(other)]) == 1
    assert capsys.readouterr().out == "conv: blobs 0 1 against 0\n"


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["list", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err == f"caffe_weights: {tmp_path}: must be a file; got a directory; name the file itself\n"
    )
    with pytest.raises(ValueError, match="must be a file"):
        main(["--traceback", "list", str(tmp_path)])


def test_as_a_program_into_a_closed_pipe():
    root = Path(caffe_weights.__file__).parents[1]
    run = subprocess.run(
        f"{sys.executable} -m caffe_weights list {THIN} | head -2",
        shell=True,
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    assert run.stdout.split()[:8] == ["layer", "type", "blob", "shape", "count", "mean", "std", "data_input_0_split"]
    assert run.stderr == ""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 7, 65536, 200_001])
def test_stats_agree_with_numpy(dtype, size):
    blob = (np.random.default_rng(size).standard_normal(size) * 0.02 + 3).astype(dtype)
    stats = blob_stats(blob)
    assert stats.mean == pytest.approx(blob.astype(np.float64).mean(), rel=1e-6)
    assert stats.std == pytest.approx(blob.astype(np.float64).std(), rel=1e-5, abs=1e-9)
    assert stats.nonfinite == 0


def test_stats_of_odd_blobs():
    assert blob_stats(np.full(1000, 5.1, np.float32)).std == 0
    assert np.isnan(blob_stats(np.zeros(0, np.float32)).mean)
    huge = blob_stats(np.float32([3e38, -3e38]))
    assert (huge.mean, huge.nonfinite) == (0, 0)
    assert huge.std == pytest.approx(3e38)
    mixed = blob_stats(np.float32([1, np.nan, 3]))
    assert (mixed.mean, mixed.std, mixed.nonfinite) == (2, 1, 1)
    nothing = blob_stats(np.float32([np.nan]))
    assert np.isnan(nothing.mean)
    assert nothing.nonfinite == 1


def test_shrink_takes_every_fourth_filter_and_every_third_tap():
    """Against index arithmetic written out: output o, input channel c, tap (y, x) of fc6 is row 4o, column 49c + 7 * 3y + 3x."""
    names = [f"conv{b}_{i}" for b, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, n + 1)]
    convolutions = [
        caffe_weights.Layer(name, "Convolution", (np.full((1, 1, 1, 1), i, np.float32), np.float32([i])))
        for i, name in enumerate(names)
    ]
    bias = np.arange(4096, dtype=np.float32)
    # Broadcast views: the row number everywhere, or the column number, without 400 MB of memory; reshape copies fc6's columns only.
    fc6_rows, fc7_rows = (np.broadcast_to(bias[:, None], (4096, inputs)) for inputs in (25088, 4096))
    fc6_columns, fc7_columns = (
        np.broadcast_to(np.arange(inputs, dtype=np.float32), (4096, inputs)) for inputs in (25088, 4096)
    )
    o, c, y, x = np.ogrid[:1024, :512, :3, :3]
    o7, i7 = np.ogrid[:1024, :1024]
    for fc6, fc7, expected6, expected7 in (
        (fc6_rows, fc7_rows, 4 * o + 0 * (c + y + x), 4 * o7 + 0 * i7),
        (fc6_columns, fc7_columns, 49 * c + 21 * y + 3 * x + 0 * o, 4 * i7 + 0 * o7),
    ):
        layers = (
            *convolutions,
            *(caffe_weights.Layer(n, "InnerProduct", (w, bias)) for n, w in (("fc6", fc6), ("fc7", fc7))),
        )
        shrunk = {layer.name: layer for layer in shrink_vgg(caffe_weights.Model(Path("vgg"), "vgg", "V1", layers))}
        assert list(shrunk) == [layer.name for layer in layers]
        np.testing.assert_array_equal(shrunk["fc6"].blobs[0], expected6)
        np.testing.assert_array_equal(shrunk["fc7"].blobs[0][:, :, 0, 0], expected7)
        assert shrunk["fc7"].blobs[0].shape == (1024, 1024, 1, 1)
        for name in ("fc6", "fc7"):
            np.testing.assert_array_equal(shrunk[name].blobs[1], np.arange(0, 4096, 4))
        assert [float(shrunk[layer.name].blobs[0].item()) for layer in convolutions] == list(range(13))


def test_shrink_refuses_other_networks(small, tmp_path, capsys):
    assert main(["shrink-vgg", str(THIN), str(tmp_path / "x.caffemodel")]) == 2
    assert (
        "layer 'fc6': must hold [4096, 512, 7, 7] weights and 4096 biases; got [64, 32, 3, 3] and [64]; use VGG-16"
        in capsys.readouterr().err
    )
    assert main(["shrink-vgg", str(small), str(tmp_path / "x.caffemodel")]) == 2
    assert "must have VGG-16's layers; got no conv1_1 " in capsys.readouterr().err
    assert not (tmp_path / "x.caffemodel").exists()


def test_shrink_refuses_layers_without_biases(tmp_path):
    layers = [caffe_weights.Layer(f"conv1_{i}", "Convolution", (W,)) for i in (1, 2)]
    names = [f"conv{b}_{i}" for b in (2, 3, 4, 5) for i in (1, 2, 3)] + ["fc6", "fc7"]
    model = caffe_weights.Model(
        Path("vgg"), "", "V2", (*layers, *(caffe_weights.Layer(n, "X", (W, W[0])) for n in names))
    )
    with pytest.raises(
        ValueError, match=r"layer 'conv1_1': must hold a kernel of four axes and biases; got \[2, 2, 3, 3\]"
    ):
        list(shrink_vgg(model))


def test_sources_are_complete():
    sources = checksum.known_sources()
    assert {"vgg16_20M.caffemodel", "VGG_ILSVRC_16_layers.caffemodel"} <= set(sources)
    for source in sources.values():
        assert source.url
        assert source.licence
        assert source.used_by
        assert source.sha256 is None or len(source.sha256) == 64


def test_shipped_weights_are_the_recorded_ones(capsys):
    for path in sorted(Path(caffe_weights.__file__).with_name("demo").glob("*.caffemodel")):
        assert main(["verify", str(path)]) == 0, capsys.readouterr().err
        assert ": verified: sha256 as recorded" in capsys.readouterr().out


def test_verify(small, tmp_path, capsys, monkeypatch):
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    entry = f'[[source]]\nfile = "known.caffemodel"\nurl = "http://x"\nlicence = "MIT"\nused_by = "a test"\nsize = {small.stat().st_size}\n'
    listing = tmp_path / "sources.toml"
    monkeypatch.setattr(checksum, "SOURCES", listing)
    listing.write_text(entry)
    assert main(["verify", str(small), "--as", "known.caffemodel"]) == 1
    assert (
        f"{small}: not verified: no sha256 of known.caffemodel is recorded, compared is only the size, which is as recorded "
        f"(size {small.stat().st_size}, sha256 {digest})"
    ) in capsys.readouterr().out
    listing.write_text(entry + f'sha256 = "{digest}"\n')
    assert main(["verify", str(small), "--as", "known.caffemodel"]) == 0
    assert ": verified: sha256 as recorded" in capsys.readouterr().out
    assert main(["verify", str(small)]) == 0
    assert f"is known.caffemodel (sha256 {digest})" in capsys.readouterr().out
    assert main(["verify", str(THIN)]) == 2
    assert "must be a known file; got 'thin_iter_4.caffemodel', sha256" in capsys.readouterr().err
    assert main(["verify", str(THIN), "--as", "known.caffemodel"]) == 2
    assert (
        f"the size of known.caffemodel must be {small.stat().st_size}; got 1206250; fetch it again from http://x"
        in capsys.readouterr().err
    )
    listing.write_text(entry.replace("size", "#") + 'sha256 = "00"\n')
    assert main(["verify", str(small), "--as", "known.caffemodel"]) == 2
    assert f"the sha256 of known.caffemodel must be 00; got {digest}; fetch it again" in capsys.readouterr().err
    listing.write_text(entry.replace("size", "#"))
    assert main(["verify", str(small), "--as", "known.caffemodel"]) == 1
    assert ": not verified: no sha256 of known.caffemodel is recorded, compared is nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_half_a_gigabyte(tmp_path):
    """Of a file as large as VGG-16: listing touches no values, and conversion needs less than 1.3 times the file at its peak."""
    path, out = tmp_path / "big.caffemodel", tmp_path / "big.h5"
    write_caffemodel(path, {f"fc{i}": ("InnerProduct", [np.ones((4096, 8448), np.float32)]) for i in range(4)})
    assert path.stat().st_size > 550e6
    # VmHWM is this program's own peak; ru_maxrss would begin with that of the process that started it.
    code = "import sys; from caffe_weights.__main__ import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    peaks = []
    for command in (["list", str(path)], ["convert", str(path), str(out)]):
        run = subprocess.run(
            [sys.executable, "-c", code, *command],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(caffe_weights.__file__).parents[1],
        )
        peaks.append(1024 * int(run.stdout.split("VmHWM:")[1].split()[0]))
    assert peaks[0] < 60e6
    assert peaks[1] < 1.3 * path.stat().st_size
    assert main(["diff", str(path), str(out)]) == 0
