"""JSON documents that anybody may have put there, read with suspicion."""

import os
import re

import pytest

from repro import documents
from repro.documents import document_bytes, is_number, parse_json


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert document_bytes(path) == document_bytes(tmp_path / "link") == b"12345"
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match=r"^no regular file$"):
            document_bytes(wrong)
    with pytest.raises(ValueError, match=r"^Is a directory$"):
        document_bytes(tmp_path)
    with pytest.raises(ValueError, match=r"^No such file or directory$"):
        document_bytes(tmp_path / "none")
    monkeypatch.setattr(documents, "MOST_BYTES", 1 << 20)
    path.write_bytes(bytes(1 << 20))
    assert len(document_bytes(path)) == 1 << 20
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ValueError, match=r"^larger than 1 MiB$"):
        document_bytes(path)


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
