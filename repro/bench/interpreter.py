"""Times a protocol's row twice: its own network, and the prototxt that it exports run by repro.caffe: `python -m repro.bench.interpreter`.

Both have the same parameters and must give the same losses, bit for bit on the CPU, before anything is timed. They take turns, and are compared round by round. Dropout is off, whose random numbers are torch's in
the one and Caffe's in the other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from caffe_weights import parse_prototxt
from caffe_weights.deeplab.export import net_spec
from caffe_weights.deeplab.net import net_prototxt
from repro.bench.options import row_parser
from repro.bench.timing import Clock, paired_ratio, rounds, settle_malloc, summarise
from repro.caffe import Net
from repro.device import choose_device
from repro.export import export_settings
from repro.models import build
from repro.protocol import load_protocol
from repro.shell import exit_code
from repro.solver.loss import losses

WITHIN = 1.03  # of the row's own network
REPEATS, BUDGET = 20, 600.0


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns 0 where the interpreter is within WITHIN of the row's own network, 1 where it is slower, 2 on wrong input."""
    parser = row_parser("repro.bench.interpreter", __doc__, "attention3-extra")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in a batch (default 1)")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help=f"timed calls (default {REPEATS})")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _measure(options), options.traceback)


def _measure(options: argparse.Namespace) -> int:
    if options.batch < 1 or options.repeats < 2 or options.threads < 1:
        raise ValueError(
            f"--batch, --repeats, --threads: must be at least 1, 2 and 1; got {options.batch}, {options.repeats}, {options.threads}; correct them"
        )
    torch.set_num_threads(options.threads)
    settings = load_protocol(options.table, [*options.set, "model.dropout_ratio=0.0"]).row(options.row).settings
    contestants = make_pair(settings, options.row, options.batch, choose_device(options.device, "fp32"))
    device = contestants["row"].device
    settle_malloc()
    slower = False
    for direction in ("forward", "forward+backward"):
        calls = {
            name: [getattr(one, "forward" if direction == "forward" else "both")] for name, one in contestants.items()
        }
        seconds = rounds(Clock(device), calls, options.repeats, BUDGET)
        times = {name: summarise(values) for name, values in seconds.items()}
        ratio, low, high = paired_ratio(*([own for own, _ in seconds[name]] for name in ("interpreter", "row")))
        slower = slower or ratio > WITHIN
        shown = ", ".join(
            f"{name} {t.median * 1e3:.1f} ms ({t.p20 * 1e3:.1f} .. {t.p80 * 1e3:.1f})" for name, t in times.items()
        )
        print(
            f"{options.table}/{options.row} {direction}: {shown}; "
            f"{len(seconds['row'])} rounds, ratio {ratio:.3f} ({low:.3f} .. {high:.3f}; must be at most {WITHIN})"
        )
    return int(slower)


class Contestant:
    """One of the two: passes forward, and forward and backward.

    Args:
        terms: Computes the losses by name.
        backward: Computes the gradients from what `terms` gave.
        clear: Forgets the gradients.
        device: Where.
    """

    def __init__(self, terms: Callable[[], dict], backward: Callable[[dict], None], clear: Callable[[], None], device):
        self.terms, self._backward, self._clear, self.device = terms, backward, clear, device

    @torch.no_grad()
    def forward(self) -> None:
        """Computes the losses."""
        self.terms()

    def both(self) -> None:
        """Computes the losses and the gradients."""
        self._clear()
        self._backward(self.terms())


def make_pair(settings: dict, row: str, batch: int, device: torch.device) -> dict[str, Contestant]:
    """Builds a row's network and its exported net with the same parameters, on the same batch.

    Raises:
        RuntimeError: They do not give the same losses (on the CPU: bit for bit).
    """
    side, classes = settings["transform"]["crop_size"], len(settings["data"]["class_names"])
    network = build(settings["model"], classes, seed=1)
    convolutions = network.convolutions()
    blobs = {name: [p.detach().numpy() for p in (m.weight, m.bias)] for name, m in convolutions.items()}
    spec = net_spec(blobs, export_settings(settings, Path(), "CPU").model, row)
    net = Net(
        parse_prototxt(net_prototxt(spec, "train", None, (batch, 3, side, side)), row),
        phase="TRAIN",
        device=device,
        allow_large=True,
    )
    with torch.no_grad():
        for one in net.learnable:
            one.tensor.copy_((convolutions[one.layer].weight, convolutions[one.layer].bias)[one.index])
    network.to(device).train()
    random = torch.Generator().manual_seed(0)
    data = torch.randint(-120, 136, (batch, 3, side, side), generator=random).float().to(device)
    data = data.contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, classes, (batch, side, side), generator=random).to(device)
    extra, ignore = settings["model"]["extra_supervision"], settings["data"]["ignore_label"]

    def own() -> dict[str, torch.Tensor]:
        return losses(network(data), label.to(torch.uint8), network.scales, extra, ignore)

    def interpreted() -> dict[str, torch.Tensor]:
        return net(data=data, label=label[:, None])

    pair = {
        "row": Contestant(own, lambda terms: sum(terms.values()).backward(), lambda: network.zero_grad(), device),
        "interpreter": Contestant(interpreted, lambda terms: net.backward(), net.clear_param_diffs, device),
    }
    with torch.no_grad():
        found = [{name: float(value) for name, value in one.terms().items()} for one in pair.values()]
    same = (
        found[0] == found[1]
        if device.type == "cpu"
        else found[0] == {k: v for k, v in found[1].items() if abs(v - found[0][k]) < 1e-4}
    )
    if not same:
        raise RuntimeError(f"{row}: both must give the same losses; got {found[0]} and {found[1]}; nothing was timed")
    return pair


if __name__ == "__main__":
    sys.exit(main())
