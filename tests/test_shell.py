"""How every program ends, what it may print where, and whether it may write."""

import io
import sys

import pytest

from repro.shell import check_writable, exit_code, log


def failing(error):
    def call():
        raise error

    return call


def test_results_become_exit_codes():
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 1) == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b"), "error: a b"),
        (FileNotFoundError("gone"), "error: gone"),
        (RuntimeError("no"), "error: no"),
        (KeyError("key"), "error: KeyError: 'key'"),
        (OverflowError("int too large"), "error: OverflowError: int too large"),
        (MemoryError(), "error: MemoryError: "),
        (ZeroDivisionError("by zero"), "error: ZeroDivisionError: by zero"),
        (RecursionError("deep"), "error: RecursionError: deep"),
    ],
)
def test_every_error_is_one_line_and_2(error, line, capsys):
    assert exit_code(failing(error)) == 2
    assert capsys.readouterr() == ("", line + "\n")


def test_the_traceback_is_shown_where_it_is_asked_for(capsys):
    assert exit_code(failing(ValueError("a")), show_traceback=True) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("error: a\n")


def test_an_interruption_says_how_to_go_on(capsys):
    assert exit_code(failing(KeyboardInterrupt()), interrupted="run it again") == 130
    assert capsys.readouterr().err == "interrupted; run it again\n"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"1 \\xb1 2\n"), ("latin-1", b"1 \xb1 2\n"), ("utf-8", b"1 \xc2\xb1 2\n")]
)
def test_no_encoding_loses_a_table(encoding, shown, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
    assert exit_code(lambda: print("1 ± 2", flush=True)) == 0
    assert content.getvalue() == shown


def test_a_folder_that_cannot_be_written(tmp_path):
    check_writable(tmp_path / "deep" / "out")
    assert list((tmp_path / "deep" / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RuntimeError, match=r"^--out: .*file/out must be a folder that can be written; got Not a directory; "
    ):
        check_writable(tmp_path / "file" / "out")


def test_log_lines_go_to_stderr(capsys):
    log("a line")
    assert capsys.readouterr() == ("", "a line\n")


def test_log_lines_need_no_tqdm(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    log("a line")
    assert capsys.readouterr() == ("", "a line\n")
    assert "tqdm" not in sys.modules
