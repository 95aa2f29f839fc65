"""Files that are read, and names that are given to files."""

import os
import re
import socket

import pytest

from repro.files import MAX_NAME_BYTES, check_name, read_bytes, regular_file, write_json, write_together

MUST = "x: a name must be one word of at most 200 bytes without / and \\ that starts with no dot"


def fails(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("name", ["2008_000003", "a.b-c(1)", "été", "a" * MAX_NAME_BYTES, "é" * (MAX_NAME_BYTES // 2)])
def test_names(name):
    assert check_name(name, "x") is name


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("", "''"),
        (".", "'.'"),
        ("..", "'..'"),
        (".hidden", "'.hidden'"),
        ("/etc/passwd", "'/etc/passwd'"),
        ("a/../b", "'a/../b'"),
        ("a\\b", "'a\\\\b'"),
        ("a b", "'a b'"),
        ("a\nb", "'a\\nb'"),
        ("a\0", "'a\\x00'"),
        ("a\u2028b", "'a\\u2028b'"),
        ("caf\udce9", "'caf\\udce9'"),
        ("a" * (MAX_NAME_BYTES + 1), "'" + "a" * 79 + "..."),
        ("é" * (MAX_NAME_BYTES // 2) + "a", "'" + "\\xe9" * 19 + "\\xe..."),
        (7, "7"),
        (None, "None"),
    ],
)
def test_names_that_would_lead_elsewhere_or_cannot_be_listed(name, got):
    with fails(ValueError, f"{MUST}; got {got}; rename it"):
        check_name(name, "x")


def test_bytes_are_read_up_to_the_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with fails(ValueError, f"{path}: list must have at most 4 bytes; got 5; name the right file"):
        read_bytes(path, 4, "list")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link", 5) == b"12345"
    assert regular_file(path).st_size == 5


def test_files_without_a_size_are_read_up_to_the_limit_too(tmp_path):
    with pytest.raises(
        ValueError, match=r"^/proc/self/maps: file must have at most 10 bytes; got 11; name the right file$"
    ):
        read_bytes(type(tmp_path)("/proc/self/maps"), 10)


def test_missing_files(tmp_path):
    path = tmp_path / "a"
    with fails(FileNotFoundError, f"{path}: file must exist; got no such file; correct the path"):
        read_bytes(path, 5)
    path.write_text("")
    with fails(FileNotFoundError, f"{path}/b: list must exist; got no such file; complete it"):
        read_bytes(path / "b", 5, "list", "complete it")
    with pytest.raises(ValueError, match=r"^.{300}: file must be a file; got File name too long; correct the path$"):
        read_bytes(tmp_path / ("a" * 400), 5)
    with pytest.raises(ValueError, match=r"file must be a file; got embedded null byte; correct the path$"):
        regular_file(tmp_path / "a\0")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "a socket"),
    ],
    ids=["FIFO", "folder", "device", "socket"],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_special_files_are_neither_waited_for_nor_read(tmp_path, monkeypatch, make, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = type(tmp_path)("a")
    make(path)
    with fails(ValueError, f"a: file must be a regular file; got {kind}; name a file"):
        read_bytes(path, 5)


def test_files_that_belong_together_appear_together(tmp_path, monkeypatch):
    first, second = tmp_path / "deep" / "first", tmp_path / "second"
    write_together({first: "1", second: "2"})
    assert (first.read_text(), second.read_text()) == ("1", "2")
    with pytest.raises(UnicodeEncodeError):
        write_together({first: "new", second: "\ud800"})
    assert (first.read_text(), second.read_text()) == ("1", "2")
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda part, path: order.append(path.name) or replace(part, path))
    write_together({first: "3", second: "4"})
    assert order == ["first", "second"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["first", "second"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "record.json"
    write_json(path, {"b": 1, "a": 2})
    before = path.read_text()
    assert before == '{\n "a": 2,\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("inf")})
    assert path.read_text() == before

    def die(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 3})
    assert path.read_text() == before
