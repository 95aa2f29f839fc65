"""repro.bench.evidence: its steps, their limits and ends, and what is read from the tools' files. No GPU is here: the CPU rehearses."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from repro import ops
from repro.bench.cases import select
from repro.bench.evidence import __main__ as program
from repro.bench.evidence import kernels, outputs, process, smoke, steps, training
from repro.bench.evidence.calls import calls
from repro.bench.evidence.steps import STEPS, Setting, Step
from repro.records.evidence import read_evidence

ROOT = Path(__file__).parents[1]
RESULTS = {
    "evidence.json",
    "log.txt",
    "tests.xml",
    "sanitizer.txt",
    "ncu.csv",
    *(f"bench-{n}.json" for n in ("fp32", "bf16", "compile")),
}
MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at void {kernel}<float>(const T1 *, long)+0x160
=========     by thread (0,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: repro::launch(float const*, long) [0x1] in _C.so
=========
========= ERROR SUMMARY: 1 error
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void repro::<unnamed>::interp_kernel<float>()+0xd0
=========     and Read access at void repro::<unnamed>::interp_kernel<float>()+0xf0 [16 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
NCU = """\
==PROF== Connected to process 1
"ID","Process Name","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","","us","register/thread"
"0","python","void repro::interp_kernel<float>(...)","12.5","40"
"""
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_interp" name="test_a"/><testcase classname="tests.test_interp" name="test_b"><failure message="no"/></testcase>
<testcase classname="tests.test_interp" name="test_c"><skipped message="needs hypothesis"/></testcase>
</testsuite></testsuites>"""


def own_step(name, code, limit=20.0, **more):
    """A step that runs a line of Python."""
    return Step(
        name, f"does {name}", limit, lambda setting: [sys.executable, "-c", code], **{"read": lambda s: {}} | more
    )


def gathered(monkeypatch, tmp_path, some, *arguments, device="cuda"):
    """Runs the program on other steps; returns its exit code and the document."""
    monkeypatch.setattr(program, "STEPS", tuple(some))
    monkeypatch.setattr(program, "device_names", lambda: ["A GPU"])
    code = program.main(["--out", str(tmp_path / "out"), "--device", device, *arguments])
    return code, read_evidence(tmp_path / "out" / "evidence.json")


def test_a_rehearsal_tries_the_steps_and_is_no_evidence(tmp_path, capsys):
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--steps"]
    assert program.main([*arguments, "memcheck,versions"]) == 0
    assert program.main([*arguments, "smoke,ncu"]) == 0
    document = read_evidence(tmp_path / "evidence.json")
    found = {step["name"]: step for step in document["steps"]}
    assert document["rehearsal"] is True
    assert {name: step["state"] for name, step in found.items()} == {
        "versions": "passed", "smoke": "passed", "memcheck": "left out", "ncu": "left out",
    }  # fmt: skip
    assert list(found) == ["versions", "smoke", "memcheck", "ncu"]
    assert found["memcheck"]["reason"] == found["ncu"]["reason"] == "no CUDA device"
    assert found["versions"]["found"]["versions"]["torch"] == torch.__version__
    called = found["smoke"]["found"]["calls"]
    assert {name.split()[0] for name in called} == {name for name in ops.__all__ if name != "backend"}
    assert {name.split()[-1] for name in called} == {"float32", "float64", "bfloat16", "float16"}
    assert {path.name for path in tmp_path.iterdir()} == {"evidence.json", "log.txt"}
    printed = capsys.readouterr().out
    assert "A rehearsal on the CPU: it tries the steps, and is evidence of nothing." in printed
    assert re.search(r"left out +memcheck .*no CUDA device", printed)


def test_results_are_few_and_easily_carried():
    assert len(RESULTS) <= 8
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in RESULTS)
    assert outputs.MOST_BYTES + len(STEPS) * program.LOG_BYTES < 2 * 16 * 2**20
    assert max(outputs.MOST_BYTES, len(STEPS) * program.LOG_BYTES) < 16 * 2**20
    assert all(step.limit < 600 for step in STEPS)
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_every_end_of_a_step_is_noted_and_passed_over(monkeypatch, tmp_path, capsys):
    some = [
        own_step("good", "print('fine')", read=lambda s: {"number": 1}),
        own_step("bad", "print('why not'); raise SystemExit(3)"),
        own_step("bare", "import torchnada"),
        own_step("ours", "import repro.nothing"),
        own_step("slow", "import time; print('began', flush=True); time.sleep(60)", limit=6.0),
        own_step("unread", "", read=lambda s: {}["nothing"]),
        own_step("against", "", read=lambda s: (_ for _ in ()).throw(outputs.Failed("an error", {"errors": 1}))),
        own_step("toolless", "", tool="no-such-tool"),
        own_step("after", "import repro; print(repro.__file__)"),
    ]
    monkeypatch.setattr(process, "GRACE", 1.0)
    code, document = gathered(monkeypatch, tmp_path, some)
    assert code == 1
    found = {step["name"]: (step["state"], step["reason"]) for step in document["steps"]}
    assert found["good"] == found["after"] == ("passed", "")
    assert found["bad"] == ("failed", "exit code 3: why not")
    assert found["bare"] == ("left out", "needs torchnada")
    assert found["ours"][0] == "failed"
    assert found["slow"][0] == "timed out"
    assert found["unread"] == ("failed", "its results cannot be read: 'nothing'")
    assert found["against"] == ("failed", "an error")
    assert found["toolless"] == ("left out", "needs no-such-tool")
    assert [step["found"] for step in document["steps"] if step["found"]] == [{"number": 1}, {"errors": 1}]
    assert {step["device_name"] for step in document["steps"]} == {"A GPU"}
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "why not" in log
    assert "began" in log
    assert str(ROOT / "repro") in log
    assert re.search(r"failed +bad +[\d.]+ s  exit code 3: why not", capsys.readouterr().out)


def test_a_part_is_added_to_what_is_there(monkeypatch, tmp_path, capsys):
    some = [own_step("first", ""), own_step("second", "raise SystemExit(1)"), own_step("third", "")]
    assert gathered(monkeypatch, tmp_path, some, "--steps", "second,first")[0] == 1
    some[1] = own_step("second", "")
    code, document = gathered(monkeypatch, tmp_path, some, "--steps", "third,second")
    assert code == 0
    assert [(s["name"], s["state"]) for s in document["steps"]] == [(s.name, "passed") for s in some]
    assert program.main(["--out", str(tmp_path / "out"), "--device", "cpu", "--steps", "first"]) == 2
    assert "must be of the same kind; got a rehearsal beside evidence; choose another" in capsys.readouterr().err
    (tmp_path / "out" / "evidence.json").write_text("{}")
    assert program.main(["--out", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert "must be evidence; got foreign: no evidence" in capsys.readouterr().err


def test_the_budget_ends_the_steps(monkeypatch, tmp_path):
    some = [own_step("first", "import time; time.sleep(60)"), own_step("second", "")]
    monkeypatch.setattr(process, "GRACE", 1.0)
    code, document = gathered(monkeypatch, tmp_path, some, "--budget", str(program.GRACE + 8))
    assert code == 1
    assert [(s["state"], s["reason"]) for s in document["steps"]][1] == ("left out", "the budget is spent")
    assert document["steps"][0]["state"] == "timed out"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "versoins"], "--steps: must be of versions, build, .*got 'versoins'; did you mean 'versions'?"),
        (["--device", "cuda:1"], "--device: must be auto, cpu, or a CUDA device that torch sees; got 'cuda:1' of 1; use cpu for a rehearsal"),
        (["--device", "tpu"], "--device: must be auto, cpu, or .*got 'tpu' of 1"),
        (["--out", "/dev/null/x"], "--out: /dev/null/x must be a folder that can be written"),
    ],
)  # fmt: skip
def test_messages(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(program, "device_names", lambda: ["A GPU"])
    assert program.main(arguments) == 2
    assert re.match("error: " + message.replace("?", r"\?"), capsys.readouterr().err)


def test_an_installed_package_is_no_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "ROOT", tmp_path)
    assert program.main(["--device", "cpu"]) == 2
    message = f"error: evidence: must run from a checkout, whose kernels it builds; got {tmp_path}; start it there\n"
    assert capsys.readouterr().err == message


def test_without_a_gpu_auto_is_a_rehearsal_but_no_success(monkeypatch, tmp_path):
    monkeypatch.setattr(program, "STEPS", (own_step("first", ""),))
    monkeypatch.setattr(program, "device_names", list)
    assert program.main(["--out", str(tmp_path)]) == 1
    assert read_evidence(tmp_path / "evidence.json")["rehearsal"] is True
    assert program.choose_device("auto", ["A GPU"]) == ("cuda", "A GPU")
    assert program.choose_device("cuda:1", ["A GPU", "Another"]) == ("cuda:1", "Another")


def test_a_process_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    code = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {deaf!r}]); print(child.pid, flush=True); child.wait()"
    ended = process.run([sys.executable, "-c", code], 15.0, tmp_path, {}, tmp_path / "log")
    assert ended.code is None
    child = Path(f"/proc/{ended.output.split()[0]}/stat")
    for _ in range(100):  # killed; who gathers it is the system's affair
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the process started is still there")
    monkeypatch.setattr(process, "GRACE", 20.0)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does to what it starts in the background
    try:
        code = "import time\ntry:\n    print('on', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n    print('saved')"
        ended = process.run([sys.executable, "-c", code], 4.0, tmp_path, {}, tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ended.code, ended.output) == (None, "on\nsaved\n")
    assert process.run(["/no/such/program"], 1, tmp_path, {}, tmp_path / "log").code == 127


def test_what_compute_sanitizer_says_of_ours_fails_and_of_others_is_counted(tmp_path):
    source, target = tmp_path / "memcheck.txt", tmp_path / "sanitizer.txt"
    source.write_text(MEMCHECK.format(kernel="at::native::copy_kernel"))
    assert outputs.sanitizer(source, target) == {"of_our_kernels": 0, "of_others": 1, "summary": 1, "first": []}
    for text in (MEMCHECK.format(kernel="repro::<unnamed>::interp_kernel"), RACE):
        source.write_text(text)
        with pytest.raises(
            outputs.Failed, match=r"1 errors in our kernels, the first: ========= .*interp_kernel"
        ) as failed:
            outputs.sanitizer(source, target)
        assert (failed.value.found["of_our_kernels"], failed.value.found["of_others"]) == (1, 0)
    source.write_text("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n")
    assert outputs.sanitizer(source, target)["of_others"] == 0
    source.write_text("========= COMPUTE-SANITIZER\n")
    with pytest.raises(outputs.Failed, match="wrote no summary"):
        outputs.sanitizer(source, target)
    assert target.read_text().count("# memcheck") == 5


def test_what_ncu_and_pytest_leave(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text(NCU)
    (kernel,) = outputs.ncu(source, target)["kernels"]
    assert kernel["gpu__time_duration.sum"] == "12.5 us"
    assert kernel["launch__registers_per_thread"] == "40 register/thread"
    assert target.read_text() == NCU
    source.write_text("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")
    with pytest.raises(outputs.Failed, match="ERR_NVGPUCTRPERM"):
        outputs.ncu(source, target)
    source.write_text(JUNIT)
    found = outputs.junit(source, target)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, {"needs hypothesis": 1})
    assert found["failures"] == ["tests.test_interp::test_b"]
    source.write_text("<testsuites><testsuite/></testsuites>")
    with pytest.raises(outputs.Failed, match="no test ran"):
        outputs.junit(source, target)
    for read in (outputs.junit, outputs.ncu, outputs.sanitizer):
        assert read(tmp_path / "nothing", target) == {}


def test_a_large_result_keeps_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "MOST_BYTES", 4)
    (tmp_path / "a").write_text("123456")
    outputs.keep(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "3456"


def test_whether_the_stream_keeps_up():
    speed = {"precisions": {"fp32": {"state": "timed", "images_per_second": 90.0}, "tf32": {"state": "out of memory"}}}
    loader = {"streams": [{"images_per_second": 40.0}, {"images_per_second": 95.0}]}
    both = [{"name": "speed", "found": speed}, {"name": "loader", "found": loader}]
    assert outputs.keeps_up(both) == {"fp32": True}
    speed["precisions"]["fp32"]["images_per_second"] = 96.0
    assert outputs.keeps_up(both) == {"fp32": False}
    assert outputs.keeps_up(both[:1]) == outputs.keeps_up(both[1:]) == {}


def test_a_wrong_kernel_does_not_pass_the_smoke_step(monkeypatch):
    (call,) = [call for call in calls(torch.float32) if call.name == "interp enlarged"]
    cpu = torch.device("cpu")
    good = smoke.compare(call, torch.float32, cpu)
    assert (good["close"], good["bits_of_the_cpu"], good["same_bits_again"]) == (True, True, True)
    factors = iter([1, 1.001, 1.001, 1, 1, 1.0000001])  # of the CPU, the device, and the device again
    wrong = call._replace(run=lambda x, run=call.run: [y * next(factors) for y in run(x)])
    bad = smoke.compare(wrong, torch.float32, cpu)
    assert (bad["close"], bad["bits_of_the_cpu"], bad["same_bits_again"]) == (False, False, True)
    unsteady = smoke.compare(wrong, torch.float32, cpu)
    assert (unsteady["close"], unsteady["bits_of_the_cpu"], unsteady["same_bits_again"]) == (True, True, False)


def test_a_wrong_gradient_does_not_agree(monkeypatch, tmp_path):
    original, calls_ = training.one_step, []

    def spoiled(settings, compute):
        one = original(settings, compute)
        calls_.append(compute.precision)
        return one | {"gradients": one["gradients"] * (1.2 if len(calls_) == 3 else 1)}

    monkeypatch.setattr(training, "one_step", spoiled)
    assert not training.agree(torch.device("cpu"), tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())["precisions"]
    assert {name: one["state"] for name, one in found.items()} == {
        "fp32": "agrees", "tf32": "left out: no CUDA device", "bf16": "disagrees",
    }  # fmt: skip


def test_training_is_timed_with_every_option_the_graph_last(monkeypatch, tmp_path):
    asked, chosen = [], []

    def time_steps(settings, images, compute, profiled):
        asked.append((compute.precision, images, compute.deterministic, compute.cuda_graph, profiled))
        assert chosen[-1] == compute.deterministic
        if compute.precision == "fp32" and images > 15:
            raise torch.OutOfMemoryError("too little")
        if compute.cuda_graph and compute.precision == "bf16":
            raise RuntimeError("--cuda-graph: an iteration\n must be")
        return {"state": "timed", "batch": images, "images_per_second": 1.0}

    monkeypatch.setattr(training, "time_steps", time_steps)
    monkeypatch.setattr(training, "choose_device", lambda name, precision: torch.device(name))
    monkeypatch.setattr(training, "choose_algorithms", lambda device, deterministic: chosen.append(deterministic))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert not training.speed(torch.device("cuda", 0), tmp_path / "result.json")
    assert asked == [
        ("fp32", 30, False, False, True), ("fp32", 15, False, False, True), ("tf32", 30, False, False, True), ("bf16", 30, False, False, True),
        ("fp32", 15, True, False, False), ("tf32", 30, True, False, False), ("bf16", 30, True, False, False),
        ("fp32", 15, False, True, False), ("tf32", 30, False, True, False), ("bf16", 30, False, True, False),
    ]  # fmt: skip
    found = json.loads((tmp_path / "result.json").read_text())["precisions"]
    assert {name: one["state"] for name, one in found.items()} == dict.fromkeys(training.PRECISIONS, "timed")
    assert found["fp32"]["batch"] == found["fp32"]["with"]["--cuda-graph"]["batch"] == 15
    assert found["bf16"]["with"]["--deterministic"]["state"] == "timed"
    assert found["bf16"]["with"]["--cuda-graph"] == {"state": "--cuda-graph: an iteration must be"}
    asked.clear()
    assert training.speed(torch.device("cpu"), tmp_path / "result.json")
    assert [one[0] for one in asked] == ["fp32", "bf16"]


def test_the_commands_name_what_exists(tmp_path):
    setting = Setting(tmp_path, tmp_path, "cuda")
    commands = {step.name: step.command(setting) for step in STEPS}
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    assert all(f" {name}(" in sources for name in kernels.NAMES)
    assert all(select([op], [name]) for op, name in kernels.CASES)
    assert commands["bench-fp32"].count("--case") == 0
    assert {"large-2049", "table3-train-3"} <= set(commands["bench-bf16"])
    assert "--kernel-name" not in commands["initcheck"]
    assert commands["tests"][-2:] == ["-m", "gpu"]
    modules = {command[command.index("-m") + 1] for command in commands.values() if "-m" in command}
    assert all(importlib.util.find_spec(name) for name in modules)


@pytest.mark.slow
def test_the_whole_rehearsal_from_a_checkout_without_git(tmp_path):
    """Builds the extension there too: some minutes."""
    copy = tmp_path / "checkout"
    names = ("repro", "csrc", "caffe_weights", "protocols", "tests", "setup.py", "pyproject.toml", "README.md")
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
        else:
            shutil.copy(source, copy / name)
    assert sum(path.stat().st_size for path in copy.rglob("*") if path.is_file()) < 64 * 2**20
    command = [
        sys.executable,
        "-m",
        "repro.bench.evidence",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
        "--budget",
        "3000",
    ]
    done = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, env=os.environ | {"REPRO_CUDA": "0", "PYTHONPATH": str(copy)}
    )
    document = read_evidence(tmp_path / "out" / "evidence.json")
    states = {step["name"]: step["state"] for step in document["steps"]}
    cuda = {"ncu", *steps.SANITIZERS}
    assert states == {step.name: "left out" if step.name in cuda else "passed" for step in STEPS}, done.stdout
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULTS - {"ncu.csv", "sanitizer.txt"}
