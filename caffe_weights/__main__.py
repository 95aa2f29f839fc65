"""`python -m caffe_weights`: look into Caffe's files, convert, compare and write them."""

import argparse
import os
import sys
from pathlib import Path

from caffe_weights import __version__, importers
from caffe_weights.deeplab import export, shrink
from caffe_weights.deeplab.names import renamed
from caffe_weights.deeplab.spec import VGG16_LAYERS
from caffe_weights.files import caffemodel, checksum, hdf5, solverstate, stats
from caffe_weights.files.model import Model, printable
from caffe_weights.importers.vgg16 import drawn_classifier
from caffe_weights.nets import network, prototxt

TOOL = f"caffe_weights {__version__}"
STATS_BYTES = 64 * 2**20  # larger files are listed without reading their values


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0; 1 where `diff` finds differences or `verify` nothing to compare with; 2 on an error."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a layer's or file's name may hold what the terminal cannot show
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (so that the interpreter's last flush succeeds)
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        if options.traceback:
            raise
        print(f"caffe_weights: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m caffe_weights", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "list", _list, "layer, type, blob shapes, count, mean and standard deviation of a model, solver state or mean"
    )
    sub.add_argument("file", type=Path)
    sub.add_argument(
        "--stats", action="store_true", help=f"mean and standard deviation also of files above {STATS_BYTES >> 20} MiB"
    )
    sub = command(
        "convert",
        _convert,
        "write a model as HDF5 (layout: caffe_weights/files/hdf5.py) or, if OUT ends in .caffemodel, as V2 protobuf",
    )
    sub.add_argument("file", type=Path)
    sub.add_argument("out", type=Path)
    sub.add_argument(
        "--prototxt", type=Path, help="the model's net: checked against the shapes, and stored with the convolutions"
    )
    sub.add_argument(
        "--define", action="append", default=[], metavar="VAR=VALUE", help="value of a ${VAR} in the prototxt"
    )
    sub.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="another name for a layer and its shared copies",
    )
    sub = command("diff", _diff, "compare two models bit for bit; exit code 1 if they differ")
    sub.add_argument("first", type=Path)
    sub.add_argument("second", type=Path)
    sub = command(
        "to-caffe",
        _to_caffe,
        "write .caffemodel, train, test, deploy and solver prototxts; for a training snapshot use repro.export",
    )
    sub.add_argument("file", type=Path)
    sub.add_argument("folder", type=Path)
    sub.add_argument(
        "--settings",
        type=Path,
        required=True,
        help="TOML with the tables model, solver, data (caffe_weights/deeplab/export.py)",
    )
    sub.add_argument("--name", help="network name and prefix of the files; the file's stem if not given")
    sub = command(
        "shrink-vgg", _shrink, "make the LargeFOV initialisation of the 16-layer VGG by decimating fc6 and fc7"
    )
    sub.add_argument("file", type=Path)
    sub.add_argument("out", type=Path)
    sub = command(
        "import", _import, "read VGG-16 from a file of Keras, torchvision or NumPy (table: caffe_weights/importers)"
    )
    sub.add_argument("file", type=Path)
    sub.add_argument("out", type=Path)
    sub.add_argument(
        "--draw-classifier",
        type=int,
        metavar="SEED",
        help="draw LargeFOV's fc6 and fc7 (msra), where the file has none",
    )
    sub = command(
        "verify", _verify, "compare a file's size and sha256 with sources.toml; exit code 1 if none is recorded"
    )
    sub.add_argument("file", type=Path)
    sub.add_argument("--as", dest="name", help="the entry, where the file has another name")
    return parser


def _warn(model: Model) -> None:
    if warning := stats.nonfinite_warning(model):
        print(f"caffe_weights: warning: {warning}", file=sys.stderr)


def _list(options: argparse.Namespace) -> int:
    suffixes = options.file.suffixes
    if ".solverstate" in suffixes:
        state = solverstate.read_solverstate(options.file)
        about = f"solver state, iter {state.iter}, current_step {state.current_step}, learned_net {state.learned_net!r}"
        rows = [("history", str(index), "", blob) for index, blob in enumerate(state.history)]
    elif ".binaryproto" in suffixes:
        about, rows = "image mean", [("mean", "0", "", solverstate.read_binaryproto(options.file))]
    else:
        model = caffemodel.read_caffemodel(options.file)
        about = (
            f"{model.format}, network {model.name!r}, {len(model.layers)} layers, {len(model.with_blobs())} with blobs"
        )
        rows = [
            (printable(layer.name), str(number), printable(layer.type), blob)
            for layer in model.layers
            for number, blob in zip(layer.numbers or ("",), layer.blobs or (None,), strict=True)
        ]
    with_stats = options.stats or options.file.stat().st_size <= STATS_BYTES
    width, type_width = (max(len(row[i]) for row in [("layer", "", "type"), *rows]) for i in (0, 2))
    print(
        f"{'layer':{width}}  {'type':{type_width}}  blob  {'shape':18}  {'count':>10}"
        + (f"  {'mean':>13}  {'std':>12}" if with_stats else "")
    )
    total = nonfinite = 0
    for name, number, kind, blob in rows:
        if blob is None:
            print(f"{name:{width}}  {kind}".rstrip())
            continue
        total += blob.size
        line = f"{name:{width}}  {kind:{type_width}}  {number:4}  {'x'.join(map(str, blob.shape)):18}  {blob.size:>10}"
        if with_stats:
            values = stats.blob_stats(blob)
            nonfinite += values.nonfinite
            line += f"  {values.mean:>13.6g}  {values.std:>12.6g}" + (
                f"  {values.nonfinite} NaN or infinite" if values.nonfinite else ""
            )
        print(line)
    hint = "" if with_stats else " (mean and standard deviation: --stats)"
    print(f"{printable(str(options.file))}: {about}, {total} parameters{hint}")
    if nonfinite:
        print(f"caffe_weights: warning: {options.file}: {nonfinite} values are NaN or infinite", file=sys.stderr)
    return 0


def _convert(options: argparse.Namespace) -> int:
    model = renamed(caffemodel.read_caffemodel(options.file), _pairs(options.rename, "--rename", "OLD=NEW"))
    geometry = (
        _geometry(model, options.prototxt, _pairs(options.define, "--define", "VAR=VALUE")) if options.prototxt else {}
    )
    if options.out.suffix == ".caffemodel":
        caffemodel.write_caffemodel(options.out, _unique(model), model.name)
    else:
        hdf5.write_hdf5(model, options.out, TOOL, geometry)
    _warn(model)
    print(f"{options.out}: {len(model.with_blobs())} layers with blobs from {model.path} ({model.format})")
    return 0


def _unique(model: Model) -> dict[str, tuple[str, tuple]]:
    """Keys a model's layers by name; of several without blobs that share a name, one stays."""
    if partial := [layer.name for layer in model.layers if layer.owned is not None]:
        raise ValueError(
            f"{model.path}: every layer must hold its blobs from 0; got a part of those of {partial[0]!r}, the others being shared; write HDF5"
        )
    return {layer.name: (layer.type, layer.blobs) for layer in model.layers}


def _pairs(given: list[str], option: str, form: str) -> dict[str, str]:
    if wrong := [pair for pair in given if "=" not in pair]:
        raise ValueError(f"{option}: must read {form}; got {wrong[0]!r}; correct it")
    return dict(pair.split("=", 1) for pair in given)


def _geometry(model: Model, path: Path, defines: dict[str, str]) -> dict[str, network.ConvGeometry]:
    """Reads the convolutions of a prototxt and checks the model's weights against them."""
    found, weights = {}, model.with_blobs()
    for layer in network.net_layers(prototxt.read_prototxt(path, defines), str(path)):
        geometry = network.conv_geometry(layer, str(path))
        if geometry is None or layer.name not in weights:
            continue
        shape = weights[layer.name].blobs[0].shape
        out_axis = (
            1 if layer.type == "Deconvolution" else 0
        )  # Caffe: deconv_layer.cpp, weights are (in, out / group, kh, kw)
        expected = geometry.num_output // (geometry.group if out_axis else 1)
        if len(shape) != 4 or shape[2:] != geometry.kernel or shape[out_axis] != expected:
            raise ValueError(
                f"{path}: layer {layer.name!r} must have the model's weight {list(shape)}; "
                f"got num_output {geometry.num_output}, kernel {list(geometry.kernel)}; use the model's own prototxt"
            )
        found[layer.name] = geometry
    return found


def _diff(options: argparse.Namespace) -> int:
    first, second = (caffemodel.read_caffemodel(path) for path in (options.first, options.second))
    lines = list(stats.differences(first, second))
    print("\n".join(lines) if lines else f"equal: {len(first.with_blobs())} layers, bit for bit")
    return 1 if lines else 0


def _to_caffe(options: argparse.Namespace) -> int:
    settings = export.read_settings(options.settings)
    model = caffemodel.read_caffemodel(options.file)
    name = options.name or options.file.name.split(".")[0]
    for file in export.to_caffe(export.model_layers(model), options.folder, settings, name):
        print(file)
    _warn(model)
    return 0


def _shrink(options: argparse.Namespace) -> int:
    model = caffemodel.read_caffemodel(options.file)
    layers = {layer.name: (layer.type, layer.blobs) for layer in shrink.shrink_vgg(model)}
    caffemodel.write_caffemodel(options.out, layers, "VGG_ILSVRC_16_layers_LargeFOV")
    print(f"{options.out}: {len(layers)} layers, fc6 and fc7 decimated from {model.path}")
    return 0


def _import(options: argparse.Namespace) -> int:
    found = importers.import_vgg16(options.file)
    layers, drawn = dict(found.layers), {}
    if options.draw_classifier is not None:
        if "fc6" in layers:
            raise ValueError(
                f"{options.file}: must have no classifier where one is to be drawn; got fc6; use shrink-vgg on the result"
            )
        outputs, width = layers["conv5_3"][0].shape[0], layers["conv1_1"][0].shape[0] / VGG16_LAYERS[0].channels
        drawn = drawn_classifier(outputs, width, options.draw_classifier)
    caffemodel.write_caffemodel(
        options.out, {name: ("Convolution", blobs) for name, blobs in (layers | drawn).items()}, "VGG_ILSVRC_16_layers"
    )
    digest = checksum.sha256(options.file)
    recorded = [source.file for source in checksum.known_sources().values() if source.sha256 == digest]
    print(
        f"{options.file}: {found.form}, sha256 {digest}, {'recorded as ' + recorded[0] if recorded else 'not recorded'}"
    )
    print(f"taken: {' '.join(layers)}" + (f"; {found.done}" if found.done else ""))
    if drawn:
        print(f"drawn, not in the file: {' '.join(drawn)} (msra, seed {options.draw_classifier})")
    if found.left:
        print(f"left: {' '.join(printable(name) for name in found.left)}")
    hint = "; shrink-vgg makes LargeFOV's fc6 and fc7 of it" if "fc6" in layers else ""
    print(f"{options.out}: {len(layers) + len(drawn)} layers{hint}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    verified, line = checksum.verify(options.file, options.name)
    print(line)
    return 0 if verified else 1


if __name__ == "__main__":
    sys.exit(main())
