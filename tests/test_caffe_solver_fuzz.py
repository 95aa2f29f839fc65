"""Mutated solvers and nets: each is run, or refused with one line; none crashes or hangs."""

import random
import re

import pytest
import torch
from tiny_caffe import NET, SOLVER, make_folder

from repro.caffe import Solver
from repro.caffe.net import Learnable
from repro.caffe.solver_parameter import read_solver
from repro.caffe.update import Update

FULL = (
    SOLVER
    + """
test_iter: 1
test_interval: 2
test_state { stage: "a" level: 1 }
train_state { phase: TRAIN stage: "b" }
test_initialization: false
average_loss: 2
display: 0
iter_size: 1
clip_gradients: 10
regularization_type: "L2"
power: 0.9
stepvalue: 3
stepvalue: 5
delta: 1e-8
momentum2: 0.999
rms_decay: 0.98
snapshot: 0
snapshot_format: BINARYPROTO
snapshot_after_train: false
device_id: 0
type: "SGD"
"""
)
VALUES = (
    *(
        "-1",
        "0",
        "1",
        "2",
        "1e18",
        "1e-45",
        "1e39",
        "-0.5",
        "inf",
        "nan",
        "4294967295",
        "9223372036854775807",
        "-9223372036854775808",
        "0x7f",
        "1" * 80,
    ),
    *(
        '""',
        '"/"',
        '"../../etc/passwd"',
        '"x\\000y"',
        "true",
        "false",
        "TEST",
        "ADAM",
        "GPU",
        "HDF5",
        "{ }",
        '{ stage: "a" }',
        "[1, 2]",
        "}",
        "{",
        ":",
    ),
    *(
        '"Adam"',
        '"AdaDelta"',
        '"AdaGrad"',
        '"RMSProp"',
        '"Nesterov"',
        '"exp"',
        '"inv"',
        '"poly"',
        '"sigmoid"',
        '"multistep"',
        '"fixed"',
        '"L1"',
        "${X}",
    ),
)


def mutated(text: str, seed: int, most: int = 3) -> str:
    """Changes a prototxt in one to `most` places."""
    dice = random.Random(seed)
    for _ in range(dice.randint(1, most)):
        lines = text.split("\n")
        at = dice.randrange(len(lines))
        kind = dice.randrange(7)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, dice.choice(lines))
        elif kind in (2, 3):  # another value for a field
            fields = list(re.finditer(r"(\w+): ([^\s{}]+)", lines[at]))
            if fields:
                field = dice.choice(fields)
                lines[at] = lines[at][: field.start(2)] + dice.choice(VALUES) + lines[at][field.end(2) :]
        elif kind == 4 and lines[at]:
            place = dice.randrange(len(lines[at]))
            lines[at] = (
                lines[at][:place]
                + chr(dice.choice((0, 10, 34, 36, 58, 123, 125, 255, 0x2028, 0xDC80)))
                + lines[at][place + 1 :]
            )
        elif kind == 5:
            words = lines[at].split(" ")
            dice.shuffle(words)
            lines[at] = " ".join(words)
        elif kind == 6:
            lines[at] = lines[at][: dice.randrange(len(lines[at]) + 1)]
        text = "\n".join(lines)
    return text


def must_be_one_line(error: Exception) -> None:
    assert isinstance(error, (ValueError, FileNotFoundError)), repr(error)
    assert not isinstance(error, UnicodeError), repr(error)
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 4000


def try_solver(seed: int, folder) -> bool:
    """Reads a mutated solver and lets it update two numbers; returns whether it was good."""
    path = folder / "mutated.prototxt"
    path.write_text(mutated(FULL, seed), encoding="utf-8", errors="surrogateescape")
    try:
        file = read_solver(path)
    except Exception as error:
        must_be_one_line(error)
        return False
    entries = [Learnable("fc", i, torch.nn.Parameter(torch.ones(2)), float(i), 1.0) for i in range(2)]
    update = Update(file.parameter, file.type, entries)
    for iteration in (0, 5, file.parameter.max_iter):
        for entry in entries[1:]:
            entry.tensor.grad = torch.ones(2)
        assert isinstance(update.apply(iteration), float)
    return True


def try_run(seed: int, folder) -> bool:
    """Builds and runs a mutated net with a mutated solver; returns whether they were good."""
    (folder / "net.prototxt").write_text(mutated(NET, seed, 1 + seed % 3), encoding="utf-8", errors="surrogateescape")
    path = folder / "mutated.prototxt"
    path.write_text(mutated(FULL, seed) if seed % 2 else FULL, encoding="utf-8", errors="surrogateescape")
    try:
        solver = Solver(path, root=folder)
        if solver.param.iter_size > 3 or max(solver.param.test_iter, default=0) > 3:
            return True  # it would run for as long as it says
        solver.step(2)
        for index in range(len(solver.test_nets)):
            solver.test(index)
    except Exception as error:
        must_be_one_line(error)
        return False
    return True


def test_mutated_solvers(tmp_path, capsys):
    good = sum(try_solver(seed, tmp_path) for seed in range(300))
    assert 30 < good < 250  # both happen


def test_mutated_runs(tmp_path, capsys):
    good = sum(try_run(seed, make_folder(tmp_path) if seed == 0 else tmp_path) for seed in range(120))
    assert 3 <= good < 100


@pytest.mark.slow
def test_many_mutated_solvers(tmp_path, capsys):
    for seed in range(300, 100_000):
        try_solver(seed, tmp_path)
        if seed % 1000 == 0:
            capsys.readouterr()


@pytest.mark.slow
def test_many_mutated_runs(tmp_path, capsys):
    make_folder(tmp_path)
    before = {path.name for path in tmp_path.parent.iterdir()}
    for seed in range(120, 10_000):
        try_run(seed, tmp_path)
        if seed % 1000 == 0:
            capsys.readouterr()
    assert {path.name for path in tmp_path.parent.iterdir()} == before
