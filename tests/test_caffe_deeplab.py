"""A folder of DeepLab v1 as its scripts use it: V1 syntax, ${VARIABLES}, hole, DENSE_CRF and MAT_WRITE; trained and tested from its own files."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.io
import torch
from tiny import items_of, write_data

from caffe_weights.deeplab.spec import VGG16_LAYERS
from repro.caffe import Net, Solver

DATA = """layers { name: "data" type: IMAGE_SEG_DATA top: "data" top: "label" %s
  image_data_param { root_folder: "${DATA_ROOT}" source: "${EXP}/list/${%s}.txt" label_type: PIXEL batch_size: %d shuffle: %s }
  transform_param { mean_value: 104.008 mean_value: 116.669 mean_value: 122.675 crop_size: %d mirror: %s } include: { phase: %s } }
"""
LABELS = """layers { bottom: "label" top: "label_shrink" name: "label_shrink" type: INTERP interp_param { shrink_factor: 8 pad_beg: 0 pad_end: 0 } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "fc8_${EXP}" bottom: "label_shrink" softmaxloss_param { ignore_label: 255 } include: { phase: TRAIN } }
layers { name: "accuracy" type: SEG_ACCURACY bottom: "fc8_${EXP}" bottom: "label_shrink" top: "accuracy" seg_accuracy_param { ignore_label: 255 } }
"""
TESTED = """layers { bottom: "fc8_${EXP}" top: "fc8_interp" name: "fc8_interp" type: INTERP interp_param { zoom_factor: 8 } }
layers { bottom: "fc8_interp" bottom: "data_dim" bottom: "data" top: "crf_inf" name: "crf" type: DENSE_CRF
  dense_crf_param { max_iter: 2 pos_w: 3 pos_xy_std: 3 bi_w: 5 bi_xy_std: 50 bi_rgb_std: 10 } include: { phase: TEST } }
layers { name: "crf_mat" type: MAT_WRITE bottom: "crf_inf" mat_write_param { prefix: "${FEATURE_DIR}/${TEST_SET}/crf/"
  source: "${EXP}/list/${TEST_SET}_id.txt" strip: 0 period: 1 } include: { phase: TEST } }
layers { bottom: "label" name: "silence" type: SILENCE include: { phase: TEST } }
"""
SOLVER = """train_net: "${EXP}/config/${NET_ID}/train.prototxt"
lr_policy: "step" gamma: 0.1 stepsize: 2000 base_lr: 0.001 display: 10 max_iter: 2 momentum: 0.9 weight_decay: 0.0005
snapshot: 2000 snapshot_prefix: "${EXP}/model/${NET_ID}/train" solver_mode: CPU random_seed: 5
"""
DEFINES = {
    "EXP": "voc12",
    "NET_ID": "largefov",
    "NUM_LABELS": "3",
    "TRAIN_SET": "train",
    "TEST_SET": "val",
    "FEATURE_DIR": "voc12/features",
}


def trunk(width: float) -> str:
    """Writes LargeFOV's layers in V1 syntax, all but the data."""
    lines, bottom = ['name: "${NET_ID}"'], "data"
    for layer in VGG16_LAYERS:
        if layer.name == "fc6":
            lines.append(
                f'layers {{ bottom: "{bottom}" top: "pool5a" name: "pool5a" type: POOLING pooling_param {{ pool: AVE kernel_size: 3 stride: 1 pad: 1 }} }}'
            )
            bottom = "pool5a"
        pad = layer.dilation * (layer.kernel - 1) // 2
        shape = (
            f"num_output: {round(layer.channels * width)} pad: {pad} hole: {layer.dilation} kernel_size: {layer.kernel}"
        )
        lines.append(
            f'layers {{ bottom: "{bottom}" top: "{layer.name}" name: "{layer.name}" type: CONVOLUTION strict_dim: false blobs_lr: 1 blobs_lr: 2 '
            f'weight_decay: 1 weight_decay: 0 convolution_param {{ {shape} weight_filler {{ type: "msra" }} }} }}'
        )
        lines.append(f'layers {{ bottom: "{layer.name}" top: "{layer.name}" name: "relu_{layer.name}" type: RELU }}')
        bottom = layer.name
        if layer.pool_stride:
            pool = f"pool{layer.name[4]}"
            lines.append(
                f'layers {{ bottom: "{bottom}" top: "{pool}" name: "{pool}" type: POOLING '
                f"pooling_param {{ pool: MAX kernel_size: 3 stride: {layer.pool_stride} pad: 1 }} }}"
            )
            bottom = pool
        elif layer.name in ("fc6", "fc7"):
            lines.append(
                f'layers {{ bottom: "{bottom}" top: "{bottom}" name: "drop_{bottom}" type: DROPOUT dropout_param {{ dropout_ratio: 0.5 }} }}'
            )
    lines.append(
        'layers { bottom: "fc7" top: "fc8_${EXP}" name: "fc8_${EXP}" type: CONVOLUTION strict_dim: false blobs_lr: 10 blobs_lr: 20 weight_decay: 1 '
        'weight_decay: 0 convolution_param { num_output: ${NUM_LABELS} kernel_size: 1 weight_filler { type: "gaussian" std: 0.01 } } }\n'
    )
    return "\n".join(lines)


def write_folder(folder: Path, width: float, crop: int, test_crop: int, lists: dict[str, list[str]]) -> Path:
    """Writes config/, list/, model/ and features/ as DeepLab's scripts expect them; returns the solver."""
    for name in ("config/largefov", "list", "model/largefov", "features/val/crf"):
        (folder / "voc12" / name).mkdir(parents=True)
    train = DATA % ("", "TRAIN_SET", 2, "true", crop, "true", "TRAIN")
    test = DATA % ('top: "data_dim"', "TEST_SET", 1, "false", test_crop, "false", "TEST")
    config = folder / "voc12/config/largefov"
    (config / "train.prototxt").write_text(train + trunk(width) + LABELS)
    (config / "test.prototxt").write_text(test + trunk(width) + TESTED)
    (config / "solver.prototxt").write_text(SOLVER)
    for name, lines in lists.items():
        (folder / f"voc12/list/{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return config / "solver.prototxt"


def train_and_test(folder: Path, defines: dict, solver_file: Path, images: int, wide: int) -> None:
    """Trains two iterations, and runs the test net with what they gave."""
    solver = Solver(solver_file, defines=defines, root=folder)
    before = [one.tensor.detach().clone() for one in solver.net.learnable]
    solver.step(2)
    assert solver.net.loss() > 0
    assert not any(torch.equal(old, one.tensor) for old, one in zip(before, solver.net.learnable, strict=True))
    assert solver.net.blobs["accuracy"].shape == (1, 1, 1, 3)
    solver.snapshot()
    weights = folder / "voc12/model/largefov/train_iter_2.caffemodel"
    net = Net(solver_file.with_name("test.prototxt"), weights, defines=defines, root=folder)
    assert all(
        torch.equal(one.tensor, two.tensor) for one, two in zip(net.learnable, solver.net.learnable, strict=True)
    )
    ids = (folder / "voc12/list/val_id.txt").read_text().split()
    for name in ids[:images]:
        with torch.no_grad():
            net()
        data = scipy.io.loadmat(folder / f"voc12/features/val/crf/{name}_blob_0.mat")["data"]
        assert data.shape[:3] == (wide, wide, int(defines["NUM_LABELS"]))
        height, width = map(int, net.blobs["data_dim"].flatten())
        inside = torch.from_numpy(data.reshape(data.shape[:3]))[:width, :height].sum(2)
        torch.testing.assert_close(inside, torch.ones_like(inside))


def test_a_folder_of_deeplab_v1(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_REFERENCE", "1")  # its CRF on a picture this small
    root = write_data(tmp_path / "data")
    lists = {
        split: [f"/{item.image.relative_to(root)} /{item.label.relative_to(root)}" for item in items_of(root, split)]
        for split in ("train", "val")
    }
    lists["val_id"] = [item.name for item in items_of(root, "val")]
    solver = write_folder(tmp_path, 1 / 32, 33, 41, lists)
    train_and_test(tmp_path, DEFINES | {"DATA_ROOT": str(root)}, solver, images=2, wide=41)


@pytest.mark.data
def test_full_width_on_pascal(tmp_path, data_root):
    root = data_root / "voc12_subset"
    if not root.exists():
        pytest.skip("needs voc12_subset/ in REPRO_DATA")
    names = sorted(path.stem for path in (root / "SegmentationClassAug").glob("*.png"))[:4]
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names]
    solver = write_folder(tmp_path, 1.0, 65, 513, {"train": lines, "val": lines, "val_id": names})
    train_and_test(tmp_path, DEFINES | {"NUM_LABELS": "21", "DATA_ROOT": str(root)}, solver, images=1, wide=513)
