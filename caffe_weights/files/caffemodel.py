"""Binary .caffemodel files of all three generations: read in place, written as V2."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from caffe_weights.files import hdf5
from caffe_weights.files.atomic import replacing
from caffe_weights.files.hdf5_tree import is_hdf5
from caffe_weights.files.model import MAX_BLOBS, MAX_COUNT, MAX_LAYERS, Layer, Model, check_shape, duplicate
from caffe_weights.files.wire import BYTES, MAX_PIECES, VARINT, Field, WireFile
from caffe_weights.nets import layer_types

FLOAT, DOUBLE = np.dtype("<f4"), np.dtype("<f8")
MAX_BYTES = 2**31  # protobuf refuses longer messages
# NVCaffe: src/caffe/proto/caffe.proto, Type and BlobProto's raw_data_type and raw_data; src/caffe/blob.cpp, Blob::FromProto.
RAW_TYPE, RAW_DATA = 10, 12
RAW_TYPES = {0: DOUBLE, 1: FLOAT, 2: np.dtype("<f2")}


def read_caffemodel(path: str | os.PathLike) -> Model:
    """Reads a .caffemodel (V0, V1 or V2) or .caffemodel.h5; the content decides, not the name.

    Binary files are mapped and the blobs are views of the mapping, so reading costs the same for 1 and for 500 MB.

    Args:
        path: the file.

    Returns:
        The model; blobs float32 (float64 where the file has doubles), in Caffe's order (out, in, kh, kw).

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is not a Caffe model or is damaged; the message names file, place and byte.

    Caffe: src/caffe/net.cpp, Net::CopyTrainedLayersFrom; src/caffe/util/upgrade_proto.cpp.
    Deviates: layers that share a name are an error where one has blobs.
    """
    path = Path(path)
    if is_hdf5(path):
        return hdf5.read_model(path)
    file = WireFile(path)
    file.must_be("a model")
    name, entries, generation = "", [], 0
    for found in file.fields(0, len(file.data), "network"):
        if found.number == 1:
            name = file.text(found, "network name")
        elif found.number in (2, 100):
            file.expect(found, BYTES, f"layer {len(entries)}")
            if generation not in (0, found.number):
                raise file.fail(f"layer {len(entries)}", found.start, "a file must have `layers` or `layer`; got both")
            if len(entries) == MAX_LAYERS:
                raise file.fail("network", found.start, f"a network must have at most {MAX_LAYERS} layers; got more")
            generation = found.number
            entries.append(found)
    if not entries:
        raise file.fail("network", len(file.data), "a .caffemodel must have layers; got none")
    layers, blobs, form = [], 0, "V2" if generation == 100 else "V1"
    for index, entry in enumerate(entries):
        layer, layer_form = _layer(file, entry, "V2" if generation == 100 else "V1", index)
        form = "V0" if layer_form == "V0" else form
        blobs += len(layer.blobs)
        if blobs > MAX_BLOBS:
            raise file.fail(f"layer {index}", entry.start, f"a network must have at most {MAX_BLOBS} blobs; got more")
        layers.append(layer)
    if problem := duplicate(layers):
        raise file.fail("network", 0, problem)
    return Model(path, name, form, tuple(layers))


# Field numbers of (name, type, blobs).
# Caffe: src/caffe/proto/caffe.proto, LayerParameter, V1LayerParameter, V0LayerParameter
_FIELDS = {"V2": (1, 2, 7), "V1": (4, 5, 6), "V0": (1, 2, 50)}


def _layer(file: WireFile, entry: Field, form: str, index: int) -> tuple[Layer, str]:
    """Reads one layer entry laid out as `form`; also returns its form, since an entry of `layers` may prove to be V0."""
    name_at, type_at, blobs_at = _FIELDS[form]
    where, name, kind, blobs = f"layer {index}", "", "", []
    for found in file.fields(entry.start, entry.stop, where):
        if form == "V1" and found.number == 1:
            # Caffe: V1LayerParameter.layer = 1 is a V0LayerParameter; the connection around it holds bottoms and tops.
            file.expect(found, BYTES, where)
            return _layer(file, found, "V0", index)
        if found.number == name_at:
            name = file.text(found, f"{where} name")
        elif found.number == type_at and form == "V1":
            file.expect(found, VARINT, f"{where} type")
            kind = layer_types.from_v1_number(found.value)
        elif found.number == type_at:
            kind = file.text(found, f"{where} type")
        elif found.number == blobs_at:
            blobs.append(found)
            if len(blobs) > MAX_BLOBS:
                raise file.fail(where, found.start, f"a layer must have at most {MAX_BLOBS} blobs; got more")
    where = f"layer {index} {name!r}"
    arrays = tuple(read_blob(file, blob, f"{where}, blob {i}") for i, blob in enumerate(blobs))
    return Layer(name, layer_types.V0.get(kind, kind) if form == "V0" else kind, arrays), form


def read_blob(file: WireFile, entry: Field, where: str) -> np.ndarray:
    """Views one BlobProto as an array.

    Args:
        file: the mapped file.
        entry: the BlobProto's field.
        where: the place, for errors.

    Returns:
        Array in the blob's shape: four axes for a legacy blob, BlobShape's otherwise. A read-only view; a float32 copy where NVCaffe wrote
        half precision.

    Caffe: src/caffe/blob.cpp, Blob::FromProto (legacy fields win over `shape`; doubles win over floats, those over NVCaffe's raw data).
    """
    file.expect(entry, BYTES, where)
    legacy, dims, raw, raw_type = {}, [], None, None
    pieces: dict[int, list[tuple[int, int, int]]] = {5: [], 8: []}
    position = entry.start
    while position < entry.stop:
        found = file.field(position, entry.stop, where)
        position = found.stop
        if found.number in (1, 2, 3, 4):
            file.expect(found, VARINT, where)
            legacy[found.number] = found.value if found.value < 2**63 else found.value - 2**64
        elif found.number in pieces:
            run, position = file.numbers(found, entry.stop, FLOAT if found.number == 5 else DOUBLE, where)
            pieces[found.number].append(run)
            if len(pieces[found.number]) > MAX_PIECES:
                raise file.fail(where, found.start, f"a blob must have at most {MAX_PIECES} runs of numbers; got more")
        elif found.number == RAW_TYPE:
            file.expect(found, VARINT, where)
            raw_type = found.value
        elif found.number == RAW_DATA:
            raw = found
        elif found.number == 7:
            file.expect(found, BYTES, where)
            for part in file.fields(found.start, found.stop, where):
                if part.number == 1:
                    dims += file.integers(part, where)
                    if len(dims) > 64:
                        raise file.fail(where, part.start, "a shape must have at most 64 numbers; got more")
    shape = tuple(legacy.get(i, 0) for i in (1, 2, 3, 4)) if legacy else tuple(dims)
    if raw and not (pieces[5] or pieces[8]):
        flat = _raw_numbers(file, raw, raw_type, where)
    else:
        flat = file.array(pieces[8], DOUBLE) if pieces[8] else file.array(pieces[5], FLOAT)
    if problem := check_shape(shape, flat.size):
        raise file.fail(where, entry.start, problem)
    return flat.reshape(shape)


def _raw_numbers(file: WireFile, found: Field, raw_type: int | None, where: str) -> np.ndarray:
    """Returns NVCaffe's raw data as a flat array; half precision, which float32 holds exactly, as float32."""
    if raw_type not in RAW_TYPES:
        kinds = ", ".join(f"{number} ({dtype.name})" for number, dtype in RAW_TYPES.items())
        raise file.fail(where, found.start, f"raw_data_type must be one of {kinds}; got {raw_type}")
    dtype = RAW_TYPES[raw_type]
    file.expect(found, BYTES, where)
    run, _ = file.numbers(found, found.stop, dtype, where)
    flat = file.array([run], dtype)
    return flat.astype(FLOAT) if dtype.itemsize == 2 else flat


def write_caffemodel(
    path: str | os.PathLike, layers: Mapping[str, tuple[str, Sequence[np.ndarray]]], name: str = ""
) -> None:
    """Writes a V2 .caffemodel: fp32, BlobShape, packed; whole or not at all.

    Args:
        path: the file to write; an old one is replaced once the new one is complete.
        layers: layer name to (type such as "Convolution", arrays), in order. Other arrays are rounded to float32.
        name: the network's name.

    Raises:
        ValueError: an array is not numeric, overflows float32 or is too large, or the file would pass protobuf's 2 GiB.
        FileNotFoundError: the folder is missing.

    Caffe: src/caffe/net.cpp, Net::ToProto; src/caffe/blob.cpp, Blob::ToProto.
    """
    head = bytes_field(1, name.encode()) if name else b""
    sizes = {layer: _layer_chunks(path, layer, *entry) for layer, entry in layers.items()}
    total = len(head) + sum(
        len(chunk) if isinstance(chunk, bytes) else chunk.nbytes for s in sizes.values() for chunk in s
    )
    if total >= MAX_BYTES:
        raise ValueError(f"{path}: a .caffemodel must stay below {MAX_BYTES} bytes; got {total}; write HDF5 instead")
    with replacing(path) as part, open(part, "wb") as file:
        file.write(head)
        for chunks in sizes.values():
            file.writelines(chunks)


def _layer_chunks(path, name: str, kind: str, arrays: Sequence[np.ndarray]) -> list[bytes | np.ndarray]:
    """Lays a layer out as bytes and arrays to be written one after another."""
    body: list[bytes | np.ndarray] = [bytes_field(1, name.encode()), bytes_field(2, kind.encode())]
    for index, array in enumerate(arrays):
        body += message_field(7, list(blob_chunks(array, f"{path}: layer {name!r}, blob {index}")))
    return message_field(100, body)


def blob_chunks(array: np.ndarray, where: str) -> Iterator[bytes | np.ndarray]:
    """Yields the octets of one BlobProto with BlobShape and packed float data.

    Args:
        array: numeric array of any shape.
        where: the place, for errors.

    Raises:
        ValueError: as for write_caffemodel.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{where}: an array must be numeric; got {array.dtype}; convert it")
    if array.size > MAX_COUNT:
        raise ValueError(f"{where}: a blob must have fewer than 2^31 numbers; got {array.size}; split the layer")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(array, FLOAT).reshape(-1)  # ascontiguousarray makes a scalar 1-D
    if array.dtype != FLOAT and np.count_nonzero(np.isinf(data)) > np.count_nonzero(np.isinf(array)):
        raise ValueError(f"{where}: values must fit float32; got {np.abs(array).max()}; rescale them")
    yield bytes_field(7, bytes_field(1, b"".join(encode_varint(length) for length in array.shape)))
    yield _key(5, BYTES) + encode_varint(data.nbytes)
    yield data


def encode_varint(value: int) -> bytes:
    """Encodes a non-negative integer."""
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _key(number: int, wire: int) -> bytes:
    return encode_varint(number << 3 | wire)


def bytes_field(number: int, payload: bytes) -> bytes:
    return _key(number, BYTES) + encode_varint(len(payload)) + payload


def message_field(number: int, chunks: list[bytes | np.ndarray]) -> list[bytes | np.ndarray]:
    size = sum(len(chunk) if isinstance(chunk, bytes) else chunk.nbytes for chunk in chunks)
    return [_key(number, BYTES) + encode_varint(size), *chunks]
