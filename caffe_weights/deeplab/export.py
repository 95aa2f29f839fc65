"""A model as the files that the DeepLab fork of Caffe runs: weights, solver state, three nets and a solver."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffe_weights.deeplab.net import net_prototxt
from caffe_weights.deeplab.solver import SOLVER_KEYS, solver_prototxt
from caffe_weights.deeplab.spec import NEW_LAYERS, SHARED_COPY, DataSpec, NetSpec, suffix
from caffe_weights.files.atomic import replacing
from caffe_weights.files.caffemodel import write_caffemodel
from caffe_weights.files.model import Model
from caffe_weights.files.solverstate import write_solverstate
from caffe_weights.files.wire import map_file


@dataclass(frozen=True)
class ExportSettings:
    """What the weights alone do not say; the keys of a settings file's tables.

    Attributes:
        model: NetSpec's `scales`, `merge`, `extra_supervision`, `pool5a`, `dropout_ratio`, `msc_dropout_ratio`, `attention_input`, `lr_mult`, `decay_mult`, `ignore_label`; `dt_num_iter`,
            `dt_spatial_sigma`, `dt_range_sigma` and `dt_min_weight` of a network with an edge map; and
            `num_classes`, `attention_filters`, `attention_kernel` for a head that the weights lack, which Caffe then fills with gaussian
            0.01 (`filler_std`).
        solver: SolverParameter's keys.
        data: DataSpec's keys, with `train_source`, `test_source` and `test_crop_size`.
    """

    model: Mapping[str, object]
    solver: Mapping[str, object]
    data: Mapping[str, object]
    mode: str = "GPU"


MAX_BYTES = 2**20  # of a settings file
_NUMBER, _LIST = (int, float), (list, tuple)
_HEAD = {"num_classes": int, "attention_filters": int, "attention_kernel": int}
_TRANSFORM = {"dt_num_iter": int, "dt_spatial_sigma": _NUMBER, "dt_range_sigma": _NUMBER, "dt_min_weight": _NUMBER}
_MODEL = (
    _HEAD
    | _TRANSFORM
    | {
        "scales": _LIST,
        "merge": str,
        "extra_supervision": bool,
        "pool5a": bool,
        "dropout_ratio": _NUMBER,
        "msc_dropout_ratio": _NUMBER,
        "attention_input": str,
        "lr_mult": Mapping,
        "decay_mult": _LIST,
        "filler_std": _NUMBER,
        "ignore_label": int,
    }
)
_DATA = {
    "root_folder": str,
    "train_source": str,
    "test_source": str,
    "batch_size": int,
    "crop_size": int,
    "test_crop_size": int,
    "mean_bgr": _LIST,
    "mirror": bool,
    "shuffle": bool,
    "scale_factors": _LIST,
}


def read_settings(path: str | os.PathLike) -> ExportSettings:
    """Reads an export's settings from TOML: tables `model`, `solver`, `data`, and `mode` ("GPU" or "CPU").

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no TOML, or a table or key that is missing or unknown.
    """
    octets = map_file(Path(path))
    if len(octets) > MAX_BYTES:
        raise ValueError(f"{path}: must be TOML of at most {MAX_BYTES} bytes; got {len(octets)}; name the settings")
    try:
        tables = tomllib.loads(octets[:].decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be TOML; got {error}; correct it") from None
    kinds = {key: type(value).__name__ for key, value in tables.items() if key != "mode"}
    if kinds != dict.fromkeys(("model", "solver", "data"), "dict") or tables.get("mode", "GPU") not in ("GPU", "CPU"):
        raise ValueError(
            f"{path}: must have the tables model, solver and data, and mode may be GPU or CPU; got {', '.join(tables) or 'none'}; correct it"
        )
    return ExportSettings(**tables)


def to_caffe(
    layers: Mapping[str, Sequence[np.ndarray]],
    folder: str | os.PathLike,
    settings: ExportSettings,
    name: str,
    iteration: int = 0,
    history: Sequence[np.ndarray] = (),
) -> list[Path]:
    """Writes `<name>_iter_<n>.caffemodel`, with a history `.solverstate`, and train, test, deploy and solver prototxts.

    Args:
        layers: convolution name to weight (out, in, kh, kw) and bias (out,), in the order of Caffe's learnable parameters.
        folder: where to write; made if it is missing.
        settings: the rest.
        name: network name and prefix of the files.
        iteration: iterations done.
        history: momentum buffers in the order of `layers`, weight before bias.

    Returns:
        The files, in the order written.

    Raises:
        ValueError: a setting is missing, unknown or does not fit the weights.

    Caffe: start it in `folder`: `caffe train --solver=solver.prototxt --weights=<name>_iter_<n>.caffemodel`, or `--snapshot=...solverstate`.
    """
    folder = Path(folder)
    spec = net_spec(layers, settings.model, name)
    optional = {"mirror", "shuffle", "scale_factors"}
    data = _table(settings.data, _DATA, set(_DATA) - optional, "data")
    needed = {"base_lr", "lr_policy", "max_iter", "momentum", "weight_decay"}
    policy = _table(settings.solver, SOLVER_KEYS, needed, "solver")["lr_policy"]
    train, test = data.pop("train_source"), data.pop("test_source")
    test_crop = data.pop("test_crop_size")
    nets = {
        "train": net_prototxt(spec, "train", DataSpec(source=train, **data)),
        "test": net_prototxt(spec, "test", DataSpec(source=test, **data | {"batch_size": 1, "crop_size": test_crop})),
        "deploy": net_prototxt(spec, "deploy", input_shape=(1, 3, test_crop, test_crop)),
    }
    solver = solver_prototxt(settings.solver, "train.prototxt", name, settings.mode)
    if history and len(history) != 2 * len(layers):
        raise ValueError(
            f"{name}: a history must have {2 * len(layers)} buffers, weight and bias of every layer; got {len(history)}; export a whole state"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}_iter_{iteration}.caffemodel"]
    write_caffemodel(
        files[0], {layer: ("Convolution", arrays) for layer, arrays in _with_copies(layers, spec).items()}, name
    )
    if history:
        # Caffe: sgd_solver.cpp, GetLearningRate sets current_step_ from the iteration it computes, the last one being iteration - 1.
        step = max(0, iteration - 1) // settings.solver["stepsize"] if policy == "step" else 0
        files.append(files[0].with_suffix(".solverstate"))
        write_solverstate(files[-1], iteration, history, files[0].name, step)
    for key, text in (nets | {"solver": solver}).items():
        files.append(folder / f"{key}.prototxt")
        with replacing(files[-1]) as part:
            part.write_text(text)
    return files


def _with_copies(layers: Mapping[str, Sequence[np.ndarray]], spec: NetSpec) -> dict[str, Sequence[np.ndarray]]:
    """Adds what the layers of other scales share with their owners.

    Caffe: src/caffe/net.cpp, Net::ToProto writes them too. Caffe itself could do without; OpenCV's importer knows no shared parameters.
    """
    marks = [suffix(scale) for scale in spec.scales if suffix(scale)]
    copies = {
        layer + mark: arrays
        for mark in marks
        for layer, arrays in layers.items()
        if layer not in NEW_LAYERS or layer == "fc8"
    }
    return dict(layers) | copies


def net_spec(layers: Mapping[str, Sequence[np.ndarray]], model: Mapping[str, object], name: str) -> NetSpec:
    """Describes the network that some weights and a settings file's `model` table make together; see ExportSettings."""
    table = _table(model, _MODEL, {"scales", "merge"}, "model")
    head = {key: table.pop(key, None) for key in _HEAD}
    transform = {key.removeprefix("dt_"): table.pop(key) for key in _TRANSFORM if key in table}
    std = table.pop("filler_std", 0.01)
    shapes = {layer: arrays[0].shape for layer, arrays in layers.items()}
    fillers = {}

    def add(layer: str, out: str | int, kernel: int) -> None:
        if layer not in shapes:
            count = head[out] if isinstance(out, str) else out
            if count is None:
                raise ValueError(
                    f"{name}: the weights must have {layer}, or the settings model.{out}; got neither; add it"
                )
            shapes[layer], fillers[layer] = (count, 0, kernel, kernel), std

    add("fc8", "num_classes", 1)
    if table["merge"] == "attention" and "att_fc" not in shapes:
        add("att_conv1", "attention_filters", head["attention_kernel"] or 3)
        add("att_fc", len(table["scales"]), 1)
    if unknown := [layer for layer in shapes if layer.startswith("att_") and table["merge"] != "attention"]:
        raise ValueError(
            f"{name}: a network without attention must have no {' '.join(unknown)}; got model.merge {table['merge']!r}; correct it"
        )
    return NetSpec(name, shapes, filler_std=fillers, domain_transform=transform, **table)


def _table(table: Mapping[str, object], known: Mapping[str, object], needed: set[str], where: str) -> dict[str, object]:
    """Returns a copy of a settings table whose keys and types are as they must be."""
    if unknown := sorted(set(table) - set(known)):
        raise ValueError(
            f"settings: {where} must have the keys {', '.join(sorted(known))}; got {', '.join(unknown)}; correct them"
        )
    if missing := sorted(needed - set(table)):
        raise ValueError(
            f"settings: {where} must have {', '.join(sorted(needed))}; got no {', '.join(missing)}; add them"
        )
    for key, value in table.items():
        right = isinstance(value, known[key]) and (known[key] is bool or not isinstance(value, bool))
        pairs = value.values() if key == "lr_mult" and right else ()
        right = right and all(isinstance(pair, _LIST) and len(pair) == 2 for pair in pairs)
        numbers = (
            [number for row in (pairs or [value if known[key] is _LIST else ()]) for number in row] if right else ()
        )
        if not right or not all(isinstance(number, _NUMBER) for number in numbers):
            raise ValueError(
                f"settings: {where}.{key} must have the type that README.md shows; got {value!r}; correct it"
            )
    return dict(table)


def model_layers(model: Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns a model's own convolutions for to_caffe: shared copies for other scales are left out.

    Raises:
        ValueError: a layer is no convolution with bias.
    """
    kept = {name: layer.blobs for name, layer in model.with_blobs().items() if not SHARED_COPY.fullmatch(name)}
    for name, blobs in kept.items():
        if len(blobs) != 2 or blobs[0].ndim != 4 or blobs[1].size != blobs[0].shape[0]:
            shapes = " and ".join(str(list(blob.shape)) for blob in blobs)
            raise ValueError(
                f"{model.path}: layer {name!r} must be a convolution with bias; got {shapes}; use shrink-vgg for VGG's own fc6 and fc7"
            )
    return {name: (weight, bias.reshape(-1)) for name, (weight, bias) in kept.items()}
