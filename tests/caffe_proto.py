"""Caffe's messages for Google's own protobuf library: an independent writer and reader for the tests of caffe_weights.

Field numbers and types: src/caffe/proto/caffe.proto, the fields that carry names and blobs. `UnpackedBlob` is BlobProto as a writer that does not
pack encodes it.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _F.LABEL_OPTIONAL, _F.LABEL_REPEATED
_INT, _INT64, _STR, _FLOAT, _DOUBLE = _F.TYPE_INT32, _F.TYPE_INT64, _F.TYPE_STRING, _F.TYPE_FLOAT, _F.TYPE_DOUBLE


def _blob(packed: bool, shape: str) -> list[tuple]:
    numbers = [("data", 5, _FLOAT), ("diff", 6, _FLOAT), ("double_data", 8, _DOUBLE), ("double_diff", 9, _DOUBLE)]
    legacy = [(name, i, _ONE, _INT, "", False) for i, name in enumerate(("num", "channels", "height", "width"), 1)]
    return [
        *legacy,
        *((name, number, _MANY, kind, "", packed) for name, number, kind in numbers),
        ("shape", 7, _ONE, None, shape, False),
    ]


_MESSAGES = {
    "BlobShape": [("dim", 1, _MANY, _INT64, "", True)],
    "UnpackedShape": [("dim", 1, _MANY, _INT64, "", False)],
    "BlobProto": _blob(True, "BlobShape"),
    "UnpackedBlob": _blob(False, "UnpackedShape"),
    "V0LayerParameter": [
        ("name", 1, _ONE, _STR, "", False),
        ("type", 2, _ONE, _STR, "", False),
        ("blobs", 50, _MANY, None, "BlobProto", False),
    ],
    "V1LayerParameter": [
        ("layer", 1, _ONE, None, "V0LayerParameter", False),
        ("bottom", 2, _MANY, _STR, "", False),
        ("top", 3, _MANY, _STR, "", False),
        ("name", 4, _ONE, _STR, "", False),
        ("type", 5, _ONE, _INT, "", False),
        ("blobs", 6, _MANY, None, "BlobProto", False),
        ("blobs_lr", 7, _MANY, _FLOAT, "", False),
    ],
    "LayerParameter": [
        ("name", 1, _ONE, _STR, "", False),
        ("type", 2, _ONE, _STR, "", False),
        ("bottom", 3, _MANY, _STR, "", False),
        ("top", 4, _MANY, _STR, "", False),
        ("blobs", 7, _MANY, None, "BlobProto", False),
    ],
    "NetParameter": [
        ("name", 1, _ONE, _STR, "", False),
        ("layers", 2, _MANY, None, "V1LayerParameter", False),
        ("input", 3, _MANY, _STR, "", False),
        ("layer", 100, _MANY, None, "LayerParameter", False),
    ],
    "SolverState": [
        ("iter", 1, _ONE, _INT, "", False),
        ("learned_net", 2, _ONE, _STR, "", False),
        ("history", 3, _MANY, None, "BlobProto", False),
        ("current_step", 4, _ONE, _INT, "", False),
    ],
}


def _classes() -> dict:
    file = descriptor_pb2.FileDescriptorProto(name="caffe_test.proto", package="caffe_test", syntax="proto2")
    for message, entries in _MESSAGES.items():
        descriptor = file.message_type.add(name=message)
        for name, number, label, kind, of, packed in entries:
            entry = descriptor.field.add(name=name, number=number, label=label, type=kind or _F.TYPE_MESSAGE)
            if of:
                entry.type_name = f".caffe_test.{of}"
            if packed:
                entry.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe_test.{name}")) for name in _MESSAGES
    }


MESSAGES = _classes()


def fill_blob(blob, array, legacy: bool = False, double: bool = False) -> None:
    """Put an array into a BlobProto or UnpackedBlob; legacy: four axes, missing leading ones 1."""
    if legacy:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
    else:
        blob.shape.dim.extend(array.shape)
        blob.shape.SetInParent()
    (blob.double_data if double else blob.data).extend(array.ravel().tolist())
