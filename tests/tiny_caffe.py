"""A folder of 2015 in small: pictures, a list, a net for training and test, and a solver."""

from pathlib import Path

import numpy as np
from PIL import Image

NET = """
name: "tiny"
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TRAIN }
  image_data_param { root_folder: "images" source: "list.txt" batch_size: 2 shuffle: true }
  transform_param { mirror: true crop_size: 4 mean_value: 100 scale: 0.01 } }
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TEST }
  image_data_param { root_folder: "images" source: "list.txt" batch_size: 3 }
  transform_param { crop_size: 4 mean_value: 100 scale: 0.01 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { name: "w" lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "copy" type: "Convolution" bottom: "data" top: "copy" param { name: "w" lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "conv" bottom: "copy" top: "sum" }
layer { name: "drop" type: "Dropout" bottom: "sum" top: "sum" }
layer { name: "fc" type: "InnerProduct" bottom: "sum" top: "fc" inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
SOLVER = """
net: "net.prototxt"
base_lr: 0.05
lr_policy: "step"
gamma: 0.5
stepsize: 4
momentum: 0.9
weight_decay: 0.001
max_iter: 6
random_seed: 3
snapshot_prefix: "snap"
solver_mode: CPU
"""


def make_folder(folder: Path) -> Path:
    """Writes five pictures of as many classes, their list, net.prototxt and solver.prototxt; returns the folder."""
    (folder / "images").mkdir()
    random = np.random.RandomState(0)
    for i in range(5):
        Image.fromarray(random.randint(0, 256, (6, 7, 3)).astype(np.uint8)).save(folder / "images" / f"{i}.png")
    (folder / "list.txt").write_text("".join(f"/{i}.png {i}\n" for i in range(5)))
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    return folder


def solver_file(folder: Path, extra: str = "", **changes: str) -> Path:
    """Writes a solver like solver.prototxt with some fields changed and others added; returns its path."""
    lines = [line for line in SOLVER.splitlines() if line.partition(":")[0] not in changes]
    lines += [f"{name}: {value}" for name, value in changes.items() if value]
    path = folder / "changed.prototxt"
    path.write_text("\n".join([*lines, extra]))
    return path
