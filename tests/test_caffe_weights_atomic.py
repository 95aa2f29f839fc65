"""Files are written whole or not at all: what a killed writer, a full disk, a device or a link leaves."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import caffe_weights
from caffe_weights import read_caffemodel, write_caffemodel
from caffe_weights.files.atomic import replacing

W = np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3)


def run(code: str) -> subprocess.CompletedProcess:
    root = Path(caffe_weights.__file__).parents[1]
    return subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True, text=True)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_killed_writer_leaves_the_old_file(tmp_path):
    """The writer is killed while the new file is half written."""
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, {"old": ("X", [W])})
    ended = run(f"""
import os, signal
from caffe_weights.files.atomic import replacing
with replacing({str(path)!r}) as part, open(part, "wb") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
""")
    assert ended.returncode == -signal.SIGKILL
    assert [layer.name for layer in read_caffemodel(path).layers] == ["old"]


def test_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, {"old": ("X", [W])})
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_bytes(b"half" * (1 // 0))
    assert names(tmp_path) == ["net.caffemodel"]
    assert read_caffemodel(path)["old"].blobs[0].tobytes() == W.tobytes()


# A limit on the size of files stands for a full disk: the same call fails, with errno EFBIG instead of ENOSPC.
FULL = """
import resource, signal
import numpy as np
from caffe_weights import read_caffemodel, write_caffemodel
from caffe_weights.files.hdf5 import write_hdf5
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    {call}
except OSError as error:
    print(error.errno, error)
"""


@pytest.mark.parametrize("kind", ["caffemodel", "h5"])
def test_full_disk_names_the_file_and_leaves_nothing(tmp_path, kind):
    path = tmp_path / f"net.{kind}"
    path.write_bytes(b"old")
    call = f"write_caffemodel({str(path)!r}, {{'c': ('X', [np.zeros(5000, 'f4')])}})"
    if kind == "h5":
        write_caffemodel(tmp_path / "source.caffemodel", {"c": ("X", [np.zeros(5000, np.float32)])})
        call = f"write_hdf5(read_caffemodel({str(tmp_path / 'source.caffemodel')!r}), {str(path)!r}, 't')"
    ended = run(FULL.format(call=call))
    assert f"{path}: must be written whole; got " in ended.stdout, ended
    assert "File too large" in ended.stdout or kind == "h5"
    assert "; free space or choose another place" in ended.stdout
    assert len(ended.stdout.splitlines()) == 1
    assert path.read_bytes() == b"old"
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


def test_error_about_another_file_is_not_laid_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone"), replacing(tmp_path / "x"):
        open(tmp_path / "gone")  # noqa: SIM115
    assert names(tmp_path) == []


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone/x")
    with pytest.raises(OSError, match=r"link: must be written whole; got No such file or directory; free space or"):
        write_caffemodel(tmp_path / "link", {})
    with pytest.raises(FileNotFoundError, match=r"its folder must exist; got no folder .*gone; create it"):
        write_caffemodel(tmp_path / "gone/x.caffemodel", {})
    with pytest.raises(ValueError, match=r"must name a file to write; got a directory; add a file name"):
        write_caffemodel(tmp_path, {})


def test_device_or_pipe_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ValueError, match=r"must name a file to write; got a device or pipe; write to a file"):
            write_caffemodel(path, {})
        assert not stat.S_ISREG(path.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_permissions_are_the_umasks_or_the_old_files(tmp_path):
    path = tmp_path / "x"
    old = os.umask(0o027)
    try:
        for mode in (0o640, 0o604):
            with replacing(path) as part:
                part.write_text(f"{mode:o}")
            assert stat.S_IMODE(path.stat().st_mode) == (0o640 if mode == 0o640 else 0o604)
            path.chmod(0o604)
    finally:
        os.umask(old)
    assert path.read_text() == "604"


def test_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x").write_text("old")
    (tmp_path / "link").symlink_to("real/x")
    with replacing(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/x").read_text() == "new"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with replacing(tmp_path / "x") as first, replacing(tmp_path / "x") as second:
        assert first != second
        assert str(os.getpid()) in first.name
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "x").read_text() == "first"
    assert names(tmp_path) == ["x"]
