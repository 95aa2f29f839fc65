"""One row on several processes, as torchrun starts them: the same batches, masks, losses and results as on one, and one message where something is wrong."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from float_rule import Step, Truth, assert_within
from PIL import Image
from processes import Processes, program
from tiny import CRF, SUBMISSION, items_of, main, run_command, write_data, write_protocol

from repro import distributed
from repro.data.lists import Item
from repro.device import Compute
from repro.distributed import end_at_once, joined, listen_only, own_device, rank, share, total
from repro.evaluate.labels import padded_batches, share_of_batches
from repro.models import build
from repro.models.weights import save_caffemodel
from repro.protocol import load_protocol
from repro.run import __main__ as run_module
from repro.run import memory, row
from repro.run.lock import locked
from repro.run.memory import least_bytes
from repro.shell import exit_code
from repro.solver import snapshot as snapshots
from repro.solver import train as solver_train
from repro.solver.train import Sitting, Training

BATCH = 4  # which 3 processes share unevenly


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(distributed.__file__).parents[1]))  # the server knows no other path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "root", train=6, val=7)


@pytest.fixture
def settings(tmp_path):
    """Makes the settings of the row with attention and extra supervision, of two batches an iteration."""
    path = write_protocol(tmp_path, ("width = 0.03125", "width = 0.015625"))
    overrides = [f"solver.batch_size={BATCH}", "solver.iter_size=2", "solver.snapshot=2", "solver.max_iter=3"]
    return load_protocol(path, [*overrides, "solver.display=2"]).row("attention3-extra").settings


def train(items, settings, dtype, snapshot, arithmetic=None):
    """Trains a network in a type; returns its losses, its parameters and the data and labels of its batches."""
    network = build(settings["model"], 3, 1).to(dtype)
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    training = Training(network, items, settings, Sitting(1, "me", snapshot, Compute(torch.device("cpu"))))
    batches, step = [], training.step

    def noted(stream):
        for batch in stream:
            batches.append(batch)
            yield batch

    def one_step(stream):
        found = step(noted(stream))
        if arithmetic is not None:
            arithmetic.end_step(network.parameters())
        return found

    training.step = one_step
    training.run()
    return training.curve, [p.detach() for p in network.parameters()], batches


def train_in_rank(items, settings, dtype, folder):
    """Trains as one of several; leaves in the folder what it found."""
    with joined("cpu"):
        found = train(items, settings, dtype, folder / "snapshot.pt")
        torch.save([found[0], found[1], [tuple(batch) for batch in found[2]]], folder / f"{rank()}.pt")
    return 0


def trained(count, items, settings, dtype, folder):
    """Trains with several processes; returns what each found."""
    folder.mkdir()
    started = Processes(count, folder / "log", train_in_rank, items, settings, dtype, folder)
    assert started.end() == [0] * count, started.said()
    assert (folder / "snapshot.pt").exists()
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(count)]


def test_shares_are_in_order_complete_and_even():
    for count in range(20):
        for world_size in range(1, 7):
            cut = [list(range(count)[share(count, n, world_size)]) for n in range(world_size)]
            assert [thing for part in cut for thing in part] == list(range(count))
            assert max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_train_as_one_does(count, data, settings, tmp_path):
    items = items_of(data, "train")
    curve, parameters, batches = train(items, settings, torch.float64, tmp_path / "one.pt")
    found = trained(count, items, settings, torch.float64, tmp_path / "many")
    for number in range(len(batches)):
        for part, whole in enumerate(batches[number]):
            assert torch.equal(torch.cat([batch[number][part] for _, _, batch in found]), whole)
    for own_curve, own_parameters, own_batches in found:
        assert len(own_batches) == len(batches) == 6
        assert own_curve == found[0][0]
        np.testing.assert_allclose(own_curve, curve, rtol=1e-12, atol=0)
        for own, of_first, expected in zip(own_parameters, found[0][1], parameters, strict=True):
            assert torch.equal(own, of_first)
            assert (own - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_in_float32_their_losses_keep_what_any_order_of_sums_keeps(data, settings, tmp_path):
    items = items_of(data, "train")

    def compute(dtype, device, arithmetic):
        (tmp_path / "snapshot.pt").unlink(missing_ok=True)
        with arithmetic:
            curve, _, _ = train(items, settings, dtype, tmp_path / "snapshot.pt", arithmetic)
        return [Step({"loss": torch.tensor(loss)}, {}) for loss in curve]

    truth = Truth(compute)
    bound = truth.free_bounds["loss"]
    for count in (2, 3):
        curve = trained(count, items, settings, torch.float32, tmp_path / f"of{count}")[0][0]
        for step, (loss, exact) in enumerate(zip(curve, truth.steps, strict=True)):
            assert_within(torch.tensor(loss), exact.forward["loss"].double(), bound, f"{count} processes, step {step}")
    assert bound < 1e-3 * curve[0]


def test_a_process_scores_its_images_among_the_neighbours_that_one_gives_them(settings, tmp_path):
    random = np.random.default_rng(3)
    items = []
    for number in range(23):
        path = tmp_path / f"{number}.png"
        height, width = random.choice([20, 41, 42, 60], 2).tolist()
        Image.fromarray(np.full((height, width, 3), number, np.uint8)).save(path)
        items.append(Item(str(number), path, None))

    def batches(items):
        compute = Compute(torch.device("cpu"))
        return [[image.item.name for image in images] for images, _ in padded_batches(items, settings, compute)]

    for world_size in (1, 2, 3, 7, 30):
        shares = [share_of_batches(items, settings, number, world_size) for number in range(world_size)]
        assert [batch for own in shares for batch in batches(own)] == batches(items)


def records(out):
    """Reads the records below a folder, without what differs from machine to machine."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/*/record.json"))}
    return {name: record | {"run": {"world_size": record["run"]["world_size"]}} for name, record in found.items()}


def command_of(tmp_path, *changes, name="attention3-extra"):
    """Writes data and protocol, and makes a command."""
    command = run_command(tmp_path)
    write_protocol(tmp_path, *changes)
    return [*command, "--row", name]


@pytest.mark.parametrize("changes", [(CRF,), (SUBMISSION, CRF)], ids=["crf", "archives"])
def test_the_test_and_its_archives_are_those_of_one_process(changes, tmp_path, capsys):
    command = command_of(tmp_path, *changes)
    root = tmp_path / "data"
    (root / "ImageSets" / "test.txt").write_text("val0\nval1\n")
    weights = tmp_path / "trained.caffemodel"
    settings = load_protocol(command[0]).row("attention3-extra").settings
    save_caffemodel(build(settings["model"] | {"filler_gain": 3.0}, 3, 1), weights)
    command += ["--weights", str(weights), "--set", "solver.max_iter=0", "--set", "test.batch_size=1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    one = records(tmp_path / "out")
    assert one["attention3-extra-seed1"]["run"] == {"world_size": 1}
    for count in (2, 3):
        out = tmp_path / f"of{count}"
        many = Processes(count, tmp_path / f"log{count}", program, *command, "--out", str(out))
        assert many.end() == [0] * count, many.said()
        assert records(out)["attention3-extra-seed1"]["run"] == {"world_size": count}
        assert {name: record | {"run": None} for name, record in records(out).items()} == {
            name: record | {"run": None} for name, record in one.items()
        }
        table = printed.splitlines()[-3].split()
        assert [line.split()[:-1] for line in many.said().splitlines()].count(table[:-1]) == 1
        assert not list(out.glob("**/lock"))


def test_the_demo_with_its_own_data_and_what_a_dry_run_says(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    small = {"synthetic.num_train": 4, "data.num_train": 4, "synthetic.num_val": 3, "data.num_val": 3}
    small |= {"solver.max_iter": 2, "solver.batch_size": 3, "solver.display": 1}
    command = ["table1", "--row", "max2", "--device", "cpu", "--out", str(tmp_path / "out")]
    command += [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    plan = Processes(2, tmp_path / "plan", program, *command, "--dry-run")
    assert plan.end() == [0, 0], plan.said()
    assert len(re.findall(r"device cpu .*, fp32, 2 processes\n", plan.said())) == 1
    demo = Processes(2, tmp_path / "log", program, *command)
    assert demo.end() == [0, 0], demo.said()
    assert len(re.findall(r"Iteration 2, loss = ", demo.said())) == 1
    (record,) = records(tmp_path / "out").values()
    assert (record["synthetic"], len(record["loss_curve"]), record["run"]) == (True, 2, {"world_size": 2})


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, monkeypatch):
    command = command_of(tmp_path)
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    (whole,) = records(tmp_path / "whole").values()

    def write_and_stop(path, snapshot):
        snapshots.write_snapshot(path, snapshot)
        run_module._stop_asked = True

    with monkeypatch.context() as changed:
        changed.setattr(solver_train, "write_snapshot", write_and_stop)
        assert main(command) == 130
    many = Processes(2, tmp_path / "log", program, *command)
    assert many.end() == [0, 0], many.said()
    assert "Starting at iteration 4 of 6" in many.said()
    path = tmp_path / "out" / "tiny" / "attention3-extra-seed1" / "record.json"
    record = json.loads(path.read_text())
    assert record["run"]["world_size"] == 2
    assert record["run"]["resumed_under"]["world_size"] == ["1", "2"]
    assert record["loss_curve"][:4] == whole["loss_curve"][:4]
    np.testing.assert_allclose(record["loss_curve"], whole["loss_curve"], rtol=1e-3)


def test_other_commands_are_one_processs_work(tmp_path, capsys):
    command = ["check", "--runs", str(tmp_path / "none")]
    code = main(command)
    printed = capsys.readouterr()
    check = Processes(2, tmp_path / "log", program, *command)
    assert check.end() == [code, 0]
    assert sorted(check.said().splitlines()) == sorted((printed.out + printed.err).splitlines())


def fails(where):
    """Fails in one process, or in all, while the others wait for it."""
    listen_only()

    def call():
        with joined("cpu"):
            total(torch.ones(3))
            if where in (rank(), "all"):
                raise ValueError(f"data: must be whole; got a hole in process {rank()}; mend it")
            total(torch.ones(3))

    return exit_code(call)


@pytest.mark.parametrize("where", [0, 2, "all"])
def test_what_fails_in_one_process_ends_all_with_its_message(where, tmp_path):
    processes = Processes(3, tmp_path / "log", fails, where)
    assert processes.end() == [2, 2, 2], processes.said()
    number = r"\d" if where == "all" else where
    assert re.fullmatch(f"error: data: must be whole; got a hole in process {number}; mend it\n", processes.said())


def does_not_notice():
    """Waits, but not for the others, of which one fails."""
    distributed._GRACE = 0.2
    listen_only()

    def call():
        with joined("cpu"):
            total(torch.ones(3))
            if rank() == 0:
                raise ValueError("data: must be whole; got a hole; mend it")
            time.sleep(3600)

    return exit_code(call)


def test_a_process_that_does_not_notice_ends_with_the_others(tmp_path):
    processes = Processes(2, tmp_path / "log", does_not_notice)
    assert processes.end() == [2, 2], processes.said()
    assert processes.said() == "error: data: must be whole; got a hole; mend it\n"


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (
            3,
            [],
            "ImageSegData: world_size must be at most batch_size 2 and above rank; got world_size 3, rank [0-2]; change batch_size or the number of processes",
        ),
        (
            2,
            ["--device", "cuda:0"],
            "--device: must be auto, cpu or cuda where torchrun starts several processes on a machine; got cuda:0 for 2; use --device cuda",
        ),
        (2, ["--out", "/dev/null/out"], "--out: /dev/null/out must be a folder that can be written; got Not a directory; choose another --out"),
        (2, ["--workers", "-1"], "--workers: must be 0..1024; got -1; use 0 to decode in the training process"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_once(count, options, message, tmp_path):
    processes = Processes(count, tmp_path / "log", program, *command_of(tmp_path), *options)
    assert processes.end() == [2] * count, processes.said()
    (told,) = processes.told()
    assert re.fullmatch(f"error: {message}", told)


def test_a_folder_at_which_another_is_at_work_is_refused_once(tmp_path):
    command = command_of(tmp_path)
    with locked(tmp_path / "out" / "tiny" / "attention3-extra-seed1"):
        processes = Processes(2, tmp_path / "log", program, *command)
        assert processes.end() == [2, 2], processes.said()
    (told,) = processes.told()
    assert "one process at a time must be at work here; got another, process " in told


def test_label_maps_need_a_folder_that_all_see(tmp_path, monkeypatch, capsys):
    command = command_of(tmp_path, SUBMISSION)
    (tmp_path / "data" / "ImageSets" / "test.txt").write_text("val0\nval1\n")
    monkeypatch.setattr(
        row, "unfinished", lambda folders, items, identity: list(items)
    )  # as where another machine made it
    assert main(command) == 2
    assert re.search(
        r"^error: --out: every process must see .*comp6_test_cls, to write its label maps there; got no such folder on .*; give an --out that all machines share$",
        capsys.readouterr().err,
        re.M,
    )


def test_a_process_that_is_still_connected_ends_without_destructors(monkeypatch):
    """As after a failure, and with a torch whose gloo may hang as it closes its connections."""
    codes = []
    monkeypatch.setattr(distributed.os, "_exit", codes.append)
    end_at_once(2)
    assert codes == []
    monkeypatch.setattr(distributed, "_joined", lambda: True)
    end_at_once(0)
    end_at_once(2)
    assert codes == [0, 2]


@pytest.mark.parametrize("may_hang", [False, True])
def test_connections_are_closed_where_that_cannot_hang(may_hang, monkeypatch):
    closed = []
    monkeypatch.setattr(distributed, "_MAY_HANG", may_hang)
    monkeypatch.setattr(distributed, "launched", lambda: True)
    monkeypatch.setattr(dist, "rendezvous", lambda *arguments, **keywords: iter([(dist.HashStore(), 0, 1)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *arguments, **keywords: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: closed.append(True))
    with joined("cpu"):
        pass
    assert closed == [True] * (not may_hang)


def test_every_process_has_its_own_gpu(monkeypatch):
    assert [own_device(name) for name in ("auto", "cuda", "cuda:3", "cpu")] == ["auto", "cuda", "cuda:3", "cpu"]
    monkeypatch.setattr(distributed, "_joined", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert [own_device(name) for name in ("auto", "cuda", "cuda:3", "cpu")] == ["cuda:2", "cuda:2", "cuda:3", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto") == "auto"


def test_a_process_needs_memory_for_its_share(settings, monkeypatch):
    table = settings | {"solver": settings["solver"] | {"batch_size": 30}, "test": {"crop_size": 33, "batch_size": 1}}
    eight = settings | {"solver": settings["solver"] | {"batch_size": 8}, "test": {"crop_size": 33, "batch_size": 1}}
    expected = least_bytes(eight)
    monkeypatch.setattr(memory, "world_size", lambda: 4)
    assert least_bytes(table) == expected
