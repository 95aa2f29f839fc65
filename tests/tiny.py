"""A data set of a few small pictures, a protocol of three small rows, and their run: for the tests of training and of the runner."""

import signal
from pathlib import Path

import numpy as np
from PIL import Image

from repro.data.lists import Item
from repro.run import __main__ as run

PROTOCOL = """
title = "Tiny"
metric = "mean_iou"
source = "nowhere"

[common.data]
images = "JPEGImages"
labels = "Labels"
train_list = "train"
num_train = 4
val_list = "val"
num_val = 3
class_names = ["background", "box", "ball"]
ignore_label = 255
obtain = "drawn by the test"

[common.model]
width = 0.03125
pool5a = true
dropout_ratio = 0.5
filler = "msra"
filler_gain = 1.0
fc8_filler_std = 0.01
attention_input = "fc7"
attention_layers = 2
attention_kernel = 3
attention_filters = 512
attention_filler_std = 0.01
lr_mult = [1, 2]
fc8_lr_mult = [10, 20]
attention_lr_mult = [10, 20]
decay_mult = [1, 0]

[common.weights]
file = "tiny.caffemodel"
obtain = "nobody has it"

[common.transform]
crop_size = 33
mirror = true
mean_bgr = [104.008, 116.669, 122.675]
scale_factors = [0.75, 1.0]

[common.solver]
base_lr = 0.001
lr_policy = "step"
gamma = 0.1
stepsize = 5
power = 0.9
max_iter = 6
batch_size = 2
iter_size = 1
momentum = 0.9
weight_decay = 0.0005
clip_gradients = 0.0
snapshot = 4
display = 2

[common.test]
crop_size = 41
batch_size = 2

[[row]]
id = "baseline"
paper = 51.91
model.scales = [1]
model.merge = "none"
model.extra_supervision = false

[[row]]
id = "max2"
paper = 52.90
model.scales = [1, 0.5]
model.merge = "max"
model.extra_supervision = false

[[row]]
id = "attention3-extra"
model.scales = [1, 0.75, 0.5]
model.merge = "attention"
model.extra_supervision = true
"""

# Changes of the protocol: its rows have DeepLab-MSc's branches, or a domain transform; and two rows more, one of each, the first trained from the baseline.
MSC_KEYS = {
    "msc_filters": 64,
    "msc_dropout_ratio": 0.5,
    "msc_filler_std": 0.001,
    "msc_score_filler_std": 0.01,
    "msc_lr_mult": [10, 20],
}
DT_KEYS = {
    "dt_num_iter": 3,
    "dt_spatial_sigma": 30,
    "dt_range_sigma": 1,
    "dt_min_weight": 0,
    "edge_filler_std": 0.001,
    "edge_lr_mult": [10, 20],
}
MSC, DT = (
    ("[common.model]", "\n".join(["[common.model]", *(f"{key} = {value}" for key, value in keys.items())]))
    for keys in (MSC_KEYS, DT_KEYS)
)
MSC_ROW = """
[[row]]
id = "msc"
model.scales = [1]
model.merge = "none"
model.extra_supervision = false
model.lr_mult = [0, 0]
stage = { protocol = "tiny", row = "baseline" }
""" + "".join(f"model.{key} = {value}\n" for key, value in MSC_KEYS.items())
DT_ROW = """
[[row]]
id = "attention-dt"
model.scales = [1, 0.75, 0.5]
model.merge = "attention"
model.extra_supervision = false
""" + "".join(f"model.{key} = {value}\n" for key, value in DT_KEYS.items())

# Another one: its rows label two unlabelled images for a server.
SUBMISSION = ("[common.test]", '[common.submission]\nlist = "test"\nnum = 2\n\n[common.test]')

# Another one: its rows have a CRF, of few iterations and of kernels that suit the pictures.
CRF_KEYS = {"max_iter": 3, "pos_w": 3, "pos_xy_std": 3, "bi_w": 4, "bi_xy_std": 20, "bi_rgb_std": 5}
CRF = (
    "[common.test]",
    "[common.crf]\n" + "".join(f"{key} = {value}\n" for key, value in CRF_KEYS.items()) + "\n[common.test]",
)

# Another one: its weights lack two layers.
FILL = (
    "[common.test]",
    '[common.fill]\nlayers = ["fc6", "fc7"]\nfillers = ["unit_variance", "filler"]\nbatches = 2\n\n[common.test]',
)


def write_protocol(folder: Path, *changes: tuple[str, str], name: str = "tiny") -> str:
    """Writes the protocol with some of its text replaced, and returns its path as the programs take it."""
    text = PROTOCOL
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


def write_data(root: Path, train: int = 4, val: int = 3) -> Path:
    """Draws bright boxes and dark balls of several sizes on grey, and writes the lists train and val."""
    random = np.random.default_rng(0)
    for folder in ("JPEGImages", "Labels", "ImageSets"):
        (root / folder).mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}{n}" for n in range(count)]
        for n, name in enumerate(names):
            height, width = (33, 40) if n % 2 else (36, 30)
            label = np.zeros((height, width), np.uint8)
            label[4:20, 5:18] = 1
            y, x = np.mgrid[:height, :width]
            label[(y - 22) ** 2 + (x - 20) ** 2 < 64] = 2
            grey = np.array([110, 240, 10])[label] + random.integers(-9, 10, label.shape)
            label[:2] = 255
            Image.fromarray(np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)).save(
                root / "JPEGImages" / f"{name}.jpg"
            )
            Image.fromarray(label).save(root / "Labels" / f"{name}.png")
        (root / "ImageSets" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def items_of(root: Path, split: str) -> list[Item]:
    """Lists what `write_data` wrote."""
    names = (root / "ImageSets" / f"{split}.txt").read_text().split()
    return [Item(name, root / "JPEGImages" / f"{name}.jpg", root / "Labels" / f"{name}.png") for name in names]


def run_command(folder: Path) -> list[str]:
    """Writes data and protocol, and returns the arguments of a run that works."""
    root = write_data(folder / "data")
    return [
        write_protocol(folder),
        "--data-root",
        str(root),
        "--weights",
        "none",
        "--device",
        "cpu",
        "--workers",
        "0",
        "--out",
        str(folder / "out"),
    ]


def main(arguments: list[str]) -> int:
    """Runs the program in this process, and takes back what it does to the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run.main(arguments)
    finally:
        run._stop_asked = False
        for number, handler in before.items():
            signal.signal(number, handler)
