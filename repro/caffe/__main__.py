"""Caffe's program: `python -m repro.caffe train|test|time|draw`, with caffe's flags, log lines and files. See README.md beside this file.

Flags may be written with one dash or two, with or without an equals sign, and before the verb or behind it, as gflags takes them: --solver=FILE, -solver FILE.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch

from repro.caffe.build import read_net
from repro.caffe.draw import draw_net
from repro.caffe.graph import State, included
from repro.caffe.log import info, number, warning
from repro.caffe.net import Net
from repro.caffe.scores import added, described, scores
from repro.caffe.solver import Solver
from repro.caffe.solver_parameter import read_solver
from repro.caffe.timing import time_net
from repro.device import choose_device
from repro.files import write_text
from repro.shell import exit_code

_VERBS = ("train", "test", "time", "draw")
_EFFECTS = ("stop", "snapshot", "none")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, also where a signal stopped the training, 2 on wrong input, 130 on Ctrl-C elsewhere."""
    options = _parser().parse_args(_verb_first(sys.argv[1:] if arguments is None else arguments))
    return exit_code(lambda: options.run(options), options.traceback)


def _verb_first(arguments: list[str]) -> list[str]:
    """Puts the verb before the flags, where gflags lets it stand behind some: -gpu 0 train -solver FILE."""
    place = next((place for place, word in enumerate(arguments) if word in _VERBS), 0)
    return [*arguments[place : place + 1], *arguments[:place], *arguments[place + 1 :]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m repro.caffe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    text = "the value of a ${NAME} in the prototxts; may be given several times"
    _flag(common, "define", action="append", default=[], metavar="NAME=VALUE", help=text)
    _flag(common, "stage", default="", metavar="A,B", help="network stages for include and exclude rules")
    _flag(common, "level", type=int, default=0, metavar="N", help="network level for them")
    _flag(common, "traceback", action="store_true", help="show where an error comes from")
    running = argparse.ArgumentParser(add_help=False)
    _flag(running, "gpu", metavar="ID", help="run on this CUDA device")
    _flag(
        running, "device", metavar="NAME", help="cpu, cuda or cuda:N; by default what the solver's mode says, else cpu"
    )
    _flag(running, "no-fuse", action="store_true", help="run layer by layer, also where one kernel does several")
    _flag(
        running, "allow-large", action="store_true", help="let a net allocate more than half of this machine's memory"
    )

    def command(name: str, run, parents, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=parents, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    sub = command("train", _train, [common, running], "train or finetune a model")
    _flag(sub, "solver", required=True, metavar="FILE", help="the solver's prototxt")
    _flag(sub, "weights", metavar="A,B", help="models to finetune from")
    _flag(sub, "snapshot", metavar="FILE", help="the .solverstate to go on from")
    text = (
        "with --snapshot: go on in the data exactly where it stopped; otherwise the stream begins anew, as Caffe's does"
    )
    _flag(sub, "continue-stream", action="store_true", help=text)
    _flag(sub, "sigint_effect", choices=_EFFECTS, default="stop", help="what SIGINT does (default stop)")
    _flag(sub, "sighup_effect", choices=_EFFECTS, default="snapshot", help="what SIGHUP does (default snapshot)")

    sub = command("test", _test, [common, running], "score a model")
    _flag(sub, "model", required=True, metavar="FILE", help="the net's prototxt")
    _flag(sub, "weights", required=True, metavar="A,B", help="models to take parameters from")
    _flag(sub, "iterations", type=int, default=50, metavar="N", help="batches to run (default 50)")

    sub = command("time", _time, [common, running], "measure forward and backward, of every layer and of the whole net")
    _flag(sub, "model", required=True, metavar="FILE", help="the net's prototxt")
    _flag(sub, "phase", choices=("TRAIN", "TEST"), default="TRAIN", help="its phase (default TRAIN)")
    _flag(sub, "iterations", type=int, default=50, metavar="N", help="passes to take the mean of (default 50)")

    sub = command("draw", _draw, [common], "draw a net as an SVG")
    _flag(sub, "model", required=True, metavar="FILE", help="the net's prototxt")
    _flag(sub, "phase", choices=("TRAIN", "TEST"), default="TRAIN", help="its phase (default TRAIN)")
    sub.add_argument("out", type=Path, metavar="OUT.svg", help="the file to write")
    return parser


def _flag(parser: argparse.ArgumentParser, name: str, **settings) -> None:
    """Adds a flag that may be written with one dash or two."""
    parser.add_argument(f"--{name}", f"-{name}", **settings)


def _defines(options) -> dict[str, str]:
    pairs = {}
    for text in options.define:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--define: must be NAME=VALUE; got {text!r}; give a name and its value")
        pairs[name] = value
    return pairs


def _stages(options) -> tuple[str, ...]:
    return tuple(filter(None, options.stage.split(",")))


def _device(options, asked: str | None = None) -> torch.device:
    """Chooses the device: --gpu, else --device, else what the solver asks for, else the CPU.

    Raises:
        ValueError: It is not there; where only the solver's mode asks for a GPU, a warning says that the CPU takes its place.
    """
    if options.gpu is not None and options.device is not None:
        raise ValueError("--gpu: must not be given with --device; got both; keep one")
    if options.gpu is not None and not options.gpu.isdecimal():
        raise ValueError(f"--gpu: must be the number of one device; got {options.gpu!r}; give one number")
    given = options.device or (f"cuda:{options.gpu}" if options.gpu is not None else None)
    name = given or asked or "cpu"
    if given is None and asked and not torch.cuda.is_available():
        warning(f"the solver asks for {asked}, and there is no CUDA device here: computing on the CPU")
        name = "cpu"
    device = choose_device(name, "fp32")
    info("Use CPU." if device.type == "cpu" else f"Using GPU {device.index}: {torch.cuda.get_device_name(device)}")
    return device


def _net_options(options) -> dict:
    return {
        "stages": _stages(options),
        "level": options.level,
        "defines": _defines(options),
        "fuse": not options.no_fuse,
        "allow_large": options.allow_large,
        "device": _device(options),
        "log": info,
    }


def _iterations(options) -> int:
    if options.iterations < 1:
        raise ValueError(f"--iterations: must be at least 1; got {options.iterations}; give a number of batches")
    return options.iterations


class _Signals:
    """Remembers the signals that came; a solver asks for what they mean between iterations.

    Caffe: src/caffe/util/signal_handler.cpp.
    """

    def __init__(self, effects: dict[signal.Signals, str]):
        self._effects, self._came = effects, set()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Signals:
        self._before = {name: signal.signal(name, self._remember) for name in self._effects}
        return self

    def __exit__(self, *failure: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _remember(self, number: int, frame: object) -> None:
        self._came.add(number)

    def action(self) -> str:
        """Returns what a signal since the last call asks for: "stop", "snapshot" or "none"."""
        for name in (signal.SIGINT, signal.SIGHUP):
            if name in self._came:
                self._came.discard(name)
                return self._effects[name]
        return "none"


def _train(options) -> None:
    """Trains.

    Caffe: tools/caffe.cpp, train.
    """
    if options.snapshot and options.weights:
        raise ValueError(
            "--snapshot: must not be given with --weights; got both; resume from the one or finetune from the other"
        )
    if options.continue_stream and not options.snapshot:
        raise ValueError("--continue-stream: must come with --snapshot; got none; name the .solverstate")
    defines = _defines(options)
    mode = read_solver(Path(options.solver), defines).parameter
    device = _device(options, f"cuda:{mode.device_id}" if mode.solver_mode == "GPU" else None)
    effects = {signal.SIGINT: options.sigint_effect, signal.SIGHUP: options.sighup_effect}
    with _Signals(effects) as signals:
        solver = Solver(
            options.solver,
            defines=defines,
            stages=_stages(options),
            level=options.level,
            fuse=not options.no_fuse,
            allow_large=options.allow_large,
            device=device,
            get_action=signals.action,
        )
        if options.snapshot:
            info(f"Resuming from {options.snapshot}")
            solver.restore(options.snapshot, options.continue_stream)
        elif options.weights:
            solver.copy_from(options.weights)
        info("Starting Optimization")
        solver.solve()
    info("Optimization Done.")


@torch.no_grad()
def _test(options) -> None:
    """Scores a net.

    Caffe: tools/caffe.cpp, test.
    """
    iterations = _iterations(options)
    weights = [name.strip() for name in options.weights.split(",")]
    net = Net(options.model, weights, "TEST", **_net_options(options))
    info(f"Running for {iterations} iterations.")
    sums: list[float] = []
    loss = 0.0
    for batch in range(iterations):
        net()
        loss += float(net.loss())
        found = scores(net)
        for name, value in found:
            info(f"Batch {batch}, {name} = {number(value)}")
        sums = added(sums, [value for _, value in found])
    info(f"Loss: {number(loss / iterations)}")
    for text in described(net, [total / iterations for total in sums]):
        info(text)


def _time(options) -> None:
    iterations = _iterations(options)
    time_net(Net(options.model, None, options.phase, **_net_options(options)), iterations)


def _draw(options) -> None:
    net = read_net(options.model, _defines(options))
    state = State(options.phase, options.level or net.state.level, (*_stages(options), *net.state.stage))
    write_text(options.out, draw_net(included(net.layer, state), net.input, net.name))


if __name__ == "__main__":
    sys.exit(main())
