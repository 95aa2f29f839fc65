"""Every row of table 4 and of the text end to end on small pictures: thin, one iteration, tested; the stages that they need are run first."""

import json
import shutil

import pytest
from tiny import main, write_data

from repro.protocol import load_protocol

# Where the protocols look for labels, and the lists that they train on and test on.
SETS = {
    "person_part": ("SegmentationPart", {"train": "train", "val": "val"}),
    "voc2012": (
        "SegmentationClassAug",
        {"train_aug": "train", "trainval_aug": "train", "val": "val", "test": "val"},
    ),
    "coco": ("SegmentationClass", {"train": "train", "train2014": "train", "val": "val"}),
}
OVERRIDES = [
    "model.width=0.015625",
    "transform.crop_size=33",
    "test.crop_size=41",
    "solver.batch_size=1",
    "solver.max_iter=1",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with three sets of the same pictures."""
    root = tmp_path_factory.mktemp("root")
    for name, (labels, lists) in SETS.items():
        folder = write_data(root / name, train=2, val=2)
        (folder / "Labels").rename(folder / labels)
        for wanted, split in lists.items():
            if wanted != split:
                shutil.copy(folder / "ImageSets" / f"{split}.txt", folder / "ImageSets" / f"{wanted}.txt")
    return root


@pytest.mark.parametrize("table", ["table4", "text"])
def test_every_row_is_trained_and_tested(table, root, tmp_path, capsys):
    given = ["--data-root", str(root), "--weights", "none", "--device", "cpu", "--workers", "0", "--subset"]
    command = [table, *given, "--out", str(tmp_path), *(f"--set={override}" for override in OVERRIDES)]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count(" GFLOP forward each") >= len(load_protocol(table).runnable)
    assert main(command) == 0
    capsys.readouterr()
    rows = load_protocol(table).runnable
    assert all(row.status != "planned" for row in load_protocol(table).rows)
    for row in rows:
        folder = tmp_path / table / f"{row.id}-seed1"
        record = json.loads((folder / "record.json").read_text())
        assert len(record["loss_curve"]) == 1
        assert record["n_images"] == 2
        assert ("before_crf" in record) == ("crf" in row.settings)
        if "submission" in row.settings:
            assert (folder / record["submission"]["archive"]).is_file()
        else:
            assert 0 <= record["value"] <= 100
        if "stage" in row.settings:
            stage = row.settings["stage"]
            assert record["provenance"]["weights"] == f"{stage['protocol']}-{stage['row']}-seed1.caffemodel"
