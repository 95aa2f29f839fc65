"""The layers of DeepLab's VGG-16, and what describes one of the paper's networks to the writers of prototxt."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class VGGLayer:
    """A convolution of DeepLab-LargeFOV, which a ReLU follows.

    Attributes:
        name: Caffe's.
        channels: outputs at full width; its inputs are the outputs of the layer before, 3 (BGR) for the first.
        kernel: side in pixels; zeros of dilation * (kernel - 1) / 2 pixels keep the map's size.
        dilation: `hole` in DeepLab's own prototxts.
        pool_stride: stride of the 3 x 3 max pool that follows; 0 where none does.
    """

    name: str
    channels: int
    kernel: int = 3
    dilation: int = 1
    pool_stride: int = 0

    @property
    def pool(self) -> str:
        """The name of the pool that follows conv3_3: pool3."""
        return f"pool{self.name[4]}"


# Caffe: train.prototxt of DeepLab-LargeFOV. Of VGG-16, pool4 and pool5 lose their stride, conv5 is dilated instead, and fc6 and fc7 become
# convolutions of 1024 channels. Pools are 3 x 3, VGG's own are 2 x 2.
VGG16_LAYERS = (
    VGGLayer("conv1_1", 64),
    VGGLayer("conv1_2", 64, pool_stride=2),
    VGGLayer("conv2_1", 128),
    VGGLayer("conv2_2", 128, pool_stride=2),
    VGGLayer("conv3_1", 256),
    VGGLayer("conv3_2", 256),
    VGGLayer("conv3_3", 256, pool_stride=2),
    VGGLayer("conv4_1", 512),
    VGGLayer("conv4_2", 512),
    VGGLayer("conv4_3", 512, pool_stride=1),
    VGGLayer("conv5_1", 512, dilation=2),
    VGGLayer("conv5_2", 512, dilation=2),
    VGGLayer("conv5_3", 512, dilation=2, pool_stride=1),
    VGGLayer("fc6", 1024, dilation=12),
    VGGLayer("fc7", 1024, kernel=1),
)
OUTPUT_STRIDE = math.prod(layer.pool_stride or 1 for layer in VGG16_LAYERS)
# DeepLab-MSc's branches: the blob that each starts from, and the stride of its first convolution, which brings it to the scores' size.
# Caffe: train.prototxt of DeepLab-MSc-LargeFOV; <blob>_ms1 is 3 x 3, <blob>_ms2 and <blob>_ms3 are 1 x 1, the last one to the classes.
MSC_BRANCHES = (("data", 8), ("pool1", 4), ("pool2", 2), ("pool3", 1), ("pool4", 1))
MSC_LAYERS = tuple(f"{source}_ms{number}" for source, _ in MSC_BRANCHES for number in (1, 2, 3))
# The blobs that the edge map of the domain transform is predicted from, each resized to the image.
EDGE_SOURCES = ("conv1_2", "conv2_2", "conv3_3")
# Not in ImageNet's VGG-16; the protocols train them ten times as fast.
NEW_LAYERS = ("fc8", "att_conv1", "att_fc", *MSC_LAYERS, "edge")
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
        msc_dropout_ratio: after the first two convolutions of each of DeepLab-MSc's branches, which the network has where `shapes` has them.
        domain_transform: DomainTransformParameter's keys, of a network whose `shapes` have "edge".
        attention_input: "fc6", "fc7" or "fc8".
        lr_mult: (weight, bias) by layer name; where it lacks a layer, NEW_LAYERS have (10, 20) and all others (1, 2).
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
    msc_dropout_ratio: float = 0.5
    domain_transform: Mapping[str, float] = field(default_factory=dict)
    attention_input: str = "fc7"
    lr_mult: Mapping[str, Sequence[float]] = field(default_factory=dict)
    decay_mult: Sequence[float] = (1, 0)
    filler_std: Mapping[str, float] = field(default_factory=dict)
    ignore_label: int = 255

    def __post_init__(self):
        wanted = [*(layer.name for layer in VGG16_LAYERS), "fc8"]
        wanted += ["att_fc"] if self.merge == "attention" else []
        wanted += MSC_LAYERS if self.msc else []
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
        if self.msc and self.merge != "none":
            raise ValueError(
                f"network {self.name!r}: DeepLab-MSc's branches must stand beside one scale; got {list(self.scales)}; correct model.scales"
            )
        if ("edge" in self.shapes) != bool(self.domain_transform):
            raise ValueError(
                f"network {self.name!r}: an edge map and a domain transform must come together; got {'the map' if 'edge' in self.shapes else 'the transform'} alone; "
                "add or drop model.dt_num_iter, dt_spatial_sigma and dt_range_sigma"
            )

    @property
    def msc(self) -> bool:
        """Whether the network is DeepLab-MSc."""
        return any(name in self.shapes for name in MSC_LAYERS)


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
    """Returns what Caffe's layer names carry for a scale: "" for 1, "_res05" for 0.5, "_res075" for 0.75."""
    return "" if scale == 1 else "_res" + f"{scale:g}".replace(".", "")


def quoted(text: str) -> str:
    """Writes a string as prototxt has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
