"""Trains the demo's thin VGG-16 on an image-level task: `python -m repro.pretext --out FILE.caffemodel`.

The task stands in for ImageNet classification: tell what a crop is centred on, one of the six parts of a person, a
distractor or the background, on synthetic pictures that the demo never trains on or evaluates. As objects on ImageNet
do, people have a usual range of sizes here.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from caffe_weights import write_caffemodel
from caffe_weights.deeplab.spec import OUTPUT_STRIDE, VGG16_LAYERS
from repro.data.synthetic.canvas import DISTRACTOR
from repro.data.synthetic.dataset import draw_scenes
from repro.data.synthetic.people import CLASS_NAMES
from repro.models.largefov import LargeFOV
from repro.models.layers import fill
from repro.shell import exit_code

CROP_CLASSES = (*CLASS_NAMES, "distractor")
# Blue, green, red: the mean that DeepLab's ImageSegData layer subtracts.
MEAN_BGR = (104.008, 116.669, 122.675)
CONVOLUTIONS = tuple(layer.name for layer in VGG16_LAYERS)
IGNORE = 255


def crop_targets(label: np.ndarray, distractor: np.ndarray) -> np.ndarray:
    """Tells what the crop centred on each pixel shows.

    Args:
        label: (H, W) uint8, 0..6 and 255.
        distractor: (H, W) bool.

    Returns:
        (H, W) uint8, 0..7 and 255; 7 is a distractor.
    """
    return np.where((label == 0) & distractor, np.uint8(DISTRACTOR), label)


class CropStream:
    """Batches of pictures with a few crop centres each.

    A crop is as large as the network's field of view, and all crops of a picture are classified in one pass: the centre
    of a crop is a position of the score map. Only the positions drawn carry a label, as many for each class that the
    picture shows.

    Args:
        images: (N, H, W, 3) uint8 BGR.
        targets: (N, H, W) uint8, 0..7 and 255.
        size: side of the square that is cut from a picture at random, 8k+1, at most H and W.
        crops_per_class: crops drawn for each class in a picture.
        rng: the source of chance.
    """

    def __init__(
        self, images: np.ndarray, targets: np.ndarray, size: int, crops_per_class: int, rng: np.random.Generator
    ) -> None:
        self.images, self.targets, self.rng = images, targets, rng
        self.size, self.crops_per_class = size, crops_per_class

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Cuts a square from each of some pictures, mirrors half of them and draws the crops.

        Args:
            indices: (n,) int64, the pictures.

        Returns:
            (n, 3, size, size) float32 BGR minus the mean, and (n, k, k) int64 targets, 255 where no crop is centred.
        """
        data, target = [], []
        for index in indices:
            top, left = self.rng.integers(0, np.array(self.targets.shape[1:]) - self.size + 1)
            window = slice(top, top + self.size), slice(left, left + self.size)
            step = -1 if self.rng.random() < 0.5 else 1
            data.append(self.images[index][window][:, ::step])
            target.append(self._centres(self.targets[index][window][:, ::step][::OUTPUT_STRIDE, ::OUTPUT_STRIDE]))
        images = torch.from_numpy(np.stack(data)).permute(0, 3, 1, 2).float() - torch.tensor(MEAN_BGR).view(3, 1, 1)
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack(target))

    def _centres(self, classes: np.ndarray) -> np.ndarray:
        kept = np.full(classes.shape, IGNORE, np.int64)
        for value in np.unique(classes[classes != IGNORE]):
            places = np.flatnonzero(classes == value)
            kept.flat[self.rng.permutation(places)[: self.crops_per_class]] = value
        return kept


def add_batch_norm(net: LargeFOV) -> None:
    """Puts batch normalisation behind every convolution that is shipped, and fills its weights ("msra")."""
    for name in CONVOLUTIONS:
        layer = getattr(net, name)
        fill(layer, "msra")
        setattr(net, name, nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))


@torch.no_grad()
def fold_batch_norm(net: LargeFOV) -> None:
    """Turns every convolution with batch normalisation into the one convolution that computes the same at test time."""
    for name in CONVOLUTIONS:
        layer, norm = getattr(net, name)
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        layer.weight.mul_(gain.view(-1, 1, 1, 1))
        layer.bias.copy_((layer.bias - norm.running_mean) * gain + norm.bias)
        setattr(net, name, layer)


@torch.no_grad()
def scale_activations(net: LargeFOV, images: torch.Tensor, fc7_rms: float) -> dict[str, float]:
    """Scales weights so that the activations' rms falls geometrically from the input's to `fc7_rms`.

    One SGD step changes a layer's weights, in proportion to themselves, by an amount that grows with (rms of its input
    / rms of its output) squared. With equal ratios no layer is thrown off before the others have begun to learn. What
    fc7 tells apart stays the same: ReLU and the pools commute with positive factors.

    Args:
        net: without batch normalisation.
        images: (N, 3, H, W) float32, what to measure on.
        fc7_rms: the rms of fc7 after ReLU.

    Returns:
        The rms after ReLU of each layer, after scaling.
    """
    rms: dict[str, float] = {}

    def measure(name: str, output: torch.Tensor) -> None:
        rms[name] = F.relu(output).square().mean().sqrt().item()

    hooks = [
        getattr(net, name).register_forward_hook(lambda _, __, output, name=name: measure(name, output))
        for name in CONVOLUTIONS
    ]
    net(images)
    start = images.square().mean().sqrt().item()
    before = 1.0
    for depth, name in enumerate(CONVOLUTIONS, start=1):
        factor = start * (fc7_rms / start) ** (depth / len(CONVOLUTIONS)) / rms[name]
        layer = getattr(net, name)
        layer.weight.mul_(factor / before)
        layer.bias.mul_(factor)
        before = factor
    net(images)
    for hook in hooks:
        hook.remove()
    return rms


@torch.no_grad()
def accuracy(net: LargeFOV, stream: CropStream, batch_size: int) -> np.ndarray:
    """Returns the share of crops recognised, (8,) float64, for each class, over all pictures of `stream`."""
    net.eval()
    counts = np.zeros((len(CROP_CLASSES), 2))
    for start in range(0, len(stream.images), batch_size):
        data, target = stream.batch(np.arange(start, min(start + batch_size, len(stream.images))))
        right = net(data)["fc8"].argmax(1) == target
        for value in range(len(CROP_CLASSES)):
            counts[value] += [right[target == value].sum().item(), (target == value).sum().item()]
    return counts[:, 0] / np.maximum(counts[:, 1], 1)


def train(net: LargeFOV, stream: CropStream, iterations: int, batch_size: int, base_lr: float) -> None:
    """Trains by SGD with momentum; the learning rate rises over the first twentieth and falls to zero as a cosine."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=base_lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, base_lr, total_steps=iterations, pct_start=0.05, cycle_momentum=False
    )
    order, mean_loss = np.zeros(0, np.int64), 0.0
    progress = tqdm(
        range(iterations), desc="pretext", unit="it", file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 5.0
    )
    for iteration in progress:
        if len(order) < batch_size:
            order = np.concatenate([order, stream.rng.permutation(len(stream.images))])
        data, target = stream.batch(order[:batch_size])
        order = order[batch_size:]
        loss = F.cross_entropy(net(data)["fc8"], target, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean_loss += (loss.item() - mean_loss) * max(0.02, 1 / (iteration + 1))
        if iteration % 20 == 0:
            progress.set_postfix(loss=f"{mean_loss:.3f}")


def write(net: LargeFOV, out: Path) -> None:
    """Writes conv1_1..fc7 to `out`; fc8 is the pretext's own and stays behind."""
    layers = {name: getattr(net, name) for name in CONVOLUTIONS}
    blobs = {name: ("Convolution", [p.detach().numpy() for p in layer.parameters()]) for name, layer in layers.items()}
    write_caffemodel(out, blobs, name="pretext")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m repro.pretext", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the .caffemodel to write")
    parser.add_argument("--width", type=float, default=0.125, help="share of VGG-16's channels")
    parser.add_argument("--pictures", type=int, default=4000, help="pictures to train on")
    parser.add_argument("--test-pictures", type=int, default=200, help="pictures to measure the accuracy on")
    parser.add_argument("--size", type=int, default=161, help="side of the training crops in pixels, 8k+1")
    parser.add_argument("--heights", type=float, nargs=2, default=(0.4, 0.9), help="of people, in picture heights")
    parser.add_argument("--crops-per-class", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=2500)
    parser.add_argument("--base-lr", type=float, default=0.1)
    parser.add_argument("--fc7-rms", type=float, default=1.0, help="rms of fc7 in the written network")
    parser.add_argument("--seed", type=int, default=1511, help="of pictures, weights and batches; the demo has another")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    args = arguments(argv)
    return exit_code(lambda: pretrain(args), args.traceback, "nothing was written")


def pretrain(args: argparse.Namespace) -> None:
    """Draws the pictures, trains on them, and writes the weights and what they recognise."""
    if args.size % OUTPUT_STRIDE != 1:
        raise ValueError(f"--size: must be 8k+1; got {args.size}; choose {args.size // 8 * 8 + 1}")
    if not args.out.parent.is_dir():
        raise FileNotFoundError(f"--out: its folder must exist; got {args.out}; create {args.out.parent}")
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    streams = []
    for split, count in enumerate((args.pictures, args.test_pictures)):
        # One output stride larger than the crop: every pixel comes to lie on the score map's grid.
        size = (args.size + OUTPUT_STRIDE,) * 2
        scenes = list(draw_scenes((args.seed, split), count, size, args.workers, heights=args.heights, people=(1, 3)))
        images = np.stack([scene.image[..., ::-1] for scene in scenes])
        targets = np.stack([crop_targets(scene.label, scene.distractor) for scene in scenes])
        rng = np.random.Generator(np.random.PCG64([args.seed, 2, split]))
        streams.append(CropStream(images, targets, args.size, args.crops_per_class, rng))
    net = LargeFOV(len(CROP_CLASSES), width=args.width, dropout_ratio=0.0)
    add_batch_norm(net)
    fill(net.fc8, "gaussian", 0.01)
    net = net.to(memory_format=torch.channels_last)
    train(net, streams[0], args.iterations, args.batch_size, args.base_lr)
    shares = accuracy(net, streams[1], args.batch_size)
    fold_batch_norm(net)
    rms = scale_activations(net, streams[1].batch(np.arange(min(64, args.test_pictures)))[0], args.fc7_rms)
    write(net, args.out)
    for name, share in zip(CROP_CLASSES, shares, strict=True):
        print(f"accuracy {name:12s} {100 * share:5.1f}")
    print(f"accuracy {'mean':12s} {100 * shares.mean():5.1f}")
    print("rms after ReLU: " + ", ".join(f"{name} {value:.2f}" for name, value in rms.items()))
    print(f"{args.out}: {args.out.stat().st_size} bytes, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
