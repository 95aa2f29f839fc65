"""Caffe's SolverParameter: read from a solver prototxt, and checked against what a run can mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caffe_weights.nets.prototxt import Message, read_prototxt
from repro.caffe.proto import Typed, typed
from repro.solver.lr_policy import POLICIES

TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
# Caffe: src/caffe/util/upgrade_proto.cpp, UpgradeSolverType.
_OLD_TYPES = dict(zip(("SGD", "NESTEROV", "ADAGRAD", "RMSPROP", "ADADELTA", "ADAM"), TYPES, strict=True))
_INLINE = ("net_param", "train_net_param", "test_net_param")


@dataclass(frozen=True)
class NetSource:
    """A net of a solver: its file or its inline message, what the log calls it, and the state that the solver gives it.

    phase: "TRAIN", "TEST" or None. level: None where it is not given. stages: To be added to the net's own.
    """

    net: str | Message
    words: str
    phase: str | None = None
    level: int | None = None
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class SolverFile:
    """A solver prototxt.

    path: The file. parameter: SolverParameter, without the nets that stand in it. type: One of TYPES. train, tests: Its nets.
    """

    path: Path
    parameter: Typed
    type: str
    train: NetSource
    tests: list[NetSource] = field(default_factory=list)


def read_solver(path: Path, defines: Mapping[str, str] | None = None) -> SolverFile:
    """Reads and checks a solver prototxt; its nets are not read yet.

    Args:
        path: The file.
        defines: Values of its ${VARS}.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no prototxt, a field is unknown, of another type or given twice, or a value means nothing; one line names file and line.

    Caffe: src/caffe/util/upgrade_proto.cpp, ReadSolverParamsFromTextFileOrDie.
    """
    path = Path(path)
    message = read_prototxt(path, defines)
    inline = {name: message.pop(name, []) for name in _INLINE}
    parameter = typed(message, "SolverParameter", str(path))
    check = _Check(path, message, parameter)
    for name, nets in inline.items():
        check.must(all(isinstance(net, Message) for net in nets), name, "must be a message, { ... }", "a plain value")
        check.must(name == "test_net_param" or len(nets) < 2, name, "must be given once", f"{len(nets)} of them")
    kind = parameter.type
    if parameter.has("solver_type"):
        check.must(not parameter.has("type"), "solver_type", "must not stand beside type", "both", "keep type")
        kind = _OLD_TYPES[parameter.solver_type]
    check.values(kind)
    return SolverFile(path, parameter, kind, _train_net(check, inline), _test_nets(check, inline))


class _Check:
    """Says in one line what a solver prototxt must hold."""

    def __init__(self, path: Path, message: Message, parameter: Typed):
        self.path, self.message, self.parameter = path, message, parameter

    def must(self, holds: bool, name: str, what: str, got: object = None, advice: str = "correct it") -> None:
        """Raises ValueError unless `holds`."""
        if not holds:
            line = self.message.lines.get(name, [self.message.line])[-1]
            got = getattr(self.parameter, name) if got is None else got
            shown = repr(got) if got in ("", []) else str(got)[:80]
            raise ValueError(f"{self.path}: line {line}: SolverParameter.{name} {what}; got {shown}; {advice}")

    def values(self, kind: str) -> None:
        """Refuses what Caffe aborts at, and what would divide by zero there.

        Caffe: src/caffe/solver.cpp, Init; sgd_solver.cpp, GetLearningRate and Regularize; sgd_solvers.hpp, constructor_sanity_check.
        """
        given, must = self.parameter, self.must
        for name in ("max_iter", "device_id"):
            must(getattr(given, name) >= 0, name, "must be at least 0")
        for name in ("display", "test_interval", "snapshot"):
            must(getattr(given, name) >= 0, name, "must be at least 0", advice="0 stands for never")
        for name in ("average_loss", "iter_size"):
            must(getattr(given, name) >= 1, name, "must be at least 1")
        must(kind in TYPES, "type", f"must be one of {', '.join(TYPES)}", advice="choose one")
        must(given.lr_policy in POLICIES, "lr_policy", f"must be one of {', '.join(POLICIES)}", advice="choose one")
        kinds = ("L1", "L2")
        must(given.regularization_type in kinds, "regularization_type", 'must be "L1" or "L2"', advice="choose one")
        must(
            not given.snapshot_diff, "snapshot_diff", "must be false: gradients are not snapshot", advice="leave it out"
        )
        if given.lr_policy in ("step", "sigmoid"):
            must(given.stepsize > 0, "stepsize", f"must be above 0 for lr_policy {given.lr_policy}")
        if given.lr_policy in ("step", "exp", "inv", "multistep", "sigmoid"):
            must(given.gamma >= 0, "gamma", "must be at least 0")
        if kind in ("AdaGrad", "RMSProp"):
            must(given.momentum == 0, "momentum", f"must not be used with {kind}", advice="leave it out")
        if kind == "RMSProp":
            must(0 <= given.rms_decay < 1, "rms_decay", "must lie in 0 .. 1, without 1")
        if kind == "Adam":
            for name in ("momentum", "momentum2"):
                must(0 <= getattr(given, name) < 1, name, "must lie in 0 .. 1, without 1, for Adam")
        must(all(count >= 0 for count in given.test_iter), "test_iter", "must be at least 0")


def _train_net(check: _Check, inline: Mapping[str, list[Message]]) -> NetSource:
    """Finds the train net.

    Caffe: src/caffe/solver.cpp, InitTrainNet.
    """
    given = check.parameter
    names = [name for name in ("net", "train_net") if given.has(name)]
    names += [name for name in ("net_param", "train_net_param") if inline[name]]
    what = "must name the train net, or one of net_param, train_net, train_net_param instead of it, and only one"
    check.must(len(names) == 1, names[-1] if names else "net", what, ", ".join(names) or "none", "name one")
    (name,) = names
    net = inline[name][0] if name in inline else getattr(given, name)
    words = f"specified in {name}." if name in inline else f"from {name} file: {net}"
    state = given.train_state
    return NetSource(net, words, *_state(state))


def _state(state: Typed) -> tuple[str | None, int | None, tuple[str, ...]]:
    """Returns what of a NetState is given: phase, level, stages."""
    return (
        state.phase if state.has("phase") else None,
        state.level if state.has("level") else None,
        tuple(state.stage),
    )


def _test_nets(check: _Check, inline: Mapping[str, list[Message]]) -> list[NetSource]:
    """Finds the test nets: those named for the test first; net or net_param serves the test_iter values that are left.

    Caffe: src/caffe/solver.cpp, InitTestNets.
    """
    given = check.parameter
    own = [(net, "test_net_param") for net in inline["test_net_param"]]
    own += [(net, f"test_net file: {net}") for net in given.test_net]
    count = len(given.test_iter)
    generic = inline["net_param"] or given.has("net")
    enough = count >= len(own) if generic else count == len(own)
    check.must(enough, "test_iter", f"must be given for each of {len(own)} test nets", f"{count} values", "correct it")
    if inline["net_param"]:
        own += [(inline["net_param"][0], "net_param")] * (count - len(own))
    elif given.has("net"):
        own += [(given.net, f"net file: {given.net}")] * (count - len(own))
    states = given.test_state
    what = f"must be left out, or be given for each of {count} test nets"
    check.must(len(states) in (0, count), "test_state", what, f"{len(states)} of them")
    if count:
        check.must(given.test_interval > 0, "test_interval", "must be above 0 where there are test nets")
    return [
        NetSource(net, words, *(_state(states[i]) if states else (None, None, ())))
        for i, (net, words) in enumerate(own)
    ]
