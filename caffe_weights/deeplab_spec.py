"""What describes one of the paper's networks to the writers of prototxt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CONVOLUTIONS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # VGG-16: layers per block
OUTPUT_STRIDE = 8
FC6_DILATION = 12  # LargeFOV
SHARED_COPY = re.compile(r"(?P<owner>.+)_res\d+")  # what `suffix` makes


@dataclass(frozen=True)
class NetSpec:
    """One network of the paper's grid.

    Attributes:
        name: Caffe's network name.
        shapes: every convolution's weight shape (out, in, kh, kw) by layer name, in the order of the learnable parameters.
        scales: of the input, the finest first, e.g. (1, 0.75, 0.5).
        merge: "none" (one scale), "attention", "average" or "max".
        extra_supervision: one loss per scale beside that of the merged scores.
        pool5a: average pool between pool5 and fc6.
        dropout_ratio: after fc6, fc7 and att_conv1; 0 leaves the layers out.
        attention_input: "fc6", "fc7" or "fc8".
        lr_mult: (weight, bias) by layer name; a layer that is not listed has (1, 2).
        decay_mult: (weight, bias).
        filler_std: standard deviation of the gaussian that fills a layer's weight when the .caffemodel does not have it, by layer name.
        ignore_label: the label that counts for nothing.
    """

    name: str
    shapes: Mapping[str, Sequence[int]]
    scales: Sequence[float] = (1.0,)
    merge: str = "none"
    extra_supervision: bool = False
    pool5a: bool = True
    dropout_ratio: float = 0.5
    attention_input: str = "fc7"
    lr_mult: Mapping[str, Sequence[float]] = field(default_factory=dict)
    decay_mult: Sequence[float] = (1, 0)
    filler_std: Mapping[str, float] = field(default_factory=dict)
    ignore_label: int = 255

    def __post_init__(self):
        wanted = [f"conv{block}_{i}" for block, count in CONVOLUTIONS.items() for i in range(1, count + 1)] + [
            "fc6",
            "fc7",
            "fc8",
        ]
        wanted += ["att_fc"] if self.merge == "attention" else []
        if missing := [name for name in wanted if name not in self.shapes]:
            raise ValueError(
                f"network {self.name!r}: shapes must have LargeFOV's layers; got no {' '.join(missing)}; export the whole network"
            )
        if self.merge not in ("none", "attention", "average", "max") or (self.merge == "none") != (
            len(self.scales) == 1
        ):
            raise ValueError(
                f'network {self.name!r}: merge must be "none" for one scale and "attention", "average" or "max" for more; '
                f"got {self.merge!r} for scales {list(self.scales)}; correct model.merge"
            )


@dataclass(frozen=True)
class DataSpec:
    """What an ImageSegData layer reads.

    Attributes:
        root_folder, source: as in Caffe's ImageDataParameter; the source lists "/image /label" pairs.
        batch_size, crop_size: of the training, or of the test.
        mean_bgr: subtracted, in grey levels.
        mirror, shuffle: at training.
        scale_factors: drawn at training; () for none.
    """

    root_folder: str
    source: str
    batch_size: int
    crop_size: int
    mean_bgr: Sequence[float]
    mirror: bool = True
    shuffle: bool = True
    scale_factors: Sequence[float] = ()


def suffix(scale: float) -> str:
    """Return what Caffe's layer names carry for a scale: "" for 1, "_res05" for 0.5, "_res075" for 0.75."""
    return "" if scale == 1 else "_res" + f"{scale:g}".replace(".", "")


def quoted(text: str) -> str:
    """Write a string as prototxt has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
