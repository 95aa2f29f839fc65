"""What people hand over by mistake, told by a file's first octets or its outermost fields."""

import re

HEAD = 512  # octets that are looked at

# None of these can begin a Caffe message.
_SIGNATURES = (
    (re.compile(rb"\x80[\x02-\x05]"), "a Python pickle (it is not read: unpickling runs code)"),
    (re.compile(rb"PK\x03\x04"), "a zip archive, perhaps a PyTorch checkpoint (it is not read)"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive (unpack it)"),
    (re.compile(rb"BZh[1-9]"), "a bzip2 archive (unpack it)"),
    (re.compile(rb"\xfd7zXZ\0"), "an xz archive (unpack it)"),
    (re.compile(rb"7z\xbc\xaf"), "a 7z archive (unpack it)"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd archive (unpack it)"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive (unpack it)"),
    (re.compile(rb"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array"),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8"), "an image"),
    (re.compile(rb"%PDF-"), "a PDF document"),
)
_PROTOTXT = "prototxt text, which describes a net or solver and holds no weights"
_TEXTS = (
    (re.compile(r"version https://git-lfs"), "a Git LFS pointer, not the file itself"),
    (re.compile(r"\s*<"), "an HTML or XML page"),
    (re.compile(r"\s*\d{3}\b.{0,80}\s*\Z"), "a server's message, {text!r}"),
    (re.compile(r"(\s|#.*)*\w+\s*[:{<]"), _PROTOTXT),
    (re.compile(r""), "text that begins {text!r}"),
)


def other_kind(head: bytes) -> str:
    """Says what a file is that cannot be a Caffe message.

    Args:
        head: its first octets, HEAD of them where it has so many.

    Returns:
        Words for an error message; "" where it may be a Caffe message.
    """
    for signature, what in _SIGNATURES:
        if signature.match(head):
            return what
    # A Caffe message has control characters among its first octets: its lengths, if nothing else.
    text = as_text(head)
    found = next((what for beginning, what in _TEXTS if text and beginning.match(text)), "")
    return found.format(text=" ".join(text.split())[:40])


def not_prototxt(head: bytes) -> str:
    """Says what a file is that cannot be prototxt text; arguments and result as for other_kind."""
    if not head:
        return "an empty file"
    what = other_kind(head)
    if not what and not as_text(head):
        return "a binary file, perhaps a .caffemodel"
    return "" if what == _PROTOTXT or what.startswith("text") else what


def as_text(octets: bytes) -> str:
    """Returns octets as text: UTF-8, UTF-16 with its mark, or another encoding, whose characters come out as "\ufffd"; "" for binary data."""
    if octets[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return octets[: len(octets) // 2 * 2].decode("utf-16", "replace")
    return "" if re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", octets) else octets.decode("utf-8-sig", "replace")


def message_kind(fields: set[tuple[int, int]]) -> str:
    """Says which Caffe message has these outermost fields.

    Args:
        fields: (number, wire type) of each.

    Returns:
        "a solver state", "an image mean" or "a model"; "" where it may be any.

    Caffe: src/caffe/proto/caffe.proto, SolverState (iter = 1, learned_net = 2, history = 3), BlobProto (num = 1, data = 5, shape = 7,
    double_data = 8), NetParameter (name = 1, layers = 2, layer = 100). Every state has iter.
    """
    if fields & {(5, 2), (5, 5), (8, 2), (8, 1)} and not fields & {(2, 2), (100, 2)}:
        return "an image mean"
    if (1, 0) in fields:
        return "a solver state"
    return "a model" if fields & {(2, 2), (100, 2)} else ""
