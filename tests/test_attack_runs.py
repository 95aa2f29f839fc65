"""What a run leaves behind, damaged: snapshots, records, figures and benchmarks are refused or left out by name, and no number changes."""

import io
import json
import shutil

import pytest
import report_cases as cases
import test_report_robust as robust
import tiny
import torch
from attack import attack
from mutations import SPECIAL, mutated, special

from repro.solver.snapshot import _MAGIC, _head

pytestmark = pytest.mark.slow

ROW = "max2"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run of one row, which all cases copy."""
    folder = tmp_path_factory.mktemp("ran")
    # In a process like the cases': with other threads the last bits of a training are others.
    assert attack(folder, "run", [*tiny.run_command(folder), "--row", ROW]).code == 0
    return folder


@pytest.fixture
def case(ran, tmp_path):
    """The run in a folder of the case's own."""
    shutil.copytree(ran / "out", tmp_path / "out")
    return tmp_path


def snapshot_of(case):
    return case / "out" / "tiny" / f"{ROW}-seed1" / "snapshot.pt"


def resume(ran, case):
    """Runs the row from its snapshot; where it ends well its record is the undisturbed run's."""
    record = snapshot_of(case).with_name("record.json")
    truth = json.loads(record.read_text())
    record.unlink()
    command = [str(ran / "tiny.toml"), "--data-root", str(ran / "data"), "--weights", "none", "--device", "cpu"]
    more = ["--workers", "0", "--row", ROW, "--out", str(case / "out")]
    ending = attack(case, "run", command + more, inputs=ran)
    if ending.code == 0:
        assert json.loads(record.read_text()) | {"run": None} == truth | {"run": None}
    else:
        assert not record.exists()
    return ending


def test_the_undamaged_one_goes_on(ran, case):
    ending = resume(ran, case)
    assert ending.code == 0
    assert "Starting at iteration" not in ending.err  # nothing was left to train


@pytest.mark.parametrize("seed", range(220))
def test_snapshots(ran, case, seed):
    path = snapshot_of(case)
    good = path.read_bytes()
    path.write_bytes(mutated(good, seed))
    assert resume(ran, case).code == (2 if path.read_bytes() != good else 0)


@pytest.mark.parametrize("kind", SPECIAL)
def test_snapshots_that_are_no_files(ran, case, kind):
    special(snapshot_of(case), kind)
    assert resume(ran, case).code in (0, 2)  # a link that leads nowhere is no snapshot: the row starts again


class Code:
    """Makes a folder where somebody unpickles it."""

    def __reduce__(self):
        return __import__("os").mkdir, ("ran",)


NAN, HUGE = float("nan"), 2**62
FORGED = {
    "code": lambda s: s | {"sittings": [Code()]},
    "iteration": lambda s: s | {"iteration": 5},
    "no iteration": lambda s: s | {"iteration": -1},
    "huge iteration": lambda s: s | {"iteration": HUGE},
    "iteration true": lambda s: s | {"iteration": True},
    "iteration text": lambda s: s | {"iteration": "6"},
    "seconds nan": lambda s: s | {"seconds": NAN},
    "seconds minus": lambda s: s | {"seconds": -1.0},
    "identity": lambda s: s | {"identity": "0" * 64},
    "no identity": lambda s: s | {"identity": None},
    "curve cut": lambda s: s | {"curve": s["curve"][:-1]},
    "curve nan": lambda s: s | {"curve": s["curve"] * NAN},
    "curve float32": lambda s: s | {"curve": s["curve"].float()},
    "curve list": lambda s: s | {"curve": s["curve"].tolist()},
    "curve meta": lambda s: s | {"curve": s["curve"].to("meta")},
    "more": lambda s: s | {"more": 1},
    "less": lambda s: {k: v for k, v in s.items() if k != "history"},
    "list": lambda s: list(s),
    "nothing": lambda s: None,
    "sittings": lambda s: s | {"sittings": "x"},
    **{
        f"{part} {name}": lambda s, part=part, change=change: s | {part: change(dict(s[part]))}
        for part in ("parameters", "history")
        for name, change in {
            "nan": lambda p: p | {"fc8.bias": p["fc8.bias"] * NAN},
            "shape": lambda p: p | {"fc8.bias": p["fc8.bias"][:-1]},
            "huge": lambda p: p | {"fc8.bias": torch.zeros(1).expand(2**40)},
            "double": lambda p: p | {"fc8.bias": p["fc8.bias"].double()},
            "sparse": lambda p: p | {"fc8.bias": p["fc8.bias"].to_sparse()},
            "meta": lambda p: p | {"fc8.bias": p["fc8.bias"].to("meta")},
            "list": lambda p: p | {"fc8.bias": [0.0]},
            "less": lambda p: {k: v for k, v in p.items() if k != "fc8.bias"},
            "more": lambda p: p | {"fc9.bias": p["fc8.bias"]},
            "number": lambda p: p | {7: p["fc8.bias"]},
            "none": lambda p: None,
        }.items()
    },
}


@pytest.mark.parametrize("program", ["run", "export", "visualize"])
@pytest.mark.parametrize("name", FORGED)
def test_forged_snapshots(ran, case, name, program):
    """Whole files with a right checksum, whose content is not what a run writes."""
    path = snapshot_of(case)
    state = torch.load(io.BytesIO(path.read_bytes()[len(_head(b"")) :]), weights_only=True)
    content = io.BytesIO()
    torch.save(FORGED[name](state), content)
    path.write_bytes(_head(content.getvalue()) + content.getvalue())
    assert path.read_bytes().startswith(_MAGIC)
    assert use(program, ran, case).code == 2


def use(program, ran, case):
    """Reads the snapshot by one of the programs that do."""
    if program == "run":
        return resume(ran, case)
    if program == "export":
        out = str(case / "out" / "export")
        return attack(case, program, [str(snapshot_of(case)), out, "--data-root", str(ran / "data")], inputs=ran)
    command = ["--run", str(case / "out"), "--row", ROW, "--images", str(ran / "data" / "JPEGImages"), "--device"]
    return attack(case, program, [*command, "cpu", "--out", str(case / "out" / "pictures")], inputs=ran)


@pytest.mark.parametrize("program", ["export", "visualize"])
@pytest.mark.parametrize("seed", range(33))
def test_snapshots_that_other_programs_read(ran, case, seed, program):
    path = snapshot_of(case)
    good = path.read_bytes()
    path.write_bytes(mutated(good, seed))
    assert use(program, ran, case).code == (2 if path.read_bytes() != good else 0)


@pytest.mark.parametrize("program", [("run", "check", "--runs"), ("run", "--list", "--out")], ids=["check", "list"])
@pytest.mark.parametrize("bad", robust.BAD, ids=lambda bad: bad[:12])
@pytest.mark.parametrize("path", robust.PATHS, ids=lambda path: "-".join(map(str, path)))
def test_records(tmp_path, path, bad, program):
    file = tmp_path / "out" / "demo" / "max2-seed1" / "record.json"
    file.parent.mkdir(parents=True)
    path = tuple("head" if key == "box" else key for key in path)  # a class of the package's own demo
    file.write_text(robust.spoiled(cases.record("demo", "max2", 41.0), path, bad))
    assert attack(tmp_path, program[0], [*program[1:], str(tmp_path / "out")]).code in (0, 1, 2)


@pytest.mark.parametrize("seed", range(44))
def test_reports_of_damaged_files(tmp_path, seed):
    """One record, one list of figures with its picture, one benchmark; one of them is damaged, the page is written."""
    runs = tmp_path / "runs"
    cases.write(runs, "demo", "attention2", 40.0)
    index = cases.write_figures(runs)
    files = [
        runs / "demo" / "attention2-seed1" / "record.json",
        index,
        index.parent / "one.png",
        cases.write_benchmark(runs),
    ]
    victim = files[seed % len(files)]
    victim.write_bytes(mutated(victim.read_bytes(), seed))
    ending = attack(tmp_path, "report", ["--runs", str(runs), "--out", str(tmp_path / "out" / "report")])
    assert ending.code == 0
    assert (tmp_path / "out" / "report" / "report.html").read_text().rstrip().endswith("</html>")
