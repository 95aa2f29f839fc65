"""`python -m repro.caffe`: Caffe's verbs and flags, its exit codes, signals, and one line for what is wrong."""

import re
import signal
from xml.etree import ElementTree

import pytest
import torch
from caffe_nets import thin_net
from tiny_caffe import make_folder, solver_file

from repro.caffe.__main__ import main
from repro.caffe.timing import time_layers
from repro.caffe.update import Update


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path))
    return tmp_path


def texts(capsys) -> list[str]:
    return [line.partition("] ")[2] or line for line in capsys.readouterr().err.splitlines()]


def test_train_test_and_resume_as_a_script_would(folder, capsys):
    assert main(["train", "--solver=solver.prototxt"]) == 0
    lines = texts(capsys)
    assert lines[0] == "Use CPU."
    assert lines[-3:-1] == [
        "Snapshotting solver state to binary proto file snap_iter_6.solverstate",
        "Optimization Done.",
    ]
    assert main(["train", "-solver", "solver.prototxt", "-weights=snap_iter_6.caffemodel", "-gpu", "0"]) == 2
    assert "error: --device: cuda:0 must be present and torch built for it" in texts(capsys)[-1]
    changed = solver_file(folder, max_iter="8", snapshot_prefix='"longer"')
    assert main(["train", "-solver", str(changed), "--snapshot", "snap_iter_6.solverstate", "--continue-stream"]) == 0
    assert (folder / "longer_iter_8.solverstate").exists()
    capsys.readouterr()
    weights = "snap_iter_6.caffemodel, longer_iter_8.caffemodel"
    command = ["test", "-model", "net.prototxt", "-weights", weights, "-iterations=2"]
    assert main(command) == 0
    lines = texts(capsys)
    assert "Running for 2 iterations." in lines
    numbers = [float(line.split()[-1]) for line in lines if re.fullmatch(r"Batch [01], loss = \S+", line)]
    assert len(numbers) == 2
    assert lines[-3].startswith("Loss: ")
    mean = float(lines[-3].split()[1])
    assert mean == pytest.approx(sum(numbers) / 2, rel=1e-4)
    assert lines[-2].startswith("accuracy = ")
    assert lines[-1] == f"loss = {mean:g} (* 1 = {mean:g} loss)"


def test_a_solver_that_asks_for_a_gpu_runs_on_the_cpu_and_says_so(folder, capsys):
    assert main(["train", "--solver", str(solver_file(folder, solver_mode="GPU", device_id="1"))]) == 0
    assert texts(capsys)[0].endswith(
        "the solver asks for cuda:1, and there is no CUDA device here: computing on the CPU"
    )


@pytest.mark.parametrize("flag", ["-gpu=1", "--device=cuda:1"])
def test_a_gpu_that_the_user_asks_for_must_be_there_whatever_the_solver_says(flag, folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = solver_file(folder, solver_mode="GPU", device_id="1")
    assert main(["train", "--solver", str(path), flag]) == 2
    assert "error: --device: cuda:1 must be present and torch built for it" in texts(capsys)[-1]


def test_the_verb_may_stand_behind_flags(folder, capsys):
    assert main(["-device", "cpu", "train", "-solver", str(solver_file(folder, max_iter="1"))]) == 0
    assert main(["--model=net.prototxt", "draw", "out.svg"]) == 0
    assert (folder / "out.svg").exists()


@pytest.mark.parametrize("name", ["--define", "-define"])
def test_variables_come_from_the_command_line(name, folder, capsys):
    text = (
        (folder / "net.prototxt")
        .read_text()
        .replace('"images"', '"${DATA_ROOT}"')
        .replace("num_output: 5", "num_output: ${NUM_LABELS}")
    )
    (folder / "net.prototxt").write_text(text)
    path = solver_file(folder, net='"${NET}.prototxt"', max_iter="1")
    given = [name, "DATA_ROOT=images", name, "NUM_LABELS=5", f"{name}=NET=net"]
    assert main(["train", "--solver", str(path), *given]) == 0
    assert main(["train", "--solver", str(path), *given[2:]]) == 2
    assert "${DATA_ROOT} must have a value; got none (give --define DATA_ROOT=VALUE)" in texts(capsys)[-1]


@pytest.mark.parametrize(
    ("number", "flags", "iterations", "end"),
    [
        (signal.SIGINT, [], [2], "Optimization stopped early."),
        (signal.SIGHUP, [], [2, 6], "Optimization Done."),
        (signal.SIGINT, ["--sigint_effect=snapshot"], [2, 6], "Optimization Done."),
        (signal.SIGINT, ["-sigint_effect", "none"], [6], "Optimization Done."),
        (signal.SIGHUP, ["--sighup_effect=stop"], [2], "Optimization stopped early."),
    ],
)
def test_signals_stop_and_snapshot(number, flags, iterations, end, folder, monkeypatch, capsys):
    before = signal.getsignal(number)
    apply = Update.apply

    def interrupted(self, iteration):
        if iteration == 1:
            signal.raise_signal(number)
        return apply(self, iteration)

    monkeypatch.setattr(Update, "apply", interrupted)
    assert main(["train", "--solver=solver.prototxt", *flags]) == 0
    assert sorted(path.name for path in folder.glob("*.solverstate")) == [
        f"snap_iter_{i}.solverstate" for i in iterations
    ]
    assert texts(capsys)[-2] == end
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("flags", [[], ["--no-fuse"]])
def test_time_measures_layers_and_the_whole(flags, folder, capsys):
    assert main(["time", "--model", "net.prototxt", "--iterations", "2", *flags]) == 0
    lines = texts(capsys)
    assert lines[-1] == "*** Benchmark ends ***"
    names = re.findall(r"^ *([\w+]+)\tforward: [\d.e+-]+ ms\.$", "\n".join(lines), re.MULTILINE)
    assert names == ["data", "conv", "relu", "copy", "sum", "drop", "fc", "loss"]
    assert len([line for line in lines if re.fullmatch(r" *[\w+]+\tbackward: \S+ ms\.", line)]) == len(names)
    sums = [
        float(re.search(rf"Average {what}: (\S+) ms", "\n".join(lines))[1])
        for what in ("Forward pass", "Backward pass", "Forward-Backward")
    ]
    assert sums[0] > 0
    assert sums[1] > 0
    assert sums[2] == pytest.approx(sums[0] + sums[1], rel=1e-4)


def test_layers_of_one_kernel_are_timed_together():
    whole, apart = (time_layers(thin_net("att3_e", torch.float32, fuse=fuse), 1) for fuse in (True, False))
    joined = [name.split("+") for name in whole if "+" in name]
    assert any("fc8_fusion" in names for names in joined)
    assert all("+" not in name for name in apart)
    assert len(whole) < len(apart)
    assert all(forward > 0 for forward, _ in (*whole.values(), *apart.values()))
    assert whole["fc8"][1] > 0


def test_draw_shows_every_layer_once_and_escapes(folder):
    text = (folder / "net.prototxt").read_text().replace('name: "fc"', 'name: "<fc> & \\"co\\" \\007 \\303\\251"')
    (folder / "net.prototxt").write_text(text)
    assert main(["draw", "--model=net.prototxt", "out/net.svg"]) == 0
    svg = (folder / "out" / "net.svg").read_text(encoding="ascii")
    root = ElementTree.fromstring(svg)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert '<fc> & "co" \\x07 \\xe9' in words
    for name in ("data", "conv", "copy", "sum", "loss"):
        assert words.count(name) == 1
    assert "+ ReLU (relu)" in words
    assert "+ Dropout (drop)" in words
    assert "accuracy" not in words  # of the other phase
    assert main(["draw", "--model=net.prototxt", "--phase=TEST", "test.svg"]) == 0
    assert ">accuracy<" in (folder / "test.svg").read_text()
    boxes = [
        tuple(float(box.get(key)) for key in ("x", "y", "width", "height"))
        for box in root.iter("{http://www.w3.org/2000/svg}rect")
        if box.get("x")
    ]
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y  # no two overlap


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--solver=none.prototxt"], "none.prototxt: must be a file; got nothing there; check the path"),
        (
            ["train", "--solver=solver.prototxt", "--weights=a", "--snapshot=b"],
            "--snapshot: must not be given with --weights; got both",
        ),
        (
            ["train", "--solver=solver.prototxt", "--continue-stream"],
            "--continue-stream: must come with --snapshot; got none",
        ),
        (
            ["train", "--solver=solver.prototxt", "--weights=none.caffemodel"],
            "none.caffemodel: must be a file; got nothing there",
        ),
        (
            ["train", "--solver=solver.prototxt", "--gpu=0,1"],
            "--gpu: must be the number of one device; got '0,1'; give one number",
        ),
        (
            ["train", "--solver=solver.prototxt", "--gpu=0", "--device=cpu"],
            "--gpu: must not be given with --device; got both; keep one",
        ),
        (
            ["train", "--solver=solver.prototxt", "--device=tpu"],
            "--device: must be auto, cpu, cuda or cuda:N; got 'tpu'",
        ),
        (
            ["train", "--solver=solver.prototxt", "--define", "A"],
            "--define: must be NAME=VALUE; got 'A'; give a name and its value",
        ),
        (["test", "--model=net.prototxt", "--weights=x", "--iterations=0"], "--iterations: must be at least 1; got 0"),
        (
            ["time", "--model=solver.prototxt"],
            "solver.prototxt: line 2: a field of NetParameter must be one of Caffe's; got 'net'",
        ),
        (["draw", "--model=list.txt", "x.svg"], "list.txt: line 1: "),
    ],
)
def test_one_line_for_what_is_wrong(arguments, message, folder, capsys):
    assert main(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["walk"], ["train"], ["draw", "--model=net.prototxt"], ["train", "--solver=s", "--sigint_effect=x"]],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m repro.caffe" in capsys.readouterr().err
