"""The name of data: of their content, whether or not it is remembered."""

import json
import os
import re

import pytest

from repro.data import fingerprint as module
from repro.data.fingerprint import data_fingerprint, fingerprint, require_unchanged
from repro.data.lists import Item


def write_item(root, name, content="image"):
    root.mkdir(exist_ok=True)
    (root / f"{name}.jpg").write_text(content)
    (root / f"{name}.png").write_text("label")
    return Item(name, root / f"{name}.jpg", root / f"{name}.png")


@pytest.fixture(params=[False, True], ids=["without a memory", "with a memory"])
def memory(request, tmp_path):
    return tmp_path / "out" / "data_read.json" if request.param else None


def swap(path, content):
    """Replaces a file's content by another of the same length, in place, and puts its time back."""
    stat = path.stat()
    assert len(content) == stat.st_size
    path.write_text(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_everything_that_matters_changes_it(tmp_path, memory):
    a, b = write_item(tmp_path / "x", "a"), write_item(tmp_path / "x", "b", "other")
    first = fingerprint([a, b], memory)
    assert re.fullmatch("[0-9a-f]{64}", first)
    others = [
        fingerprint([b, a], memory),
        fingerprint([a], memory),
        fingerprint([a, b._replace(label=None)], memory),
        fingerprint([a, b._replace(name="c")], memory),
        fingerprint([a, b._replace(image=b.label, label=b.image)], memory),
    ]
    swap(a.image, "IMAGE")
    others.append(fingerprint([a, b], memory))
    swap(a.image, "image")
    assert fingerprint([a, b], memory) == first
    swap(a.label, "LABEL")
    others.append(fingerprint([a, b], memory))
    assert len({first, *others}) == 8


def test_a_file_moved_over_another_is_noticed(tmp_path, memory):
    a, b = write_item(tmp_path / "x", "a"), write_item(tmp_path / "x", "b", "other")
    stat = a.image.stat()
    os.utime(b.image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    first = fingerprint([a], memory)
    os.replace(b.image, a.image)
    assert fingerprint([a], memory) != first


def test_the_folder_plays_no_part(tmp_path):
    assert fingerprint([write_item(tmp_path / "x", "a")]) == fingerprint([write_item(tmp_path / "y", "a")])


def test_only_what_changed_is_read_again(tmp_path, monkeypatch):
    items, memory = [write_item(tmp_path / "x", name) for name in "abc"], tmp_path / "memory.json"
    read, whole = [], module._sha256
    monkeypatch.setattr(module, "_sha256", lambda path: read.append(path) or whole(path))
    first = fingerprint(items, memory)
    assert len(read) == 6
    read.clear()
    assert fingerprint(items, memory) == first
    assert fingerprint(items[:1], memory) != first
    assert read == []
    swap(items[1].image, "IMAGE")
    fingerprint(items, memory)
    assert read == [str(items[1].image)]
    assert len(json.loads(memory.read_text())) == 6
    read.clear()
    for damage in ("", "{", "[]", '{"a": 1}', json.dumps({str(items[0].image): "x"})):
        memory.write_text(damage)
        fingerprint(items, memory)
        assert len(read) == 6
        read.clear()


def test_data_that_changed_while_they_were_used(tmp_path, memory):
    train, val = [write_item(tmp_path / "x", "a")], [write_item(tmp_path / "x", "b")]
    first = data_fingerprint(train, val, memory)
    require_unchanged(train, val, first, memory)
    assert data_fingerprint(val, train, memory) != first
    swap(val[0].image, "IMAGE")
    told = rf"^data: must stay as they are while they are used; got other files now \([0-9a-f]{{12}}\) than at the start \({first[:12]}\); leave the data folder alone, and run again$"
    with pytest.raises(ValueError, match=told):
        require_unchanged(train, val, first, memory)
    train[0].label.unlink()
    with pytest.raises(
        ValueError, match=r"^data: must stay as they are while they are used; got .*a\.png: file must exist"
    ):
        require_unchanged(train, val, first, memory)
