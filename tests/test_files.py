"""Files that are read with suspicion, and written whole or not at all, together where they belong together."""

import os
import re

import pytest

from repro import files
from repro.files import is_number, parse_json, read_bytes, write_json, write_together


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(path) == read_bytes(tmp_path / "link") == b"12345"
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match=r"^no regular file$"):
            read_bytes(wrong)
    with pytest.raises(ValueError, match=r"^Is a directory$"):
        read_bytes(tmp_path)
    with pytest.raises(ValueError, match=r"^No such file or directory$"):
        read_bytes(tmp_path / "none")
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
    path.write_bytes(bytes(1 << 20))
    assert len(read_bytes(path)) == 1 << 20
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ValueError, match=r"^larger than 1 MiB$"):
        read_bytes(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"[1e999]", "a number is larger than 1e+30"),
        (b"[-1e308]", "a number is larger than 1e+30"),
        (b"1" + b"0" * 31, "a number is larger than 1e+30"),
        (b"1" + b"0" * 5000, "Exceeds the limit"),
        (rb'["\ud800"]', "a string holds half of a surrogate pair"),
        (rb'{"\udfff": 1}', "a string holds half of a surrogate pair"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_documents_that_cannot_be_worked_with(text, reason):
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}") as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_a_document():
    assert parse_json(rb'{"a": [1, -2.5, true, null, "\ud83d\ude00"]}') == {"a": [1, -2.5, True, None, "\U0001f600"]}


def test_numbers():
    assert [is_number(value) for value in (1, 1.5, True, "1", None, float("inf"), float("nan"))] == [True] * 2 + [
        False
    ] * 5


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
