"""Every reader against mutated and truncated files: a result or one ValueError, soon, without much memory, never a crash.

The default tier tries some thousand inputs per reader; `-m slow` tries 100,000 per reader (about 5 minutes). Each HDF5 file costs a process of
0.2 s, so that of those there are a hundredth.
"""

import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from caffe_proto import MESSAGES, fill_blob

import caffe_weights
from caffe_weights.files.hdf5 import write_hdf5

W = np.random.RandomState(0).randn(2, 3, 3, 3).astype(np.float32)
B = np.float32([0.25, -3])
SECONDS = 5  # for a file of some KB; it takes a millisecond
CHILD_SECONDS = 60  # for HDF5; its process may take 10 s of a processor that others use too
MEGABYTES = 64  # by which the whole test may raise the process's peak


def binary_models() -> list[bytes]:
    seeds = []
    for generation in ("V0", "V1", "V2"):
        for legacy, double in ((True, False), (False, True)):
            net = MESSAGES["NetParameter"](name="net", input=["data"])
            for name, kind in (("conv", (4, "conv", "Convolution")), ("relu", (18, "relu", "ReLU"))):
                layer = net.layer.add(type=kind[2]) if generation == "V2" else net.layers.add(type=kind[0])
                if generation == "V0":
                    layer = layer.layer
                    layer.type = kind[1]
                layer.name = name
                for array in (W, B) if name == "conv" else ():
                    fill_blob(layer.blobs.add(), array, legacy, double)
            seeds.append(net.SerializeToString())
    blob = MESSAGES["UnpackedBlob"]()
    fill_blob(blob, B)
    layer = b"\x0a\x01c\x3a" + bytes([blob.ByteSize()]) + blob.SerializeToString()
    half = W.astype("<f2").tobytes()
    raw = b"\x50\x02\x3a\x06\x0a\x04\x02\x03\x03\x03\x62" + bytes([len(half)]) + half  # NVCaffe's
    raw_layer = b"\x0a\x01r\x3a" + bytes([len(raw)]) + raw
    return [*seeds, *(b"\xa2\x06" + bytes([len(body)]) + body for body in (layer, raw_layer))]


def hdf5_models(folder: Path) -> list[bytes]:
    source, ours, caffes = folder / "s.caffemodel", folder / "ours.h5", folder / "caffes.h5"
    caffe_weights.write_caffemodel(source, {"a/conv": ("Convolution", [W, B]), "relu": ("ReLU", [])}, "net")
    write_hdf5(caffe_weights.read_caffemodel(source), ours, "t")
    with h5py.File(caffes, "w") as file:
        file["data/conv/0"], file["data/conv/1"], file["data/conv/bn/1"] = W, B, B
        file.create_group("data/relu")
    return [ours.read_bytes(), caffes.read_bytes()]


def binary_states(folder: Path) -> list[bytes]:
    path = folder / "s.solverstate"
    caffe_weights.write_solverstate(path, 4000, [W, B], "net.caffemodel", 2)
    return [path.read_bytes()]


def hdf5_states(folder: Path) -> list[bytes]:
    path = folder / "s.h5"
    with h5py.File(path, "w") as file:
        file["iter"], file["current_step"], file["learned_net"] = np.int32([4]), np.int32([1]), np.bytes_(b"net")
        file["history/0"], file["history/1"] = W, B
    return [path.read_bytes()]


def means(folder: Path) -> list[bytes]:
    path = folder / "mean.binaryproto"
    caffe_weights.write_binaryproto(path, W[:1])
    return [path.read_bytes()]


def prototxts(folder: Path) -> list[bytes]:
    golden = (Path(__file__).parent / "golden/weights/solver.prototxt").read_bytes()
    net = b"""name: "n" # comment\ninput: "data" input_shape { dim: 1 dim: 3 }
layers { name: 'c' type: CONVOLUTION convolution_param { num_output: 4 kernel_size: [3, 3] pad: 12 hole: 12 stride: 1 group: 1 } include: { phase: TRAIN } }
layer < name: "a\\n\\x41" type: "Convolution" convolution_param { kernel_h: 3 kernel_w: 0x5 pad_h: 1 pad_w: 2 } loss_weight: -1.5e-3f >
layers { layer { name: "v0" type: "conv" kernelsize: 3 } bottom: "${VAR}" }"""
    return [golden, net]


def touch(model) -> None:
    """Read every number, so that a view beyond the mapping would crash here."""
    for _, blob in model.arrays():
        blob.sum()


def read_net(path: Path) -> None:
    net = caffe_weights.read_prototxt(path, {"VAR": "x"})
    for layer in caffe_weights.net_layers(net, str(path)):
        caffe_weights.conv_geometry(layer, str(path))


READERS: dict[str, tuple[Callable, Callable]] = {
    "caffemodel": (lambda folder: binary_models(), lambda path: touch(caffe_weights.read_caffemodel(path))),
    "caffemodel.h5": (hdf5_models, lambda path: touch(caffe_weights.read_caffemodel(path))),
    "solverstate": (binary_states, lambda path: [blob.sum() for blob in caffe_weights.read_solverstate(path).history]),
    "solverstate.h5": (hdf5_states, lambda path: [blob.sum() for blob in caffe_weights.read_solverstate(path).history]),
    "binaryproto": (means, lambda path: caffe_weights.read_binaryproto(path).sum()),
    "prototxt": (prototxts, read_net),
}
INTERESTING = (0, 1, 2, 7, 8, 9, 0x0A, 0x2A, 0x2D, 0x3A, 0x41, 0x7F, 0x80, 0xFF, *b"{}[]<>:\"'$\\#\n")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Truncate, or change some octets, or copy, repeat or remove a piece."""
    if rng.random() < 0.15:
        return data[: rng.randrange(len(data))]
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, size, how = rng.randrange(len(out)), rng.choice((1, 2, 4, 8, 16, 64)), rng.randrange(7)
        if how == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif how <= 2:
            out[at] = rng.choice(INTERESTING)
        elif how == 3:
            other = rng.randrange(len(out))
            out[at : at + size] = out[other : other + size]
        elif how == 4:
            out[at:at] = out[at : at + size] * rng.choice((1, 2, 50))
        elif how == 5:
            out[at : at + size] = bytes([rng.choice((0, 0x7F, 0xFF))]) * size
        elif len(out) > size + 1:
            del out[at : at + size]
    return bytes(out)


def too_slow(signum, frame):
    raise TimeoutError("a reader took too long")


def fuzz(kind: str, folder: Path, count: int) -> None:
    make_seeds, read = READERS[kind]
    seconds = SECONDS
    if kind.endswith(".h5"):
        count, seconds = count // 100, CHILD_SECONDS
    seeds, rng, path = make_seeds(folder), random.Random(kind), folder / f"mutated.{kind}"
    for seed in seeds:
        path.write_bytes(seed)
        read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, too_slow)
    failures, wrong = 0, []
    try:
        for number in range(count):
            # A new file each time: the mapping of the last one may still be alive, and truncating a mapped file takes its pages away.
            path.unlink(missing_ok=True)
            path.write_bytes(mutated(rng.choice(seeds), rng))
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                read(path)
            except ValueError as error:
                failures += 1
                if not str(error).startswith(f"{path}: ") or "\n" in str(error):
                    wrong.append(f"input {number}: {error}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert not wrong
    assert failures > count / 5, "mutations that nobody minds test nothing"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of mutated numbers overflow
@pytest.mark.parametrize("kind", READERS)
def test_some_thousand_mutations(kind, tmp_path):
    fuzz(kind, tmp_path, 2000)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", READERS)
def test_a_hundred_thousand_mutations(kind, tmp_path):
    fuzz(kind, tmp_path, 100_000)
