"""Snapshots: what the rest of a run depends on, written, checked and read; and the network that a finished run left in one."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from caffe_weights.files.atomic import replacing
from repro.models import MultiScale, build
from repro.models.layers import convolutions
from repro.protocol import settings_sha256, training_settings
from repro.shell import one_line

_MAGIC = b"attention-to-scale snapshot 2\n"


def _head(covered: bytes | memoryview) -> bytes:
    """Makes what stands before the content: a line that names the format, and the content's SHA-256."""
    return _MAGIC + hashlib.sha256(covered).hexdigest().encode() + b"\n"


@dataclass
class Snapshot:
    """The state of a training between two iterations.

    Random numbers need no saving: they are functions of the seed and the iteration.

    identity: Names the run by everything that its numbers depend on (see `training_identity`).
    iteration: The next one, counted from 0.
    parameters, history: Values and momentum by "<layer>.weight" and "<layer>.bias", in Caffe's order of learnable parameters.
    curve: (iteration,) float64: the loss of every iteration.
    seconds: Of training, of all sittings.
    sittings: The circumstances of each sitting that changed them: what may change a sum's last bits, such as threads and versions.
    """

    identity: str
    iteration: int
    parameters: dict[str, torch.Tensor]
    history: dict[str, torch.Tensor]
    curve: torch.Tensor
    seconds: float
    sittings: list[dict[str, str]] = field(default_factory=list)


def identity_of(made_from: Mapping[str, Any]) -> str:
    """Names a run by everything that its numbers depend on: settings, data, weights, seed and precision.

    The protocol file's own fingerprint is left out: a comment in it changes no number. So are the backend and the metric, which only a record has.

    Args:
        made_from: A record's provenance.
    """
    kept = {key: value for key, value in made_from.items() if key not in ("backend", "metric")} | {
        "protocol_sha256": None
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def training_identity(made_from: Mapping[str, Any], settings: dict[str, Any]) -> str:
    """Names the training of a run: as `identity_of`, but for what the test does with trained scores, so that another CRF costs no training.

    Args:
        made_from: A record's provenance.
        settings: Of the same record.
    """
    return identity_of({**made_from, "settings_sha256": settings_sha256(training_settings(settings))})


def parameter_shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    """Lists the shapes of a network's parameters by the names that a snapshot gives them."""
    layers = convolutions(network)
    return {
        f"{name}.{blob}": getattr(layer, blob).shape for name, layer in layers.items() for blob in ("weight", "bias")
    }


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Writes a snapshot, with its folder: a killed run leaves the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    content = io.BytesIO()
    torch.save(vars(snapshot), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, open(part, "wb") as file:
        file.write(_head(content.getbuffer()))
        file.write(content.getbuffer())


def read_snapshot(path: Path, identity: str = "", shapes: Mapping[str, torch.Size] | None = None) -> Snapshot:
    """Reads a snapshot, believing nothing: its checksum, its types, its shapes and its values are checked before any is used.

    Args:
        path: The file.
        identity: The run that it must be of, or "" for any.
        shapes: Of the parameters that it must hold, or None for any.

    Returns:
        The snapshot, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another format, another run's or another network's; one line says which.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: must be a snapshot; got no such file; see the run's --out folder")
    try:
        return _checked(_content(path), identity, shapes)
    except Exception as error:  # torch.load's failures have no type of their own
        raise ValueError(
            f"{path}: must be a whole snapshot{' of this very run' if identity else ''}; got {one_line(error)[:200]}; "
            "delete it to start the row again, or choose another --out"
        ) from error


def _content(path: Path) -> dict[str, Any]:
    """Reads what the checksum covers.

    Raises:
        ValueError: The file is none of ours, or is not what was written.
    """
    if not path.is_file():
        raise ValueError("no regular file")
    content = memoryview(path.read_bytes())
    size = len(_head(b""))
    if content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("a file of another kind, or of an earlier version")
    if content[:size] != _head(content[size:]):
        raise ValueError("other bytes than were written (its checksum differs)")
    return torch.load(io.BytesIO(content[size:]), map_location="cpu", weights_only=True)


def _checked(state: Any, identity: str, shapes: Mapping[str, torch.Size] | None) -> Snapshot:
    """Makes a snapshot of what a file holds.

    Raises:
        ValueError: A part is missing, of another type, shape or length, or not finite.
    """
    names = [entry.name for entry in fields(Snapshot)]
    if not isinstance(state, dict) or sorted(state) != sorted(names):
        raise ValueError(f"no table of {', '.join(names)}")
    found = Snapshot(**state)
    if identity and found.identity != identity:
        raise ValueError("another run's snapshot (settings, data, weights, seed or precision differ)")
    if type(found.iteration) is not int or found.iteration < 0:
        raise ValueError(f"iteration {found.iteration!r}")
    if not isinstance(found.seconds, float) or not (math.isfinite(found.seconds) and found.seconds >= 0):
        raise ValueError(f"seconds {found.seconds!r}")
    curve = found.curve
    if not isinstance(curve, torch.Tensor) or curve.dtype != torch.float64 or curve.shape != (found.iteration,):
        raise ValueError(f"a loss curve that does not fit iteration {found.iteration}")
    if not isinstance(found.sittings, list) or not all(isinstance(sitting, dict) for sitting in found.sittings):
        raise ValueError("no list of sittings")
    for what, values in (("parameters", found.parameters), ("history", found.history)):
        if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
            raise ValueError(f"no tensors in {what}")
        wanted = shapes if shapes is not None else {name: value.shape for name, value in found.parameters.items()}
        different = [n for n in wanted.keys() | values.keys() if n not in values or wanted.get(n) != values[n].shape]
        if different:
            raise ValueError(f"{what} of another network: {', '.join(sorted(different))}")
        foreign = [name for name, value in values.items() if value.dtype != torch.float32]
        if foreign:
            raise ValueError(f"{what} that are not float32: {', '.join(foreign)}")
    for what, values in (
        ("curve", [curve]),
        ("parameters", found.parameters.values()),
        ("history", found.history.values()),
    ):
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise ValueError(f"{what} with NaN or infinite values")
    return found


def load_parameters(network: torch.nn.Module, parameters: Mapping[str, torch.Tensor]) -> None:
    """Copies a snapshot's parameters into a network of the same shapes."""
    layers = convolutions(network)
    with torch.no_grad():
        for name, value in parameters.items():
            layer, _, blob = name.rpartition(".")
            getattr(layers[layer], blob).copy_(value)


def trained_network(record: dict[str, Any], path: Path) -> MultiScale:
    """Builds a recorded row's network with the parameters that its training ended with.

    Args:
        record: The row's record.
        path: The snapshot.pt beside it.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: There is no snapshot.
        ValueError: It is damaged, another run's, or not the last; nothing is loaded in part.
    """
    settings = record["settings"]
    network = build(settings["model"], len(settings["data"]["class_names"]), seed=0)
    snapshot = read_snapshot(path, training_identity(record["provenance"], settings), parameter_shapes(network))
    last = settings["solver"]["max_iter"]
    if snapshot.iteration != last:
        raise ValueError(
            f"{path}: must be the last snapshot of the record beside it; got that of iteration {snapshot.iteration} of {last}; "
            "run the row again in an empty --out"
        )
    load_parameters(network, snapshot.parameters)
    return network.eval()
