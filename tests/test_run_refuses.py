"""What the program refuses: one line each that names the file or the key, exit code 2, and no record left behind."""

import numpy as np
import pytest
from PIL import Image
from tiny import main, run_command, write_protocol


@pytest.fixture
def tiny(tmp_path):
    return run_command(tmp_path)


@pytest.fixture
def refused(tiny, tmp_path, capsys):
    """Runs a command that must fail: exit code 2, one line, nothing recorded; returns the line."""

    def run(*more, arguments=None):
        capsys.readouterr()
        assert main([*(arguments or tiny), *more]) == 2
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        after = err.splitlines()[err.splitlines().index(errors[0]) + 1 :]
        assert len(errors) == 1
        assert all(line.startswith("  ") for line in after), err  # its notes
        assert out == ""
        assert not list(tmp_path.glob("**/record.json"))
        assert not list(tmp_path.glob("**/*.tmp"))
        return errors[0]

    return run


def break_jpeg(data):
    path = data / "JPEGImages" / "train1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return f"{path}: image must decode"


def resize_label(data):
    Image.new("L", (7, 9)).save(data / "Labels" / "val0.png")
    return f"{data}/Labels/val0.png: label must have its image's (height, width) (36, 30); got (9, 7)"


def wrong_class(data):
    label = np.asarray(Image.open(data / "Labels" / "train2.png")).copy()
    label[9, 9] = 3
    Image.fromarray(label).save(data / "Labels" / "train2.png")
    return f"{data}/Labels/train2.png: class ids must be 0 .. 2 or 255 (ignored); got 3 in 1 pixels"


def empty_list(data):
    (data / "ImageSets" / "val.txt").write_text("")
    return f"{data}/ImageSets/val.txt: list must name at least one image; got none"


def missing_image(data):
    (data / "JPEGImages" / "train0.jpg").unlink()
    return f"{data}/ImageSets/train.txt: every listed file must exist; got 1 of 8 missing: {data}/JPEGImages/train0.jpg"


def missing_list(data):
    (data / "ImageSets" / "val.txt").unlink()
    return f"list val: one of {data}/ImageSets/val.txt"


def longer_list(data):
    with (data / "ImageSets" / "val.txt").open("a") as file:
        file.write("train0\n")
    return "val: must list 3 images as the protocol says; got 4; add --subset"


def list_without_labels(data):
    (data / "ImageSets" / "val.txt").write_text("".join(f"/JPEGImages/val{n}.jpg\n" for n in range(3)))
    return "val: every image must have a label; got 3 without, the first val0; use a list with labels"


@pytest.mark.parametrize(
    "harm",
    [break_jpeg, resize_label, wrong_class, empty_list, missing_image, missing_list, longer_list, list_without_labels],
)
def test_broken_data(refused, tmp_path, harm):
    assert harm(tmp_path / "data") in refused()
    assert not list(tmp_path.glob("**/snapshot.pt"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--set", "solver.maxiter=3"],
            "--set: a key of solver must be known; got solver.maxiter; did you mean 'solver.max_iter'?",
        ),
        (
            ["--set", "max_iter=3"],
            "--set: must be section.key=value; got 'max_iter=3'; for example --set solver.max_iter=200",
        ),
        (
            ["--row", "max3"],
            "tiny: a row must be one of baseline, max2, attention3-extra; got 'max3'; did you mean 'max2'?",
        ),
        (["--device", "tpu9"], "--device: must be auto, cpu, cuda or cuda:N; got 'tpu9'; choose one of these"),
        (["--device", "meta"], "--device: must be auto, cpu, cuda or cuda:N; got 'meta'; choose one of these"),
        (
            ["--device", "tpu9", "--dry-run"],
            "--device: must be auto, cpu, cuda or cuda:N; got 'tpu9'; choose one of these",
        ),
        (["--device", "cuda:99"], "--device: cuda:99 must be present and torch built for it; got "),
        (["--precision", "tf32"], "--precision: tf32 needs a CUDA device; got cpu; use fp32"),
        (["--cuda-graph"], "--cuda-graph: needs a CUDA device; got cpu; leave it out"),
        (["--cuda-graph", "--dry-run"], "--cuda-graph: needs a CUDA device; got cpu; leave it out"),
        (["--workers", "-1"], "--workers: must be 0..1024; got -1; use 0 to decode in the training process"),
        (["--seeds", "0"], "--seeds, --seed: must be 1..1000 and 0..2^32-1; got 0, 1; correct them"),
        (["--seed", "-1"], "--seeds, --seed: must be 1..1000 and 0..2^32-1; got 1, -1; correct them"),
        (
            ["--seed", "4294967295", "--seeds", "2"],
            "--seeds, --seed: must be 1..1000 and 0..2^32-1; got 2, 4294967295; correct them",
        ),
        (
            ["--weights", "lost.caffemodel"],
            "weights: lost.caffemodel must exist; got no such file; give one as --weights",
        ),
        (
            ["--set", "model.attention_layers=3"],
            "tiny.toml, row 'baseline': model.attention_layers must be within 1 and 2; got 3; correct it",
        ),
        (["--set", "solver.base_lr=1e30"], "train: the loss must stay finite; got "),
    ],
)
def test_wrong_arguments(refused, more, message):
    assert refused(*more).startswith(f"error: {message}")


def test_a_wrong_setting_of_the_last_row_is_found_before_the_first_is_trained(refused, tmp_path):
    write_protocol(tmp_path, ('merge = "attention"', 'merge = "attention"\nmodel.filler = "xavier"'))
    assert (
        refused() == "error: fill: filler must be one of gaussian, msra, constant; got 'xavier'; correct the protocol"
    )
    assert not (tmp_path / "out" / "tiny").exists()


def test_unknown_table(refused, tiny):
    assert refused(arguments=["tabel1", *tiny[1:]]).endswith("got 'tabel1'; did you mean 'table1'?")


def test_unknown_key_in_the_protocol(refused, tmp_path):
    write_protocol(tmp_path, ("gamma = 0.1", "gama = 0.1"))
    assert refused() == "error: tiny.toml: a key of solver must be known; got solver.gama; did you mean 'solver.gamma'?"


def test_output_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert (
        refused("--out", str(out))
        == f"error: --out: {out} must be a folder that can be written; got Not a directory; choose another --out"
    )
    out = tmp_path / "file"
    assert (
        refused("--out", str(out))
        == f"error: --out: {out} must be a folder that can be written; got File exists; choose another --out"
    )


def test_missing_weights(refused, tiny, tmp_path):
    line = refused(arguments=[argument for argument in tiny if argument not in ("--weights", "none")])
    assert f"{tmp_path}/data/tiny.caffemodel" in line
    assert "must exist; got no such file; give one as --weights" in line


def test_damaged_weights(refused, tmp_path):
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(b"\x07 no caffemodel")
    assert refused("--weights", str(path)).startswith(f"error: {path}: ")
    assert not (tmp_path / "out" / "tiny").exists()


def test_missing_data_root(refused, tiny, tmp_path):
    line = refused(arguments=[argument for argument in tiny if argument not in ("--data-root", str(tmp_path / "data"))])
    assert line.startswith("error: tiny: --data-root must be given; got none; name the data's folder")
    assert refused("--data-root", str(tmp_path / "nowhere")).startswith(
        f"error: list train: one of {tmp_path}/nowhere/ImageSets/train.txt"
    )


def test_traceback_is_shown_where_asked(tiny, capsys):
    assert main([*tiny, "--row", "max3", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: tiny: a row must be one of")
