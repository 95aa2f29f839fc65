"""What lies in the output folder already and is not this run's: it is neither taken nor overwritten."""

import pytest
from tiny import main, run_command

from repro.run import row as row_module


@pytest.fixture
def tiny(tmp_path):
    return run_command(tmp_path)


def test_a_record_of_other_settings_is_neither_taken_nor_overwritten(tiny, tmp_path, capsys):
    assert main([*tiny, "--row", "baseline"]) == 0
    path = tmp_path / "out" / "tiny" / "baseline-seed1" / "record.json"
    before = path.read_text()
    capsys.readouterr()

    def line(*more):
        assert main([*tiny, "--row", "baseline", *more]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert path.read_text() == before
        return err.splitlines()[-1]

    message = f"error: {path}: must have been made with the settings asked for; got other %s; choose another --out, or delete it"
    assert line("--set", "solver.gamma=0.5") == message % "settings_sha256"
    assert line("--precision", "bf16") == message % "precision"
    (tmp_path / "data" / "ImageSets" / "val.txt").write_text("val2\nval1\nval0\n")
    assert line() == message % "data_sha256"
    # A row that is not asked for does not stand in the table where its record was made with other settings.
    assert main([*tiny, "--row", "max2"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("baseline "))
    assert row.split()[-2:] == ["-", "-"]


def test_an_unfinished_run_of_other_settings_is_not_continued(tiny, tmp_path, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(row_module, "evaluate", broken)
        assert main([*tiny, "--row", "baseline"]) == 130
    capsys.readouterr()
    assert main([*tiny, "--row", "baseline", "--set", "solver.max_iter=9"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"error: {tmp_path}/out/tiny/baseline-seed1/snapshot.pt: must be a whole snapshot of this very run; got another run's snapshot"
    )
    assert not list(tmp_path.glob("**/record.json"))


def test_a_damaged_record_is_not_overwritten(tiny, tmp_path, capsys):
    path = tmp_path / "out" / "tiny" / "baseline-seed1" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert main(tiny) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {path}: must be a record of a run; got ")
    assert path.read_text() == "{"
